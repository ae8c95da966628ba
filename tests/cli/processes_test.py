"""`segjax train` in subprocesses: killed and resumed, and distributed training."""

import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from commands import info, read_log, run, train_args
from processes import run_as_two, spawn, start_two

pytestmark = pytest.mark.slow

LONG = [
  '--config.train.checkpoint_every=5',
  '--config.train.eval_every=20',
  '--config.model.dropout=0.3',
  '--config.optim.ema=0.9',
  '--config.augment.elastic_sigma=2',
]


def wait_for_step(process, step):
  for line in process.stderr:
    if re.match(rf'step {step}/', line):
      return
  raise AssertionError(f'ended before step {step}')


def test_killed_at_any_moment_ends_with_the_same_parameters(tmp_path, cache, capsys):
  """After three SIGKILLs and a SIGTERM, parameters equal those of an uninterrupted run."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  process = spawn(train_args(whole, *LONG, steps=60), cache)
  assert process.communicate()[1] and process.returncode == 0
  args, rng = train_args(killed, *LONG, steps=60), np.random.default_rng(0)
  for start in (7, 19, 31):
    process = spawn(args, cache)
    wait_for_step(process, start + 1)
    time.sleep(float(rng.uniform(0, 0.2)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process = spawn(args, cache)
  wait_for_step(process, 45)
  process.terminate()
  assert 'SIGTERM after step' in process.communicate()[1]
  assert process.returncode == 128 + signal.SIGTERM
  assert info(killed, capsys)['step'] >= 45
  process = spawn(args, cache)
  assert 'resuming from step' in process.communicate()[1]
  undisturbed, resumed = info(whole, capsys), info(killed, capsys)
  assert resumed['step'] == undisturbed['step'] == 60
  assert resumed['parameters_sha256'] == undisturbed['parameters_sha256']
  losses = [[(r['step'], r['split'], r['loss']) for r in read_log(w)] for w in (whole, killed)]
  assert losses[0] == losses[1], 'the log has every step once'


def test_two_processes_train_as_one(tmp_path, cache):
  """Two hosts of two devices each give the parameters of one host with four."""
  one, two = (train_args(tmp_path / name, steps=4) for name in ('one', 'two'))
  run_as_two(two, cache)
  process = spawn(one, cache)
  assert process.communicate()[1] and process.returncode == 0
  finals = [
    [(r['loss'], r.get('mean_iou')) for r in read_log(tmp_path / name)] for name in ('one', 'two')
  ]
  np.testing.assert_allclose(
    np.array(finals[0], float), np.array(finals[1], float), rtol=1e-3, equal_nan=True
  )


def test_two_processes_whose_disks_are_not_shared(tmp_path, cache):
  """Both say so before anything is compiled."""
  each = [[f'--workdir={tmp_path / name}'] for name in ('one', 'two')]
  for process in start_two(train_args(tmp_path / 'none'), cache, each):
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 2, err
    assert 'is not the same directory for all processes (not for 1 of 2): set --workdir' in err
    assert 'Traceback' not in err
  assert not list(tmp_path.rglob('checkpoints'))


@pytest.mark.nightly  # segments have objects, too
def test_two_processes_train_and_evaluate_objects_as_one(instance_run, tmp_path, cache):
  """Annotations are gathered from all processes for the metrics."""
  run_as_two(train_args(tmp_path / 'two', task='instance'), cache)
  one, two = read_log(instance_run), read_log(tmp_path / 'two')
  assert [r['split'] for r in one] == [r['split'] for r in two]
  for a, b in zip(one, two, strict=True):
    for key in ('loss', 'mask_ap', 'box_ap50', 'box_ar100'):
      if (value := a.get(key)) is not None:
        assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


RESTARTED = [
  '--config.model.width=16',  # arrays that are large enough to be shared
  '--config.optim.ema=0.9',
  # Adam divides a gradient near zero, which is rounding, by its own size.
  '--config.optim.eps=1e-3',
  '--config.train.checkpoint_every=1',
  '--config.train.keep=9',
]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  """The workdir of six steps on four devices of one process, with all checkpoints; read-only."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  assert run(*train_args(workdir, *RESTARTED, steps=6)) == 0
  return workdir


def losses(workdir):
  return {r['step']: r['loss'] for r in read_log(workdir) if r['split'] == 'train'}


def lose_after(workdir, step):
  """Leaves the run as if it had been killed after a step."""
  for path in (workdir / 'checkpoints').iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)


@pytest.mark.parametrize(
  'layout', [pytest.param('data=4', marks=pytest.mark.nightly), 'fsdp=true', 'space=4']
)
def test_restarts_with_other_processes_and_layouts(
  layout, uninterrupted, tmp_path, cache, monkeypatch
):
  """One process; two, which share a batch, the parameters or each image; one again."""
  # See `tests/training/step_test.py` on BatchNorm and `space`.
  flags = os.environ['XLA_FLAGS'].replace('--xla_cpu_use_fusion_emitters=false', '')
  monkeypatch.setenv('XLA_FLAGS', flags)
  expected, workdir = losses(uninterrupted), tmp_path / 'parts'
  shutil.copytree(uninterrupted, workdir)
  args = train_args(workdir, *RESTARTED, steps=6)
  lose_after(workdir, 2)
  run_as_two([*args, f'--config.mesh.{layout}'], cache)
  two = losses(workdir)
  lose_after(workdir, 4)
  assert run(*args) == 0
  for ours in (two, losses(workdir)):
    assert ours.keys() == expected.keys() == set(range(1, 7))
    np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-6)


def test_two_processes_train_and_evaluate_segments_as_one(panoptic_run, tmp_path, cache):
  """Examples and counts are gathered from all processes."""
  # A small learning rate, so that rounding errors do not move segments across a threshold.
  args = ['--config.optim.learning_rate=1e-6', f'--config.init_from.path={panoptic_run}']
  assert run(*train_args(tmp_path / 'one', *args, task='panoptic')) == 0
  run_as_two(train_args(tmp_path / 'two', *args, task='panoptic'), cache)
  one, two = (read_log(tmp_path / name) for name in ('one', 'two'))
  assert [r['split'] for r in one] == [r['split'] for r in two]
  for a, b in zip(one, two, strict=True):
    for key in ('loss', 'loss_semantic'):
      if (value := a.get(key)) is not None:
        assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
  [a], [b] = ([r for r in records if 'per_class' in r] for records in (one, two))
  assert counts(a) == counts(b)
  assert b['pq'] == pytest.approx(a['pq'], rel=1e-3) and a['pq'] > 0


def counts(metrics):
  return {
    name: [values[key] for key in ('tp', 'fp', 'fn')]
    for name, values in metrics['per_class'].items()
  }
