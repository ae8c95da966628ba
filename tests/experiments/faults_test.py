"""The harness of experiments/faults: comparisons, damages, judgement and page; no row is run."""

import collections
import json
import shutil

import numpy as np
import pytest


@pytest.fixture(scope='module', autouse=True)
def package(root):
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(root / 'experiments')
    yield


def result(**more):
  return {
    'row': 'sigkill_semantic',
    'tries': 3,
    'happened': {'killed at a step': 2, 'killed at the start': 1},
    'lost': {},
    'notes': {'steps done again': '4 of 300'},
    'command': 'python experiments/faults/run.py --rows=sigkill_semantic',
    'seconds': 600,
    'date': '2026-01-02',
    'commit': '0123456789',
    'dirty': False,
    'hardware': '1 x CPU',
    'versions': 'segjax 0, jax 0',
    **more,
  }


def test_the_page_is_of_the_results(root):
  from faults import page, run
  from faults.rows import KINDS

  import lines

  assert (run.HERE / 'README.md').read_text() == page.render(lines.read(run.RESULTS), KINDS)


def test_the_page_says_what_was_lost_and_what_was_not_run():
  from faults import page
  from faults.rows import KINDS

  lines = page.render([result(lost={'old': 1}), result()], KINDS).splitlines()
  [line] = [line for line in lines if line.endswith('| `sigkill_semantic` |')]
  assert '| 3 | 2 × killed at a step; 1 × killed at the start | nothing |' in line
  [line] = [line for line in lines if line.endswith('| `record` |')]
  assert '| not run |' in line
  lines = page.render([result(lost={'a checkpoint': 2})], KINDS).splitlines()
  assert any('**2 × a checkpoint**' in line for line in lines)


def test_a_sentence_is_one_line_without_a_traceback():
  from faults.place import Ended

  assert Ended(2, 'step 1/2\nsegjax: a: no space\n').sentence() == 'a: no space'
  assert Ended(1, 'segjax: a: no space\n').sentence() is None
  assert Ended(2, 'Traceback (most recent call last):\nsegjax: a: no space\n').sentence() is None
  assert Ended(2, 'usage: segjax\n').sentence() is None
  described = [Ended(*e).describe() for e in ((None, ''), (0, ''), (1, 'Traceback'), (-9, ''))]
  assert described == ['hung', 'done', 'a traceback', 'exit code -9']


@pytest.fixture
def workdirs(tmp_path, monkeypatch):
  """Two equal runs, whose arrays are in `state.json`."""
  from faults import place

  read = lambda workdir: json.loads((workdir / 'state.json').read_text())
  monkeypatch.setattr(place, 'state', read)
  first = tmp_path / 'first'
  first.mkdir()
  (first / 'state.json').write_text(json.dumps({'step': 'a', 'params.w': 'b'}))
  entries = [{'step': s, 'split': 'train', 'loss': 1 / s, 'time': 'now'} for s in (1, 2)]
  (first / 'metrics.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in entries))
  return first, shutil.copytree(first, tmp_path / 'second')


def test_equal_runs_have_lost_nothing(workdirs):
  from faults import place

  log = workdirs[0] / 'metrics.jsonl'
  log.write_text(log.read_text().replace('now', 'later'))
  assert list(place.differences(*workdirs)) == []


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'lost'),
  [
    ('state.json', '"b"', '"c"', ['the same state, bit for bit']),
    ('state.json', '"a"', '"c"', ['the last steps', 'the same state, bit for bit']),
    ('metrics.jsonl', '"loss": 0.5', '"loss": 0.6', ['equal values in the log']),
    ('metrics.jsonl', '"step": 2', '"step": 1', ['entries of the log once', 'entries of the log']),
  ],
)
def test_differences_are_named(workdirs, file, old, new, lost):
  from faults import place

  path = workdirs[0] / file
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))
  assert list(place.differences(*workdirs)) == lost


def test_half_written_files_are_found(tmp_path):
  from faults import kills

  (tmp_path / 'checkpoints/5').mkdir(parents=True)
  assert kills.half_written(tmp_path) == []
  (tmp_path / 'checkpoints/10.orbax-checkpoint-tmp-3').mkdir()
  assert kills.half_written(tmp_path) == ['checkpoints/10.orbax-checkpoint-tmp-3']


def test_targets_are_steps_of_the_run():
  from faults import kills
  from faults.place import SEMANTIC

  found = kills.targets(np.random.default_rng(0), SEMANTIC, 30)
  assert found == sorted(set(found)) and len(found) == 30
  assert min(found) >= 1 and max(found) < SEMANTIC.steps


def test_every_damage_changes_the_file(tmp_path):
  from faults.files import DAMAGES

  path, content = tmp_path / 'file', bytes(range(100))
  for way, damage in DAMAGES.items():
    path.write_bytes(content)
    damage(path, np.random.default_rng(0))
    assert not path.exists() or path.read_bytes() != content, way


