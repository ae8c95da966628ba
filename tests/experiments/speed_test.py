"""The harness of experiments/speed: rows at toy size without peers, comparisons, the page."""

import argparse
import dataclasses
import json
import re

import numpy as np
import pytest


@pytest.fixture(scope='module', autouse=True)
def package(root):
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(root / 'experiments')
    yield


def rows():
  from speed.rows import ROWS

  return ROWS


def toy(**more):
  from speed.row import Options

  return Options(toy=True, peers=False, **more)


def sampled(walls):
  from speed.harness import Sample

  return [Sample(wall, 2 * wall, 0.0, 3.0, None) for wall in walls]


def row(**more):
  from speed.row import Row

  return Row('work', lambda options: None, **more)


def result(**more):
  program = {'wall': 1.0, 'processor': 2.0, 'system': 0.1, 'faults': 3, 'result': None}
  return {
    'row': 'a',
    'dtype': 'float32',
    'hardware': '1 x CPU (2 cores)',
    'date': '2026-01-02',
    'commit': '0123456789',
    'dirty': False,
    'versions': {'jax': '0.10.2'},
    'load': 0.5,
    'value': 0.5,
    'least': 0.4,
    'greatest': 0.9,
    'peer': 'torch NCHW',
    'missing': None,
    'same': 'outputs equal to 1e-06',
    'programs': {'ours': program, 'torch NCHW': {**program, 'wall': 2.0}},
    'cost': {'flops': 3e9, 'bytes': 1e9, 'temporary': 0},
    'peak': {'flops': 1e10, 'bytes': 1e10},
    'notes': {},
    **more,
  }


# --- rows -----------------------------------------------------------------------------------------

# Those that compile little or nothing; the others are slow.
QUICK = ('nms_2000', 'paste', 'pool_unpool', 'transposed_4_2', 'coco', 'boundary_f1', 'match')
# Their programs start processes, which tests/cli does, too.
COMMANDS = ('predict', 'help', 'first_step_', 'compilations_')
# At toy size the programs of other rows, with which they share the function that makes them.
SAME = {
  'mask_rcnn_infer_800': 'mask_rcnn_infer_640',
  'mask_rcnn_train_640_100': 'mask_rcnn_train_640',
  'mask_rcnn_train_800': 'mask_rcnn_train_640',
  'eomt_l_infer': 'eomt_s_infer',
  'eomt_l_train': 'eomt_s_train',
  'memory_segnet_train': 'memory_unet_train',
  'memory_mask_rcnn_infer_800': 'memory_unet_train',
  'memory_mask_rcnn_train_640': 'memory_unet_train',
}
# Those of training steps, whose value is the loss.
TRAINING = re.compile(r'(?!memory_)\w+_train(_\d+)?')
# Kinds with rows that compile more than that.
SLOW = (
  'Dense networks',
  'Detection',
  'Sets of masks',
  'Operations',
  'Input pipeline',
  'Evaluation',
  'Memory',
  'Other forms of our operations',
)


def compiled(kind):
  """The slow rows of a kind by name."""
  from speed.rows import KINDS

  rows = KINDS[kind].items()
  others = (*QUICK, *SAME)
  return {n: row for n, row in rows if n not in others and not n.startswith(COMMANDS)}


@pytest.mark.parametrize('name', QUICK)
def test_a_row_runs_without_peers(name):
  work = rows()[name].make(toy())
  assert work.ours() is not None


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize('kind', SLOW)
def test_all_other_rows_run_without_peers(kind):
  for name, entry in compiled(kind).items():
    work = entry.make(toy())
    values = [work.ours(), work.ours()]
    if TRAINING.fullmatch(name):
      assert np.isfinite(values).all(), name
      assert values[0] != values[1], name  # the second step goes on from the first
    if kind == 'Memory':
      assert min(values) > 0


def test_what_stands_for_a_row_is_made_as_it_is():
  for name, kept in SAME.items():
    assert kept not in SAME and rows()[name].make.func == rows()[kept].make.func


def test_no_row_is_left_out():
  from speed.rows import KINDS

  assert [kind for kind in KINDS if compiled(kind)] == list(SLOW)


def test_the_programs_of_commands_are_made_without_starting_one():
  for name, entry in rows().items():
    if name.startswith(COMMANDS):
      assert callable(entry.make(toy()).ours), name


def test_names_are_unique():
  from speed.rows import KINDS

  assert sum(map(len, KINDS.values())) == len(rows())


# --- comparison -----------------------------------------------------------------------------------


