"""Tiled inference on images of any size."""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array, SegjaxError


def overlap_tile(
  apply: Callable[[Array], Array],
  image: Array,
  tile: int | tuple[int, int],
  margin: int | tuple[int, int],
  stride: int = 1,
) -> Array:
  """Overlap-tile inference (U-Net, Fig. 2): tiles with a margin of context and reflect padding.

  Tiles are processed sequentially, so memory is that of one tile for the full batch.

  The result equals that on the full reflected image if the margin covers the receptive field and
  `stride` is the network's: tiles start at multiples of it, so that pooling windows are aligned.
  (The margin of a padded network must be a multiple of it too.)

  Args:
    apply: the network, f[B, th + 2 * mh, tw + 2 * mw, C] -> f[B, th, tw, K] if it is unpadded, or
      -> f[B, th + 2 * mh, tw + 2 * mw, K] if it is padded; then the center is cropped.
    image: f[B, H, W, C], of any size.
    tile: rows and columns of a tile, th and tw.
    margin: rows and columns of context on each side, mh and mw.
    stride: input pixels per pixel of the coarsest level of the network, at most `tile`.

  Returns:
    f[B, H, W, K].

  Raises:
    SegjaxError: the tile is smaller than the stride, or the output has an unexpected size.
  """
  (th, tw), (mh, mw) = np.broadcast_to(tile, 2).tolist(), np.broadcast_to(margin, 2).tolist()
  if min(th, tw) < stride:
    raise SegjaxError(f'a tile of {th}x{tw} is too small: use at least {stride}x{stride}')
  b, h, w, _ = image.shape
  step_h, step_w = th // stride * stride, tw // stride * stride
  # Source rows (columns) of each row (column) of tiles: i32[tiles, th + 2 * mh].
  rows, cols = _reflected_windows(h, th, mh, step_h), _reflected_windows(w, tw, mw, step_w)

  def run(window: tuple[Array, Array]) -> Array:
    row, col = window
    y = apply(jnp.take(jnp.take(image, row, axis=1), col, axis=2))
    if y.shape[1:3] == (th, tw):
      return y
    if y.shape[1:3] == (th + 2 * mh, tw + 2 * mw):
      return y[:, mh : mh + th, mw : mw + tw]
    raise SegjaxError(
      f'a tile of {th}x{tw} with a margin of {mh}x{mw} has an output of '
      f'{y.shape[1]}x{y.shape[2]}: choose a tile and a margin that fit the model'
    )

  y = lax.map(run, (np.repeat(rows, len(cols), axis=0), np.tile(cols, (len(rows), 1))))
  y = y.reshape(len(rows), len(cols), b, th, tw, -1).swapaxes(0, 1)
  y = _stitch(_stitch(y, step_w, axis=3), step_h, axis=1)
  return y[:, :h, :w]


def mean_of_windows(
  apply: Callable[[Array], Array], image: Array, size: Array, window: tuple[int, int]
) -> Array:
  """The mean over windows that are spread evenly over each image, of their results at a pixel.

  Along each axis there are as few windows as cover it; the first starts where the image does, and
  the last ends there. Where the shorter side of an image is the window's, this is the inference of
  EoMT (arXiv 2503.19108) and of others before it. Windows are processed sequentially.

  Args:
    apply: f[B, h, w, C] -> f[B, h, w, K].
    image: f[B, H, W, C].
    size: i32[B, 2], height and width of the images inside their padding.
    window: rows and columns, h and w, at most H and W.

  Returns:
    f32[B, H, W, K], zeros in the padding where no window is.
  """
  starts, inside = zip(
    *(_spread(size[:, i], image.shape[i + 1], window[i]) for i in (0, 1)), strict=True
  )
  counts = [len(start) for start in starts]
  places = (
    jnp.repeat(starts[0], counts[1], axis=0),
    jnp.tile(starts[1], (counts[0], 1)),
    jnp.repeat(inside[0].any(2), counts[1], axis=0) & jnp.tile(inside[1].any(2), (counts[0], 1)),
  )
  cut = jax.vmap(lambda x, top, left: lax.dynamic_slice(x, (top, left, 0), (*window, x.shape[2])))
  put = jax.vmap(lambda x, y, top, left: lax.dynamic_update_slice(x, y, (top, left, 0)))

  def add(total: Array, place: tuple[Array, Array, Array]) -> tuple[Array, None]:
    top, left, used = place
    found = apply(cut(image, top, left)).astype(jnp.float32)
    found = jnp.where(used[:, None, None, None], found, 0)
    return put(total, cut(total, top, left) + found, top, left), None

  apply = jax.jit(apply)  # traced once, for its shape and in the scan
  shape = jax.eval_shape(apply, jax.eval_shape(cut, image, places[0][0], places[1][0])).shape
  total = jnp.zeros((*image.shape[:3], shape[3]), jnp.float32)
  total, _ = lax.scan(add, total, places)
  rows, columns = (x.sum(0) for x in inside)
  return total / jnp.maximum(rows[:, :, None] * columns[:, None], 1)[..., None]


