"""Evaluation over a complete split: every image counts once, with one division at the end."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.tasks.base import Task
from segjax.training import sharding
from segjax.training.log import plain
from segjax.training.state import TrainState, eval_variables
from segjax.training.step import name_parts
from segjax.types import SegjaxError

Put = Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]
# See `segjax.training.step.make_eval_step`.
EvalStep = Callable[..., tuple[dict, tuple, dict, Any]]
# See `segjax.tasks.base.Task.batch_statistics`.
BatchStatistics = Callable[[Mapping[str, Any], Any, jax.Array], Any]
# The name of an image, and its panels by title, u8[H, W, 3].
Example = tuple[str, dict[str, np.ndarray]]


def average_statistics(
  batch_statistics: BatchStatistics,
  variables: Mapping[str, Any],
  batches: Iterable[Any],
  key: jax.Array,
) -> Any:
  """Batch-norm statistics of the network with `variables`, averaged over `batches`.

  Those that no batch changes, as of frozen layers, stay as they are.

  Args:
    batch_statistics: `Task.batch_statistics`, compiled.
    variables: on the mesh.
    batches: one or more, on the mesh, without padding examples.
    key: for dropout.
  """
  sums, old, count = None, {}, 0
  for batch in batches:
    new = batch_statistics(variables, batch, jax.random.fold_in(key, count))
    old = {name: variables[name] for name in new}
    sums = _add_batch(sums, new, old)
    count += 1
  return _divide(sums, old, count)


# One program each for all arrays: even a small network has a hundred of them.


@jax.jit
def _add_batch(sums: tuple[Any, Any] | None, new: Any, old: Any) -> tuple[Any, Any]:
  """The sum of each array over the batches so far, and whether any of them has changed it."""
  changed = jax.tree.map(lambda a, b: (a != b).any(), new, old)
  if sums is None:
    return new, changed
  return jax.tree.map(jnp.add, sums[0], new), jax.tree.map(jnp.logical_or, sums[1], changed)


@jax.jit
def _divide(sums: tuple[Any, Any], old: Any, count: int) -> Any:
  choose = lambda total, changed, old: jnp.where(changed, total / count, old)
  return jax.tree.map(choose, *sums, old)


def recompute_statistics(
  batch_statistics: BatchStatistics, state: TrainState, batches: Iterable[Any], *, seed: int
) -> TrainState:
  """`state` with batch-norm statistics averaged over `batches`.

  Means and variances of the batches are averaged, as in SegNet's release
  (compute_bn_statistics.py), instead of running averages over changing weights.

  Args:
    batch_statistics, batches: as for `average_statistics`.
    state: on the mesh.
    seed: for dropout.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  variables = eval_variables(state)
  mean = average_statistics(batch_statistics, variables, batches, key)
  return dataclasses.replace(state, model_state={**state.model_state, **mean})


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What was measured on a split.

  Attributes:
    metrics: by name, including the mean losses `loss` and `loss_<name>` if the task has losses
      outside training.
    examples: panels of the first images.
    worst: panels of the images with the lowest scores, the worst first.
    measure: the name of the score of an image, such as 'mean_iou'; empty if there is none.
    scores: of each image that has one, by its name, in the order of evaluation.
    confusion: i64[C, C], pixels by true class (rows) and predicted class; None if not counted.
  """

  metrics: dict[str, Any]
  examples: list[Example]
  worst: list[Example]
  measure: str
  scores: list[tuple[str, float]]
  confusion: np.ndarray | None


def evaluate(
  eval_step: EvalStep,
  variables: Mapping[str, Any],
  batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str]]],
  task: Task,
  put: Put,
  *,
  num_images: int = 0,
  part: sharding.Part = sharding.WHOLE,
) -> Evaluation:
  """Evaluates `variables` on a split.

  Metrics of the host see the images of this process alone; what is left of them is exchanged at the
  end, so that several processes share the work. The first process draws.

  Args:
    eval_step: from `segjax.training.step.make_eval_step`, compiled.
    variables: parameters and model state on the mesh.
    batches: this process's part of the split, `(batch, names)`, the last batch padded.
    task: that defines the metrics.
    put: moves a batch to the mesh.
    num_images: number of examples to draw, and of worst images.
    part: the rows of a batch that this process reads.
  """
  totals: dict[str, np.ndarray] = {}
  states: list[Any] = [None] * len(task.metrics)
  parts: list[list[Any]] = [[] for _ in task.metrics]
  gallery = _Gallery(num_images)
  reads = [metric.reads for metric in task.metrics if not metric.device]
  for local, local_names in batches:
    batch = put(local)
    losses, device_states, predictions, scores = eval_step(variables, batch)
    for name, pair in sharding.to_host(losses).items():
      totals[name] = totals.get(name, 0.0) + np.asarray(pair, np.float64)
    if reads:
      host_predictions = sharding.own_rows(_read(predictions, reads), part)
      host_batch = _own_batch(local, _read(batch, reads), task.host_keys, part)
    device_states, scores = sharding.to_host((device_states, scores))
    device_states, own_scores = iter(device_states), None
    for i, metric in enumerate(task.metrics):
      if metric.device:
        new = next(device_states)
        states[i] = new if states[i] is None else metric.merge(states[i], new)
        continue
      parts[i].append(_columns(metric, metric.from_batch(host_predictions, host_batch)))
      if metric is task.ranking:
        own_scores = metric.image_scores(host_predictions, host_batch, parts[i][-1])
    lists = {'names': list(local_names), 'valid': local['valid'].tolist()}
    if own_scores is not None:
      lists['scores'] = own_scores.tolist()
    lists = _gather(lists, part)
    if own_scores is not None:
      scores = np.array(lists['scores'])
    rows = gallery.choose(np.array(lists['valid']), scores)
    if rows or scores is not None:
      panels = _draw(local, batch, predictions, task, rows, part)
      gallery.add(lists['names'], scores, dict(zip(rows, panels, strict=True)))
    del predictions  # large: free them before the next batch

  means = {name: float(t[0] / t[1]) if t[1] else 0.0 for name, t in totals.items()}
  metrics = {'loss': sum(means.values()), **name_parts(means)} if means else {}
  confusion = None
  for metric, state, own in zip(task.metrics, states, parts, strict=True):
    if not metric.device:
      state = metric.merge(*sharding.gather_arrays(metric.merge(*own)))
    metrics |= _compute(metric, state)
    if metric.confusion:
      confusion = metric.confusion(state)
  measure = task.ranking.image_measure if task.ranking else ''
  return Evaluation(metrics, gallery.examples, gallery.worst, measure, gallery.scores, confusion)


def _columns(metric: Any, state: Any) -> Mapping[str, np.ndarray]:
  """The state of a host metric, which travels between processes as a dict of arrays."""
  if not isinstance(state, Mapping):
    raise SegjaxError(
      f'the metric {metric.name} returned a {type(state).__name__} for a batch: return a dict of '
      'arrays'
    )
  return state


def _compute(metric: Any, state: Any) -> dict[str, Any]:
  """`metric.compute` of a split, whose work the processes share."""
  if metric.share is None:
    found = metric.compute(state)
  else:
    own = metric.share(state, jax.process_index(), jax.process_count())
    found = metric.join(sharding.gather_arrays(own))
  found = plain(found)
  if not isinstance(found, Mapping):
    raise SegjaxError(f'the metric {metric.name} computed {found!r}: return a dict of numbers')
  for name, value in found.items():
    if not (_is_number(value) or _is_table(value)):
      raise SegjaxError(
        f'the metric {metric.name} computed {name}={value!r}: return numbers, or tables as '
        '{row: {column: number}}'
      )
  return found


def _is_number(value: Any) -> bool:
  return value is None or isinstance(value, int | float)


def _is_table(value: Any) -> bool:
  rows = value.values() if isinstance(value, Mapping) else (None,)
  return all(isinstance(row, Mapping) and all(map(_is_number, row.values())) for row in rows)


def draw(
  eval_step: EvalStep,
  variables: Mapping[str, Any],
  batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str]]],
  task: Task,
  put: Put,
  wanted: Collection[str],
  *,
  part: sharding.Part = sharding.WHOLE,
) -> list[Example]:
  """Panels of the images with these names; the network runs on their batches only.

  Args:
    eval_step, variables, batches, task, put: as for `evaluate`.
    wanted: names of images.
    part: as for `evaluate`.
  """
  drawn: list[Example] = []
  for local, local_names in batches:
    names = _gather({'names': list(local_names)}, part)['names']
    rows = [row for row, name in enumerate(names) if name in wanted]
    if rows:
      batch = put(local)
      _, _, predictions, _ = eval_step(variables, batch)
      panels = _draw(local, batch, predictions, task, rows, part)
      drawn += [(names[row], panel) for row, panel in zip(rows, panels, strict=True)]
  return drawn


def _draw(
  local: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
  predictions: Mapping[str, jax.Array],
  task: Task,
  rows: Sequence[int],
  part: sharding.Part,
) -> list[dict[str, np.ndarray]]:
  """The panels of these rows of a batch, on the first process; empty ones on the others."""
  if not rows:
    return []
  shown = {k: v for k, v in predictions.items() if task.drawn is None or k in task.drawn}
  host_batch, shown = _whole_batch(local, batch, task.host_keys, part), sharding.to_host(shown)
  if jax.process_index() != 0:
    return [{} for _ in rows]
  return task.visualize(host_batch, shown, rows)


class _Gallery:
  """The panels of the first images of a split, and of the worst ones so far."""

  def __init__(self, count: int):
    self._count = count
    self.examples: list[Example] = []
    self.scores: list[tuple[str, float]] = []
    self._worst: list[tuple[float, Example]] = []

  @property
  def worst(self) -> list[Example]:
    """The worst first; of equal ones the earliest."""
    return [example for _, example in self._worst]

  def choose(self, valid: np.ndarray, scores: np.ndarray | None) -> list[int]:
    """The rows of a batch to draw: the first images, and those among the worst so far."""
    first = np.flatnonzero(valid)[: self._count - len(self.examples)]
    return sorted({*first.tolist(), *self._among_worst(scores)})

  def _among_worst(self, scores: np.ndarray | None) -> list[int]:
    if scores is None:
      return []
    kept = [(score, -1) for score, _ in self._worst]
    new = [(score, row) for row, score in enumerate(scores.tolist()) if not math.isnan(score)]
    lowest = sorted(kept + new, key=lambda entry: entry[0])[: self._count]  # stable
    return [row for _, row in lowest if row >= 0]

  def add(
    self,
    names: Sequence[str],
    scores: np.ndarray | None,
    drawn: Mapping[int, Mapping[str, np.ndarray]],
  ) -> None:
    """Adds a batch, of which the rows of `choose` are drawn."""
    worst = self._among_worst(scores)
    first = list(drawn)[: self._count - len(self.examples)]
    self.examples += [(names[row], drawn[row]) for row in first]
    if scores is None:
      return
    new = [(float(scores[row]), (names[row], drawn[row])) for row in worst]
    self._worst = sorted(self._worst + new, key=lambda entry: entry[0])[: self._count]
    self.scores += [
      (name, score)
      for name, score in zip(names, scores.tolist(), strict=True)
      if not math.isnan(score)
    ]


def tune(
  tune_step: Callable[..., Any],
  variables: Mapping[str, Any],
  batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str]]],
  task: Task,
  put: Put,
) -> list[dict[str, Any]]:
  """Evaluates each of `task.tuning.settings` in one pass over a split.

  Args:
    tune_step: from `segjax.training.step.make_tune_step`, compiled.
    variables, batches, task, put: as for `evaluate`.

  Returns:
    The metrics of each setting, in order.
  """
  metric, settings, states = task.tuning.metric, task.tuning.settings, None
  for local, _ in batches:
    new = sharding.to_host(tune_step(variables, put(local), np.array(settings, np.float32)))
    states = new if states is None else metric.merge(states, new)
  return [metric.compute(jax.tree.map(lambda x, i=i: x[i], states)) for i in range(len(settings))]


def _read(entries: Mapping[str, Any], reads: Iterable[Collection[str] | None]) -> dict[str, Any]:
  """The predictions, or the entries of a batch, that metrics read; see `Metric.reads`."""
  return {
    name: value
    for name, value in entries.items()
    if any(name != 'image' if names is None else name in names for names in reads)
  }


def _own_batch(
  local: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
  host_keys: Sequence[str],
  part: sharding.Part,
) -> dict[str, Any]:
  """The entries of `batch` and the lists of `host_keys`, of this process.

  Of the processes that read the same rows the first one counts them.
  """
  own = {name: local[name] for name in (*batch, *host_keys) if name in local}
  if part.rank:
    own['valid'] = np.zeros_like(own['valid'])
  return own


def _whole_batch(
  local: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
  host_keys: Sequence[str],
  part: sharding.Part,
) -> dict[str, Any]:
  """The entries of `batch` and the lists of `host_keys`, gathered from all processes."""
  lists = {key: local[key] for key in host_keys if key in local}
  if jax.process_count() == 1:
    return {**{name: local[name] for name in batch}, **lists}
  return {**sharding.to_host(dict(batch)), **_gather(lists, part)}


def _gather(lists: Mapping[str, list[Any]], part: sharding.Part) -> dict[str, list[Any]]:
  """`sharding.gather_lists`, with one copy of the rows that several processes read."""
  return sharding.gather_lists({key: [] if part.rank else value for key, value in lists.items()})
