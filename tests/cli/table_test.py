"""`segjax table` on a synthetic table: training, resuming, recording and rendering."""

import json
import re
import shutil

import commands
import pytest
import tiny_table
from PIL import Image

from segjax import config as config_lib
from segjax import provenance
from segjax.cli import table as table_command
from segjax.tables import results, runs, spec
from segjax.workdir import Workdir


def run(*args):
  """The exit code of `segjax table args`."""
  return commands.run('table', *args)


def fails(capsys, *args):
  capsys.readouterr()
  assert run(*args) == 2
  return capsys.readouterr().err


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
  """A table whose two rows were trained, and its workdirs."""
  root = tmp_path_factory.mktemp('tables')
  folder, workdirs = tiny_table.write_table(root), root / 'runs'
  assert run(folder, '--run', 'second', f'--workdirs={workdirs}') == 0
  return folder, workdirs


@pytest.fixture
def copied(filled, tmp_path):
  """A copy that tests may modify."""
  folder, workdirs = (tmp_path / p.name for p in filled)
  shutil.copytree(filled[1], workdirs)
  folder = tiny_table.write_table(tmp_path)
  return folder, workdirs


@pytest.fixture
def table_and_page(tmp_path):
  folder = tiny_table.write_table(tmp_path)
  (folder / 'README.md').write_text('old')
  return spec.read_table(folder), folder / 'README.md'


def test_run_trains_a_row_after_the_one_it_starts_from(filled):
  folder, workdirs = filled
  table = spec.read_table(folder)
  second, first = results.read_results(table)
  assert (second.row, second.seed, second.checkpoint, second.steps) == ('second', 0, 'best', 2)
  assert (first.row, first.weights, second.weights) == ('first', 'scratch', 'first.small')
  assert second.step in (1, 2)
  assert (second.split, second.data) == ('val', 'scenes/tiny 1.0.0')
  assert second.config_digest == runs.entry_digest(table.entries['second.small'])
  assert second.parameters == table_command.entry_facts(table.entries['second.small'])['parameters']
  assert second.seconds > 0
  assert second.versions.startswith('segjax ')
  assert second.hardware == provenance.hardware()
  assert second.command == runs.command(table, runs.Job(table.entries['second.small'], 0))
  assert str(folder.parent) not in (folder / 'results.jsonl').read_text()
  started = Workdir(str(workdirs / 'second.small.seed0')).read_config()['init_from']
  assert started == {
    'path': str(workdirs / 'first.small.seed0'),
    'source': None,
    'checkpoint': 'best',
    'reset': [],
  }


def test_results_are_those_of_evaluate(filled, capsys):
  folder, workdirs = filled
  record = results.read_results(spec.read_table(folder))[0]
  workdir = workdirs / 'second.small.seed0'
  metrics = commands.output(capsys, 'evaluate', f'--workdir={workdir}', '--checkpoint=best')
  assert record.step == metrics['step']
  assert record.metrics['mean_iou'] == pytest.approx(metrics['mean_iou'], abs=1e-6)
  sky = metrics['per_class']['sky']['iou']
  assert record.metrics['per_class'] == {'sky': {'iou': pytest.approx(sky, abs=1e-6)}}


def test_prints_markdown_json_and_a_page(filled, capsys):
  folder, workdirs = filled
  before = (folder / 'results.jsonl').read_text()
  capsys.readouterr()
  assert run(folder) == 0
  out = capsys.readouterr().out
  assert out.startswith('# A paper, Table 1\n')
  assert re.search(r'\| Second \| small \| 62.70 \| \d+\.\d \|', out)
  assert '<summary>not run (1)</summary>' in out
  assert '| First | measured | 60.0 (unverified) | 0.00125 (unverified) |' in out
  assert run(folder, '--json') == 0
  content = json.loads(capsys.readouterr().out)
  assert content['rows'][0]['measured']['mIoU']['seeds'] == 1
  assert content['rows'][2]['measured']['mIoU'] is None
  assert run(folder, '--html', f'--workdirs={workdirs}') == 0
  html = (workdirs / 'table.html').read_text()
  assert html.count('data:image/png') == 8, 'one example of each row in four panels'
  assert '<summary>Not run (1)</summary>' in html
  assert 'Examples of second.small' in html
  assert run(folder, f'--html={workdirs / "other.html"}', '--workdirs=nowhere') == 0
  assert 'data:image/png' not in (workdirs / 'other.html').read_text()
  assert (folder / 'results.jsonl').read_text() == before