def test_the_ratio_is_the_median_of_rounds_to_the_peer_with_the_least_median():
  from speed.harness import compare

  seen = {
    'ours': sampled([2.0, 3.0, 8.0]),
    'slow': sampled([9.0, 9.0, 1.0]),
    'fast': sampled([4.0, 4.0, 4.0]),
  }
  found = compare(row(), seen)
  assert found == {'value': 0.75, 'least': 0.5, 'greatest': 2.0, 'peer': 'fast'}
  found = compare(row(value='times', reads='processor'), seen)
  assert (found['value'], found['least'], found['greatest']) == (4 / 3, 0.5, 2.0)
  assert compare(row(value='own'), seen)['value'] == 3.0
  alone = compare(row(), {'ours': sampled([1.0])})
  assert alone == {'value': None, 'least': None, 'greatest': None, 'peer': None}


def test_programs_take_turns_and_must_do_the_same_work():
  from speed.harness import measure
  from speed.row import Options, Row, Work

  order = []

  def program(name):
    return lambda: order.append(name) or float(len(name))

  def same(ours, others):
    assert others == {'peer': ours}, 'not the same work'
    return 'as long names'

  make = lambda options: Work(program('ours'), {'peer': program('peer')}, same)
  found = measure(Row('work', make, reads='result', rounds=2), Options(), 9)
  assert found['rounds'] == 2
  assert found['same'] == 'as long names'
  assert (found['value'], found['peer']) == (1.0, 'peer')
  assert order[:4] == ['ours', 'ours', 'peer', 'peer']
  turns = [name for before, name in zip(order[3:], order[4:], strict=False) if name != before]
  assert turns == ['ours', 'peer'] * 2
  json.dumps(found)

  other = lambda options: Work(program('ours'), {'peer': program('longer')}, same)
  with pytest.raises(AssertionError, match='not the same work'):
    measure(Row('work', other, reads='result'), Options(), 1)


def test_a_peer_that_is_not_installed_is_named():
  from speed.harness import measure
  from speed.row import Options, Row, Work

  def make(options):
    if options.peers:
      import a_package_that_is_not_there  # noqa: F401
    return Work(lambda: 1.0)

  found = measure(Row('work', make), Options(), 1)
  assert (found['missing'], found['value']) == ('a_package_that_is_not_there', None)
  assert found['programs']['ours']['wall'] > 0


def test_close_finds_a_difference_and_nan():
  from speed.harness import close

  a = np.array([1.0, 100.0])
  assert close(a, a, 0.0, 'sums') == 'sums equal bit for bit'
  assert close([a, a], [a, a + 1e-4], 1e-5, 'sums') == 'sums equal to 1e-06'
  for wrong in (a + 0.1, a * np.nan, a[:1]):
    with pytest.raises(AssertionError, match='sums'):
      close([a, wrong], [a, a], 1e-5, 'sums')


