"""Which anchors or proposals a loss counts (Faster R-CNN, section 3.1.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.types import Array


class Samples(NamedTuple):
  """R of A candidates: the positives, then the negatives, then slots without one.

  Attributes:
    index: i32[R], of the candidate; 0 where not `valid`.
    positive: bool[R], True in at most the first `int(positive_fraction * R)`: only these slots need
      a mask head.
    valid: bool[R].
  """

  index: Array
  positive: Array
  valid: Array


def sample(
  key: Array, positive: Array, negative: Array, size: int, positive_fraction: float
) -> Samples:
  """Samples a random subset of one image's candidates, without replacement, as torchvision does.

  Up to `int(positive_fraction * size)` of the positives, then negatives until there are `size`.
  Positives do not stand in for missing negatives. All subsets are equally likely.

  A candidate's priority is sampled from the key and its place, so that neither padding at the end
  nor the other candidates' labels change it.

  Args:
    key: a `jax.random` key, one an image.
    positive: bool[A].
    negative: bool[A], nowhere True where `positive` is.
    size: R, the most that are sampled; may exceed A.
    positive_fraction: 0.5 in the paper's RPN, 0.25 for proposals.
  """
  priority = jax.random.uniform(key, positive.shape)
  most = int(positive_fraction * size)
  positive_index, positive_count = _largest(priority, positive, most)
  negative_index, negative_count = _largest(priority, negative, size)
  slot = jnp.arange(size, dtype=jnp.int32)
  is_positive = slot < positive_count
  is_valid = slot < positive_count + negative_count
  index = jnp.where(
    is_positive,
    jnp.pad(positive_index, (0, size - most)),
    negative_index[jnp.maximum(slot - positive_count, 0)],
  )
  return Samples(jnp.where(is_valid, index, 0), is_positive, is_valid)


def _largest(priority: Array, candidate: Array, most: int) -> tuple[Array, Array]:
  """i32[most], places of the candidates of largest priority, and i32[], how many there are."""
  priority = jnp.where(candidate, priority, -1)
  priority = jnp.pad(priority, (0, max(0, most - priority.shape[0])), constant_values=-1)
  values, index = lax.top_k(priority, most)
  return index, jnp.sum(values >= 0, dtype=jnp.int32)
