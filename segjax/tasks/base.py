"""A task, as the training loop knows it: a frozen dataclass of pure functions."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec

from segjax.metrics.base import Metric
from segjax.types import Array, Batch, SegjaxError, SumCount, nearest

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Keys of `config.eval` that a search over a split may choose, at one run of the network.

  Attributes:
    names: of the n keys.
    settings: T times n values, what to try; the first ones are the config's own.
    metric: its states are added up, for each setting on its own.
    measure: the value of it to maximize.
    count: `(outputs, batch, settings f32[T, n]) -> states` of the metric, T of them along each
      leaf's first axis; can be traced by `jit`.
  """

  names: tuple[str, ...]
  settings: tuple[tuple[float, ...], ...]
  metric: Metric
  measure: str
  count: Callable[[Any, Batch, Array], Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """One task with its model inside. Every function but `pictures` can be traced by `jit`.

  Attributes:
    batch_spec: key of the batch -> how its axes lie on the mesh (`data`, `space`).
    init: `(key, batch) -> variables`, with 'params' and the model's other collections.
    forward: `(variables, batch, *, train, key) -> (outputs, new model state)`. `key` feeds dropout
      and sampling, and may be None where `train` is False.
    batch_statistics: `(variables, batch, key) -> model state` of the batch alone, in training mode:
      what running statistics are an average of. None where a task does not offer that.
    losses: `(outputs, batch) -> {name: SumCount}`; the total is the sum of `sum / count`. Outside
      training it may be empty.
    predict: `(outputs, batch) -> predictions`, a dict of arrays.
    metrics: computed over a whole split, see `segjax.metrics.base.Metric`.
    pictures: `(batch, predictions, count) -> [{title: uint8[H, W, 3]}, …]`, on the host: the panels
      of the first `count` valid examples.
    host_keys: keys of the batch that stay on the host, lists with a JSON value for each example,
      for metrics and pictures there.
    tuning: what `segjax evaluate --tune` searches; None where there is nothing to choose.
  """

  batch_spec: Mapping[str, PartitionSpec]
  init: Callable[[Array, Batch], Variables]
  forward: Callable[..., tuple[Any, Variables]]
  batch_statistics: Callable[[Variables, Batch, Array], Variables] | None
  losses: Callable[[Any, Batch], dict[str, SumCount]]
  predict: Callable[[Any, Batch], dict[str, Array]]
  metrics: tuple[Metric, ...]
  pictures: Callable[..., list[dict[str, np.ndarray]]]
  host_keys: tuple[str, ...] = ()
  tuning: Tuning | None = None


def check_metrics(names: Collection[str], known: Collection[str]) -> None:
  """Raises a SegjaxError for a metric of `config.eval.metrics` that a task does not have."""
  for name in names:
    if name not in known:
      raise SegjaxError(f'config.eval.metrics: unknown metric {name}{nearest(name, known)}')
