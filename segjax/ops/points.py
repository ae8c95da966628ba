"""Values of maps and masks at points, and points to train masks at.

Kirillov, Wu, He, Girshick, "PointRend", CVPR 2020, arXiv 1912.08193, as Mask2Former uses it
(arXiv 2112.01527, §3.3). Points are (x, y), fractions of the width and the height of an image.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segjax.types import Array

# Of a block, see `Blocks`.
_ROWS = 8


def corners(points: Array, size: tuple[int, int]) -> list[tuple[Array, Array]]:
  """The four pixels around each point, and their weights in bilinear interpolation.

  One after the other, as XLA on a CPU fuses what gathers a single pixel with what it is for, and
  does not fuse a gather of all four.

  Args:
    points: f32[..., 2].
    size: (H, W).

  Returns:
    For each: i32[...], its index y · W + x; and f32[...], its weight, 0 outside the image.
  """
  height, width = size
  x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
  left, top = jnp.floor(x), jnp.floor(y)
  found = []
  for row in (top, top + 1):
    for column in (left, left + 1):
      inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
      weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
      # In integers: floats do not count beyond 2^24.
      index = jnp.where(inside, row.astype(jnp.int32) * width + column.astype(jnp.int32), 0)
      found.append((index, jnp.where(inside, weight, 0)))
  return found


def _take(flat: Array, index: Array) -> Array:
  """[N, H · W] at i32[P] or i32[N, P], all of them inside -> [N, P]."""
  if index.ndim == 1:
    return flat.at[:, index].get(mode='promise_in_bounds')
  return jnp.take_along_axis(flat, index, 1, mode='promise_in_bounds')


def sample_maps(maps: Array, points: Array) -> Array:
  """Bilinear values of maps; beyond an image they are 0.

  As torch's `grid_sample` with `align_corners=False` and zero padding.

  Args:
    maps: f[N, H, W].
    points: f32[P, 2], the same for all maps, or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  flat = jnp.asarray(maps).reshape(len(maps), -1)
  return sum(_take(flat, index) * weight for index, weight in corners(points, maps.shape[1:]))


class Blocks(NamedTuple):
  """Blocks of the N rows of an image, of which those without a valid row are left out.

  Attributes:
    order: i32[N / rows, rounded up], those with a valid row first.
    count: i32[], how many of them are processed: of all images of a batch, what one needs the most.
  """

  order: Array
  count: Array


def find_blocks(valid: Array) -> Blocks:
  """The blocks of bool[B, N], with i32[B, …] orders."""
  blocks = _in_blocks(valid.T)  # [blocks, rows, B]
  used = blocks.any(1).T
  return Blocks(jnp.argsort(~used, axis=1, stable=True), used.sum(1).max())


def over_blocks(function: Callable[..., Array], blocks: Blocks, *arrays: Array) -> Array:
  """A function of the rows of arrays [N, …] by blocks; zeros in those that are not processed.

  Without a gradient, and its time is that of the blocks that are processed: `vmap` it with one
  `count` for all images.

  Args:
    function: (index i32[] of a block, its rows [rows, …] of each array) -> [rows, …].
    blocks: of one image, see `find_blocks`.
    arrays: of at least one row.
  """
  parts = [_in_blocks(x) for x in arrays]
  one = jax.eval_shape(function, blocks.count, *(part[0] for part in parts))
  out = jnp.zeros((len(parts[0]), *one.shape), one.dtype)

  def process(state: tuple[Array, Array]) -> tuple[Array, Array]:
    i, out = state
    block = blocks.order[i]
    return i + 1, out.at[block].set(function(block, *(part[block] for part in parts)))

  _, out = jax.lax.while_loop(lambda state: state[0] < blocks.count, process, (0, out))
  return out.reshape(-1, *one.shape[1:])[: len(arrays[0])]


def _in_blocks(x: Array) -> Array:
  """[N, …] -> [blocks, rows, …], filled up with zeros."""
  missing = -len(x) % _ROWS
  x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
  return x.reshape(-1, _ROWS, *x.shape[1:])


@jax.custom_vjp
def sample_valid(maps: Array, points: Array, blocks: Blocks) -> Array:
  """`sample_maps` at f32[N, P, 2], whose gradient with respect to the maps is taken by blocks.

  Points have none.
  """
  del blocks
  return sample_maps(maps, points)


def _sample_backward(kept: tuple[Any, ...], gradient: Array) -> tuple[Array, None, None]:
  maps, points, blocks = kept

  def one(_: Array, maps: Array, points: Array, gradient: Array) -> Array:
    return jax.vjp(lambda maps: sample_maps(maps, points), maps)[1](gradient)[0]

  return over_blocks(one, blocks, maps, points, gradient), None, None


sample_valid.defvjp(lambda *args: (sample_valid(*args), args), _sample_backward)


def sample_packed(packed: Array, width: int, points: Array) -> Array:
  """`sample_maps` of masks with one bit a pixel, see `segjax.ops.masks.pack_masks`.

  Args:
    packed: u8[N, H, ceil(width / 8)].
    width: W of the masks.
    points: f32[P, 2] or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  flat = jnp.asarray(packed).reshape(len(packed), -1)
  total = 0.0
  for index, weight in corners(points, (packed.shape[1], width)):
    row, column = jnp.divmod(index, width)
    byte = _take(flat, row * packed.shape[2] + column // 8)
    total += (byte.astype(jnp.int32) >> (7 - column % 8) & 1) * weight
  return total


def sample_classes(label: Array, classes: Array, points: Array) -> Array:
  """`sample_maps` of the masks `label == class`.

  Args:
    label: i32[H, W].
    classes: i32[N].
    points: f32[P, 2] or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  flat, each = jnp.asarray(label).reshape(-1), jnp.asarray(classes)[:, None]
  return sum(
    weight * (flat.at[index].get(mode='promise_in_bounds') == each)
    for index, weight in corners(points, label.shape)
  )


def uncertain_points(
  key: Array,
  logits_at: Callable[[Array], Array],
  count: int,
  masks: int,
  *,
  oversample: float = 3.0,
  importance: float = 0.75,
) -> Array:
  """Points where predicted masks are least certain, and some at random (PointRend, §3.1).

  Args:
    key: random key.
    logits_at: f32[N, p, 2] -> f32[N, p], mask logits at points.
    count: P.
    masks: N.
    oversample: random points of which the least certain are taken, in multiples of P.
    importance: share of P that is taken by certainty.

  Returns:
    f32[N, P, 2], without gradient.
  """
  certain_key, random_key = jax.random.split(key)
  drawn = jax.random.uniform(certain_key, (masks, int(count * oversample), 2))
  uncertainty = -jnp.abs(jax.lax.stop_gradient(logits_at(drawn)))
  chosen = int(importance * count)
  _, index = jax.lax.top_k(uncertainty, chosen)
  points = jnp.take_along_axis(drawn, index[..., None], 1)
  rest = jax.random.uniform(random_key, (masks, count - chosen, 2))
  return jnp.concatenate([points, rest], 1)
