import dataclasses
import json
from pathlib import Path

import pytest
import tiny_table

from segjax import config as config_lib
from segjax.tables import runs, spec
from segjax.tables.runs import Job
from segjax.types import SegjaxError


@pytest.fixture
def entries(table):
  return table.entries


def test_given_config_has_the_overrides_and_leaves_the_start_open(entries):
  second = runs.given_config(entries['second.small'])
  assert second['optim'] == {'name': 'adamw', 'learning_rate': 5e-4}
  assert second['init_from'] == {'path': '', 'source': None}
  assert 'init_from' not in runs.given_config(entries['first.small'])


def test_digest_is_of_what_binds(tmp_path):
  def digest(config=tiny_table.CONFIG, text=tiny_table.TABLE):
    folder = tiny_table.write_table(tmp_path, text)
    (tmp_path / 'configs/tiny/small.py').write_text(config)
    return runs.entry_digest(spec.read_table(folder).entries['first.small'])

  first = digest()
  assert len(first) == 12
  change = lambda old, new: tiny_table.CONFIG.replace(old, new)
  assert digest(change("'log_every': 1", "'log_every': 2, 'seed': 5")) == first
  assert digest(change("'scenes/tiny',", "'scenes/tiny', 'source': 'x',")) == first
  assert digest(change("'width': 2", "'width': 3")) != first
  assert digest(text=tiny_table.TABLE.replace("'flip'", "'dihedral'")) != first
  assert digest() == first


def test_a_script_has_no_digest(entries):
  assert runs.entry_digest(entries['first.measured']) is None


def test_training_overrides_and_command(table, entries):
  first, second = Job(entries['first.small'], 3), Job(entries['second.small'], 3)
  added = [('data.source', 'raw'), ('init_from.path', 'vgg.pth')]
  assert runs.training_overrides(table, first, Path('w'), added) == (
    ('eval.test_time_augmentation', 'flip'),
    ('data.source', 'raw'),  # it does not start from a file: no path
    ('train.seed', '3'),
  )
  assert runs.training_overrides(table, second, Path('w'), added) == (
    ('optim.learning_rate', '0.0005'),
    ('data.source', 'raw'),
    ('init_from.path', 'w/first.small.seed3'),
    ('init_from.source', 'none'),
    ('train.seed', '3'),
  )
  message = runs.command(table, second)
  assert str(table.root) not in message
  assert message == (
    'segjax train --config=configs/tiny/small.py '
    '--workdir=runs/tiny_table1/second.small.seed3 --config.optim.learning_rate=0.0005 '
    '--config.init_from.path=runs/tiny_table1/first.small.seed3 --config.init_from.source=none '
    '--config.train.seed=3'
  )


def test_a_file_to_start_from_is_for_those_that_start_from_one(tmp_path):
  table = spec.read_table(tiny_table.write_table(tmp_path))
  config = tiny_table.CONFIG.replace(
    "'losses'", "'init_from': {'path': 'a', 'source': 'b'}, 'losses'"
  )
  (tmp_path / 'configs/tiny/small.py').write_text(config)
  added = [('init_from.path', 'vgg.pth')]
  first, second = (Job(table.entries[f'{n}.small'], 0) for n in ('first', 'second'))
  assert added[0] in runs.training_overrides(table, first, Path('w'), added)
  assert added[0] not in runs.training_overrides(table, second, Path('w'), added)


@pytest.mark.parametrize('key', ['data.source', 'data.dir', 'mesh.data', 'init_from.path'])
def test_overrides_of_all_rows(key):
  runs.check_overrides([(key, '1')])


@pytest.mark.parametrize(
  'key',
  [
    *('train.steps', 'train.seed', 'init_from.source', 'optim.ema'),
    # They decide which checkpoint is the best, and which examples and updates count.
    *('train.eval_every', 'eval.metrics', 'data.bad_examples'),
    *('train.nonfinite', 'train.max_skipped'),
  ],
)
def test_overrides_that_would_change_the_rows(key):
  with pytest.raises(SegjaxError, match=f'config.{key} would change the rows'):
    runs.check_overrides([(key, '1')])


def read(workdir):
  return json.loads((workdir / 'config.json').read_text())


def complete(config):
  """Fills in two defaults, instead of the real ones."""
  filled = {'mesh': {'data': -1}, 'init_from': None, **config}
  return {**filled, 'train': {'seed': 0, **filled['train']}}


def check(table, name, workdir):
  return runs.check_workdir(table, table.entries[name], workdir, complete=complete, read=read)


def freeze(table, name, workdir, *overrides):
  """A workdir that was trained as an entry, but for `overrides`."""
  workdir.mkdir()
  config = config_lib.override(complete(runs.given_config(table.entries[name])), overrides)
  (workdir / 'config.json').write_text(json.dumps(config))
  return workdir


def test_workdir_of_the_entry(table, tmp_path):
  free = [('data.source', 'x'), ('mesh.data', '4'), ('train.log_every', '7'), ('train.seed', '2')]
  workdir = freeze(table, 'first.small', tmp_path / 'a', *free)
  assert check(table, 'first.small', workdir)['train']['seed'] == 2


def test_workdir_of_another_config_is_refused_by_name(table, tmp_path):
  workdir = freeze(table, 'first.small', tmp_path / 'a', ('model.width', '3'), ('train.steps', '9'))
  with pytest.raises(SegjaxError) as e:
    check(table, 'first.small', workdir)
  assert 'config.model.width is 3, not 2, config.train.steps is 9, not 2' in str(e.value)
  with pytest.raises(SegjaxError, match='config.init_from'):
    check(table, 'second.small', freeze(table, 'first.small', tmp_path / 'b'))


