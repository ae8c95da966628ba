"""The loop: when it logs, evaluates, saves and stops."""

import dataclasses
import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from tiny_task import make_batch, make_task

from segjax.training import loop, sharding
from segjax.training.checkpoint import Checkpoints
from segjax.training.log import RunLog
from segjax.training.state import init_state
from segjax.training.step import make_train_step
from segjax.training.watchdog import Watchdog
from segjax.types import SegjaxError


class Quiet:
  def update(self, step, values=None):
    pass

  def message(self, text):
    pass


@pytest.fixture(scope='module')
def compiled():
  task, optimizer = make_task(), optax.sgd(0.1)
  step = jax.jit(make_train_step(task, optimizer, optax.constant_schedule(0.1), seed=0))
  state = jax.jit(lambda k: init_state(task, optimizer, k, make_batch(), ema=False))(
    jax.random.key(0)
  )
  return task, step, jax.device_get(state)


@pytest.fixture
def go(compiled, tmp_path):
  """Runs the loop; returns the steps it evaluated and the steps it saved."""

  def go(
    config,
    *,
    batches=None,
    scores=None,
    keep=99,
    start=0,
    evaluated=True,
    keep_states=False,
    evaluate=None,
    **kwargs,
  ):
    task, step, state = compiled
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
    batch = sharding.put_batch(make_batch(), mesh, task.batch_spec)
    seen = []

    def measure(state, now):
      seen.append((now, state) if keep_states else now)
      return {'mean_iou': (scores or {}).get(now, 0.0)}

    checkpoints = Checkpoints(tmp_path / 'c', keep=keep, best_metric='mean_iou')
    log = RunLog(tmp_path)
    try:
      loop.run(
        sharding.put_replicated(dataclasses.replace(state, step=np.int32(start)), mesh),
        step,
        batches or ((batch, ['a', 'b']) for _ in itertools.count()),
        config,
        batch_size=8,
        checkpoints=checkpoints,
        log=log,
        progress=Quiet(),
        evaluate=evaluate or measure,
        evaluated=evaluated,
        **kwargs,
      )
    finally:
      checkpoints.close()
      log.close()
      go.evaluated = seen
      go.saved = sorted(int(p.name) for p in (tmp_path / 'c').iterdir() if p.name.isdigit())
    return go.evaluated, go.saved

  def metrics():
    """Of each checkpoint, its metrics."""
    checkpoints = Checkpoints(tmp_path / 'c', read_only=True)
    found = {step: checkpoints.restore(step).metrics for step in checkpoints.steps()}
    checkpoints.close()
    return found

  go.metrics = metrics
  return go


def test_evaluates_and_saves_on_time_and_at_the_end(go):
  config = loop.TrainConfig(steps=7, eval_every=3, checkpoint_every=2)
  # 3 is the first evaluation and so the best; 6 and 7 are not better.
  assert go(config) == ([3, 6, 7], [2, 3, 4, 6, 7])


def test_without_steps_the_first_state_is_evaluated_and_saved_once(go):
  config = loop.TrainConfig(steps=0)
  assert go(config) == ([0], [0])
  assert go(config) == ([], [0])


def test_without_steps_an_evaluation_that_was_cut_off_is_made_again(go):
  def fail(state, now):
    raise SegjaxError('no evaluation')

  config = loop.TrainConfig(steps=0)
  with pytest.raises(SegjaxError, match='no evaluation'):
    go(config, evaluate=fail)
  assert go.metrics() == {0: None}
  assert go(config, evaluated=False, scores={0: 0.5}) == ([0], [0])
  assert go.metrics() == {0: {'mean_iou': 0.5}}


def test_a_better_evaluation_is_saved(go):
  config = loop.TrainConfig(steps=8, eval_every=1, checkpoint_every=100)
  assert go(config, scores={1: 0.1, 2: 0.0, 3: 0.3, 4: 0.2, 5: 0.3})[1] == [1, 3, 8]


