"""Masks of objects, each cut to the window around its pixels.

Objects are small beside their images: what is done in windows is a fraction of the work.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

Size = tuple[int, int]


class Window(NamedTuple):
  """A part of a mask outside which it is 0.

  Attributes:
    y, x: its first row and column in the mask.
    pixels: u8[h, w], 0 or 1.
  """

  y: int
  x: int
  pixels: np.ndarray

  @property
  def inside(self) -> tuple[slice, slice]:
    """Its rows and columns in the mask."""
    height, width = self.pixels.shape
    return np.s_[self.y : self.y + height, self.x : self.x + width]


EMPTY = Window(0, 0, np.zeros((0, 0), np.uint8))


class Masks:
  """The masks of n objects, u8[n, H, W]. NumPy makes that array of them where it is asked to.

  Attributes:
    size: (H, W).
    windows: one a mask, as small as its pixels allow.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, size: Size, windows: Iterable[Window]):
    self.size: Size = tuple(size)
    self.windows = tuple(map(_tighten, windows))

  @classmethod
  def of(cls, masks: 'Masks | np.ndarray') -> 'Masks':
    """From u8[n, H, W], 0 or 1; `Masks` are returned as they are."""
    if isinstance(masks, cls):
      return masks
    return cls(masks.shape[1:], (Window(0, 0, mask) for mask in masks))

  @property
  def shape(self) -> tuple[int, int, int]:
    """(n, H, W)."""
    return len(self.windows), *self.size

  def __len__(self) -> int:
    return len(self.windows)

  def __iter__(self) -> Iterator[np.ndarray]:
    """Each mask, u8[H, W]."""
    for window in self.windows:
      mask = np.zeros(self.size, np.uint8)
      mask[window.inside] = window.pixels
      yield mask

  def __getitem__(self, index: Any) -> np.ndarray:
    """What u8[n, H, W] has there."""
    return np.asarray(self)[index]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError('masks in windows are no array: a copy cannot be avoided')
    masks = np.zeros(self.shape, np.uint8)
    for mask, window in zip(masks, self.windows, strict=True):
      mask[window.inside] = window.pixels
    return masks if dtype is None else masks.astype(dtype, copy=False)

  def take(self, index: np.ndarray, axis: int = 0) -> 'Masks':
    """Those at `index`, in its order, as an array's `take` along its first axis."""
    if axis:
      raise ValueError(f'masks are taken along axis 0, not {axis}')
    return Masks(self.size, [self.windows[i] for i in np.asarray(index, int)])

  def map(self, function: Callable[[Window], Window], size: Size | None = None) -> 'Masks':
    """Masks of `size`, by default the same, of a function of each window."""
    return Masks(self.size if size is None else size, map(function, self.windows))

  @property
  def boxes(self) -> np.ndarray:
    """f32[n, 4], [x0, y0, x1, y1] around the pixels; zeros where there is none."""
    found = [(x, y, x + pixels.shape[1], y + pixels.shape[0]) for y, x, pixels in self.windows]
    return np.array(found, np.float32).reshape(-1, 4)

  @property
  def areas(self) -> np.ndarray:
    """i64[n], pixels."""
    return np.array([cv2.countNonZero(w.pixels) if w.pixels.size else 0 for w in self.windows], int)

  def union(self) -> np.ndarray:
    """bool[H, W], where any mask is."""
    found = np.zeros(self.size, np.uint8)
    for window in self.windows:
      found[window.inside] |= window.pixels
    return found.view(bool)

  def pack(self, out: np.ndarray) -> None:
    """Writes the masks with one bit a pixel, as `segjax.ops.masks.pack_masks` does it.

    Args:
      out: u8[N, H', W'], zeros, with room for all of them.
    """
    for bits, (y, x, pixels) in zip(out, self.windows, strict=False):
      height, width = pixels.shape
      aligned = cv2.copyMakeBorder(pixels, 0, 0, x % 8, 0, cv2.BORDER_CONSTANT, value=0)
      packed = np.packbits(aligned, axis=-1) if pixels.size else pixels
      bits[y : y + height, x // 8 : x // 8 + packed.shape[1]] = packed


def concatenate(masks: Sequence[Masks]) -> Masks:
  """The masks of all, of one size."""
  return Masks(masks[0].size, [window for part in masks for window in part.windows])


def _tighten(window: Window) -> Window:
  """The part around the pixels."""
  y, x, pixels = window
  if not pixels.size:
    return EMPTY
  left, top, width, height = cv2.boundingRect(pixels)
  if not width:
    return EMPTY
  if (height, width) == pixels.shape:
    return window
  inside = pixels[top : top + height, left : left + width]
  return Window(y + top, x + left, np.ascontiguousarray(inside))


# --- resizing, and moving by whole pixels ---------------------------------------------------------


@functools.lru_cache(maxsize=256)
def nearest_places(old: int, new: int) -> np.ndarray:
  """i32[new], which of `old` pixels OpenCV's INTER_NEAREST_EXACT takes for each of `new`."""
  at = np.arange(old, dtype=np.float32)[None]  # exact below 2^24
  resized = cv2.resize(at, (new, 1), interpolation=cv2.INTER_NEAREST_EXACT)
  found = resized[0].astype(np.int32)
  found.flags.writeable = False
  return found


def places(index: np.ndarray, at: range) -> np.ndarray:
  """`index` at consecutive places, up or down; -1 past its ends."""
  found = np.full(len(at), -1, index.dtype)
  inside = np.arange(at.start, at.stop, at.step)
  there = (inside >= 0) & (inside < len(index))
  found[there] = index[inside[there]]
  return found


def select(window: Window, rows: np.ndarray, columns: np.ndarray) -> Window:
  """A mask of the pixels at `rows` and `columns` of another, those of a window of it.

  Args:
    window: of the other mask.
    rows, columns: i32, which row and column of it each of the new mask has, in ascending or
      descending order; -1 for none, at either end.
  """
  y, x, pixels = window
  r, c = (
    _span(at, low, n) for at, low, n in ((rows, y, pixels.shape[0]), (columns, x, pixels.shape[1]))
  )
  if r.start == r.stop or c.start == c.stop:
    return EMPTY
  # NumPy takes rows much faster than columns.
  part = cv2.transpose(pixels.take(rows[r] - y, 0)).take(columns[c] - x, 0)
  return Window(r.start, c.start, cv2.transpose(part))


def _span(at: np.ndarray, low: int, count: int) -> slice:
  """Where the places are among `count` ones from `low` on."""
  found = np.flatnonzero((at >= low) & (at < low + count))
  return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def transpose(window: Window) -> Window:
  """The window of the mask with rows for columns."""
  return Window(window.x, window.y, cv2.transpose(window.pixels)) if window.pixels.size else window
