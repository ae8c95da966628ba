"""Puts masks from the frames of their boxes into the image, at its full resolution.

On the host, with NumPy: evaluation looks at one image at a time, and no two are of the same size.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Rule: TypeAlias = Literal['torchvision', 'detectron2']

# Coordinates are cut off here, so that no arithmetic on a finite box overflows.
_LIMIT = 1e8


class Span(NamedTuple):
  """One axis: which pixels of the image a mask reaches, and how they read the mask.

  Attributes:
    pixels: slice of the image, inside it.
    weights: f32[pixels, M], what each takes of the mask's rows or columns.
  """

  pixels: slice
  weights: np.ndarray


def paste_masks(
  masks: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  *,
  rule: Rule = 'torchvision',
  threshold: float = 0.5,
) -> np.ndarray:
  """Masks in the image, see `paste_mask`.

  Args:
    masks: f32[K, M, M], probabilities.
    boxes: f32[K, 4], in pixels of the image.
    size: (H, W), rows and columns of the image.
    rule: as in `paste_mask`.
    threshold: as in `paste_mask`.

  Returns:
    bool[K, H, W].
  """
  image = np.zeros((len(masks), *size), bool)
  for pasted, mask, box in zip(image, masks, boxes, strict=True):
    paste_mask(mask, box, pasted, rule=rule, threshold=threshold)
  return image


def paste_mask(
  mask: np.ndarray,
  box: np.ndarray,
  image: np.ndarray,
  *,
  rule: Rule = 'torchvision',
  threshold: float = 0.5,
) -> None:
  """Sets those pixels of an image at which a mask, bilinearly interpolated, is over a threshold.

  Only pixels that the box reaches are computed. A box that lies outside the image, or has an
  infinite or NaN coordinate, sets none.

  Args:
    mask: f32[M, M], probabilities, in the frame of the box; beyond it they are zero.
    box: f32[4], in pixels of the image.
    image: bool[H, W], changed in place.
    rule: `torchvision`: the box, grown by one cell of the mask on each side, is cut to whole pixels
      and at least one, and the mask is resized to them; a pixel is set above the threshold.
      `detectron2`: the mask is sampled at the centres of the pixels; a pixel is set from the
      threshold on, and a box without area sets none.
    threshold: probability.
  """
  mask, box = np.asarray(mask, np.float32), np.asarray(box, np.float32)
  if not np.isfinite(box).all():
    return
  box = np.clip(box, -_LIMIT, _LIMIT)
  span, exceeds = _RULES[rule]
  axes = zip(box[[1, 0]], box[[3, 2]], mask.shape, image.shape, strict=True)
  rows, cols = (span(*axis) for axis in axes)
  values = rows.weights @ (mask @ cols.weights.T)
  image[rows.pixels, cols.pixels] |= exceeds(values, np.float32(threshold))


def _torchvision_span(start: np.float32, end: np.float32, cells: int, length: int) -> Span:
  grow = np.float32((cells + 2) / cells)
  centre, half = (end + start) * np.float32(0.5), (end - start) * np.float32(0.5) * grow
  first, last = int(centre - half), int(centre + half)
  pixels = np.arange(max(first, 0), min(last + 1, length))
  # The mask with a border of zeros, resized to the box as by F.interpolate(align_corners=False).
  scale = np.float32((cells + 2) / max(last - first + 1, 1))
  offset = (pixels - first).astype(np.float32) + np.float32(0.5)
  position = np.maximum(offset * scale - np.float32(0.5), 0)
  return _span(pixels, position - 1, cells)


def _detectron2_span(start: np.float32, end: np.float32, cells: int, length: int) -> Span:
  size = end - start
  cell = max(float(size), 0) / cells
  first, last = np.floor(start - cell), np.ceil(end + cell)
  pixels = np.arange(*np.clip([first, last], 0, length).astype(int)) if size > 0 else np.arange(0)
  position = (pixels.astype(np.float32) + np.float32(0.5) - start) / size * cells
  return _span(pixels, position - np.float32(0.5), cells)


def _span(pixels: np.ndarray, position: np.ndarray, cells: int) -> Span:
  """Pixels that read a mask at a position, f32[pixels]: i is the centre of cell i."""
  before = np.floor(position)
  fraction = (position - before)[:, None]
  distance = np.arange(cells, dtype=np.float32) - before[:, None]
  weights = np.where(distance == 0, 1 - fraction, np.where(distance == 1, fraction, 0))
  return Span(slice(pixels[0], pixels[-1] + 1) if pixels.size else slice(0), weights)


_RULES: dict[str, tuple[Callable[..., Span], np.ufunc]] = {
  'torchvision': (_torchvision_span, np.greater),
  'detectron2': (_detectron2_span, np.greater_equal),
}
