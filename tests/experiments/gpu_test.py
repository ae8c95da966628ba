"""experiments/gpu: the budget of time, what travels back, and each slot at toy size."""

import functools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from segjax.tables import results, spec

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = ROOT / 'experiments/gpu/run.py'


@pytest.fixture(scope='module', autouse=True)
def package():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / 'experiments')
    yield


def context(out, **more):
  from gpu.plan import Context

  return Context(out=out, data=out / 'data', **more)


def step(tmp_path, code, **more):
  """A step that runs Python code, and is done where a file `done` exists."""
  from gpu.plan import Step

  command = (sys.executable, '-c', code)
  return Step('made_up', command, (tmp_path / 'done').exists, **more)


def runner(tmp_path, seconds, **more):
  from gpu.run import Runner

  return Runner(context(tmp_path), time.monotonic() + seconds, least=0.0, **more)


def log(out):
  return [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]


def write_lines(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


# --- slots ----------------------------------------------------------------------------------------


def test_slots_are_named_by_letter_or_name_and_run_in_their_order():
  from gpu.slots import SLOTS, names

  assert [slot.letter for slot in SLOTS.values()] == list('abcdefgh')
  assert names('h,unet,a') == ('segnet', 'unet', 'batches')
  with pytest.raises(ValueError, match='unknown slot z: the slots are a'):
    names('a,z')


def test_every_step_of_every_slot_can_be_made_and_has_no_result_yet(tmp_path):
  from gpu.slots import SLOTS

  steps = {slot: slot.steps(context(tmp_path / 'out')) for slot in SLOTS.values()}
  every = [step for found in steps.values() for step in found]
  assert len({step.name for step in every}) == len(every)
  assert not any(step.done() for step in every)
  for slot, found in steps.items():
    assert {path.name for step in found for path in step.required} == set(slot.needs)


def test_every_row_of_speed_exists():
  from gpu import slots
  from speed.rows import ROWS

  assert {*slots._NETWORKS, *slots._OPERATIONS} <= set(ROWS)


def test_a_training_is_done_when_its_record_is_there(tmp_path):
  from gpu.slots import SLOTS

  (training,) = SLOTS['unet'].steps(context(tmp_path, weights='VGG16'))
  folder = tmp_path / 'tables/experiments/unet_table1'
  assert str(folder) in training.command
  record = results.Record('unet', 'paper', {'rand_error': 0.1}, seed=0)
  results.write_records(spec.read_table(folder), [record])
  assert training.done()
  assert not (folder / 'README.md').exists()


def test_tables_at_toy_size_are_read_and_differ(tmp_path):
  from gpu import toy, training

  from segjax.tables import runs

  for name, entries in toy.ENTRIES.items():
    real = spec.read_table(training.place_table(context(tmp_path / 'real'), name))
    small = spec.read_table(training.place_table(context(tmp_path / 'toy', toy=True), name))
    for entry in entries:
      config = runs.given_config(small.entries[entry])
      assert config['train']['steps'] == 4
      assert runs.entry_digest(small.entries[entry]) != runs.entry_digest(real.entries[entry])


# --- the budget -----------------------------------------------------------------------------------


def test_a_step_runs_once(tmp_path):
  found = step(tmp_path, f'open({str(tmp_path / "done")!r}, "w")')
  first = runner(tmp_path, 60)
  assert [first.run(found), first.run(found)] == ['done', 'there already']
  assert [line['outcome'] for line in log(tmp_path)] == ['done', 'there already']


def test_each_process_is_told_the_commit_that_was_named(tmp_path):
  from gpu.run import Runner

  for commit in ('1234567', None):
    found = Runner(context(tmp_path, commit=commit), math.inf)._environment(step(tmp_path, ''))
    assert found.get('SEGJAX_COMMIT') == commit


def test_a_step_that_fails_says_so_and_keeps_its_output(tmp_path):
  assert runner(tmp_path, 60).run(step(tmp_path, 'raise SystemExit("why")')) == (
    'failed with exit code 1'
  )
  assert (tmp_path / 'logs/made_up.log').read_text().endswith('why\n')


def test_a_step_without_its_data_or_time_is_left_out(tmp_path):
  fails = step(tmp_path, 'raise SystemExit(1)', required=(tmp_path / 'camvid', tmp_path))
  assert runner(tmp_path, 60).run(fails) == 'left out: the data directory has no camvid'
  fails = step(tmp_path, 'raise SystemExit(1)', reserve=90.0)
  assert runner(tmp_path, 60).run(fails) == 'left out: no time'


WAIT = 'import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)'


def test_a_step_is_stopped_in_time_and_what_is_there_is_evaluated(tmp_path):
  out = tmp_path / 'evaluated'
  rescue = (sys.executable, '-c', f'open({str(out)!r}, "w")')
  outcome = runner(tmp_path, 1.5).run(step(tmp_path, WAIT, rescue=rescue, reserve=0.5))
  assert outcome == 'stopped: no more time; evaluated'
  assert out.exists()
  outcome = runner(tmp_path, 0.5).run(step(tmp_path, WAIT))
  assert outcome == 'stopped: no more time'
  late = step(tmp_path, WAIT, rescue=(sys.executable, '-c', WAIT), reserve=0.2)
  assert runner(tmp_path, 0.5).run(late) == 'stopped: no more time; not evaluated in time'
  fails = step(tmp_path, WAIT, rescue=(sys.executable, '-c', 'raise SystemExit(3)'), reserve=5.0)
  outcome = runner(tmp_path, 5.5).run(fails)
  assert outcome == 'stopped: no more time; its evaluation failed with exit code 3'


def test_a_process_that_does_not_end_is_killed(tmp_path, monkeypatch):
  from gpu import run

  monkeypatch.setattr(run, 'GRACE', 0.2)
  code = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'
  assert runner(tmp_path, 0.5).run(step(tmp_path, code)) == 'stopped: no more time'


def test_a_run_that_is_told_to_stop_stops_its_step_and_packs(tmp_path):
  """SIGTERM at the first start of a step's process."""
  code = (
    f'import sys, time; sys.path[:0] = {[str(ROOT / "experiments"), str(ROOT)]!r}\n'
    'import os, pathlib, signal\n'
    'from gpu import run, plan\n'
    'signal.signal(signal.SIGTERM, run._exit)\n'
    'out = pathlib.Path(sys.argv[1])\n'
    'inner = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"\n'
    'step = plan.Step("made_up", (sys.executable, "-c", inner), lambda: False)\n'
    'run.Runner(plan.Context(out, out), time.monotonic() + 60, out / "pack.tar.gz", 0).run(step)\n'
  )
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=False, timeout=60)
  assert done.returncode == 128 + signal.SIGTERM
  assert log(tmp_path)[-1]['outcome'] == 'stopped by a signal'
  with tarfile.open(tmp_path / 'pack.tar.gz') as archive:
    assert {'log.jsonl', 'logs/made_up.log'} <= set(archive.getnames())


