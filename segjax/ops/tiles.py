"""Tiled inference on images of any size."""

import itertools
from collections.abc import Callable, Mapping

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