def test_an_image_of_each_row_is_kept(filled, capsys):
  folder, _ = filled
  records = results.read_results(spec.read_table(folder))
  assert [p.name for p in sorted(folder.glob('images/*'))] == sorted(
    f'{r.entry}.seed0.{r.config_digest}.jpg' for r in records
  )
  for record in records:
    with Image.open(folder / record.image) as image:
      height, width = image.size[::-1]
    # Three panels of 16 x 16, enlarged, and a legend.
    assert height % 16 == 0 and width > 3 * height
    assert re.fullmatch(r'.+, the median of 8 images by mean_iou \(\d+\.\d%\)', record.image_note)
  capsys.readouterr()
  assert run(folder) == 0
  assert capsys.readouterr().out.count('![') == 2


def test_only_the_first_seed_of_a_row_has_an_image(copied, monkeypatch):
  folder, workdirs = copied
  first = f'first.small={workdirs / "first.small.seed0"}'
  record = ['--record', first, f'--workdirs={workdirs}']
  table = spec.read_table(folder)
  digest = runs.entry_digest(table.entries['first.small'])
  seed_1 = tiny_table.make_record(seed=1, config_digest=digest, image='images/other.jpg')
  results.write_records(table, [seed_1])
  assert run(folder, *record) == 0
  assert [r.image for r in results.read_results(table)] == [None, 'images/other.jpg']
  assert not (folder / 'images').exists()


def test_scoreboard(filled, tmp_path, monkeypatch, capsys):
  folder, _ = filled
  monkeypatch.chdir(folder.parent.parent)
  capsys.readouterr()
  assert run('--all') == 0
  text = capsys.readouterr().out
  assert text.startswith('# Scoreboard\n')
  assert re.search(
    r'\| \[tiny_table1\]\(tiny_table1/README.md\) \| Second \| small \| mIoU \(%\) ↑ \| 62.70 \| '
    r'\d+\.\d \| −\d+\.\d \|',
    text,
  )
  found = commands.output(capsys, 'table', '--all')
  assert [(row['row'], row['recipe']) for row in found['measured']] == [
    ('second', 'small'),
    ('first', 'small'),
  ]
  assert (found['tables'][0]['not_run'], found['tables'][0]['quoted']) == (1, 1)
  monkeypatch.chdir(tmp_path)  # where there are no tables of one's own
  shipped = commands.output(capsys, 'table', '--all')
  assert 'segnet_table6' in [row['table'] for row in shipped['measured']]


def test_recording_updates_the_scoreboard(copied):
  folder, workdirs = copied
  page = folder.parent / 'README.md'
  page.write_text('old')
  first = workdirs / 'first.small.seed0'
  assert run(folder, '--record', f'first.small={first}', f'--workdirs={workdirs}') == 0
  assert '| First | small | mIoU (%) ↑ |' in page.read_text()


def test_another_table_that_is_broken_does_not_stop_a_recording(copied, capsys):
  folder, workdirs = copied
  page = folder.parent / 'README.md'
  page.write_text('old')
  broken = folder.parent / 'a_table/table.toml'
  broken.parent.mkdir()
  broken.write_text('[rows')
  first = workdirs / 'first.small.seed0'
  assert run(folder, '--record', f'first.small={first}', f'--workdirs={workdirs}') == 0
  assert f'{page} is not updated: {broken} is not valid TOML' in capsys.readouterr().err
  assert page.read_text() == 'old' and len(results.read_results(spec.read_table(folder))) == 1


