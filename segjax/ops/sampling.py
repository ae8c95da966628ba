"""Random sampling of anchors or proposals for a loss (Faster R-CNN, section 3.1.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.types import Array


class Samples(NamedTuple):
  """R of A candidates: positives, then negatives, then padding.

  Attributes:
    index: i32[R], of the candidate; 0 for padding.
    positive: bool[R], True for at most the first `int(positive_fraction * R)` samples: only these
      need a mask head.
    valid: bool[R], False for padding.
  """

  index: Array
  positive: Array
  valid: Array


def sample(
  key: Array, positive: Array, negative: Array, size: int, positive_fraction: float
) -> Samples:
  """Samples candidates of one image without replacement, as in torchvision.

  Up to `int(positive_fraction * size)` positives, then negatives up to `size` in total. Missing
  negatives are not replaced by positives. All subsets are equally likely.

  The random priority of a candidate depends only on the key and its index, not on padding at the
  end or on the labels of other candidates.

  Args:
    key: `jax.random` key of the image.
    positive: bool[A].
    negative: bool[A], disjoint from `positive`.
    size: R, maximum number of samples; may exceed A.
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
  """i32[most], indices of the candidates with the highest priority, and their number i32[]."""
  priority = jnp.where(candidate, priority, -1)
  priority = jnp.pad(priority, (0, max(0, most - priority.shape[0])), constant_values=-1)
  values, index = lax.top_k(priority, most)
  return index, jnp.sum(values >= 0, dtype=jnp.int32)
