"""Values of maps and masks at points, and points to train masks at.

Kirillov, Wu, He, Girshick, "PointRend", CVPR 2020, arXiv 1912.08193, as Mask2Former uses it
(arXiv 2112.01527, §3.3). Points are (x, y), fractions of the width and the height of an image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from segjax.types import Array


def corners(points: Array, size: tuple[int, int]) -> tuple[Array, Array]:
  """The four pixels around each point, and their weights in bilinear interpolation.

  Args:
    points: f32[..., 2].
    size: (H, W).

  Returns:
    i32[..., 4], the index y · W + x of each pixel; and f32[..., 4], weights, 0 outside the image.
  """
  height, width = size
  x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
  left, top = jnp.floor(x), jnp.floor(y)
  index, weight = [], []
  for row in (top, top + 1):
    for column in (left, left + 1):
      inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
      share = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
      weight.append(jnp.where(inside, share, 0))
      index.append(jnp.where(inside, row * width + column, 0).astype(jnp.int32))
  return jnp.stack(index, -1), jnp.stack(weight, -1)


def sample_maps(maps: Array, points: Array) -> Array:
  """Bilinear values of maps; beyond an image they are 0.

  As torch's `grid_sample` with `align_corners=False` and zero padding.

  Args:
    maps: f[N, H, W].
    points: f32[P, 2], the same for all maps, or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  index, weight = corners(points, maps.shape[1:])
  flat = maps.reshape(len(maps), -1)
  if points.ndim == 2:
    values = flat[:, index]
  else:
    values = jnp.take_along_axis(flat, index.reshape(len(flat), -1), 1).reshape(index.shape)
  return (values * weight).sum(-1)


def sample_packed(packed: Array, width: int, points: Array) -> Array:
  """`sample_maps` of masks with one bit a pixel, see `segjax.ops.masks.pack_masks`.

  Args:
    packed: u8[N, H, ceil(width / 8)].
    width: W of the masks.
    points: f32[P, 2] or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  index, weight = corners(points, (packed.shape[1], width))
  row, column = jnp.divmod(index, width)
  byte = row * packed.shape[2] + column // 8
  flat = packed.reshape(len(packed), -1)
  if points.ndim == 2:
    values = flat[:, byte]
  else:
    values = jnp.take_along_axis(flat, byte.reshape(len(flat), -1), 1).reshape(byte.shape)
  bits = values.astype(jnp.int32) >> (7 - column % 8) & 1
  return (bits * weight).sum(-1)


def sample_classes(label: Array, classes: Array, points: Array) -> Array:
  """`sample_maps` of the masks `label == class`.

  Args:
    label: i32[H, W].
    classes: i32[N].
    points: f32[P, 2] or f32[N, P, 2].

  Returns:
    f32[N, P].
  """
  index, weight = corners(points, label.shape)
  around = label.reshape(-1)[index]
  each = classes.reshape(-1, *[1] * 2)
  return (weight * (around == each)).sum(-1)


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
