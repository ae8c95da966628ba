"""Normalization of an image by its neighborhood: local response and local contrast."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array


def local_response_norm(
  x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
  """Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

  y_c = x_c / (k + alpha / size · Σ x_i²)^beta, where i runs over the `size` channels around c that
  exist. The division of alpha by `size` is Caffe's and PyTorch's; the paper's alpha has none. The
  defaults are those of SegNet-Basic's released files, made for pixel values of 0 to 255.

  Args:
    x: f[B, H, W, C].
    size: channels in the sum, odd.
    alpha: weight of the sum.
    beta: exponent.
    k: what the sum is added to.

  Returns:
    f[B, H, W, C], of x's dtype; bfloat16 is too coarse for 1 + 2e-5 x² and computed as float32.
  """
  if size % 2 == 0:
    raise ValueError(f'local_response_norm: size {size} must be odd')
  channels = x.shape[-1]
  fine = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squares = jnp.pad(fine * fine, [(0, 0)] * 3 + [(size // 2, size // 2)])
  total = sum(squares[..., i : i + channels] for i in range(size))
  return (fine / (k + alpha / size * total) ** beta).astype(x.dtype)


def local_contrast_norm(
  x: Array, size: int = 9, sigma: float = 2.25, epsilon: float = 1e-3
) -> Array:
  """Subtractive and divisive normalization (Jarrett et al. 2009, layer N).

  With w a Gaussian window over rows and columns, the same for every channel, of sum 1:

    v = x - Σ w x;  s = sqrt(Σ w v²);  y = v / max(s, mean(s), epsilon)

  where the sums run over the window and all channels, and the mean over the image. Outside the
  image the window is cut off, and what is left of it is scaled to sum 1.

  Args:
    x: f[B, H, W, C].
    size: rows and columns of the window, odd (the paper: 9).
    sigma: standard deviation of the window, in pixels; the paper does not give it.
    epsilon: least divisor, so that rounding errors on a flat image are not blown up.

  Returns:
    f[B, H, W, C].
  """
  if size % 2 == 0:
    raise ValueError(f'local_contrast_norm: size {size} must be odd')
  radius = size // 2
  window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
  inside = _blur(jnp.ones((1, *x.shape[1:3], 1), x.dtype), window)

  def average(a: Array) -> Array:
    return _blur(a.mean(-1, keepdims=True), window) / inside

  v = x - average(x)
  s = jnp.sqrt(jnp.maximum(average(v * v), epsilon**2))
  return v / jnp.maximum(s, s.mean((1, 2), keepdims=True))


def _blur(x: Array, window: np.ndarray) -> Array:
  """f[B, H, W, 1] convolved with `window` along rows and columns, zeros outside."""
  radius = len(window) // 2
  for shape, padding in (((-1, 1, 1, 1), (radius, 0)), ((1, -1, 1, 1), (0, radius))):
    x = lax.conv_general_dilated(
      x,
      jnp.asarray(window.reshape(shape), x.dtype),
      window_strides=(1, 1),
      padding=[(p, p) for p in padding],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=lax.Precision.HIGHEST,
    )
  return x
