"""Checkpoints, written by Orbax and verified by a SHA-256 of every array."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from segjax import storage
from segjax.training import mirror, sharding
from segjax.training.log import plain
from segjax.training.state import TrainState, array_digests, combined_digest, flat_arrays
from segjax.types import SegjaxError

Which = Literal['latest', 'best'] | int

# Seconds.
_TEN_YEARS = 10 * 365 * 24 * 3600
# Of a checkpoint besides its arrays, at most: their names, shapes and digests.
_OVERHEAD = 2**20
# The file of the metrics of a state that was evaluated after it was saved.
_LATER_METRICS = 'meta/metrics.json'
# Seconds until each process has seen a file of the first one: network disks keep what they listed.
_SEEN = 10.0


@dataclasses.dataclass(frozen=True)
class Restored:
  """The content of a checkpoint.

  Attributes:
    state: the state in NumPy arrays, or a dict of arrays by name if no target was given.
    step: of the checkpoint.
    params_sha256: one SHA-256 of all parameters.
    metrics: of the evaluation at that step, or None.
  """

  state: Any
  step: int
  params_sha256: str
  metrics: dict[str, Any] | None


class Checkpoints:
  """The checkpoints of a run: the latest `keep`, and the best by a metric.

  Saving is asynchronous and atomic. A checkpoint contains the SHA-256 of each array, which is
  verified when it is restored, because Orbax does not detect a flipped byte.

  Args:
    directory: of the checkpoints, see `storage.as_path`. Those of a bucket that Orbax cannot write
      to are copied, see `mirror`.
    keep: number of latest checkpoints to keep.
    best_metric, best_mode: of the one that is kept besides.
    read_only: whether nothing is saved.
    warn: shows a line.
    check: called before a checkpoint is saved; raises a SegjaxError if that may not be.

  Raises:
    SegjaxError: the disk is full, or may not be written to; a bucket that several processes cannot
      write to.
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
    check: Callable[[], None] = lambda: None,
  ):
    _quiet_threads()
    self._directory = self._place = storage.absolute(directory)
    self._mirror = None
    if mirror.is_needed(directory, jax.process_count()):
      self._mirror = mirror.Mirror(directory)
      self._place = self._mirror.local  # where Orbax reads and writes
    self._check = check
    # The step that is being saved, and its bytes.
    self._saving: tuple[int, int] | None = None
    self._best_metric, self._best_mode, self._warn = best_metric, best_mode, warn
    self._corrupt: set[int] = set()
    # Metrics of steps saved or read by this object; pending saves are not yet on disk.
    self._metrics: dict[int, Mapping[str, Any]] = {}
    policies = checkpoint_managers.preservation_policy
    options = ocp.CheckpointManagerOptions(
      async_options=_patient() if jax.process_count() == 1 else None,
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
    with storage.explained(self._directory):
      self._manager = ocp.CheckpointManager(self._place, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, in increasing order."""
    return sorted(self._manager.all_steps())

  def best(self) -> tuple[int, float] | None:
    """The step with the best metric among the kept checkpoints, and the metric."""
    scored = [(self._score(step), -step) for step in self.steps() if step not in self._corrupt]
    scored = [s for s in scored if s[0] is not None]
    if not scored:
      return None
    score, step = max(scored)
    return -step, score if self._best_mode == 'max' else -score

  def is_evaluated(self, step: int) -> bool:
    """Whether the metrics of a checkpoint are known."""
    return self._meta(step).get('metrics') is not None

  def is_better(self, metrics: Mapping[str, Any]) -> bool:
    """Whether `metrics` are better than those of all kept checkpoints."""
    value = metrics.get(self._best_metric)
    best = self.best()
    if not _is_score(value):
      return False
    return best is None or (value > best[1] if self._best_mode == 'max' else value < best[1])

  def _score(self, step: int) -> float | None:
    if step not in self._metrics:
      self._metrics[step] = self._meta(step).get('metrics') or {}
    value = self._metrics[step].get(self._best_metric)
    if not _is_score(value):
      return None
    return value if self._best_mode == 'max' else -value

  def _meta(self, step: int) -> dict[str, Any]:
    """The metadata saved with the arrays, and later metrics; empty if it cannot be read."""
    try:
      meta = json.loads((self._place / str(step) / 'meta' / 'metadata').read_text())
    except (OSError, ValueError):
      return {}
    # Without the file, or with a damaged one, the state is evaluated again.
    with contextlib.suppress(OSError, ValueError):
      meta['metrics'] = json.loads((self._place / str(step) / _LATER_METRICS).read_text())
    return meta

  def add_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds the metrics of an evaluation to the checkpoint of its step, saved without any.

    Raises:
      SegjaxError: the checkpoint does not fit on the disk.
    """
    self.wait()
    self._metrics[step] = metrics
    if jax.process_index() == 0:
      for directory in {self._place, self._directory}:
        storage.write_text(directory / str(step) / _LATER_METRICS, json.dumps(plain(metrics)))

  def save(self, state: TrainState, *, metrics: Mapping[str, Any] | None = None) -> None:
    """Starts to save `state` under its step; does nothing if the step is already saved.

    Raises:
      SegjaxError: there is a checkpoint of a later step; this one, or the one before, does not fit
        on the disk.
    """
    self._check()
    step = int(state.step)
    # Orbax does not save a step before an existing one: move corrupt later ones away first.
    for corrupt in sorted(self._corrupt):
      self._set_aside(corrupt)
    if step in self._manager.all_steps():
      return
    # A copy: on a CPU the host array is a view of the buffer that the next step overwrites.
    arrays = {name: np.array(a) for name, a in sharding.to_host(flat_arrays(state)).items()}
    meta = {'sha256': array_digests(arrays), 'metrics': metrics}
    with self._explained():
      self._manager.wait_until_finished()  # errors of the save before are of its step
    kept = self._manager.all_steps()
    self._metrics = {k: found for k, found in self._metrics.items() if k in kept}
    self._metrics[step] = metrics or {}
    self._saving = step, sum(a.nbytes for a in arrays.values()) + _OVERHEAD
    self._check_fits()
    with self._explained():
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(plain(meta))
        ),
      )
      if self._mirror is not None:
        self._manager.wait_until_finished()
        self._mirror.push()
    if not saved:
      raise SegjaxError(f'{self._directory} has a checkpoint later than step {step}: move it away')

  def _check_fits(self) -> None:
    """Raises a SegjaxError, on all processes, if the step does not fit on the disk of one."""
    step, needed = self._saving
    fits = storage.fits(self._place, needed)
    if jax.process_count() > 1:
      fits = bool(np.all(multihost_utils.process_allgather(np.bool_(fits))))
    if not fits:
      raise storage.full_disk(self._directory / str(step), needed, remedy=self._remedy(step))

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Says in a sentence that a checkpoint could not be written, and removes what was."""
    try:
      yield
    except Exception as e:  # of any type, as TensorStore says in words that a disk is full
      if self._saving is None:
        raise
      step, needed = self._saving
      path = self._directory / str(step)
      if (told := storage.explain(e, path, needed, self._remedy(step))) is None:
        raise
      if jax.process_index() == 0 and not storage.is_bucket(self._place):
        _remove_partial(self._place, step)
      raise told from e

  def _remedy(self, step: int) -> str:
    """What helps where the checkpoint of a step cannot be written."""
    kept = [other for other in self.steps() if other != step]
    resumes = f', which resumes from step {kept[-1]}' if kept else ''
    return f'free some space, and run the same command again{resumes}'

  def _set_aside(self, step: int) -> None:
    """Moves a corrupt checkpoint away, so that its step can be saved again."""
    if jax.process_index() == 0:
      aside = self._directory.with_name(f'{self._directory.name}.corrupt')
      storage.move_tree(self._directory / str(step), aside / f'{step}-{time.time_ns()}')
      if self._mirror is not None:
        storage.remove_tree(self._place / str(step))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('set aside')
    self._corrupt.remove(step)
    self._manager.reload()

  def restore(self, which: Which = 'latest', target: TrainState | None = None) -> Restored | None:
    """Restores and verifies a checkpoint; None if there are no checkpoints.

    Args:
      which: 'latest' (if it is corrupt, this is reported and the previous one is used), 'best', or
        a step.
      target: shapes and types of the state; without it the arrays are returned by name.

    Raises:
      SegjaxError: the checkpoint does not exist, is corrupt, or is of a different network.
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
        f'no checkpoint in {self._directory} has the metric {self._best_metric}: use '
        '--checkpoint=latest'
      )
    return best[0]

  def _restore_newest(self, steps: list[int], target: TrainState | None) -> Restored:
    problems = []
    for step in reversed(steps):
      try:
        restored = self._restore_step(step, target)
      except CorruptCheckpointError as e:
        problems.append(str(e))
        self._corrupt.add(step)
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
      raise CorruptCheckpointError(f'{name} is corrupt ({_first(wrong)})')
    params = {n: d for n, d in digests.items() if n.startswith('params.')}
    state = arrays if target is None else _fill(target, arrays, name)
    return Restored(state, step, combined_digest(params), meta['metrics'])

  def _read_arrays(self, step: int) -> dict[str, np.ndarray]:
    try:
      target = self._manager.item_metadata(step)['state']
      target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), dict(target))
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      return self._manager.restore(step, args=args)['state']
    except Exception as e:  # corrupt files raise various exceptions
      raise CorruptCheckpointError(
        f'checkpoint {self._directory / str(step)} is corrupt ({type(e).__name__})'
      ) from e

  def wait(self) -> None:
    """Waits for pending saves.

    Raises:
      SegjaxError: the last one does not fit on the disk.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves.

    Raises:
      SegjaxError: the last one does not fit on the disk.
    """
    with contextlib.ExitStack() as stack:
      if self._mirror is not None:
        stack.callback(self._mirror.close)
      stack.enter_context(self._explained())
      stack.callback(self._manager.close)
      self._manager.wait_until_finished()