@pytest.mark.parametrize(
  ('scores', 'evaluated', 'saved'),
  [
    ({2: 0.1, 4: 0.3}, [2, 4, 6, 8], [2, 4, 8]),
    # The last evaluation that counts is better.
    ({2: 0.3, 6: 0.5}, [2, 4, 6, 8, 10], [2, 6, 10]),
    ({10: 0.1, 12: 0.2}, [2, 4, 6], [2, 6]),
    ({2 * k: 0.01 * k for k in range(1, 7)}, [2, 4, 6, 8, 10, 12], [2, 4, 6, 8, 10, 12]),
  ],
)
def test_patience_ends_a_run_early(go, scores, evaluated, saved):
  """And once it has ended, it is not trained when it is started again, unless that is asked for."""
  config = loop.TrainConfig(steps=12, eval_every=2, checkpoint_every=100, patience=2)
  assert go(config, scores=scores) == (evaluated, saved)
  assert go.metrics()[saved[-1]] is not None
  assert go(config, scores=scores, start=saved[-1]) == ([], saved)
  if saved[-1] < 12:
    longer = dataclasses.replace(config, patience=3)
    assert go(longer, scores=scores, start=saved[-1])[0][0] == saved[-1] + 2


def test_before_the_first_score_there_is_patience():
  config = loop.TrainConfig(steps=12, eval_every=2, patience=1)
  assert not loop.ends_early(config, 10, None)
  assert not loop.ends_early(dataclasses.replace(config, patience=None), 10, (2, 0.5))


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(go, compiled, signum):
  task = compiled[0]
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
  batch = sharding.put_batch(make_batch(), mesh, task.batch_spec)

  def batches():
    for step in itertools.count():
      if step == 4:
        os.kill(os.getpid(), signum)
      yield batch, ['a']

  before = signal.getsignal(signum)
  with pytest.raises(loop.StoppedError) as stopped:
    go(loop.TrainConfig(steps=100), batches=batches())
  assert (stopped.value.step, stopped.value.signum) == (5, signum)
  assert go.saved == [5]
  assert go.evaluated == []
  assert signal.getsignal(signum) is before


@pytest.mark.parametrize(('start', 'wanted'), [(3, [3, 6]), (6, [6]), (4, [6]), (0, [3, 6])])
def test_an_evaluation_that_a_stop_skipped_is_made_later(go, start, wanted):
  config = loop.TrainConfig(steps=6, eval_every=3)
  assert go(config, start=start, evaluated=False)[0] == wanted


def test_a_failing_evaluation_does_not_cost_the_checkpoint(go):
  """The checkpoint has no metrics: a resumed run evaluates it, and adds them."""

  def fail(state, now):
    raise SegjaxError('no evaluation')

  config = loop.TrainConfig(steps=6, eval_every=3, checkpoint_every=3)
  with pytest.raises(SegjaxError, match='no evaluation'):
    go(config, evaluate=fail)
  assert go.saved == [3]
  assert go.metrics() == {3: None}
  go(config, start=3, evaluated=False, scores={3: 0.5, 6: 0.25})
  assert go.metrics() == {3: {'mean_iou': 0.5}, 6: {'mean_iou': 0.25}}


@pytest.mark.parametrize(('mean', 'added'), [(1.0, [(3, {'mean_iou': 0.5})]), (2.0, [])])
def test_metrics_are_those_of_the_state_that_was_saved(mean, added):
  """A stopped run saves the state before its refresh, whose metrics nobody has measured."""
  state, refreshed = (SimpleNamespace(model_state={'mean': np.float32(x)}) for x in (1.0, mean))
  found = []
  checkpoints = SimpleNamespace(add_metrics=lambda *args: found.append(args))
  evaluate = lambda state, step: {'mean_iou': 0.5}
  measure = loop._Measure(checkpoints, None, evaluate, lambda _: refreshed, Watchdog(None))
  assert measure.restored(state, 3) is refreshed
  assert found == added