def _spread(side: Array, length: int, window: int) -> tuple[Array, Array]:
  """Windows along an axis: their starts i32[n, B], and their pixels bool[n, B, length].

  Args:
    side: i32[B], of the images.
    length: of the axis, with the padding. It may have room for more windows than an image needs:
      those have no pixel.
    window: pixels.
  """
  index = jnp.arange(-(-length // window))[:, None]
  count = jnp.maximum(-(-side // window), 1)
  start = index * jnp.maximum(side - window, 0) // jnp.maximum(count - 1, 1)
  start = jnp.minimum(start, length - window)
  pixel = jnp.arange(length) - start[..., None]
  return start, (pixel >= 0) & (pixel < window) & (index < count)[..., None]


def map_blocks(
  function: Callable[[np.ndarray], Mapping[str, np.ndarray]],
  read: Callable[[np.ndarray, np.ndarray], np.ndarray],
  size: tuple[int, int],
  block: tuple[int, int],
  context: int,
  empty: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> dict[str, np.ndarray]:
  """Processes a large image on the host, block by block: memory is that of a block and the results.

  Blocks are of one size, with reflect padding where they reach beyond the image.

  Args:
    function: [h, w, C] -> arrays [h, w, ...] by name, h = rows of a block + 2 * context.
    read: rows i32[h] and columns i32[w] -> their pixels [h, w, C].
    size: height and width of the image.
    block: rows and columns of a block.
    context: rows and columns around a block, whose results are left out.
    empty: shape and dtype -> the array of a result.

  Returns:
    Arrays [H, W, ...] by name.
  """
  height, width = size
  rows, cols = (
    _reflected_windows(size, side, context, side)
    for size, side in zip((height, width), block, strict=True)
  )
  found: dict[str, np.ndarray] = {}
  for (i, row), (j, col) in itertools.product(enumerate(rows), enumerate(cols)):
    top, left = i * block[0], j * block[1]
    inside = np.s_[: min(block[0], height - top), : min(block[1], width - left)]
    for key, value in function(read(row, col)).items():
      center = value[context : context + block[0], context : context + block[1]][inside]
      if key not in found:
        found[key] = empty((height, width, *value.shape[2:]), value.dtype)
      found[key][top : top + center.shape[0], left : left + center.shape[1]] = center
  return found


def _reflected_windows(size: int, tile: int, margin: int, step: int) -> np.ndarray:
  """Source indices of the pixels of each tile along an axis, i32[tiles, tile + 2 * margin]."""
  starts = np.arange(0, max(size - tile, 0) + step, step)
  index = starts[:, None] + np.arange(-margin, tile + margin)
  # Reflection without repeating the border pixel: a triangle wave of period 2 * (size - 1).
  period = max(2 * (size - 1), 1)
  index = index % period
  return np.minimum(index, period - index).astype(np.int32)


def _stitch(tiles: Array, step: int, axis: int) -> Array:
  """Joins tiles [n, ...] at offsets of `step` along `axis` of a tile."""
  last = tiles[-1]
  body = jnp.moveaxis(lax.slice_in_dim(tiles[:-1], 0, step, axis=axis + 1), 0, axis)
  shape = list(last.shape)
  shape[axis] = (len(tiles) - 1) * step
  return jnp.concatenate([body.reshape(shape), last], axis)