def test_tables_that_record_at_once_write_what_both_have_recorded(table_and_page, monkeypatch):
  """One records and writes while another makes the page from what it has read."""
  table, page = table_and_page
  make_lines = table_command.page.make_lines

  def interrupted(*args):
    monkeypatch.setattr(table_command.page, 'make_lines', make_lines)
    results.write_records(table, [tiny_table.make_record(row='second')])
    table_command.update_pages(table)
    return make_lines(*args)

  monkeypatch.setattr(table_command.page, 'make_lines', interrupted)
  results.write_records(table, [tiny_table.make_record()])
  table_command.update_pages(table)
  assert '| Second | small |' in page.read_text().partition('<details')[0]


def test_a_script_of_a_table_prints_beside_its_json(tmp_path, capfd):
  folder = tiny_table.write_table(tmp_path)
  (folder / 'measure.py').write_text("print('chatter')\n")
  assert run(folder, '--run', 'first.measured', '--json') == 0
  out, err = capfd.readouterr()
  assert json.loads(out)['rows'] and 'chatter' in err


def test_rows_of_one_title_are_two_lines_of_the_page(tmp_path):
  text = tiny_table.TABLE.replace("title = 'Second'", "title = 'First'")
  text = text.replace("Second = 'the one after the first'", '')
  table = spec.read_table(tiny_table.write_table(tmp_path, text))
  lines = table_command.page.make_lines(table, [], lambda entry: {})
  section = table_command._lines_section('Not run', table, lines)
  assert section.title == 'Not run (4)'


def test_a_changed_recipe_is_trained_again_and_the_old_result_stays(copied, monkeypatch, capsys):
  folder, workdirs = copied
  table = spec.read_table(folder)
  old = tiny_table.make_record(config_digest='0' * 12)
  results.write_records(table, [old])
  first = workdirs / 'first.small.seed0'
  capsys.readouterr()
  assert run(folder, '--run', 'first.small', f'--workdirs={workdirs}') == 0
  assert 'to run: first.small.seed0' in capsys.readouterr().err
  kept, new = results.read_results(table)
  assert (kept, new.config_digest) == (old, runs.entry_digest(table.entries['first.small']))
  config = folder.parent.parent / 'configs/tiny/small.py'
  config.write_text(config.read_text().replace("'width': 2", "'width': 3"))
  message = fails(capsys, folder, '--record', f'first.small={first}')
  assert 'config.model.width is 2, not 3' in message and 'use other --workdirs' in message


def test_what_is_recorded_is_not_run_again(filled, monkeypatch, capsys):
  folder, workdirs = filled
  monkeypatch.setattr(table_command, 'train', lambda *args: 1 / 0)
  assert run(folder, '--run', '*.small', f'--workdirs={workdirs}') == 0
  assert 'to run: nothing' in capsys.readouterr().err


def test_resumes_where_it_stopped(copied, filled, capsys):
  folder, workdirs = copied
  shutil.rmtree(workdirs / 'second.small.seed0' / 'checkpoints' / '2')
  first = workdirs / 'first.small.seed0'
  assert run(folder, '--run', 'second', f'--workdirs={workdirs}') == 2
  assert 'was created with a different config' in capsys.readouterr().err, 'it was moved'
  config = Workdir(str(workdirs / 'second.small.seed0'))
  config.write_config(config_lib.override(config.read_config(), [('init_from.path', str(first))]))
  assert run(folder, '--run', 'second', f'--workdirs={workdirs}') == 0
  err = capsys.readouterr().err
  assert 'resuming from step 1 of 2' in err
  assert 'first.small.seed0: starting' not in err
  again, before = (results.read_results(spec.read_table(f))[0] for f in (folder, filled[0]))
  assert again.metrics == before.metrics
  starts = Workdir(str(workdirs / 'second.small.seed0')).read_starts()
  assert [s['step'] for s in starts] == [0, 1]


