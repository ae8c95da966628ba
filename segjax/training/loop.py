"""The training loop, shared by all tasks, models and numbers of devices."""

import collections
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import jax
from jax.experimental import multihost_utils

from segjax.training import sharding
from segjax.training.checkpoint import Checkpoints
from segjax.training.log import RunLog
from segjax.training.state import TrainState
from segjax.training.watchdog import Watchdog
from segjax.types import NonNegativeInt, PositiveInt, Range, SegjaxError, StoppedError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Keys of `config.train`.

  Attributes:
    steps: total number of updates; 0 evaluates the weights of `config.init_from` without training.
    seed: of initialization, data order, augmentation and dropout.
    log_every: steps between log entries.
    eval_every: steps between evaluations; the last step is always evaluated.
    checkpoint_every: steps between checkpoints; the last step is always saved.
    keep: number of latest checkpoints to keep, in addition to the best.
    best_metric: evaluation metric that selects the best checkpoint; None for mean_iou, mask_ap or
      pq, or another one where the metrics do not compute that.
    best_mode: 'max' or 'min'; None for 'min' of a loss, an error or a distance, and 'max' of
      anything else.
    patience: training ends early where `best_metric` has not become better in so many evaluations,
      that is in `patience` times `eval_every` steps; None for all `steps`. The schedule of the
      learning rate is that of all steps.
    nonfinite: on a non-finite loss or gradient, 'stop' the run or 'skip' the update.
    max_skipped: with 'skip', maximum number of skipped updates before the run stops.
    images: number of examples drawn in each evaluation.
    recompute_batch_norm: whether to recompute the batch-norm statistics over the training split,
      without augmentation, before each evaluation; the model needs `bn_momentum`. Use it where
      running averages over augmented images do not match the evaluation images.
    loggers: also log to Weights & Biases ('wandb') or 'mlflow', see `segjax.training.loggers`.
  """

  steps: NonNegativeInt = 1000
  seed: Annotated[int, Range(0, 2**32 - 1)] = 0
  log_every: PositiveInt = 20
  eval_every: PositiveInt = 500
  checkpoint_every: PositiveInt = 500
  keep: PositiveInt = 2
  best_metric: str | None = None
  best_mode: Literal['max', 'min'] | None = None
  patience: PositiveInt | None = None
  nonfinite: Literal['stop', 'skip'] = 'stop'
  max_skipped: NonNegativeInt = 10
  images: NonNegativeInt = 6
  recompute_batch_norm: bool = False
  loggers: tuple[Literal['wandb', 'mlflow'], ...] = ()


class Progress(Protocol):
  """Displays the progress of training."""

  def update(self, step: int, values: Mapping[str, float] | None = None) -> None: ...

  def message(self, text: str) -> None: ...


class _StopSignal:
  """Records SIGTERM and SIGINT inside a `with` block, in which the state is saved.

  SIGTERM may come again while the state is saved: schedulers send it to a command and to its
  children. A second Ctrl-C has its usual effect. Of several processes it is enough that one gets a
  signal: JAX's preemption notifier, which has taken SIGTERM, tells the others.
  """

  def __enter__(self) -> '_StopSignal':
    self.received: int | None = None
    self._several = jax.process_count() > 1
    # Python takes handlers in its main thread only.
    ours = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
    self._old = {s: signal.signal(s, self._handle) for s in signals} if ours else {}
    return self

  def __exit__(self, *exc: object) -> None:
    for signum in list(self._old):
      self._restore(signum)

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    del frame
    if self.received is None:
      self.received = signum
      if self._several:
        os.kill(os.getpid(), signal.SIGTERM)  # to JAX
    self._restore(signal.SIGINT)

  def _restore(self, signum: int) -> None:
    if signum in self._old:
      signal.signal(signum, self._old.pop(signum))

  def agreed(self, step: int) -> int | None:
    """The signal to stop after this step, or None; several processes agree on the step."""
    if self._several:
      stop = multihost_utils.reached_preemption_sync_point(step)
      return (self.received or signal.SIGTERM) if stop else None
    return self.received


class _Meter:
  """Means of the scalars since the last log entry; checks that they are finite."""

  def __init__(self, config: TrainConfig):
    self._config = config
    self._sums: dict[str, float] = collections.defaultdict(float)
    self._count = 0
    self._last_finite: dict[str, float] = {}
    self._levels: dict[str, float] = {}
    self._pending: list[tuple[int, Mapping[str, jax.Array], Sequence[str]]] = []

  def push(self, step: int, scalars: Mapping[str, jax.Array], names: Sequence[str]) -> None:
    """Adds a step, and reads the previous one while the device computes this one."""
    self._read()
    self._pending.append((step, scalars, names))

  def _read(self) -> None:
    while self._pending:
      self._add(*self._pending.pop())

  def _add(self, step: int, scalars: Mapping[str, jax.Array], names: Sequence[str]) -> None:
    values = {k: float(v) for k, v in sharding.to_host(dict(scalars)).items()}
    self._levels = {'learning_rate': values['learning_rate']}
    self._levels |= {'skipped': values['skipped']} if values['skipped'] else {}
    if not values.pop('finite'):
      self._check_skip(step, values, names)
      return
    self._last_finite = {'step': step, **values}
    self._count += 1
    for name, value in values.items():
      self._sums[name] += value

  def _check_skip(self, step: int, values: Mapping[str, float], names: Sequence[str]) -> None:
    if self._config.nonfinite == 'skip' and values['skipped'] <= self._config.max_skipped:
      return
    bad = _spell({k: v for k, v in values.items() if not math.isfinite(v)})
    skipped = f' ({values["skipped"]:.0f} updates skipped)' if values['skipped'] > 1 else ''
    raise SegjaxError(
      f'training stopped at step {step} because the loss or its gradient is not finite{skipped}: '
      f'{bad or "overflow"}; last finite metrics: {_spell(self._last_finite) or "none"}; '
      f'examples in the batch: {", ".join(names)}; check them, lower '
      'config.optim.learning_rate in a new --workdir, or set config.train.nonfinite=skip'
    )

  def take(self) -> dict[str, float]:
    """The means since the last call; `learning_rate` and `skipped` have their latest value."""
    self._read()
    means = {k: v / self._count for k, v in self._sums.items()} if self._count else {}
    means.pop('skipped', None)
    self._sums.clear()
    self._count = 0
    return {**means, **self._levels}


class _Clock:
  """Images per second since the last restart."""

  def __init__(self, step: int, batch_size: int):
    self._batch_size = batch_size
    self.restart(step)

  def restart(self, step: int) -> None:
    self._time, self._step = time.perf_counter(), step

  def speed(self, step: int) -> dict[str, float]:
    """`images_per_second`; empty without a step."""
    images = (step - self._step) * self._batch_size
    seconds = time.perf_counter() - self._time
    return {'images_per_second': images / seconds} if images else {}


def _spell(values: Mapping[str, float]) -> str:
  return ', '.join(f'{k}={v:.6g}' for k, v in values.items())


def _due(step: int, config: TrainConfig) -> bool:
  """Whether an evaluation is due after this step."""
  return step == config.steps or step % config.eval_every == 0


def ends_early(config: TrainConfig, step: int, best: tuple[int, float] | None) -> bool:
  """Whether a run ends at a step as `config.patience` and `config.eval_every` say.

  Args:
    config: see `TrainConfig`.
    step: whose evaluation, if it is due, was made.
    best: the step of the best checkpoint and its metric; None before the first.
  """
  if config.patience is None or best is None:
    return False
  return step // config.eval_every - best[0] // config.eval_every >= config.patience


def run(
  state: TrainState,
  train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
  batches: Iterator[tuple[Any, Sequence[str]]],
  config: TrainConfig,
  *,
  batch_size: int,
  checkpoints: Checkpoints,
  log: RunLog | None,
  progress: Progress,
  evaluate: Callable[[TrainState, int], dict[str, Any]],
  evaluated: bool = True,
  refresh: Callable[[TrainState], TrainState] = lambda state: state,
  watchdog: Watchdog | None = None,
) -> TrainState:
  """Trains from `state.step` to `config.steps`, or until `config.patience` ends it.

  A checkpoint that is due is saved before the evaluation of its step, so that nothing that happens
  to the evaluation costs it; but after the refresh, as training goes on from there.

  Args:
    state: on the mesh; its buffers are donated.
    train_step: compiled, from `segjax.training.step.make_train_step`.
    batches: `(batch on the mesh, names of its examples)` from step `state.step` on.
    config: see `TrainConfig`.
    batch_size: examples per step, over all processes.
    checkpoints: of the run.
    log: of the run; None on all processes but the first.
    progress: display.
    evaluate: `(state, step) -> metrics` on the evaluation split.
    evaluated: whether the evaluation due after `state.step`, if any, was done; a stopped run skips
      it.
    refresh: `state -> state`, applied before an evaluation and to the last state; training
      continues with the result.
    watchdog: hears of each step, evaluation and checkpoint as it starts.

  Returns:
    The state after the last step, which is saved.

  Raises:
    StoppedError: on SIGTERM or SIGINT, after saving.
    SegjaxError: the loss is not finite.
  """
  watchdog = watchdog or Watchdog(None)
  measure = _Measure(checkpoints, log, evaluate, refresh, watchdog)
  with _StopSignal() as stop:
    state = _evaluate_first(state, config, checkpoints, measure, evaluated)
    start = step = int(state.step)
    ended = ends_early(config, step, checkpoints.best())
    meter, clock = _Meter(config), _Clock(step, batch_size)
    while step < config.steps and not ended:
      watchdog.at(f'step {step + 1}')
      batch, names = next(batches)
      state, scalars = train_step(state, batch)
      step += 1
      meter.push(step, scalars, names)
      if step == start + 1:  # exclude compilation from images/s
        jax.block_until_ready(scalars)
        clock.restart(step)

      progress.update(step)
      stopping = stop.agreed(step)
      evaluating = not stopping and _due(step, config)
      # Unless this evaluation is better than the best one.
      last = step == config.steps or (evaluating and ends_early(config, step, checkpoints.best()))
      saving = bool(stopping) or last or step % config.checkpoint_every == 0
      if evaluating or saving or step % config.log_every == 0:
        values = {**meter.take(), **clock.speed(step)}
        if log:
          log.scalars(step, 'train', values)
        progress.update(step, values)
        clock.restart(step)
      if evaluating:
        state = measure(state, step, saving=saving)
        ended = ends_early(config, step, checkpoints.best())
      elif saving:
        # Stopped: no later evaluation would refresh what is saved. It takes of the time that a
        # scheduler leaves, as little as the refresh of an evaluation.
        if step == config.steps:
          state = measure.refresh(state, step)
        measure.save(state, step)
      if evaluating or saving:
        clock.restart(step)
      if stopping:
        checkpoints.wait()
        raise StoppedError(step, stopping)
    checkpoints.wait()
  return state


class _Measure:
  """Saves and evaluates states; see `run`."""

  def __init__(
    self,
    checkpoints: Checkpoints,
    log: RunLog | None,
    evaluate: Callable[[TrainState, int], dict[str, Any]],
    refresh: Callable[[TrainState], TrainState],
    watchdog: Watchdog,
  ):
    self._checkpoints, self._log, self._watchdog = checkpoints, log, watchdog
    self._evaluate, self._refresh = evaluate, refresh

  def save(self, state: TrainState, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Starts to save a state."""
    self._watchdog.at(f'saving the checkpoint of step {step}')
    if self._log:
      self._log.flush()
    self._checkpoints.save(state, metrics=metrics)

  def refresh(self, state: TrainState, step: int) -> TrainState:
    """The state as it is evaluated."""
    self._watchdog.at(f'the evaluation of step {step}')
    return self._refresh(state)

  def __call__(self, state: TrainState, step: int, *, saving: bool) -> TrainState:
    """Evaluates a state; saves it before, if it is due, or after, if it is better than all others.

    Returns:
      The state that was evaluated, to go on from.
    """
    state = self.refresh(state, step)
    if saving:
      self.save(state, step)
      self._watchdog.at(f'the evaluation of step {step}')
    metrics = self._evaluate(state, step)
    if saving:
      self._checkpoints.add_metrics(step, metrics)
    elif self._checkpoints.is_better(metrics):
      self.save(state, step, metrics)
    return state

  def restored(self, state: TrainState, step: int) -> TrainState:
    """`__call__` for a state that was saved without an evaluation."""
    refreshed = self.refresh(state, step)
    metrics = self._evaluate(refreshed, step)
    # Of a stopped run the state before its refresh was saved: to resume from it is to do it again.
    if refreshed is state or _equal(refreshed.model_state, state.model_state):
      self._checkpoints.add_metrics(step, metrics)
    return refreshed


def _equal(tree: Any, other: Any) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), tree, other)))


def _evaluate_first(
  state: TrainState,
  config: TrainConfig,
  checkpoints: Checkpoints,
  measure: _Measure,
  evaluated: bool,
) -> TrainState:
  """Runs the evaluation that a stopped run skipped, or that of a run with 0 steps."""
  step = int(state.step)
  if not evaluated and (step or not config.steps) and _due(step, config):
    return measure.restored(state, step)
  if not config.steps and not checkpoints.steps():
    return measure(state, 0, saving=True)
  return state
