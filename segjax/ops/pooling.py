"""Pooling."""

import jax.numpy as jnp

from segjax.types import Array


def max_pool_2x2(x: Array) -> Array:
  """2x2 max-pooling of stride 2, without padding: an odd last row or column is dropped.

  The maximum of four strided slices. Its gradient is elementwise, about five times faster on a CPU
  than that of `lax.reduce_window`, which it equals except where a window's maximum is tied: there
  each tied pair shares the gradient, instead of the first element taking it all.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, H // 2, W // 2, C], of x's dtype.
  """
  h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  top, bottom = x[:, 0:h:2], x[:, 1:h:2]
  return jnp.maximum(
    jnp.maximum(top[:, :, 0:w:2], top[:, :, 1:w:2]),
    jnp.maximum(bottom[:, :, 0:w:2], bottom[:, :, 1:w:2]),
  )
