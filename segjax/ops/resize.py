"""Bilinear resizing of feature maps, by an integer factor, and of images inside their padding.

Half-pixel centers, but for `enlarge_aligned`, as in `jax.image.resize`, torch's
`align_corners=False` and OpenCV: pixel i of n covers i / n to (i + 1) / n of its axis. Values are
extended beyond the outermost centers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from segjax.types import Array


def inside_mask(size: Array, shape: tuple[int, int]) -> Array:
  """Which pixels are no padding.

  Args:
    size: i32[…, 2], height and width of images without padding.
    shape: (H, W), with padding.

  Returns:
    bool[…, H, W].
  """
  rows, columns = (jnp.arange(length) < size[..., i, None] for i, length in enumerate(shape))
  return rows[..., :, None] & columns[..., None, :]


def enlarge(x: Array, factor: int) -> Array:
  """f[B, h, w, C] -> f[B, factor · h, factor · w, C], without gathers."""
  return _enlarge_axis(_enlarge_axis(x, factor, 1), factor, 2)


def _enlarge_axis(x: Array, factor: int, axis: int) -> Array:
  first, last = (jnp.take(x, jnp.array([i]), axis) for i in (0, x.shape[axis] - 1))
  padded = jnp.concatenate([first, x, last], axis)
  middle = slice(None)
  before, after = (padded[(middle,) * axis + (part,)] for part in (slice(None, -2), slice(2, None)))
  parts = []
  for i in range(factor):
    offset = (i + 0.5) / factor - 0.5  # from the center of the pixel
    parts.append((1 - abs(offset)) * x + abs(offset) * (before if offset < 0 else after))
  shape = (*x.shape[:axis], factor * x.shape[axis], *x.shape[axis + 1 :])
  return jnp.stack(parts, axis + 1).reshape(shape)


def resize_inside(x: Array, size: Array, new_size: Array, shape: tuple[int, int]) -> Array:
  """Resizes padded maps; sizes are traced, shapes static.

  Args:
    x: f[B, h, w, C].
    size: i32[B, 2], height and width of each map without padding.
    new_size: i32[B, 2], of the result.
    shape: (H, W) of the result, at least the new sizes; the last row and column are repeated
      beyond.

  Returns:
    f[B, H, W, C]; equal to x if the sizes are equal.
  """

  def resize_one(x: Array, size: Array, new_size: Array) -> Array:
    for axis in (0, 1):
      position = (jnp.arange(shape[axis]) + 0.5) * (size[axis] / new_size[axis]) - 0.5
      position = jnp.clip(position, 0, size[axis] - 1)
      before = jnp.floor(position).astype(jnp.int32)
      after = jnp.minimum(before + 1, size[axis] - 1)
      fraction = (position - before).reshape(-1, *[1] * (x.ndim - 1 - axis))
      take = lambda index, x=x, axis=axis: jnp.take(x, index, axis, mode='clip')
      x = take(before) + fraction.astype(x.dtype) * (take(after) - take(before))
    return x

  return jax.vmap(resize_one)(x, size, new_size)


def resize_images(x: Array, size: Array, new_size: Array, shape: tuple[int, int]) -> Array:
  """As `resize_inside`, but as `segjax.data.geometry.resize_image` resizes images.

  That is with area averaging along axes that shrink; and the padding is zero.

  Args:
    x: f[B, h, w, C].
    size: i32[B, 2], height and width of each image without padding.
    new_size: i32[B, 2], of the result.
    shape: (H, W) of the result, at least the new sizes.

  Returns:
    f[B, H, W, C], of x's dtype.
  """

  def weights(size: Array, new: Array, old_length: int, new_length: int) -> Array:
    """f32[new, old], the resize matrix."""
    row, column = jnp.arange(new_length)[:, None], jnp.arange(old_length)
    step = size / new
    start = row * step
    area = jnp.clip(jnp.minimum(start + step, column + 1) - jnp.maximum(start, column), 0) / step
    position = jnp.clip((row + 0.5) * step - 0.5, 0, size - 1)
    linear = jnp.clip(1 - jnp.abs(position - column), 0)
    return jnp.where((row < new) & (column < size), jnp.where(new < size, area, linear), 0)

  def resize_one(x: Array, size: Array, new_size: Array) -> Array:
    rows, columns = (weights(size[i], new_size[i], x.shape[i], shape[i]) for i in (0, 1))
    # Most weights are 0, so that low-precision types lose no accuracy in the sum.
    return jnp.einsum('yh,xw,hwc->yxc', rows, columns, x, precision='highest').astype(x.dtype)

  return jax.vmap(resize_one)(x, size, new_size)


def enlarge_aligned(x: Array, factor: int, size: tuple[int, int]) -> Array:
  """Bilinear resizing of features of a strided convolution with symmetric padding, aligned to it.

  Pixel i of x lies at pixel factor · i of the result, where such a convolution has its center: for
  H = factor · (h - 1) + 1 these are TensorFlow's and torch's `align_corners=True`. (With half-pixel
  centers it would lie at factor · i + (factor - 1) / 2.) The last row and column are repeated.

  Args:
    x: f[B, h, w, C].
    factor: the stride.
    size: (H, W) of the result, such as that of the features before the stride.

  Returns:
    f[B, H, W, C].
  """
  rows, columns = (
    _aligned_weights(n, factor, m).astype(x.dtype) for n, m in zip(x.shape[1:3], size, strict=True)
  )
  multiply = functools.partial(jnp.einsum, precision='highest')
  return multiply('vw,buwc->buvc', columns, multiply('uh,bhwc->buwc', rows, x))


def _aligned_weights(inputs: int, factor: int, outputs: int) -> np.ndarray | Array:
  """Interpolation matrix [outputs, inputs]."""
  # NumPy's is a constant of the program; a size that `jax.export` calls by a name is not known.
  xp = np if isinstance(inputs, int) and isinstance(outputs, int) else jnp
  position = xp.minimum(xp.arange(outputs) / factor, inputs - 1)
  return xp.maximum(0, 1 - xp.abs(position[:, None] - xp.arange(inputs)))