def test_sigterm_may_come_again_while_the_state_is_saved(go, compiled, monkeypatch):
  task = compiled[0]
  batch = sharding.put_batch(
    make_batch(), sharding.make_mesh(sharding.MeshConfig(data=1)), task.batch_spec
  )
  save = Checkpoints.save

  def save_and_terminate(self, state, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    save(self, state, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)

  def batches():
    yield batch, ['a']
    os.kill(os.getpid(), signal.SIGTERM)
    yield batch, ['b']

  monkeypatch.setattr(Checkpoints, 'save', save_and_terminate)
  with pytest.raises(loop.StoppedError) as stopped:
    go(loop.TrainConfig(steps=100), batches=batches())
  assert (stopped.value.step, stopped.value.signum) == (2, signal.SIGTERM)
  assert go.saved == [2]


def test_a_second_interrupt_ends_at_once(go, compiled):
  task = compiled[0]
  batch = sharding.put_batch(
    make_batch(), sharding.make_mesh(sharding.MeshConfig(data=1)), task.batch_spec
  )

  def batches():
    ours = signal.getsignal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    while signal.getsignal(signal.SIGINT) == ours:  # until the first one has been handled
      time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)
    yield batch, ['a']

  old = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      go(loop.TrainConfig(steps=100), batches=batches())
  finally:
    signal.signal(signal.SIGINT, old)
  assert go.saved == []


def test_an_evaluation_that_was_made_is_not_made_again(go):
  assert go(loop.TrainConfig(steps=6, eval_every=3), start=3)[0] == [6]


def test_what_is_refreshed_is_evaluated_and_saved(go):
  """Also where a stop had skipped the evaluation."""
  refresh = lambda state: dataclasses.replace(state, skipped=state.skipped + 1)
  config = loop.TrainConfig(steps=6, eval_every=3)
  seen, _ = go(config, start=3, evaluated=False, refresh=refresh, keep_states=True)
  assert [(step, int(state.skipped)) for step, state in seen] == [(3, 1), (6, 2)]


def test_the_last_state_is_refreshed_also_where_a_stop_skips_its_evaluation(go, compiled):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
  batch = sharding.put_batch(make_batch(), mesh, compiled[0].batch_spec)

  def batches():
    for step in itertools.count(1):
      if step == 6:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch, ['a']

  refreshed = []
  refresh = lambda state: refreshed.append(int(state.step)) or state
  with pytest.raises(loop.StoppedError):
    go(loop.TrainConfig(steps=6, eval_every=3), batches=batches(), refresh=refresh)
  assert (refreshed, go.evaluated, go.saved) == ([3, 6], [3], [3, 6])


def test_skipped_updates_are_in_the_log_of_their_step(go, compiled, tmp_path):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
  put = lambda batch: sharding.put_batch(batch, mesh, compiled[0].batch_spec)
  broken = {**make_batch(), 'image': np.full((8, 8, 8, 3), np.nan, np.float32)}
  good, bad = (put(make_batch()), ['a']), (put(broken), ['b'])
  config = loop.TrainConfig(steps=3, log_every=1, nonfinite='skip')
  go(config, batches=iter([good, bad, good]))
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  lines = [line for line in lines if line['split'] == 'train']
  assert [line.get('skipped') for line in lines] == [None, 1, 1]
  assert ['loss' in line for line in lines] == [True, False, True]


def test_nonfinite_names_step_metrics_and_examples(go, compiled):
  task = compiled[0]
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
  good = sharding.put_batch(make_batch(), mesh, task.batch_spec)
  broken = {**make_batch(), 'image': np.full((8, 8, 8, 3), np.nan, np.float32)}
  bad = sharding.put_batch(broken, mesh, task.batch_spec)
  stream = lambda: iter([(good, ['a']), (good, ['b']), (bad, ['c', 'd']), *[(good, ['e'])] * 9])
  with pytest.raises(SegjaxError, match=r'step 3 .*loss=nan.*: step=2, .*in the batch: c, d;'):
    go(loop.TrainConfig(steps=6), batches=stream())
  assert go.saved == []
  go(loop.TrainConfig(steps=6, nonfinite='skip', max_skipped=1), batches=stream())
  assert go.saved == [6]