def test_recipes_take_other_keys():
  from faults.place import SEMANTIC

  other = SEMANTIC.but(steps=7, model__width=9)
  assert other.steps == 7
  assert other.overrides['model.width'] == 9
  assert SEMANTIC.overrides['model.width'] != 9
  arguments = other.arguments('w', 'd')
  assert {'--config.train.steps=7', '--config.model.width=9', '--workdir=w'} <= set(arguments)


def samples(count=40, **growth):
  from faults.soak import Sample

  rng, constant = np.random.default_rng(0), {'memory': 5e8, 'files': 30, 'threads': 20}
  for i in range(count):
    counts = {k: v + growth.get(k, 0) * i for k, v in {**constant, 'compiled': 50}.items()}
    counts['memory'] += rng.normal() * 1e6
    yield Sample(processor=90.0 * i, step=10 * i, **counts)


@pytest.mark.parametrize(
  ('growth', 'lost'),
  [
    ({}, []),
    ({'memory': 1e6}, ['memory that grows']),
    ({'files': 1}, ['open files that grow']),
    ({'threads': 1}, ['threads that grow']),
    ({'compiled': 1}, ['compilations that grow']),
  ],
)
def test_a_soak_is_judged(growth, lost):
  from faults import soak
  from faults.row import Outcome

  outcome = Outcome()
  soak.judge(list(samples(**growth)), outcome)
  assert sorted(outcome.lost) == lost
  # 1 MB every 90 seconds.
  slope = float(outcome.notes['slope of it, MB an hour of processor time'].split()[0])
  assert slope == pytest.approx(growth.get('memory', 0) / 1e6 * 40, abs=1.5)


def test_counts_that_go_up_and_down_do_not_grow():
  from faults import soak
  from faults.row import Outcome

  outcome, rng = Outcome(), np.random.default_rng(0)
  found = [s._replace(threads=90 + int(rng.integers(10))) for s in samples()]
  found[10], found[-1] = found[10]._replace(threads=94), found[-1]._replace(threads=95)
  soak.judge(found, outcome)
  assert not outcome.lost
  assert outcome.notes['threads'].endswith('94 then 95')


def test_a_slope_and_its_error():
  from faults import soak

  x = np.arange(6.0)
  assert soak.slope(x, 3 * x + 1) == (pytest.approx(3), pytest.approx(0, abs=1e-12))
  noise = np.random.default_rng(0).normal(size=(2000, 6))
  found = [soak.slope(x, x + n) for n in noise]
  spread = np.std([value for value, _ in found])
  assert np.sqrt(np.mean([error**2 for _, error in found])) == pytest.approx(spread, rel=0.05)


def test_a_row_that_fails_leaves_a_result(monkeypatch, tmp_path, capsys):
  from faults import run
  from faults.place import Place
  from faults.row import Row

  def fails(place, options):
    raise RuntimeError('no')

  monkeypatch.setitem(run.ROWS, 'fails', Row('a fault', fails))
  args = run.parser().parse_args(['--rows=fails'])
  found = run.run_row('fails', Place(tmp_path), args)
  assert found['error'] == 'RuntimeError: no'
  assert 'no' in capsys.readouterr().err
  assert run.command('soak_semantic', args).endswith('--rows=soak_semantic --minutes=60')


def test_counters_are_plain_json():
  from faults.row import Outcome

  outcome = Outcome(2, collections.Counter(a=2), collections.Counter(), {'b': 1})
  assert json.loads(json.dumps(outcome.to_json())) == {
    'tries': 2,
    'happened': {'a': 2},
    'lost': {},
    'notes': {'b': 1},
  }


def test_a_nan_reaches_every_loss():
  from faults import inject

  from segjax.types import SumCount

  losses = inject._faulty(lambda outputs, batch: {'a': SumCount(np.float32(2), np.float32(4))})
  fault = np.zeros(3, np.float32)
  assert losses(None, {'fault': fault})['a'] == SumCount(2, 4)
  assert losses(None, {})['a'] == SumCount(2, 4)
  fault[:] = np.nan
  found = losses(None, {'fault': fault})['a']
  assert np.isnan(found.sum) and found.count == 4


def test_arrays_of_the_newest_checkpoint(tmp_path):
  from faults import soak

  (tmp_path / 'checkpoints').mkdir()
  assert soak.arrays_of_newest(tmp_path) == 0
  for step, names in ((9, 'a'), (10, 'abc'), ('11.tmp', '')):
    state = tmp_path / 'checkpoints' / str(step) / 'state'
    state.mkdir(parents=True)
    (state / '_METADATA').write_text(json.dumps({'tree_metadata': dict.fromkeys(names)}))
  assert soak.arrays_of_newest(tmp_path) == 3


def test_what_orbax_keeps_is_the_slope_over_its_saves(capsys, monkeypatch):
  from faults import orbax_alone

  # A first save that fills caches, then 1,000 bytes a save.
  used = iter([0, *range(5_000_000, 6_000_000, 1000)])
  monkeypatch.setattr(orbax_alone, '_resident', lambda: next(used))
  orbax_alone.main(['3', '--saves=10'])
  found = json.loads(capsys.readouterr().out)
  assert found == {'arrays': 3, 'saves': 10, 'bytes a save': 1000}
