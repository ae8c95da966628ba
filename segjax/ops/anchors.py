"""Anchors of a region proposal network (Faster R-CNN, section 3.1.1; FPN, section 4.1).

In NumPy: sizes are static, so anchors are constants of the traced program.
"""

from collections.abc import Sequence

import numpy as np


def base_anchors(
  sizes: Sequence[float],
  aspect_ratios: Sequence[float],
  *,
  rounded: bool = True,
  sizes_first: bool = False,
) -> np.ndarray:
  """The anchors of one location, centered at (0, 0).

  Args:
    sizes: square roots of the areas, in pixels.
    aspect_ratios: height / width.
    rounded: whether to round coordinates to pixels, half to even, as in torchvision but not in
      Detectron2.
    sizes_first: False for torchvision's order, all sizes of the first ratio, then of the next; True
      for Detectron2's, all ratios of the first size. No difference for one size or one ratio.

  Returns:
    f32[len(sizes) * len(aspect_ratios), 4].
  """
  height = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
  extent = np.stack([1 / height, height], -1) * np.asarray(sizes, np.float32)[:, None]
  if sizes_first:
    extent = extent.transpose(1, 0, 2)
  extent = extent.reshape(-1, 2) / 2
  if rounded:
    extent = extent.round()
  return np.concatenate([-extent, extent], -1)


def grid_anchors(
  base: np.ndarray, grid: tuple[int, int], stride: tuple[float, float]
) -> np.ndarray:
  """The anchors of a feature map, with the first location at (0, 0) of the image.

  Args:
    base: f32[A, 4], from `base_anchors`.
    grid: (h, w) of the feature map.
    stride: rows and columns of the image between locations.

  Returns:
    f32[h * w * A, 4], ordered like the outputs [h, w, A] of a convolution.
  """
  y, x = (np.arange(n, dtype=np.float32) * np.float32(s) for n, s in zip(grid, stride, strict=True))
  place = np.stack(np.broadcast_arrays(x, y[:, None], x, y[:, None]), -1)
  return (place[:, :, None] + base).reshape(-1, 4)


def grid_strides(
  image_size: tuple[int, int], grids: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
  """torchvision's strides: the image size, padded to multiples of 32, floor-divided by the size of
  each map.

  If the size of a map was rounded up, they are smaller than the strides of the network: 61 for 13
  rows of 800, where the network's stride, used in Detectron2, is 64.
  """
  return [(image_size[0] // h, image_size[1] // w) for h, w in grids]


def pyramid_anchors(
  bases: Sequence[np.ndarray],
  grids: Sequence[tuple[int, int]],
  strides: Sequence[tuple[float, float]],
) -> list[np.ndarray]:
  """The anchors of each level of a pyramid, see `grid_anchors`.

  Args:
    bases: f32[A, 4] per level.
    grids: (h, w) per level.
    strides: (rows, columns) per level; see `grid_strides` for torchvision's.

  Returns:
    f32[h * w * A, 4] per level.
  """
  return [grid_anchors(*level) for level in zip(bases, grids, strides, strict=True)]