def _remove_partial(directory: Path, step: int) -> None:
  """Removes what was written of a checkpoint, to which threads may add for a moment."""
  for _ in range(20):
    partial = list(directory.glob(f'{step}.orbax-checkpoint-tmp*'))
    if not partial:
      return
    for path in partial:
      storage.remove_tree(path)
    time.sleep(0.05)


def check_shared(directory: Path) -> None:
  """Checks that all processes see the same directory, which the first one has made.

  Raises:
    SegjaxError: on all processes: some do not see what the first one writes there.
  """
  if jax.process_count() == 1 or storage.is_bucket(directory):
    return
  token = np.frombuffer(uuid.uuid4().bytes, np.uint32)
  if jax.process_index() == 0:
    _shared_file(directory, token).touch()
  # The others have the token when the file is there.
  path = _shared_file(directory, np.asarray(multihost_utils.broadcast_one_to_all(token)))
  seen = multihost_utils.process_allgather(np.bool_(_appears(path))).ravel()
  if jax.process_index() == 0:
    path.unlink()
  if not seen.all():
    missing = ', '.join(map(str, np.flatnonzero(~seen)))
    raise SegjaxError(
      f'{directory} is not the same directory for all processes (not for {missing} of '
      f'{len(seen)}): set --workdir to one on a disk that all machines share, or in gs://'
    )


