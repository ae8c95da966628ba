"""The assignment of objects to queries with the least total cost (DETR, arXiv 2005.12872, §3.1)."""

import jax
import jax.numpy as jnp
import optax

from segjax.types import Array


def assign(cost: Array, valid: Array) -> Array:
  """The query of each object, all different, with the least sum of costs over the valid objects.

  The Hungarian algorithm, on the device. Costs that are not finite count as the highest there is.

  Args:
    cost: f32[N, Q], of giving the object n to the query q; N is at most Q.
    valid: bool[N], False for padding.

  Returns:
    i32[N], the query; of padding too, one of those that are left over.

  Raises:
    ValueError: there are fewer queries than objects.
  """
  objects, queries = cost.shape
  if objects > queries:
    raise ValueError(f'{objects} objects cannot be assigned to {queries} queries')
  cost = jax.lax.stop_gradient(cost)
  highest = jnp.finfo(cost.dtype).max / (2 * queries)
  cost = jnp.clip(jnp.nan_to_num(cost, nan=highest, posinf=highest), max=highest)
  # Padding costs the same everywhere, so that it changes nothing for the others.
  cost = jnp.where(valid[:, None], cost, 0)
  # A valid object never gives way to padding that came first: rows are all assigned.
  rows, columns = optax.assignment.hungarian_algorithm(cost)
  return jnp.zeros(objects, jnp.int32).at[rows].set(columns.astype(jnp.int32))
