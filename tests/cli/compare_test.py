"""`segjax compare`: one page from several runs."""

import re
import shutil

import commands
import pytest
from commands import fails, read_log, run

from segjax import api
from segjax.cli import compare
from segjax.report.values import format_metric
from segjax.workdir import Workdir


@pytest.fixture(scope='session')
def other_run(semantic_run, tmp_path_factory):
  """The same network at an earlier step, under the same name and with another config digest."""
  workdir = tmp_path_factory.mktemp('other') / 'semantic'
  shutil.copytree(semantic_run, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '4')
  config = workdir / 'config.json'
  config.write_text(config.read_text().replace('"learning_rate": 0.003', '"learning_rate": 0.125'))
  return workdir


def test_an_evaluation_on_the_training_split_is_not_the_training(tmp_path, capsys):
  """In the log, in what it returns, and in a comparison."""
  workdir = tmp_path / 'run'
  assert commands.train(workdir, '--config.data.eval_split=train', steps=2) == 0
  log = read_log(workdir)
  assert {entry['split'] for entry in log if 'mean_iou' in entry} == {'train[:]'}
  assert {entry['split'] for entry in log if 'grad_norm' in entry} == {'train'}
  assert api._last_metrics(Workdir(workdir))['mean_iou'] == log[-1]['mean_iou']
  other = shutil.copytree(workdir, tmp_path / 'other')
  page = tmp_path / 'page.html'
  command = ['compare', workdir, other, '--from-logs', f'--output={page}']
  for split in ([], ['--split=train']):
    assert run(*command, *split) == 0
    assert format_metric('mean_iou', log[-1]['mean_iou']) in words(page)


def words(page):
  return ' '.join(re.sub(r'<[^>]+>', ' ', page.read_text(encoding='utf-8')).split())


def test_one_page_of_two_runs(semantic_run, other_run, tmp_path, capsys):
  output = tmp_path / 'page.html'
  assert run('compare', semantic_run, other_run, '--images=3', f'--output={output}') == 0
  assert f'2 runs; page: {output}' in capsys.readouterr().out
  assert [path.name for path in tmp_path.iterdir()] == ['page.html']
  source, text = output.read_text(encoding='utf-8'), words(output)
  first, second = (
    read_log(semantic_run)[i]
    for i in (-1, [r['split'] for r in read_log(semantic_run)].index('val'))
  )
  assert (first['step'], second['step']) == (4, 2)
  for record in (first, second):
    assert format_metric('mean_iou', record['mean_iou']) in text
  assert 'optim. learning_rate 0.003 0.125' in text.replace('learning_ rate', 'learning_rate')
  assert '1 of ' in text and ' keys differ' in text
  # The image, its truth and two predictions, of three images.
  assert source.count('<img') == 3 * 4
  assert str(semantic_run) in text and str(other_run) in text, 'two runs of one name by their paths'
  scores = [tuple(map(float, pair)) for pair in zip(*scores_of(source), strict=True)]
  means = [sum(pair) for pair in scores]
  assert len(means) == 3 and means == sorted(means), 'the worst first'


def scores_of(source):
  """The scores in percent, in the order of the page: of the first run, and of the second."""
  found = re.findall(r'<figcaption>[^<]*: mean_iou ([\d.]+)%</figcaption>', source)
  return found[::2], found[1::2]


def test_from_logs_nothing_is_evaluated(semantic_run, other_run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(compare, '_evaluate', lambda *args: pytest.fail('evaluated'))
  lost = tmp_path / 'lost'
  shutil.copytree(other_run, lost, ignore=lambda path, names: {'checkpoints'} & set(names))
  output = tmp_path / 'page.html'
  assert run('compare', semantic_run, lost, '--from-logs', f'--output={output}') == 0
  assert '<img' not in output.read_text(encoding='utf-8')
  assert format_metric('mean_iou', read_log(semantic_run)[-1]['mean_iou']) in words(output)
  assert '2 runs' in capsys.readouterr().out


@pytest.mark.slow
def test_runs_of_two_tasks_share_configs_and_curves(semantic_run, instance_run, tmp_path):
  output = tmp_path / 'page.html'
  assert run('compare', semantic_run, instance_run, f'--output={output}') == 0
  text = words(output)
  assert 'not shown, because the runs do not score an image by the same measure' in text
  assert 'mask_ ap' in text and 'mean_ iou' in text


def compare_with_itself(workdir, tmp_path):
  """The number of images on the page of a run and its copy, of two examples."""
  copy, output = tmp_path / 'copy', tmp_path / 'page.html'
  shutil.copytree(workdir, copy)
  assert run('compare', workdir, copy, '--images=2', f'--output={output}') == 0
  return output.read_text(encoding='utf-8').count('<img')


@pytest.mark.slow
def test_objects(instance_run, tmp_path):
  assert compare_with_itself(instance_run, tmp_path) == 2 * 4


@pytest.mark.slow
def test_segments(panoptic_run, tmp_path):
  assert compare_with_itself(panoptic_run, tmp_path) == 2 * 4


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['{run}'], 'is a single run: name two or more workdirs to compare'),
    (['{run}', '{run}/.'], 'is named twice: name each workdir once'),
    (['{run}', '{run}/../none'], 'is not the workdir of a run'),
    (['{run}', '{other}', '--output=none/x.html'], 'in a directory that does not exist: name a'),
    (['{run}', '{other}', '--output=.'], 'is a directory: name a file such as compare.html'),
    (['{run}', '{other}', '--from-logs', '--checkpoint=best'], '--from-logs evaluates nothing'),
    (['{run}', '{other}', '--split=tset'], 'has no split'),
    (['{run}', '{other}', '--from-logs', '--split=vla'], 'no evaluation on it: did you mean val?'),
    (['{run}', '{other}', '--config.model.width=3'], 'belongs to the training'),
  ],
)
def test_mistakes_are_one_sentence(semantic_run, other_run, args, message, tmp_path, capsys):
  args = [arg.format(run=semantic_run, other=other_run) for arg in args]
  output = [] if any('--output' in arg for arg in args) else [f'--output={tmp_path / "x.html"}']
  assert message in fails(capsys, 'compare', *args, *output)
  assert not list(tmp_path.iterdir())
