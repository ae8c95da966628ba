"""How an exported program sees an image: resizing, padding and normalization of uint8 pixels.

The same as `segjax.data.pipeline.prepare_image`, which calls OpenCV, as operations that XLA and
ONNX have. Images are of one size, which may be symbolic. Positions are exact fractions of
integers and bilinear weights have OpenCV's 11 bits, so that results equal OpenCV's up to a few
pixels that differ by 1.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from segjax.data import geometry
from segjax.data.config import SizeConfig
from segjax.types import Array

# An integer, a dimension that `jax.export` calls by a name, or an i32 scalar.
Int = Any
Pair = tuple[Int, Int]

# Bits of a bilinear weight, and those that OpenCV drops before and after the second product.
_ONE, _DROP_FIRST, _DROP_LAST = 2**11, 2**4, 2**16
# OpenCV's bicubic kernel.
_CUBIC = -0.75


def seen_size(native: Pair, size: SizeConfig) -> Pair:
  """The size to which an image is resized, as `segjax.data.order.eval_size`.

  Args:
    native: height and width; of integers the result is integers.
    size: keys of `config.data.size`.
  """
  if size.image_size is None and size.short_side is None:
    return native
  known = all(isinstance(side, int) for side in native)
  if size.short_side is not None:
    short, longest = max(size.short_side), size.longest_side
    if known:
      return geometry.short_side_size(native, short, longest)
    return _short_side_size(*_traced(native), short, longest)
  if size.resize == 'stretch':
    return size.image_size
  return (geometry.fit_size if known else _fit_size)(native, size.image_size)


def same(a: Pair, b: Pair) -> bool:
  """Whether two sizes are known to be equal before the program runs."""
  traced = any(isinstance(side, Array) for side in (*a, *b))
  return not traced and all(x == y for x, y in zip(a, b, strict=True))


def _short_side_size(height: Array, width: Array, short: int, longest: int) -> tuple[Array, Array]:
  low, high = jnp.minimum(height, width), jnp.maximum(height, width)
  by_short = short * high <= longest * low
  scale, base = jnp.where(by_short, short, longest), jnp.where(by_short, low, high)
  new = (_divide(2 * side * scale + base, 2 * base) for side in (height, width))
  return tuple(jnp.maximum(side, 1) for side in new)


def _fit_size(native: Pair, box: tuple[int, int]) -> tuple[Array, Array]:
  height, width = _traced(native)
  by_height = box[0] * width <= box[1] * height
  scale, base = jnp.where(by_height, *box), jnp.where(by_height, height, width)
  new = (_round_ratio(side * scale, base) for side in (height, width))
  return tuple(jnp.clip(side, 1, limit) for side, limit in zip(new, box, strict=True))


def _round_ratio(a: Array, b: Array) -> Array:
  """a / b to the nearest integer, halves to the even one, as Python's `round`."""
  down, twice = _divide(a, b), 2 * lax.rem(a, b)
  odd = lax.rem(down, jnp.int32(2)) == 1
  return down + ((twice > b) | ((twice == b) & odd))


def prepare(
  image: Array, seen: Pair, canvas: Pair, interpolation: str, color: Any, mean: Any, std: Any
) -> Array:
  """The input of a network.

  Args:
    image: u8[B, H, W, C].
    seen: height and width to which it is resized.
    canvas: height and width to which it is then padded, below and to the right.
    interpolation: of `config.data.size`.
    color: u8[1] or u8[C], of the padding.
    mean, std: subtracted from pixel values, and divided by; one number or one for each channel.

  Returns:
    f32[B, *canvas, C].
  """
  x = _resize(image.astype(jnp.int32), seen, canvas, interpolation)
  if not same(seen, canvas):
    inside = [jnp.arange(length) < _scalar(side) for length, side in zip(canvas, seen, strict=True)]
    x = jnp.where(
      (inside[0][:, None] & inside[1])[..., None], x, jnp.asarray(color).astype(jnp.int32)
    )
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  return (x.astype(jnp.float32) - mean) / std


def _resize(x: Array, seen: Pair, canvas: Pair, interpolation: str) -> Array:
  """i32[B, H, W, C] -> i32[B, *canvas, C]; what is beyond `seen` is arbitrary."""
  native = x.shape[1:3]
  if same(seen, native):
    widths = [(0, 0), *((0, c - n) for c, n in zip(canvas, native, strict=True)), (0, 0)]
    return jnp.pad(x, widths)
  if interpolation == 'bicubic':
    return _rounded(_by_matrices(x, _cubic_matrix, native, seen, canvas), False)
  if interpolation == 'bilinear':
    return _bilinear(x, native, seen, canvas)
  known = all(isinstance(side, int) for side in (*native, *seen))
  minimum = min if known else lambda a, b: jnp.minimum(_scalar(a), _scalar(b))
  smaller = tuple(minimum(old, new) for old, new in zip(native, seen, strict=True))
  if not known or smaller != native:
    halved = [_scalar(old) == 2 * _scalar(new) for old, new in zip(native, smaller, strict=True)]
    shape = smaller if known else canvas
    x = _rounded(_by_matrices(x, _area_matrix, native, smaller, shape), halved[0] & halved[1])
  if known and smaller == seen:
    widths = [(0, 0), *((0, c - s) for c, s in zip(canvas, seen, strict=True)), (0, 0)]
    return jnp.pad(x, widths)
  return _bilinear(x, smaller, seen, canvas)