def test_workdir_has_to_start_from_what_its_entry_starts_from(table, tmp_path):
  freeze(table, 'first.small', tmp_path / 'start')
  from_start = ('init_from.path', str(tmp_path / 'start'))
  second = freeze(table, 'second.small', tmp_path / 'second', from_start)
  check(table, 'second.small', second)

  moved = freeze(table, 'second.small', tmp_path / 'moved', ('init_from.path', '/elsewhere/start'))
  check(table, 'second.small', moved)
  lost = freeze(table, 'second.small', tmp_path / 'lost', ('init_from.path', '/elsewhere/x'))
  with pytest.raises(SegjaxError, match='move that workdir next to'):
    check(table, 'second.small', lost)

  freeze(table, 'first.small', tmp_path / 'wide', ('model.width', '9'))
  wrong = freeze(table, 'second.small', tmp_path / 'wrong', ('init_from.path', '/elsewhere/wide'))
  with pytest.raises(SegjaxError, match='wide was not trained as first.small'):
    check(table, 'second.small', wrong)


def test_a_merged_run_starts_from_no_single_place(tmp_path):
  trained = {'init_from': {'path': {'semantic': str(tmp_path), 'instance': str(tmp_path)}}}
  assert runs.find_start(tmp_path / 'a', trained) is None
  assert runs.find_start(tmp_path / 'a', {'init_from': {'path': str(tmp_path)}}) == tmp_path
  assert runs.find_start(tmp_path / 'a', {'init_from': None}) is None


def test_a_row_that_starts_from_a_file_may_not_start_from_a_run(tmp_path):
  folder = tiny_table.write_table(tmp_path)
  config = tiny_table.CONFIG.replace("'losses'", "'init_from': {'path': 'a'}, 'losses'")
  (tmp_path / 'configs/tiny/small.py').write_text(config)
  table = spec.read_table(folder)
  (tmp_path / 'run').mkdir()
  workdir = freeze(table, 'first.small', tmp_path / 'x', ('init_from.path', str(tmp_path / 'run')))
  with pytest.raises(SegjaxError, match='starts from a file'):
    check(table, 'first.small', workdir)


def names(jobs):
  return [job.name for job in jobs]


def test_select(table):
  select = lambda *wanted: [e.name for e in runs.select(table, wanted)]
  assert select() == list(table.entries)
  assert select('first') == ['first.small', 'first.measured']
  assert select('*.small') == ['second.small', 'first.small']
  assert select('first.measured', 'second') == ['second.small', 'first.measured']
  with pytest.raises(SegjaxError, match='unknown entry frist of tiny_table1: did you mean first'):
    select('frist')
  with pytest.raises(SegjaxError, match='unknown entry other'):
    select('other')
  mean = dataclasses.replace(table.rows['other'], mean_of=('first', 'second'))
  table = dataclasses.replace(table, rows={**table.rows, 'other': mean})
  assert select('other') == list(table.entries)
  assert select('other.small') == ['second.small', 'first.small']


def test_plan_is_in_order_and_of_missing_jobs(table, entries):
  never, always = (lambda job: False), (lambda job: True)
  plan = lambda wanted, seeds, records, finished: names(
    runs.plan(table, runs.select(table, wanted), seeds, records, finished)
  )
  assert plan([], [0], [], never) == ['first.small.seed0', 'first.measured', 'second.small.seed0']
  assert plan(['second'], [0, 1], [], never) == [
    'first.small.seed0',
    'first.small.seed1',
    'second.small.seed0',
    'second.small.seed1',
  ]
  assert plan(['second'], [0], [], always) == ['second.small.seed0']
  first = tiny_table.make_record()
  assert plan(['*.small'], [0], [first], always) == ['second.small.seed0']
  # It has a record, but no workdir to start from.
  assert plan(['*.small'], [0], [first], never) == ['first.small.seed0', 'second.small.seed0']
  second = tiny_table.make_record(row='second')
  assert plan(['*.small'], [0], [first, second], never) == []
  assert plan(['*.small'], [0, 1], [first, second], always) == [
    'first.small.seed1',
    'second.small.seed1',
  ]
  script = tiny_table.make_record(recipe='measured', seed=None)
  assert plan(['first.measured'], [0, 1], [script], never) == []


def test_missing_is_by_checkpoint(entries):
  entry = entries['first.small']._replace(checkpoints=('best', 'latest'))
  assert runs.missing(entry, 0, [tiny_table.make_record()]) == ['latest']
  assert runs.missing(entry, 1, [tiny_table.make_record()]) == ['best', 'latest']


def test_a_record_of_an_earlier_config_counts_as_missing(entries):
  entry = entries['first.small']
  current = tiny_table.make_record(config_digest=runs.entry_digest(entry))
  earlier = tiny_table.make_record(config_digest='0' * 12)
  unknown = tiny_table.make_record()
  assert [runs.is_earlier(r, entry) for r in (current, earlier, unknown)] == [False, True, False]
  assert runs.missing(entry, 0, [earlier]) == ['best']
  assert runs.missing(entry, 0, [earlier, current]) == []


def test_chains_do_not_wait_for_each_other(table):
  jobs = runs.plan(table, runs.select(table, []), [0, 1], [], lambda job: False)
  assert [names(chain) for chain in runs.chains(table, jobs)] == [
    ['first.small.seed0', 'second.small.seed0'],
    ['first.small.seed1', 'second.small.seed1'],
    ['first.measured'],
  ]
