"""Pastes masks of boxes into the image, at full resolution.

On the host, with NumPy: evaluation processes one image at a time, and image sizes vary.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Rule: TypeAlias = Literal['torchvision', 'detectron2']
# Rows and columns of the image.
Region: TypeAlias = tuple[slice, slice]

# Coordinates are clipped to prevent overflow for finite boxes.
_LIMIT = 1e8
# Number of pixels to interpolate at a time, to fit the CPU cache.
_BLOCK = 2**15


def paste_masks(
  masks: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  *,
  rule: Rule | Literal['logits'] = 'torchvision',
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
      set, and empty boxes have none. `logits`: see `paste_regions`.
    threshold: for the bilinearly interpolated probability.

  Returns:
    bool[K, H, W].
  """
  image = np.zeros((len(masks), *size), bool)
  regions = paste_regions(masks, boxes, size, rule=rule, threshold=threshold)
  for pasted, (region, values) in zip(image, regions, strict=True):
    pasted[region] = values
  return image


def paste_regions(
  masks: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  *,
  rule: Rule | Literal['logits'] = 'torchvision',
  threshold: float = 0.5,
) -> Iterator[tuple[Region, np.ndarray]]:
  """Pastes masks one by one, each into the region of the image that it covers; see `paste_masks`.

  Args:
    masks: f32[K, M, M].
    boxes: f32[K, 4].
    size: (H, W).
    rule: as in `paste_masks`; or `logits` for masks f32[K, h, w] that are extended beyond their
      outermost centers, such as those of whole images with their padding, which are sampled at
      pixel centers.
    threshold: as in `paste_masks`.

  Yields:
    K times ((rows, columns) of the image, bool[rows, columns]); no rows or columns for a box
    without pixels.
  """
  boxes = np.asarray(boxes, np.float32)
  finite = np.isfinite(boxes).all(1)
  x0, y0, x1, y1 = np.clip(np.where(finite[:, None], boxes, 0), -_LIMIT, _LIMIT).T
  find, exceeds = _RULES[rule]
  cells = masks.shape[1:]
  rows = _spans(*find(y0, y1, cells[0], size[0]), finite, cells[0])
  columns = _spans(*find(x0, x1, cells[1], size[1]), finite, cells[1])
  # Interpolated first along x, where it is the leading axis.
  padded = np.zeros((len(masks), cells[1] + 2, cells[0] + 2), np.float32)
  padded[:, 1:-1, 1:-1] = masks.transpose(0, 2, 1)
  for mask, row, column in zip(padded, rows, columns, strict=True):
    across = np.ascontiguousarray(
      _interpolate(mask, _steps(mask), column.before, column.fraction).T
    )
    steps = _steps(across)
    values = np.empty((row.before.size, column.before.size), bool)
    count = max(1, _BLOCK // max(1, values.shape[1]))
    for start in range(0, len(values), count):
      block = slice(start, start + count)
      interpolated = _interpolate(across, steps, row.before[block], row.fraction[block])
      exceeds(interpolated, np.float32(threshold), out=values[block])
    yield (row.pixels, column.pixels), values


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


# `(pixels i64[n], boxes i64[n]) -> f32[n]`, their positions in the padded mask; i is the center of
# cell i.
_Position = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _torchvision(
  start: np.ndarray, end: np.ndarray, cells: int, length: int
) -> tuple[np.ndarray, np.ndarray, _Position]:
  """The first pixel, the one after the last, both i64[K], and the positions."""
  grow, half = np.float32((cells + 2) / cells), np.float32(0.5)
  center, extent = (end + start) * half, (end - start) * half * grow
  first, last = (center - extent).astype(np.int64), (center + extent).astype(np.int64)
  # F.interpolate(align_corners=False) of the padded mask to the box.
  scale = ((cells + 2) / np.maximum(last - first + 1, 1)).astype(np.float32)

  def position(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return ((pixels - first[boxes]).astype(np.float32) + half) * scale[boxes] - half

  return np.maximum(first, 0), np.minimum(last + 1, length), position


def _detectron2(
  start: np.ndarray, end: np.ndarray, cells: int, length: int
) -> tuple[np.ndarray, np.ndarray, _Position]:
  """As `_torchvision`."""
  extent, half = end - start, np.float32(0.5)
  cell = extent / np.float32(cells)
  first, stop = np.clip([np.floor(start - cell), np.ceil(end + cell)], 0, length).astype(np.int64)

  def position(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    inside = pixels.astype(np.float32) + half - start[boxes]
    return inside / extent[boxes] * np.float32(cells) + half

  return first, np.where(extent > 0, stop, first), position


def _logits(
  start: np.ndarray, end: np.ndarray, cells: int, length: int
) -> tuple[np.ndarray, np.ndarray, _Position]:
  """As `_detectron2`, in the box alone."""
  _, _, inside = _detectron2(start, end, cells, length)
  first, stop = np.clip([np.floor(start), np.ceil(end)], 0, length).astype(np.int64)
  position = lambda pixels, boxes: np.clip(inside(pixels, boxes), 1, cells)
  return first, np.where(end > start, stop, first), position


def _spans(
  first: np.ndarray, stop: np.ndarray, position: _Position, valid: np.ndarray, cells: int
) -> Iterator[_Span]:
  """The spans of K boxes; without pixels for those that are not valid."""
  counts = np.where(valid, np.maximum(stop - first, 0), 0)
  ends = counts.cumsum()
  boxes = np.repeat(np.arange(len(counts)), counts)
  pixels = np.arange(len(boxes)) + (first - ends + counts)[boxes]
  positions = np.clip(position(pixels, boxes), 0, cells + 1)
  before = np.minimum(positions.astype(np.int64), cells)
  fraction = positions - before.astype(np.float32)
  for pixel, count, end in zip(first.tolist(), counts.tolist(), ends.tolist(), strict=True):
    own = slice(end - count, end)
    yield _Span(slice(pixel, pixel + count) if count else slice(0), before[own], fraction[own])


def _steps(values: np.ndarray) -> np.ndarray:
  """The differences f32[n - 1, ...] of f32[n, ...]."""
  return values[1:] - values[:-1]


def _interpolate(
  values: np.ndarray, steps: np.ndarray, before: np.ndarray, fraction: np.ndarray
) -> np.ndarray:
  """Interpolates f32[cells, ...] with the given steps linearly: f32[n, ...]."""
  result = steps.take(before, axis=0)
  result *= fraction[:, None]
  result += values.take(before, axis=0)
  return result


# How to find the pixels of boxes along an axis, and how to compare with the threshold.
_RULES: dict[str, tuple[Callable[..., tuple[np.ndarray, np.ndarray, _Position]], np.ufunc]] = {
  'torchvision': (_torchvision, np.greater),
  'detectron2': (_detectron2, np.greater_equal),
  'logits': (_logits, np.greater),
}