def _by_matrices(x: Array, matrix: Any, old: Pair, new: Pair, shape: Pair) -> Array:
  """f32[B, *shape, C], each axis multiplied with a matrix of weights."""
  rows, columns = (matrix(old[i], new[i], x.shape[1 + i], shape[i]) for i in (0, 1))
  x = x.astype(jnp.float32)
  x = jnp.einsum('xw,bhwc->bhxc', columns, x, precision='highest')
  return jnp.einsum('yh,bhxc->byxc', rows, x, precision='highest')


def _area_matrix(old: Int, new: Int, length: Int, new_length: Int) -> Array:
  """f32[new_length, length]: what part of each old pixel a new one covers."""
  old, new = _scalar(old), _scalar(new)
  row, column = jnp.arange(new_length)[:, None], jnp.arange(length)
  covered = jnp.minimum((row + 1) * old, (column + 1) * new) - jnp.maximum(row * old, column * new)
  return jnp.maximum(covered, 0).astype(jnp.float32) / old.astype(jnp.float32)


def _cubic_matrix(old: Int, new: Int, length: Int, new_length: Int) -> Array:
  before, fraction = _position(old, new, new_length)
  column = jnp.arange(length)
  total = 0.0
  for k in range(-1, 3):
    d = jnp.abs(fraction - k)
    near = (_CUBIC + 2) * d**3 - (_CUBIC + 3) * d**2 + 1
    far = _CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
    weight = jnp.where(d <= 1, near, far)
    pixel = jnp.clip(before + k, 0, _scalar(old) - 1)
    total += jnp.where(pixel[:, None] == column, weight[:, None], 0.0)
  return total


def _rounded(x: Array, half_up: Any) -> Array:
  """To integers; halves to the even one, or up where OpenCV averages 2x2 pixels."""
  return jnp.clip(jnp.where(half_up, jnp.floor(x + 0.5), jnp.round(x)), 0, 255).astype(jnp.int32)


def _bilinear(x: Array, old: Pair, new: Pair, shape: Pair) -> Array:
  """OpenCV's fixed-point interpolation of i32[B, h, w, C] -> i32[B, *shape, C]."""
  (top, bottom, above, below), (left, right, *weights) = (
    _weights(old[i], new[i], shape[i]) for i in (0, 1)
  )
  across = sum(
    _take(x, pixel, 2) * weight[:, None]
    for pixel, weight in zip((left, right), weights, strict=True)
  )
  across = _divide(across, _DROP_FIRST)
  parts = (
    _divide(_take(across, pixel, 1) * weight[:, None, None], _DROP_LAST)
    for pixel, weight in ((top, above), (bottom, below))
  )
  return _divide(sum(parts) + 2, 4)


def _weights(old: Int, new: Int, length: Int) -> tuple[Array, Array, Array, Array]:
  """The pixels before and after each new one, and their weights, i32[length] in `_ONE` parts."""
  before, fraction = _position(old, new, length)
  last = _scalar(old) - 1
  # OpenCV's fraction has the rounding error of the position.
  whole = before.astype(jnp.float32)
  fraction = (whole + fraction) - whole
  fraction = jnp.where((before < 0) | (before >= last), 0.0, fraction)
  before = jnp.clip(before, 0, last)
  to_parts = lambda weight: jnp.round(weight * _ONE).astype(jnp.int32)
  return before, jnp.minimum(before + 1, last), to_parts(1 - fraction), to_parts(fraction)


def _position(old: Int, new: Int, length: Int) -> tuple[Array, Array]:
  """Where the centers of new pixels are: i32[length], the pixel before, and f32[length]."""
  old, new = _scalar(old), _scalar(new)
  shifted = (2 * jnp.arange(length) + 1) * old + new  # twice `new` more, to be positive
  before = _divide(shifted, 2 * new)
  rest = shifted - before * 2 * new
  return before - 1, rest.astype(jnp.float32) / (2 * new).astype(jnp.float32)


def resize_scores(scores: Array, seen: Pair, native: Pair) -> Array:
  """f32[B, h, w, C] of a canvas -> f32[B, *native, C], bilinear, as `cv2.resize` of floats."""
  for axis in (0, 1):
    before, fraction = _position(seen[axis], native[axis], native[axis])
    last = _scalar(seen[axis]) - 1
    fraction = jnp.where((before < 0) | (before >= last), 0.0, fraction)
    before = jnp.clip(before, 0, last)
    fraction = fraction.reshape(-1, *[1] * (2 - axis))
    low, high = (_take(scores, i, axis + 1) for i in (before, jnp.minimum(before + 1, last)))
    scores = low * (1 - fraction) + high * fraction
  return scores


def _take(x: Array, index: Array, axis: int) -> Array:
  return jnp.take(x, index, axis, mode='clip')


def _divide(a: Array, b: Any) -> Array:
  """The quotient of integers that are not negative, rounded down."""
  return lax.div(*jnp.broadcast_arrays(a, jnp.asarray(b, jnp.int32)))


def _traced(pair: Pair) -> tuple[Array, Array]:
  return _scalar(pair[0]), _scalar(pair[1])


def _scalar(value: Int) -> Array:
  return jnp.asarray(value, jnp.int32)