# --- what travels back ----------------------------------------------------------------------------


@pytest.fixture
def experiments(tmp_path):
  """A checkout's experiments/ with two tables, the speed page and no results of a GPU."""
  root = tmp_path / 'checkout'
  (root / 'experiments').mkdir(parents=True)
  (root / 'configs').symlink_to(ROOT / 'configs')
  shutil.copytree(ROOT / 'experiments/unet_table1', root / 'experiments/unet_table1')
  known = root / 'experiments/unet_table1/results.jsonl'
  found = [json.loads(line) for line in known.read_text().splitlines()]
  write_lines(known, *(record for record in found if record['recipe'] != 'paper'))
  (root / 'experiments/segnet_table3').mkdir()
  shutil.copyfile(*(path / 'experiments/segnet_table3/table.toml' for path in (ROOT, root)))
  for name in ('gpu', 'speed'):
    (root / 'experiments' / name).mkdir()
  return root / 'experiments'


def write_run(out, **start):
  """What a run leaves in its output directory."""
  record = {'row': 'unet', 'recipe': 'paper', 'metrics': {'rand_error': 0.0625}, 'seed': 0}
  record |= {'image': 'images/a.jpg', 'image_note': 'the first'}
  folder = out / 'tables/experiments/unet_table1'
  write_lines(folder / 'results.jsonl', record)
  (folder / 'images').mkdir(exist_ok=True)
  (folder / 'images/a.jpg').write_bytes(b'jpg')
  facts = {'commit': None, 'hardware': '1 x NVIDIA X', 'dirty': None}
  resumed = {'kind': 'resume', 'config': 'unet/scenes', 'steps': 8, 'killed_at': 5, **facts}
  resumed |= {'deterministic': True, 'same_again': True, 'same_resumed': False}
  batch = {'network': 'segnet', 'dtype': 'bfloat16', **facts}
  measured = {'seconds': 0.5, 'images_per_second': 32.0, 'flops': 1e13, 'temporary_bytes': 2e9}
  write_lines(
    out / 'measured.jsonl',
    resumed,
    {'kind': 'batch', 'batch': 16, 'peak_bytes': None, **measured, **batch},
    {'kind': 'limit', 'fits': 16, 'does_not_fit': 32, **batch},
  )
  stopped = {'table': 'segnet_table3', 'entry': 'segnet_40k.segnet', 'checkpoint': 'best', **facts}
  stopped |= {'commit': 'abcdefghi, then klmnopqrs'}  # resumed with other code
  stopped |= {'steps': 40_000, 'metrics': {'mean_iou': 0.5}, 'split': 'test'}
  write_lines(out / 'partial.jsonl', {**stopped, 'step': 1000}, {**stopped, 'step': 9000})
  write_lines(out / 'starts.jsonl', {'commit': 'abcdefgh', 'toy': False, **start})


