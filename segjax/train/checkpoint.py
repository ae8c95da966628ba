"""Checkpoints: Orbax writes them, a SHA-256 of every array tells a damaged one from a good one."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from segjax.train import sharding
from segjax.train.state import TrainState, array_digests, combined_digest, flat_arrays
from segjax.types import SegjaxError

Which = Literal['latest', 'best'] | int


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held.

  Attributes:
    state: the state in NumPy arrays, or these by name where no target was given.
    step: the step it was saved at.
    params_sha256: one SHA-256 for all parameters.
    metrics: those of the evaluation at that step, or None.
  """

  state: Any
  step: int
  params_sha256: str
  metrics: dict[str, Any] | None


class Checkpoints:
  """The checkpoints of one run: the newest `keep`, and the best by a metric.

  Saving is asynchronous. A checkpoint appears whole or not at all, with the SHA-256 of each of its
  arrays inside; restoring recomputes them, because Orbax itself does not notice a flipped byte.
  """

  def __init__(
    self,
    directory: Path,
    *,
    keep: int = 2,
    best_metric: str | None = None,
    best_mode: Literal['max', 'min'] = 'max',
    read_only: bool = False,
    warn: Callable[[str], None] = print,
  ):
    self._directory = directory.absolute()
    self._best_metric, self._best_mode, self._warn = best_metric, best_mode, warn
    self._damaged: set[int] = set()
    # Of the steps saved or read here: what is still being saved is not yet on disk.
    self._metrics: dict[int, Mapping[str, Any]] = {}
    policies = checkpoint_managers.preservation_policy
    options = ocp.CheckpointManagerOptions(
      read_only=read_only,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep),
          _KeepBest(self),
        ]
      ),
    )
    handlers = {'state': ocp.StandardCheckpointHandler(), 'meta': ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """The steps that have a whole checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def best(self) -> tuple[int, float] | None:
    """The step with the best metric among those kept, and the metric there."""
    scored = [(self._score(step), -step) for step in self.steps() if step not in self._damaged]
    scored = [s for s in scored if s[0] is not None]
    if not scored:
      return None
    score, step = max(scored)
    return -step, score if self._best_mode == 'max' else -score

  def is_better(self, metrics: Mapping[str, Any]) -> bool:
    """Whether `metrics` beat those of every checkpoint kept."""
    value = metrics.get(self._best_metric)
    best = self.best()
    if not isinstance(value, float) or math.isnan(value):
      return False
    return best is None or (value > best[1] if self._best_mode == 'max' else value < best[1])

  def _score(self, step: int) -> float | None:
    if step not in self._metrics:
      self._metrics[step] = self._meta(step).get('metrics') or {}
    value = self._metrics[step].get(self._best_metric)
    if not isinstance(value, float) or math.isnan(value):
      return None
    return value if self._best_mode == 'max' else -value

  def _meta(self, step: int) -> dict[str, Any]:
    """What was saved beside the arrays; empty where it cannot be read."""
    try:
      return json.loads((self._directory / str(step) / 'meta' / 'metadata').read_text())
    except (OSError, ValueError):
      return {}

  def save(self, state: TrainState, *, metrics: Mapping[str, Any] | None = None) -> None:
    """Starts to save `state` under its step; a step that is there already stays as it is."""
    step = int(state.step)
    # Orbax saves no step before one that is there: damaged later ones must go first.
    for damaged in sorted(self._damaged):
      self._set_aside(damaged)
    if step in self._manager.all_steps():
      return
    # A copy: on a CPU the host's view is the buffer that the next step is about to overwrite.
    arrays = {name: np.array(a) for name, a in sharding.to_host(flat_arrays(state)).items()}
    meta = {'sha256': array_digests(arrays), 'metrics': metrics}
    self._metrics[step] = metrics or {}
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(_plain(meta))
      ),
    )
    if not saved:
      raise SegjaxError(f'{self._directory} has a checkpoint later than step {step}: move it away')

  def _set_aside(self, step: int) -> None:
    """Moves a damaged checkpoint out of the way of a good one of the same step."""
    if jax.process_index() == 0:
      aside = self._directory.with_name(f'{self._directory.name}.damaged')
      aside.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(aside / f'{step}-{time.time_ns()}')
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('set aside')
    self._damaged.remove(step)
    self._manager.reload()

  def restore(self, which: Which = 'latest', target: TrainState | None = None) -> Restored | None:
    """A checkpoint whose every array is as it was saved, or None where there is none at all.

    Args:
      which: 'latest' (a damaged one is reported and the one before is taken), 'best', or a step.
      target: the state's shapes and types; without it the arrays come back by name.

    Raises:
      SegjaxError: the checkpoint asked for is not there, is damaged, or is of another network.
    """
    steps = self.steps()
    if not steps:
      return None
    if which == 'latest':
      return self._restore_newest(steps, target)
    step = self._best_step() if which == 'best' else which
    if step not in steps:
      raise SegjaxError(
        f'{self._directory} has no checkpoint of step {step}: it has {", ".join(map(str, steps))}'
      )
    return self._restore_step(step, target)

  def _best_step(self) -> int:
    best = self.best()
    if best is None:
      raise SegjaxError(
        f'no checkpoint in {self._directory} has the metric {self._best_metric}: take '
        '--checkpoint=latest'
      )
    return best[0]

  def _restore_newest(self, steps: list[int], target: TrainState | None) -> Restored:
    problems = []
    for step in reversed(steps):
      try:
        restored = self._restore_step(step, target)
      except DamagedCheckpointError as e:
        problems.append(str(e))
        self._damaged.add(step)
        continue
      for problem in problems:
        self._warn(f'{problem}: resuming from step {step} instead; nothing was deleted')
      return restored
    raise SegjaxError(f'no checkpoint in {self._directory} can be read: {"; ".join(problems)}')

  def _restore_step(self, step: int, target: TrainState | None) -> Restored:
    name = f'checkpoint {self._directory / str(step)}'
    meta = self._meta(step)
    arrays = self._read_arrays(step)
    digests = array_digests(arrays)
    wrong = sorted(dict(digests.items() ^ meta.get('sha256', {}).items()))
    if wrong:
      raise DamagedCheckpointError(f'{name} is damaged ({_first(wrong)})')
    params = {n: d for n, d in digests.items() if n.startswith('params.')}
    state = arrays if target is None else _fill(target, arrays, name)
    return Restored(state, step, combined_digest(params), meta['metrics'])

  def _read_arrays(self, step: int) -> dict[str, np.ndarray]:
    try:
      target = self._manager.item_metadata(step)['state']
      target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), dict(target))
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      return self._manager.restore(step, args=args)['state']
    except Exception as e:  # whatever a broken file makes the readers raise
      raise DamagedCheckpointError(
        f'checkpoint {self._directory / str(step)} is damaged ({type(e).__name__})'
      ) from e

  def close(self) -> None:
    """Waits for what is being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


class DamagedCheckpointError(SegjaxError):
  """A checkpoint whose content is not what was saved."""


class _KeepBest:
  """Orbax's policy that preserves the best step, as the files tell it."""

  def __init__(self, checkpoints: Checkpoints):
    self._checkpoints = checkpoints

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    del context
    best = self._checkpoints.best()
    return [best is not None and info.step == best[0] for info in checkpoints]


def _fill(target: TrainState, arrays: Mapping[str, np.ndarray], name: str) -> TrainState:
  """`target`'s structure around `arrays`."""
  wanted = {n: (a.shape, str(a.dtype)) for n, a in flat_arrays(target).items()}
  found = {n: (a.shape, str(a.dtype)) for n, a in arrays.items()}
  odd = sorted(dict(wanted.items() ^ found.items()))
  if odd:
    raise SegjaxError(f'{name} is of another network ({_first(odd)}): take another --workdir')
  return jax.tree.unflatten(jax.tree.structure(target), [arrays[n] for n in wanted])


def _first(names: Sequence[str]) -> str:
  return names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else '')


def _plain(tree: Any) -> Any:
  """`tree` with NumPy scalars and arrays as JSON's own types."""
  if isinstance(tree, Mapping):
    return {k: _plain(v) for k, v in tree.items()}
  if isinstance(tree, list | tuple):
    return [_plain(v) for v in tree]
  return tree.tolist() if isinstance(tree, np.ndarray | np.generic) else tree
