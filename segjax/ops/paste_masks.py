"""Pastes masks of boxes into the image, at full resolution.

On the host, with NumPy: evaluation processes one image at a time, and image sizes vary.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Rule: TypeAlias = Literal['torchvision', 'detectron2']

# Coordinates are clipped to prevent overflow for finite boxes.
_LIMIT = 1e8
# Number of pixels to interpolate at a time, to fit the CPU cache.
_BLOCK = 2**15


def paste_masks(
  masks: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  *,
  rule: Rule = 'torchvision',
  threshold: float = 0.5,
) -> np.ndarray:
  """Pastes masks into the image.

  Args:
    masks: f32[K, M, M], probabilities inside the box; zero outside.
    boxes: f32[K, 4], in pixels of the image. Boxes outside the image, and infinite or NaN ones,
      have no pixels.
    size: (H, W), rows and columns of the image.
    rule: `torchvision`: the box, expanded by one mask cell on each side, is truncated to integer
      pixels (at least one), and the mask is resized to it; pixels above the threshold are set.
      `detectron2`: the mask is sampled at pixel centers; pixels with at least the threshold are
      set, and empty boxes have none.
    threshold: for the bilinearly interpolated probability.

  Returns:
    bool[K, H, W].
  """
  image = np.zeros((len(masks), *size), bool)
  for pasted, mask, box in zip(image, masks, boxes, strict=True):
    region, values = paste_mask(mask, box, size, rule=rule, threshold=threshold)
    pasted[region] = values
  return image


def paste_mask(
  mask: np.ndarray,
  box: np.ndarray,
  size: tuple[int, int],
  *,
  rule: Rule = 'torchvision',
  threshold: float = 0.5,
) -> tuple[tuple[slice, slice], np.ndarray]:
  """Pastes one mask, returning only the region of the image that it covers; see `paste_masks`.

  Args:
    mask: f32[M, M].
    box: f32[4].
    size: (H, W).
    rule: as in `paste_masks`.
    threshold: as in `paste_masks`.

  Returns:
    ((rows, columns) of the image, bool[rows, columns]); no rows for a box without pixels.
  """
  box = np.asarray(box, np.float32)
  if not np.isfinite(box).all():
    return (slice(0), slice(0)), np.zeros((0, 0), bool)
  x0, y0, x1, y1 = np.clip(box, -_LIMIT, _LIMIT)
  padded = np.zeros([n + 2 for n in mask.shape], np.float32)
  padded[1:-1, 1:-1] = mask
  span, exceeds = _RULES[rule]
  rows, cols = span(y0, y1, mask.shape[0], size[0]), span(x0, x1, mask.shape[1], size[1])
  across = np.ascontiguousarray(_interpolate(padded.T, cols.before, cols.fraction).T)
  values = np.empty((rows.before.size, cols.before.size), bool)
  step = max(1, _BLOCK // max(1, values.shape[1]))
  for start in range(0, len(values), step):
    block = slice(start, start + step)
    interpolated = _interpolate(across, rows.before[block], rows.fraction[block])
    exceeds(interpolated, np.float32(threshold), out=values[block])
  return (rows.pixels, cols.pixels), values


class _Span(NamedTuple):
  """One axis: pixels of the image, and their interpolation positions in the padded mask.

  Attributes:
    pixels: slice of the image.
    before: i64[pixels], the cell before the pixel, from 0 to M; the next cell is `before + 1`.
    fraction: f32[pixels], position between the two cells.
  """

  pixels: slice
  before: np.ndarray
  fraction: np.ndarray


def _torchvision_span(start: np.float32, end: np.float32, cells: int, length: int) -> _Span:
  grow, half = np.float32((cells + 2) / cells), np.float32(0.5)
  center, extent = (end + start) * half, (end - start) * half * grow
  first, last = int(center - extent), int(center + extent)
  pixels = np.arange(max(first, 0), min(last + 1, length))
  # F.interpolate(align_corners=False) of the padded mask to the box.
  scale = np.float32((cells + 2) / max(last - first + 1, 1))
  return _span(pixels, ((pixels - first).astype(np.float32) + half) * scale - half, cells)


def _detectron2_span(start: np.float32, end: np.float32, cells: int, length: int) -> _Span:
  size, half = end - start, np.float32(0.5)
  if size <= 0:
    return _span(np.arange(0), np.zeros(0, np.float32), cells)
  cell = size / cells
  first, last = np.clip([np.floor(start - cell), np.ceil(end + cell)], 0, length)
  pixels = np.arange(int(first), int(last))
  return _span(pixels, (pixels.astype(np.float32) + half - start) / size * cells + half, cells)


def _span(pixels: np.ndarray, position: np.ndarray, cells: int) -> _Span:
  """The span of pixels at positions f32[pixels] in the padded mask; i is the center of cell i."""
  position = np.clip(position, 0, cells + 1)
  before = np.minimum(position.astype(np.int64), cells)
  region = slice(pixels[0], pixels[-1] + 1) if pixels.size else slice(0)
  return _Span(region, before, position - before.astype(np.float32))


def _interpolate(values: np.ndarray, before: np.ndarray, fraction: np.ndarray) -> np.ndarray:
  """Interpolates f32[cells, ...] linearly: f32[n, ...]."""
  steps = np.diff(values, axis=0)[before]
  steps *= fraction[:, None]
  steps += values[before]
  return steps


_RULES: dict[str, tuple[Callable[..., _Span], np.ufunc]] = {
  'torchvision': (_torchvision_span, np.greater),
  'detectron2': (_detectron2_span, np.greater_equal),
}
