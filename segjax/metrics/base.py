"""The interface of a metric: a state per batch, merging of states, and a final computation."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segjax.types import Batch

State = Any  # A pytree of arrays.


def quotient(a: Any, b: Any) -> np.ndarray:
  """a / b, NaN where b is 0."""
  return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) > 0)


def mean_known(values: np.ndarray) -> float:
  """The mean of the values that are not NaN; NaN if all are."""
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else float('nan')


def crop_padding(array: np.ndarray, batch: Mapping[str, np.ndarray], row: int) -> np.ndarray:
  """[h, w, …] of the image `row` in an array [B, H, W, …], without padding: see `batch['size']`."""
  height, width = batch['size'][row]
  return array[row, :height, :width]


def add(*states: State) -> State:
  """The sum of states, leaf-wise, in int64 or float64 on the host."""
  return jax.tree.map(lambda *leaves: functools.reduce(operator.add, map(widen, leaves)), *states)


def widen(x: Any) -> np.ndarray:
  """`x` as a NumPy array in int64 or float64: counts beyond 2^31 stay exact."""
  x = np.asarray(x)
  return x.astype(np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """A metric over a complete split, from mergeable states: never a mean of batch means.

  Attributes:
    name: of the metric.
    from_batch: `(predictions, batch) -> state`. Examples with `batch['valid']` False do not count.
    compute: `state -> {name: value}`; a value is a number, NaN if the split has nothing to measure,
      or a table such as `per_class`, {row: {column: number}}.
    device: True if `from_batch` is traceable by `jit` and runs in the evaluation step, with int32
      counts; False if it takes NumPy arrays on the host, of the images that this process read. Its
      state is then a dict of arrays, which travels between processes.
    merge: `(state, state, …) -> state` on the host, associative.
    reads: names of the predictions and batch entries that a host metric needs, to avoid copying
      others; None for all but the images.
    image_scores: `(predictions, batch, state of the batch) -> f[B]`, a score of each image, the
      higher the better, to find the worst images; NaN in padding and where an image has nothing to
      measure. Traceable by `jit` if `device`. None if there is none.
    image_measure: the name of that score.
    share: `(state, index, count) -> dict of arrays`, the part of `compute` that the process `index`
      of `count` does, if that is much; None if it is little.
    join: `[dict of arrays of each process, …] -> {name: value}`, the rest of `compute`.
    confusion: `state -> i[C, C]`, pixels by true class (rows) and predicted class (columns); None
      if the metric does not count them.
  """

  name: str
  from_batch: Callable[[Mapping[str, Any], Batch], State]
  compute: Callable[[State], dict[str, Any]]
  device: bool
  merge: Callable[..., State] = add
  reads: tuple[str, ...] | None = None
  image_scores: Callable[[Mapping[str, Any], Batch, State], Any] | None = None
  image_measure: str = ''
  share: Callable[[State, int, int], Mapping[str, np.ndarray]] | None = None
  join: Callable[[Sequence[Mapping[str, np.ndarray]]], dict[str, Any]] | None = None
  confusion: Callable[[State], np.ndarray] | None = None