def test_records_what_was_trained_by_hand(copied, filled, capsys):
  folder, workdirs = copied
  (folder / 'README.md').write_text('old')
  by_hand = workdirs / 'by_hand'
  (workdirs / 'first.small.seed0').rename(by_hand)
  facts = ['--fact', 'commit=1e077fc', '--fact', 'note=by hand']
  record_it = (folder, '--record', f'first.small={by_hand}', f'--workdirs={workdirs}', *facts)
  capsys.readouterr()
  (start,) = Workdir(str(by_hand)).read_starts()
  for commit in ('7ac4161', None):  # as where Git cannot tell
    (by_hand / 'starts.jsonl').write_text(json.dumps({**start, 'commit': commit}) + '\n')
    if commit:
      message = f'--fact=commit=1e077fc: {by_hand} has 7ac4161: leave it out'
      assert message in fails(capsys, *record_it)
  assert run(*record_it) == 0
  record, before = (results.read_results(spec.read_table(f))[-1] for f in (folder, filled[0]))
  assert (record.commit, record.note) == ('1e077fc', 'by hand')
  assert record.metrics == before.metrics
  out, err = capsys.readouterr()
  assert '1e077fc' in out
  assert (folder / 'README.md').read_text() == out
  assert 'pass --fact' not in err
  (by_hand / 'starts.jsonl').unlink()  # as in a workdir from another machine
  assert run(*record_it) == 0
  assert 'the workdir has no hardware, versions: pass --fact' in capsys.readouterr().err


def test_measures_what_the_row_asks_for(copied):
  """Even if fewer metrics were evaluated in training."""
  folder, workdirs = copied
  config = folder.parent.parent / 'configs/tiny/small.py'
  eval_keys = "'eval': {'metrics': ('confusion', 'boundary')}, 'data'"
  config.write_text(config.read_text().replace("'data'", eval_keys))
  first = workdirs / 'first.small.seed0'
  assert run(folder, '--record', f'first.small={first}', f'--workdirs={workdirs}') == 0
  (record,) = results.read_results(spec.read_table(folder))
  assert {'boundary_f1', 'mean_iou'} <= set(record.metrics)


def test_refuses_what_is_not_the_row(copied, capsys):
  folder, workdirs = copied
  first, second = (workdirs / f'{n}.small.seed0' for n in ('first', 'second'))
  message = fails(capsys, folder, '--record', f'first.small={second}')
  assert 'was not trained as first.small' in message
  assert 'config.eval.test_time_augmentation' in message
  assert 'config.optim.learning_rate' in message
  shutil.rmtree(first / 'checkpoints' / '2')
  message = fails(capsys, folder, '--record', f'first.small={first}')
  assert 'is not trained to its end, step 2' in message
  assert not (folder / 'results.jsonl').exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--record', 'first=x'], 'must be ROW.RECIPE=WORKDIR'),
    (['--record', 'first.small'], 'must be ROW.RECIPE=WORKDIR'),
    (['--record', 'first.measured=x'], 'must be ROW.RECIPE=WORKDIR'),
    (['--record', 'first.small=x'], 'is not the workdir of a run'),
    (['--run', 'frist'], 'did you mean first'),
    (['--run', 'first.small', '--seeds=0,a'], '--seeds=0,a must be a list'),
    (['--fact', 'comit=x'], 'did you mean commit'),
    (['--run', 'first', '--fact', 'hardware=x'], '--fact=hardware=x: this process has '),
    (['--run', '--config.train.steps=1'], 'config.train.steps would change the rows'),
    (['--run', 'first.measured'], 'measure.py failed with exit code 3'),
    (['--all', '--run'], '--all prints the scoreboard of all tables: leave out NAME, --run'),
    (['--all', '--seeds=0,1', '--workdirs=x'], 'leave out NAME, --workdirs, --seeds'),
    (['--seeds=0,1'], '--seeds: nothing is trained without --run'),
    (['--html=.'], '--html=. is a directory: name a file in it'),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, args, message):
  err = fails(capsys, tiny_table.write_table(tmp_path), *args)
  assert message in err.splitlines()[-1]
  assert not (tmp_path / 'experiments/tiny_table1/results.jsonl').exists()


def test_a_table_has_to_be_named(capsys):
  assert 'needs a NAME' in fails(capsys)
