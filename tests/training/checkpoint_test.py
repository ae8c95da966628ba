"""Checkpoints: round trips, and detection of corrupt files."""

import dataclasses
import errno
import functools
import itertools
import os
import shutil
import time

import fake_bucket
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from tiny_task import make_batch, make_task

from segjax import storage
from segjax.training import checkpoint
from segjax.training.checkpoint import Checkpoints, check_shared
from segjax.training.state import eval_variables, init_state, variables_from_arrays
from segjax.types import SegjaxError


@functools.cache
def shapes(norm, ema):
  """The state of a small network, with momentum, a counter and running statistics."""
  task = make_task(norm=norm)
  optimizer = optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale_by_schedule(lambda t: t))
  init = lambda key: init_state(task, optimizer, key, make_batch(), ema=ema)
  return jax.eval_shape(init, jax.random.key(0))


def make_state(step, *, norm='batch', seed=0, ema=True):
  rng = np.random.default_rng(seed)
  state = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes(norm, ema))
  return dataclasses.replace(state, step=np.int32(step))


@pytest.fixture
def warnings():
  return []


@pytest.fixture
def checkpoints(tmp_path, warnings):
  result = Checkpoints(tmp_path / 'c', keep=2, best_metric='iou', warn=warnings.append)
  yield result
  result.close()


def save(checkpoints, step, iou=None, **kwargs):
  state = make_state(step, seed=step, **kwargs)
  checkpoints.save(state, metrics=None if iou is None else {'iou': iou, 'other': float('nan')})
  checkpoints._manager.wait_until_finished()
  return state


def damage(directory):
  """Flips one byte in the largest array file."""
  files = [p for p in directory.rglob('*') if p.is_file() and 'state' in p.parts]
  path = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(content)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_is_exact(checkpoints):
  state = save(checkpoints, 3, iou=0.5)
  restored = checkpoints.restore('latest', shapes('batch', True))
  assert_equal(restored.state, state)
  assert jax.tree.structure(restored.state) == jax.tree.structure(state)
  assert restored.step == 3
  assert restored.metrics['iou'] == 0.5


def test_a_clock_that_jumps_is_no_time_out(checkpoints, monkeypatch):
  now, jumps = time.time, itertools.count()
  monkeypatch.setattr(time, 'time', lambda: now() + 86_400 * next(jumps))
  state = save(checkpoints, 1)
  assert_equal(checkpoints.restore('latest', shapes('batch', True)).state, state)
  assert next(jumps) > 10


def test_arrays_without_a_target_make_the_variables(checkpoints):
  state = save(checkpoints, 1)
  assert_equal(variables_from_arrays(checkpoints.restore().state), eval_variables(state))


def test_variables_without_an_average(checkpoints):
  state = save(checkpoints, 1, ema=False)
  assert_equal(variables_from_arrays(checkpoints.restore().state), eval_variables(state))


def test_another_process_reads_them(checkpoints, tmp_path):
  state = save(checkpoints, 1, iou=0.5)
  reader = Checkpoints(tmp_path / 'c', best_metric='iou', read_only=True)
  assert_equal(variables_from_arrays(reader.restore('best').state), eval_variables(state))
  assert reader.best() == (1, 0.5)
  reader.close()


def test_no_checkpoint_is_none(checkpoints):
  assert checkpoints.restore() is None


def test_keeps_the_newest_and_the_best(checkpoints):
  for step, iou in [(1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, 0.3), (6, float('nan'))]:
    save(checkpoints, step, iou)
  assert checkpoints.steps() == [2, 5, 6]
  assert checkpoints.best() == (2, 0.9)
  assert checkpoints.restore('best').step == 2
  assert checkpoints.restore('latest').step == 6
  assert checkpoints.restore(5).step == 5
  with pytest.raises(SegjaxError, match='no checkpoint of step 4: it has 2, 5, 6'):
    checkpoints.restore(4)


def test_what_is_deleted_is_forgotten(checkpoints):
  """A long training saves thousands."""
  for step in range(1, 9):
    save(checkpoints, step, step / 10)
  assert checkpoints._metrics.keys() <= {6, 7, 8}


