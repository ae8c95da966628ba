"""The interface between a task and the training loop: a frozen dataclass of pure functions."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from segjax.lookup import failing, locate
from segjax.metrics.base import Metric
from segjax.ops.normalize import normalize_pixels
from segjax.types import Array, Batch, SegjaxError, SumCount, nearest

Variables = Mapping[str, Any]

_METRICS = 'config.eval.metrics'


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Thresholds of a config that a grid search tunes in one pass over a split.

  Attributes:
    names: of the n keys.
    settings: T settings of n values; the first is the config's.
    metric: accumulated separately for each setting.
    measure: the value of the metric to maximize.
    count: `(outputs, batch, settings f32[T, n]) -> states` of the metric, stacked along a leading
      axis of size T; traceable by `jit`.
    group: of the config, which has the keys.
  """

  names: tuple[str, ...]
  settings: tuple[tuple[float, ...], ...]
  metric: Metric
  measure: str
  count: Callable[[Any, Batch, Array], Any]
  group: str = 'eval'


def grid(own: tuple[float, ...], tried: Sequence[Collection[float]]) -> tuple[Any, ...]:
  """`Tuning.settings`: the config's own, so that it wins a tie, then all other combinations.

  Args:
    own: the config's n thresholds.
    tried: for each of them, values besides the config's.
  """
  values = [sorted({one, *others}) for one, others in zip(own, tried, strict=True)]
  return own, *(setting for setting in itertools.product(*values) if setting != own)


@dataclasses.dataclass(frozen=True)
class Task:
  """A task with its model. All functions but `visualize` are traceable by `jit`.

  Attributes:
    batch_spec: key of the batch -> partitioning over the mesh axes `data` and `space`.
    init: `(key, batch) -> variables`, with 'params' and the model's other collections.
    forward: `(variables, batch, *, train, key, step) -> (outputs, new model state)`. `key` is for
      dropout and sampling, and may be None if `train` is False; `step` i32[] is that of the
      training, for what is annealed, or None.
    batch_statistics: `(variables, batch, key) -> model state`, batch-norm statistics of this batch
      alone, to recompute the running statistics. None if a task does not support it.
    losses: `(outputs, batch) -> {name: SumCount}`; the total loss is the sum of `sum / count`. May
      be empty outside training.
    predict: `(outputs, batch) -> predictions`, a dict of arrays.
    metrics: computed over a complete split, see `segjax.metrics.base.Metric`.
    visualize: `(batch, predictions, rows) -> [{title: u8[H, W, 3]}, …]`, on the host: panels of the
      examples in these rows of the batch.
    drawn: names of the predictions that `visualize` reads, to avoid copying others; None for all.
    host_keys: keys of the batch that stay on the host, lists with a JSON value per example, for
      host metrics and panels.
    tuning: what `segjax evaluate --tune` searches; None if there are no thresholds.
  """

  batch_spec: Mapping[str, PartitionSpec]
  init: Callable[[Array, Batch], Variables]
  forward: Callable[..., tuple[Any, Variables]]
  batch_statistics: Callable[[Variables, Batch, Array], Variables] | None
  losses: Callable[[Any, Batch], dict[str, SumCount]]
  predict: Callable[[Any, Batch], dict[str, Array]]
  metrics: tuple[Metric, ...]
  visualize: Callable[..., list[dict[str, np.ndarray]]]
  drawn: tuple[str, ...] | None = None
  host_keys: tuple[str, ...] = ()
  tuning: Tuning | None = None

  @property
  def ranking(self) -> Metric | None:
    """The first metric that scores each image, which selects the worst ones."""
    return next((metric for metric in self.metrics if metric.image_scores), None)


def from_pixels(task: Task, mean: Sequence[float], std: Sequence[float]) -> Task:
  """The task for batches whose images are pixel values, u8, which it normalizes on the device.

  A quarter of the bytes travels there. Images that are normalized already, f32, stay as they are.

  Args:
    task: whose functions take normalized images.
    mean, std: see `normalize_pixels`.
  """

  def normalized(batch: Batch) -> Batch:
    image = batch['image']
    if image.dtype != jnp.uint8:
      return batch
    return {**batch, 'image': normalize_pixels(image, mean, std)}

  def init(key: Array, batch: Batch) -> Variables:
    return task.init(key, normalized(batch))

  def forward(variables: Variables, batch: Batch, **options: Any) -> tuple[Any, Variables]:
    return task.forward(variables, normalized(batch), **options)

  def batch_statistics(variables: Variables, batch: Batch, key: Array) -> Variables:
    return task.batch_statistics(variables, normalized(batch), key)

  return dataclasses.replace(
    task,
    init=init,
    forward=forward,
    batch_statistics=task.batch_statistics and batch_statistics,
  )


def check_metrics(names: Collection[str], known: Collection[str]) -> None:
  """Raises a SegjaxError for a name in `config.eval.metrics` that is no metric of a task.

  Args:
    names: of the metrics.
    known: those of the task. A name with a dot is that of a function of the user's.
  """
  for name in names:
    if name not in known and '.' not in name:
      raise SegjaxError(f'{_METRICS}: unknown metric {name}{nearest(name, known)}')


def find_metric(name: str) -> Callable[[Sequence[str]], Metric]:
  """The user's function of this name."""
  return locate(name, _METRICS, 'segjax.metrics')


def own_metric(name: str, class_names: Sequence[str]) -> Metric:
  """What the user's function `class_names -> Metric` of this name returns.

  Where it cannot be found, as for the prediction of a run that was trained with it, the error is
  that of the metric's use.

  Raises:
    SegjaxError: it returns something else.
  """
  try:
    make = find_metric(name)
  except SegjaxError as e:
    fail = failing(e)
    return Metric(name=name, from_batch=fail, compute=fail, device=False, reads=())
  metric = make(class_names)
  if not isinstance(metric, Metric):
    raise SegjaxError(
      f'{_METRICS}: {name} returned a {type(metric).__name__}: return a segjax.metrics.base.Metric'
    )
  return metric
