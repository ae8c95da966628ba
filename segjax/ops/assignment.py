"""The assignment of objects to queries with the least total cost (DETR, arXiv 2005.12872, §3.1)."""

import jax
import jax.numpy as jnp
import optax

from segjax.types import Array


def assign(cost: Array, valid: Array) -> Array:
  """The query of each object, all different, with the least sum of costs over the valid objects.

  The Hungarian algorithm, on the device. NaN and +inf count as the highest cost there is, -inf as
  the lowest.

  Args:
    cost: f32[N, Q], of giving the object n to the query q.
    valid: bool[N], False for padding; at most Q are True.

  Returns:
    i32[N], the query; of padding too, one of those that are left over, or 0 if there is none.
  """
  objects, queries = cost.shape
  cost = jax.lax.stop_gradient(cost)
  highest = jnp.finfo(cost.dtype).max / (8 * queries)
  cost = jnp.clip(jnp.nan_to_num(cost, nan=highest, posinf=highest, neginf=-highest), max=highest)
  # Padding costs the same everywhere, so that it changes nothing for the others. Where not all rows
  # get a query, it costs more than any of them, so that padding is what goes without.
  of_padding = jnp.zeros((), cost.dtype)
  if objects > queries:
    most = jnp.max(jnp.abs(cost), initial=0, where=valid[:, None])
    of_padding = jnp.maximum(2 * most, most + 1)
  cost = jnp.where(valid[:, None], cost, of_padding)
  rows, columns = optax.assignment.hungarian_algorithm(cost)
  return jnp.zeros(objects, jnp.int32).at[rows].set(columns.astype(jnp.int32))