def test_is_better(tmp_path):
  for mode, better, worse in (('max', 0.6, 0.4), ('min', 0.4, 0.6)):
    checkpoints = Checkpoints(tmp_path / mode, best_metric='iou', best_mode=mode)
    assert checkpoints.is_better({'iou': 0.5})
    save(checkpoints, 1, 0.5)
    assert checkpoints.is_better({'iou': better})
    assert not checkpoints.is_better({'iou': worse})
    assert not checkpoints.is_better({'iou': 0.5})
    assert not checkpoints.is_better({'iou': float('nan')})
    assert checkpoints.is_better({'iou': int(better + 0.4)})  # as numbers of errors are
    assert not checkpoints.is_better({})
    checkpoints.close()


def test_corrupt_newest_is_reported_and_the_one_before_used(checkpoints, warnings, tmp_path):
  old = save(checkpoints, 1)
  save(checkpoints, 2)
  damage(tmp_path / 'c' / '2')
  before = sorted(tmp_path.rglob('*'))
  restored = checkpoints.restore('latest', shapes('batch', True))
  assert restored.step == 1
  assert_equal(restored.state, old)
  assert len(warnings) == 1
  assert 'corrupt' in warnings[0]
  assert str(tmp_path / 'c' / '2') in warnings[0]
  assert sorted(tmp_path.rglob('*')) == before, 'nothing may be deleted'
  with pytest.raises(SegjaxError, match='corrupt'):
    checkpoints.restore(2)


def test_corrupt_step_is_moved_when_its_turn_comes_again(checkpoints, tmp_path):
  save(checkpoints, 1)
  save(checkpoints, 2)
  damage(tmp_path / 'c' / '2')
  assert checkpoints.restore().step == 1
  again = save(checkpoints, 2)
  assert_equal(checkpoints.restore('latest', shapes('batch', True)).state, again)
  assert len(list((tmp_path / 'c.corrupt').iterdir())) == 1


def test_after_a_corrupt_one_earlier_steps_are_saved(checkpoints, tmp_path):
  save(checkpoints, 2, 0.5)
  save(checkpoints, 4, 0.9)
  damage(tmp_path / 'c' / '4')
  assert checkpoints.restore().step == 2
  assert checkpoints.best() == (2, 0.5)
  again = save(checkpoints, 3, 0.7)
  assert checkpoints.steps() == [2, 3]
  assert_equal(checkpoints.restore('best', shapes('batch', True)).state, again)


def test_no_best_is_reported(checkpoints):
  save(checkpoints, 1)
  with pytest.raises(SegjaxError, match='has the metric iou'):
    checkpoints.restore('best')


# Orbax leaves unawaited coroutines if a file is missing.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('gone', ['meta/metadata', 'state/manifest.ocdbt', 'state/_METADATA'])
def test_missing_file_is_damage(checkpoints, warnings, tmp_path, gone):
  save(checkpoints, 1)
  save(checkpoints, 2)
  (tmp_path / 'c' / '2' / gone).unlink()
  assert checkpoints.restore().step == 1
  assert 'corrupt' in warnings[0]


def test_all_corrupt(checkpoints, tmp_path):
  save(checkpoints, 1)
  damage(tmp_path / 'c' / '1')
  with pytest.raises(SegjaxError, match='no checkpoint in .* can be read: .*corrupt'):
    checkpoints.restore()


def test_another_network(checkpoints):
  save(checkpoints, 1)
  with pytest.raises(SegjaxError, match='of a different network .*use another --workdir'):
    checkpoints.restore('latest', shapes('none', True))


# --- disks and buckets ----------------------------------------------------------------------------


def test_what_does_not_fit_is_not_written(checkpoints, tmp_path, monkeypatch):
  state = save(checkpoints, 1)
  before = sorted(tmp_path.rglob('*'))
  usage = shutil.disk_usage(tmp_path)._replace(free=3_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  message = (
    r'c/2 cannot be written, because the disk is full \(1\.\d MB needed, 3.0 kB free\): free some '
    'space, and run the same command again, which resumes from step 1$'
  )
  with pytest.raises(SegjaxError, match=message):
    save(checkpoints, 2)
  assert sorted(tmp_path.rglob('*')) == before
  assert_equal(checkpoints.restore('latest', shapes('batch', True)).state, state)


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'x'), ValueError('ENOSPC in words')])
def test_a_disk_that_fills_up_is_one_sentence(checkpoints, tmp_path, monkeypatch, caplog, error):
  """The writing is done by a thread, whose error comes with the next save, or at the end."""
  save(checkpoints, 1)

  async def fail(*_args, **_kwargs):
    raise error

  monkeypatch.setattr(ocp.JsonCheckpointHandler, '_save_fn', fail)
  checkpoints.save(make_state(2, seed=2))
  with pytest.raises(SegjaxError, match='c/2 cannot be written, .*which resumes from step 1$'):
    checkpoints.close()
  assert os.listdir(tmp_path / 'c') == ['1'], 'nothing half-written is left'
  assert 'Traceback' not in caplog.text