def test_results_that_come_back_are_in_the_tables_and_on_the_page(tmp_path, experiments):
  from gpu import collect

  write_run(tmp_path / 'out')
  for note in ('a GPU', None, 'a GPU'):  # the second time nothing is new, whatever the note
    collect.collect(tmp_path / 'out', experiments, None, note)
  table = spec.read_table(experiments / 'unet_table1')
  record = next(r for r in results.read_results(table) if r.entry == 'unet.paper')
  assert (record.commit, record.note, record.metrics['rand_error']) == ('abcdefgh', 'a GPU', 0.0625)
  assert '0.0625' in (table.folder / 'README.md').read_text()
  assert (table.folder / 'images/a.jpg').read_bytes() == b'jpg'
  page = (experiments / 'gpu/README.md').read_text()
  assert page.count('step 9,000 of 40,000') == 1
  assert 'step 1,000 of' not in page
  assert '| mIoU (%) 50.00 | 1 x NVIDIA X, commit abcdefg, then klmnopq, a GPU |' in page
  assert 'others, killed at 5' in page
  assert (
    '| 16 | 32.0 | 500.0 ms | 20.0 | 2.00 GB |  | 1 x NVIDIA X, commit abcdefg, a GPU |' in page
  )
  assert '- segnet, bfloat16: 16 images fit, 32 do not' in page
  assert 'Not run yet' not in page


def test_a_training_that_was_stopped_has_one_line_until_it_has_a_record(tmp_path, experiments):
  """Run again, it comes further, and each pack has what it had reached."""
  from gpu import collect

  import lines

  out, reached = tmp_path / 'out', experiments / 'gpu/results.jsonl'
  steps = lambda: [line['step'] for line in lines.read(reached) if line['kind'] == 'partial']
  write_run(out)
  [first, second] = lines.read(out / 'partial.jsonl')
  for line in (first, second, first):  # the last pack is an old one
    write_lines(out / 'partial.jsonl', line)
    collect.collect(out, experiments, None, None)
  assert steps() == [9000]
  table = spec.read_table(experiments / 'segnet_table3')
  checkpoints = table.entries['segnet_40k.segnet'].checkpoints
  record = functools.partial(results.Record, 'segnet_40k', 'segnet', {}, seed=0)
  results.write_records(table, [record(checkpoint=which) for which in checkpoints])
  others = len(lines.read(reached)) - 1
  collect.collect(out, experiments, None, None)
  assert (steps(), len(lines.read(reached))) == ([], others)


def test_results_without_a_commit_have_none_where_several_ran(tmp_path, experiments):
  from gpu import collect

  write_run(tmp_path / 'out')
  starts = tmp_path / 'out/starts.jsonl'
  starts.write_text(starts.read_text() + starts.read_text().replace('abcdefgh', 'hgfedcba'))
  collect.collect(tmp_path / 'out', experiments, None, None)
  assert '1 x NVIDIA X, commit unknown |' in (experiments / 'gpu/README.md').read_text()


