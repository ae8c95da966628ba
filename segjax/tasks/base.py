"""What the training loop knows of a task: a frozen dataclass of pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec

from segjax.metrics.base import Metric
from segjax.types import Array, Batch, SumCount

Variables = Mapping[str, Any]


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
