"""What a metric is: a state for each batch, states that add up, and one reading at the end."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from segjax.types import Batch

State = Any  # A pytree of arrays.


def add(a: State, b: State) -> State:
  """The sum of two states, leaf by leaf, in int64 or float64 on the host."""
  return jax.tree.map(lambda x, y: widen(x) + widen(y), a, b)


def widen(x: Any) -> np.ndarray:
  """`x` as a NumPy array in int64 or float64: counts past 2^31 stay exact."""
  x = np.asarray(x)
  return x.astype(np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """A metric over a whole split, from additive states: never a mean of batch means.

  Attributes:
    name: prefix of its files and messages.
    from_batch: `(predictions, batch) -> state` of one batch. Examples with `batch['valid']` False
      leave no trace in it.
    compute: `state -> {name: value}`; a value is a float, a list, or a dict of such. A float is nan
      where the split has nothing to measure.
    device: True if `from_batch` can be traced by `jit` and runs inside the evaluation step, with
      counts in int32; False if it takes NumPy arrays on the host.
    merge: `(state, state) -> state` on the host, associative.
    reads: names of the predictions and of the entries of a batch that `from_batch` needs on the
      host, to copy nothing else; None for all but the images.
  """

  name: str
  from_batch: Callable[[Mapping[str, Any], Batch], State]
  compute: Callable[[State], dict[str, Any]]
  device: bool
  merge: Callable[[State, State], State] = add
  reads: tuple[str, ...] | None = None