def test_memory_of_a_run_is_what_it_takes_for_a_while():
  from speed.memory import step_memory

  size = 64 * 2**20
  kept = [np.ones(size // 2, np.uint8)]

  def run():
    taken = np.ones(size, np.uint8)
    return taken.sum() + len(kept)

  assert 60 < step_memory(run) < 80


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('more', 'values', 'expected'),
  [
    ({'target': 1.0}, (0.5, 0.4, 0.9), 'met'),
    ({'target': 0.8}, (0.5, 0.4, 0.9), 'met, not in each round'),
    ({'target': 0.4}, (0.5, 0.4, 0.9), 'missed by 25%'),
    ({'target': 1.5, 'value': 'times'}, (2.0, 1.6, 3.0), 'met'),
    ({'target': 1.5, 'value': 'times'}, (2.0, 1.4, 3.0), 'met, not in each round'),
    ({'target': 1.5, 'value': 'times'}, (0.75, 0.4, 0.9), 'missed by 50%'),
    ({'target': 0, 'value': 'own'}, (3, 3, 3), 'missed by 3'),
    ({'target': 0, 'value': 'own'}, (0, 0, 0), 'met'),
    ({}, (0.5, 0.4, 0.9), ''),
    ({'target': 1.0}, (None, None, None), ''),
  ],
)
def test_a_target_is_met_or_missed(more, values, expected):
  from speed.page import verdict

  assert (
    verdict(row(**more), dict(zip(('value', 'least', 'greatest'), values, strict=True))) == expected
  )


def test_the_bound_is_what_takes_longer_at_the_peak():
  from speed.page import bound

  assert bound(result()) == 'arithmetic, 30%'
  assert bound(result(cost={'flops': 1e9, 'bytes': 8e9})) == 'memory, 80%'
  assert bound(result(cost=None)) == ''
  for flops in (None, 0.0):  # not counted
    assert bound(result(cost={'flops': flops, 'bytes': 8e9})) == ''


def test_the_page_has_the_last_result_of_each_row():
  from speed.page import render

  kinds = {'Kind': {'a': row(target=0.6), 'b': row(), 'c': row(value='own', target=3.0)}}
  old = result(value=7.0)
  alone = result(row='c', peer=None, missing='torch', value=1.0)
  text = render([old, result(), alone], [], kinds)
  assert '## 1 x CPU (2 cores), float32' in text
  assert 'uncommitted' not in text
  line = (
    '| work | 1000 ms | 2000 ms torch NCHW | **0.50** (0.40–0.90) | ≤ 0.6 | '
    'met, not in each round | arithmetic, 30% | outputs equal to 1e-06 |'
  )
  assert line in text.replace('1,000', '1000').replace('2,000', '2000')
  assert 'Not run: work.' in text
  assert 'not installed: torch' in text
  assert '**7.00**' not in text


def test_on_a_gpu_targets_of_cpus_do_not_count_and_busy_hosts_are_named():
  from speed.page import render

  kinds, programs = {'Kind': {'a': row(target=0.6)}}, result()['programs']
  on_gpu = {'hardware': '1 x NVIDIA X', 'cost': None}
  text = render([result(**on_gpu)], [], kinds)
  assert '| 2,000 ms torch NCHW, host-bound | **0.50** (0.40–0.90) |  |  |  |' in text
  waiting = {**programs, 'torch NCHW': {**programs['torch NCHW'], 'processor': 1.0}}
  text = render([result(**on_gpu, programs=waiting)], [], kinds)
  assert '| 2,000 ms torch NCHW | **0.50**' in text


def test_the_readme_is_up_to_date(root):
  from speed import page
  from speed.rows import KINDS

  import lines

  directory = root / 'experiments/speed'
  found = (lines.read(directory / f'{name}.jsonl') for name in ('results', 'growth'))
  assert (directory / 'README.md').read_text() == page.render(*found, KINDS), (
    'run: python experiments/speed/run.py --page'
  )


def test_a_row_that_fails_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
  from speed import run

  found = {'nms_2000': {'error': 'exit code 1: no luck'}, 'nms_8000': result(row='nms_8000')}
  monkeypatch.setattr(run, 'measure_alone', lambda name, args: found[name])
  args = run.parser().parse_args(['--rows=nms_2000,nms_8000', f'--out={tmp_path / "out.jsonl"}'])
  assert run.measure_all(args) == 1
  assert 'nms_2000: failed: exit code 1: no luck' in capsys.readouterr().out
  [line] = (tmp_path / 'out.jsonl').read_text().splitlines()
  assert json.loads(line)['row'] == 'nms_8000'
  with pytest.raises(SystemExit, match='no such row'):
    run.measure_all(argparse.Namespace(**{**vars(args), 'rows': 'nothing'}))


# --- growth ---------------------------------------------------------------------------------------

GROWN = {
  'curve': 'nms_boxes',
  'values': [10, 100],
  'seconds': [0.5, 50.0],
  'bytes': [2**20, 10 * 2**20],
}


def test_growth_has_exponents_and_a_drawing(tmp_path):
  from speed import growth

  assert growth.exponent([10, 100], [0.5, 50.0]) == pytest.approx(2)
  text = growth.section([{**GROWN, 'seconds': [1, 1]}, GROWN])
  assert '| NMS | boxes | 10, 100 | 500.0 ms, 50.00 s | 2.00 | 1 MiB, 10 MiB | 1.00 | 2 |' in text
  assert growth.section([]) == ''
  for name in ('a.svg', 'b.svg'):
    growth.draw([GROWN], tmp_path / name)
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_a_curve_measures_each_value():
  from speed import growth

  found = growth.measure('nms_boxes', dataclasses.replace(toy(), peers=True), 1)
  assert found['values'] == [50, 100]
  assert len(found['seconds']) == len(found['bytes']) == 2
  assert all(value > 0 for value in found['seconds'] + found['bytes'])


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize('name', ['unet_size', 'unet_batch', 'mask_rcnn_slots'])
def test_curves_of_networks_run(name):
  from speed import growth

  assert len(growth.measure(name, toy(), 1)['seconds']) == 2