def test_results_at_toy_size_are_not_collected(tmp_path, experiments):
  from gpu import collect

  write_run(tmp_path / 'out', toy=True)
  with pytest.raises(SystemExit, match='no results of a run at full size'):
    collect.collect(tmp_path / 'out', experiments, None, None)


def test_a_pack_has_no_checkpoints(tmp_path):
  from gpu import pack

  write_run(tmp_path / 'out')
  workdir = tmp_path / 'out/runs/unet_table1/unet.paper.seed0'
  for name in ('config.json', 'metrics.jsonl', 'checkpoints/4/state'):
    write_lines(workdir / name, {})
  pack.write_pack(context(tmp_path / 'out'), tmp_path / 'pack.tar.gz')
  with tarfile.open(tmp_path / 'pack.tar.gz') as archive:
    found = archive.getnames()
  assert 'runs/unet_table1/unet.paper.seed0/metrics.jsonl' in found
  assert 'tables/experiments/unet_table1/images/a.jpg' in found
  assert not [name for name in found if 'checkpoints' in name]
  assert [path.name for path in tmp_path.glob('*pack*')] == ['pack.tar.gz']


def test_a_line_that_a_kill_truncated_is_left_out(tmp_path):
  import lines

  path = tmp_path / 'a.jsonl'
  path.write_text('{"a": 1}\n{"a": 2')
  assert lines.read(path) == [{'a': 1}]


def test_the_page_is_the_rendered_one():
  from gpu import page
  from gpu.slots import SLOTS

  import lines

  folder = ROOT / 'experiments/gpu'
  text = page.render(lines.read(folder / 'results.jsonl'), SLOTS)
  assert (folder / 'README.md').read_text() == text, 'run: python experiments/gpu/run.py --page'


def test_a_script_that_is_stopped_ends_what_it_runs(tmp_path):
  """Also what that has started."""
  last = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
  inner = 'import subprocess, sys; subprocess.run([sys.executable, "-c", sys.argv[1]])'
  code = (
    'import runner, sys; runner.end_children();'
    "runner.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
  )
  command = [sys.executable, '-c', code, inner, last]
  environment = {**os.environ, 'PYTHONPATH': str(ROOT / 'experiments')}
  pid = tmp_path / 'pid'
  with subprocess.Popen(command, cwd=tmp_path, env=environment) as script:
    try:
      while not (pid.exists() and pid.read_text()):
        assert script.poll() is None
        time.sleep(0.05)
      script.terminate()
      assert script.wait(30) == 128 + signal.SIGTERM
    finally:
      script.kill()
  for _ in range(100):  # an orphan is gone once its new parent has seen it end
    if not pathlib.Path(f'/proc/{pid.read_text()}').exists():
      return
    time.sleep(0.1)
  raise AssertionError('the process that the script had started runs on')


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('most', 'largest', 'tried'),
  [(0, 64, [1]), (3, 64, [1, 4, 2]), (40, 64, [1, 4, 16, 64, 32]), (99, 20, [1, 4, 16])],
)
def test_batches_grow_until_one_does_not_fit(most, largest, tried):
  from gpu import batches

  assert list(batches.sizes(lambda batch: batch <= most, largest)) == tried


def test_a_batch_that_does_not_fit_ends_the_measurement(tmp_path, monkeypatch):
  import jax
  from gpu import batches
  from speed.row import Options

  import lines

  def measure(network, options, batch, steps):
    if batch > 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying')
    return {'batch': batch, 'images_per_second': 1.0}

  monkeypatch.setattr(batches, 'measure', measure)
  batches.measure_all('unet', Options(toy=True), 64, 1, tmp_path / 'a.jsonl')
  found = lines.read(tmp_path / 'a.jsonl')
  assert [line.get('batch') for line in found] == [1, 2, None]
  assert (found[-1]['fits'], found[-1]['does_not_fit']) == (2, 4)


# --- at toy size ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  return tmp_path_factory.mktemp('gpu')


def one_device():
  """The XLA_FLAGS of the test run, but for one device, as on a machine with one GPU."""
  return re.sub(r'\S+device_count=\d+', '', os.environ['XLA_FLAGS'])