def test_a_read_only_directory_is_one_sentence(tmp_path, monkeypatch):
  def read_only(*_args, **_kwargs):
    raise OSError(errno.EROFS, 'Read-only file system')

  monkeypatch.setattr(ocp, 'CheckpointManager', read_only)
  with pytest.raises(SegjaxError, match=r'c cannot be written \(Read-only file system\): make it'):
    Checkpoints(tmp_path / 'c')


def test_a_lock_that_was_lost_saves_nothing(tmp_path):
  def lost():
    raise SegjaxError('taken over')

  checkpoints = Checkpoints(tmp_path / 'c', check=lost)
  with pytest.raises(SegjaxError, match='taken over'):
    checkpoints.save(make_state(1))
  assert checkpoints.steps() == []
  checkpoints.close()


def test_checkpoints_in_a_bucket():
  with fake_bucket.installed() as files:
    place = storage.as_path('s3://bucket/run/checkpoints')
    checkpoints = Checkpoints(place, keep=1, best_metric='iou')
    states = {step: save(checkpoints, step, iou) for step, iou in ((1, 0.9), (2, 0.5), (3, 0.7))}
    checkpoints.close()
    assert {name.split('/')[4] for name in files} == {'1', '3'}
    del files['/bucket/run/checkpoints/1/segjax_complete']  # as if it had been killed
    checkpoints = Checkpoints(place, keep=1, best_metric='iou')
    assert checkpoints.steps() == [3]
    assert_equal(checkpoints.restore('latest', shapes('batch', True)).state, states[3])
    checkpoints._corrupt.add(3)
    again = save(checkpoints, 3)
    checkpoints.close()
    assert any(name.startswith('/bucket/run/checkpoints.corrupt/3-') for name in files)
    reader = Checkpoints(place, read_only=True)
    assert_equal(variables_from_arrays(reader.restore().state), eval_variables(again))
    reader.close()


def test_several_processes_cannot_save_to_it(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with fake_bucket.installed():
    place = storage.as_path('s3://bucket/c')
    with pytest.raises(SegjaxError, match='^s3://bucket/c takes no checkpoints of several proc'):
      Checkpoints(place)


@pytest.fixture
def two_processes(monkeypatch):
  """This process as the first of two; the other one sees what `seen` says."""
  seen = []
  monkeypatch.setattr(checkpoint, '_SEEN', 0.05)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda value: value)
  both = lambda value: np.array([value, *seen])
  monkeypatch.setattr(multihost_utils, 'process_allgather', both)
  return seen


def test_a_shared_directory(tmp_path, two_processes):
  two_processes.append(True)
  check_shared(tmp_path)
  assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_shared(tmp_path, two_processes, monkeypatch):
  two_processes.append(False)
  message = r'is not the same directory for all processes \(not for 1 of 2\): set --workdir to one'
  with pytest.raises(SegjaxError, match=message):
    check_shared(tmp_path)
  assert os.listdir(tmp_path) == []
  two_processes[:] = [True]
  monkeypatch.setattr(jax, 'process_index', lambda: 1)  # which finds no file
  with pytest.raises(SegjaxError, match='not for 0 of 2'):
    check_shared(tmp_path)


def test_digest_is_that_of_the_parameters(tmp_path):
  digests = []
  for i, (seed, step) in enumerate([(0, 1), (0, 2), (1, 1)]):
    checkpoints = Checkpoints(tmp_path / str(i))
    checkpoints.save(make_state(step, seed=seed))
    checkpoints._manager.wait_until_finished()
    digests.append(checkpoints.restore().params_sha256)
    checkpoints.close()
  assert digests[0] == digests[1] != digests[2]