def _shared_file(directory: Path, token: np.ndarray) -> Path:
  return directory / f'.shared-{token.tobytes().hex()}'


def _appears(path: Path) -> bool:
  """Whether a file is there, or is within `_SEEN` seconds."""
  since = time.monotonic()
  while not path.exists():
    if time.monotonic() - since > _SEEN:
      return False
    time.sleep(_SEEN / 100)
  return True


@functools.cache
def _quiet_threads() -> None:
  """Keeps the threads of a save that fails from printing hundreds of lines of tracebacks.

  The error itself is raised, by the next save or at the end. But Orbax logs it in the thread where
  it happens and in those that wait for it; and each array that TensorStore has not yet written
  then finds the event loop of the save closed.
  """
  repeats = lambda record: bool(record.exc_info) and '/orbax/' in record.pathname
  logging.getLogger('absl').addFilter(lambda record: not repeats(record))
  hook = sys.unraisablehook

  def quiet(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  sys.unraisablehook = quiet


class CorruptCheckpointError(SegjaxError):
  """A checkpoint whose content differs from what was saved."""


class _KeepBest:
  """Orbax preservation policy that keeps the best step."""

  def __init__(self, checkpoints: Checkpoints):
    self._checkpoints = checkpoints

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    del context
    best = self._checkpoints.best()
    return [best is not None and info.step == best[0] for info in checkpoints]


def _patient() -> ocp.AsyncOptions:
  """Options of one process, which waits for nothing but its own disk.

  Orbax measures its time-outs by the system's clock: one that jumps would end a run. The time-out
  of directories that are made beside a save cannot be set.
  """
  return ocp.AsyncOptions(timeout_secs=_TEN_YEARS, create_directories_asynchronously=False)


def _fill(target: TrainState, arrays: Mapping[str, np.ndarray], name: str) -> TrainState:
  """The arrays in the structure of `target`."""
  wanted = {n: (a.shape, str(a.dtype)) for n, a in flat_arrays(target).items()}
  found = {n: (a.shape, str(a.dtype)) for n, a in arrays.items()}
  odd = sorted(dict(wanted.items() ^ found.items()))
  if odd:
    raise SegjaxError(f'{name} is of a different network ({_first(odd)}): use another --workdir')
  return jax.tree.unflatten(jax.tree.structure(target), [arrays[n] for n in wanted])


def _first(names: Sequence[str]) -> str:
  return names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else '')


def _is_score(value: Any) -> bool:
  """Whether a value of a metric can be compared: a number other than NaN."""
  return isinstance(value, int | float) and not math.isnan(value)