def run_toy(out, *args):
  """Runs slots in a process of its own, as on a GPU."""
  env = {**os.environ, 'XLA_FLAGS': one_device()}
  command = [sys.executable, str(SCRIPT), '--toy', f'--out={out}', *args]
  done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=580)
  logs = '\n'.join(path.read_text() for path in out.glob('logs/*.log'))
  assert done.returncode == 0, f'{done.stdout}\n{done.stderr}\n{logs[-5000:]}'
  return [line.partition(': ')[2].rpartition(' (')[0] for line in done.stdout.splitlines()[:-1]]


def slots(letters, *daily):
  """All of these slots each night, and some of them also each day."""
  nightly = lambda letter: () if letter in daily else pytest.mark.nightly
  return [pytest.param(letter, marks=nightly(letter)) for letter in letters]


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds where nothing else runs, but a Mask R-CNN is compiled
@pytest.mark.parametrize('letter', slots('abcf', 'b'))
def test_a_slot_that_trains_records(out, letter):
  from gpu import toy
  from gpu.slots import LETTERS, SLOTS

  outcomes = run_toy(out, f'--slots={letter}', '--minutes=20')
  assert set(outcomes) == {'done'}
  steps = SLOTS[LETTERS[letter]].steps(context(out, toy=True))
  assert len(steps) == len(outcomes)
  assert all(step.done() for step in steps)
  names = {step.name for step in steps}
  recorded = set()
  for name in toy.ENTRIES:  # other slots may have recorded into the same directory
    if (out / 'tables/experiments' / name / 'results.jsonl').exists():
      table = spec.read_table(out / 'tables/experiments' / name)
      for record in results.read_results(table):
        if (step := f'{name}.{record.entry}') not in names:
          continue
        recorded.add(step)
        assert record.steps == 4
        assert (table.folder / record.image).exists()
        keys = [c.key for c in table.columns.values() if c.key and not c.computed]
        assert all(results.look_up(record.metrics, key) is not None for key in keys)
  assert recorded == names
  if letter == 'b':
    assert set(run_toy(out, f'--slots={letter}')) == {'there already'}


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds where nothing else runs, but a Mask R-CNN is compiled
@pytest.mark.parametrize('letter', slots('degh', 'h'))
def test_a_slot_that_measures_runs(out, letter):
  import lines

  assert set(run_toy(out, f'--slots={letter}', '--minutes=20')) == {'done'}
  measured = lines.read(out / 'measured.jsonl')
  if letter == 'g':
    (line,) = [line for line in measured if line['kind'] == 'resume']
    assert line['same_again']
    assert line['same_resumed']
    assert 0 < line['resumed_from'] < line['killed_at'] < line['steps']
  if letter == 'h':
    found = [line for line in measured if line['kind'] == 'batch']
    assert [line['batch'] for line in found] == [1, 4]
    assert all(line['images_per_second'] > 0 for line in found)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_training_that_is_stopped_is_evaluated(tmp_path, monkeypatch):
  """In the midst of a million steps; what it reached is no record of the table."""
  from gpu import run, slots, toy

  import lines

  monkeypatch.setenv('XLA_FLAGS', one_device())
  long = {**toy.ENTRIES['segnet_table1']['segnet_basic_mfb.paper'], 'train.steps': 1_000_000}
  monkeypatch.setitem(toy.ENTRIES, 'segnet_table1', {'segnet_basic_mfb.paper': long})
  found = run.make_context(run.parser().parse_args(['--toy', f'--out={tmp_path}']))
  first = slots.SLOTS['segnet'].steps(found)[0]
  first = first._replace(reserve=200.0)
  stopped = run.Runner(found, math.inf, least=0.0)
  curve = found.runs / 'segnet_table1/segnet_basic_mfb.paper.seed0/metrics.jsonl'

  def stop() -> None:
    while not curve.exists() or curve.read_text().count('train') < 5:
      time.sleep(0.1)
    stopped.deadline = time.monotonic() + first.reserve

  threading.Thread(target=stop, daemon=True).start()
  outcome = stopped.run(first)
  written = (tmp_path / f'logs/{first.name}.log').read_text()
  assert outcome == 'stopped: no more time; evaluated', written[-3000:]
  (line,) = lines.read(found.partial)
  assert 0 < line['step'] < line['steps'] == 1_000_000
  assert line['metrics']['mean_iou'] >= 0
  assert not first.done()
