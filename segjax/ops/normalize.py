"""Normalization: of pixel values, over channels, of local response and of local contrast."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array


def normalize_pixels(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
  """(pixel - mean) / std, by a table of the 256 values.

  The values are those that NumPy computes in float32; XLA's division differs in the last bit.

  Args:
    image: u8[..., C].
    mean, std: one number, or one for each channel.

  Returns:
    f32[..., C].
  """
  channels = image.shape[-1]
  pixels = np.arange(256, dtype=np.float32)[:, None].repeat(channels, axis=1)
  table = (pixels - np.float32(mean)) / np.float32(std)
  places = image.astype(jnp.int32) * channels + np.arange(channels, dtype=np.int32)
  return jnp.asarray(table.ravel()).at[places].get(mode='promise_in_bounds')


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float = 1e-6) -> Array:
  """(x - mean) / √(variance + ε) · scale + bias, over the channels (Ba et al., arXiv 1607.06450).

  Supports reverse mode only.

  Args:
    x: f[..., C].
    scale, bias: f[C].
    epsilon: ε.

  Returns:
    f[..., C], of x's dtype; computed in float32 at least.
  """
  by_products = lambda x, scale, bias: _layer_norm(epsilon, x, scale, bias)
  plain = lambda x, scale, bias: _normalized(epsilon, x, scale, bias)[0]
  return lax.platform_dependent(x, scale, bias, cpu=by_products, default=plain)


# With a gradient for CPUs: XLA's reads the arrays several times as often.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(epsilon, x, scale, bias):
  return _normalized(epsilon, x, scale, bias)[0]


def _normalized(epsilon, x, scale, bias):
  """The result, the mean and 1 / √(variance + ε)."""
  fine = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = fine.mean(-1, keepdims=True)
  variance = (fine * fine).mean(-1, keepdims=True) - mean * mean
  inverse = lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
  return ((fine - mean) * (inverse * scale) + bias).astype(x.dtype), mean, inverse


def _layer_norm_forward(epsilon, x, scale, bias):
  y, mean, inverse = _normalized(epsilon, x, scale, bias)
  return y, (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon, residuals, g):
  """With n = (x - mean) · inverse and a = g · scale: inverse · (a - Σ a / C - n · Σ a n / C).

  Sums run over the channels. Those of products are contractions, so that no product is stored.
  """
  del epsilon
  x, scale, bias, mean, inverse = residuals
  fine, g = (a.astype(mean.dtype) for a in (x, g))
  a, normal, channels = g * scale, (fine - mean) * inverse, x.shape[-1]
  average = (g @ scale.astype(mean.dtype))[..., None] / channels
  along = jnp.einsum('...c,...c->...', a, fine)[..., None] / channels - mean * average
  dx = inverse * (a - average - normal * inverse * along)
  dscale = jnp.einsum('...c,...c->c', g, normal)
  dbias = g.sum(tuple(range(g.ndim - 1)))
  return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def local_response_norm(
  x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
  """Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

  y_c = x_c / (k + alpha / size · Σ x_i²)^beta, where i runs over the existing ones of the `size`
  channels around c. Alpha is divided by `size` as in Caffe and PyTorch, but not in the paper. The
  defaults are those of SegNet-Basic's released files, for pixel values from 0 to 255.

  Args:
    x: f[B, H, W, C].
    size: channels in the sum, odd.
    alpha: weight of the sum.
    beta: exponent.
    k: additive constant.

  Returns:
    f[B, H, W, C], of x's dtype; computed in float32 at least, as bfloat16 is too coarse for
    1 + 2e-5 x².

  Raises:
    ValueError: `size` is even.
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

  With a Gaussian window w over rows and columns, the same for all channels, that sums to 1:

    v = x - Σ w x;  s = sqrt(Σ w v²);  y = v / max(s, mean(s), epsilon)

  where the sums run over the window and all channels, and the mean over the image. At the border
  the window is truncated and renormalized.

  Args:
    x: f[B, H, W, C].
    size: rows and columns of the window, odd (paper: 9).
    sigma: standard deviation of the window, in pixels; not given in the paper.
    epsilon: minimum divisor, so that rounding errors on a constant image are not amplified.

  Returns:
    f[B, H, W, C].

  Raises:
    ValueError: `size` is even.
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
