"""Large images of which only parts are in memory: TIFF files in tiles or strips.

The optional library `tifffile` reads them; `imagecodecs` adds compressions such as LZW and JPEG.
"""

import collections
import importlib
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segjax.types import SegjaxError

# Bytes of decoded tiles or strips that are kept, for windows that share them: those of a row of
# windows in an image of 10,000 columns.
_KEPT = 2**27
_ORIENTATION, _UPRIGHT = 274, 1
# What a header raises of which fields are missing or nonsense, besides tifffile's own error.
_CORRUPT = (
  *(SegjaxError, OSError, ValueError, LookupError, struct.error),
  *(TypeError, AttributeError, ArithmeticError),
)


class Windows:
  """An image u8[H, W, C] in a TIFF file, of which windows are read when they are asked for.

  Any thread may read it: `windows[:512]` and `windows[100:200, 300:400]` are arrays, and
  `np.asarray(windows)` is the image as a whole.

  Attributes:
    shape: (H, W, C).
    dtype: uint8.
  """

  dtype = np.dtype(np.uint8)
  ndim = 3

  def __init__(self, path: Path, page: Any, channels: int):
    self.shape = (page.imagelength, page.imagewidth, channels)
    self._path, self._page = path, page
    self._places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    self._tables = page.jpegtables
    self._grid = (-(-page.imagelength // _rows(page)), -(-page.imagewidth // _columns(page)))
    self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError(f'{self._path} is on the disk: an array of it is a copy')
    return self[:].astype(dtype or np.uint8, copy=False)

  def __getitem__(self, key: slice | tuple[slice, slice]) -> np.ndarray:
    """The pixels u8[h, w, C] of a window, of all columns if `key` is one slice.

    Raises:
      SegjaxError: the file is corrupt.
    """
    pair = key if isinstance(key, tuple) else (key, slice(None))
    ends = [part.indices(side) for part, side in zip(pair, self.shape[:2], strict=True)]
    if any(step != 1 for _, _, step in ends):
      raise ValueError(f'{key}: a window has all of its pixels')
    return self._read(*(slice(start, max(start, stop)) for start, stop, _ in ends))

  def _read(self, rows: slice, columns: slice) -> np.ndarray:
    height, width = _rows(self._page), _columns(self._page)
    shape = (rows.stop - rows.start, columns.stop - columns.start, self._page.samplesperpixel)
    window = np.zeros(shape, np.uint8)
    for i in range(rows.start // height, -(-rows.stop // height)):
      for j in range(columns.start // width, -(-columns.stop // width)):
        tile = self._decode(i * self._grid[1] + j)
        y, x = i * height - rows.start, j * width - columns.start
        inside = tile[max(0, -y) : shape[0] - y, max(0, -x) : shape[1] - x]
        y, x = max(0, y), max(0, x)
        window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return _as_channels(window, self.shape[2])

  def _decode(self, index: int) -> np.ndarray:
    """A tile or strip u8[h, w, samples]."""
    with self._lock:
      if index in self._kept:
        self._kept.move_to_end(index)
        return self._kept[index]
      tile = self._decode_stored(index)
      self._kept[index] = tile
      while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > _KEPT:
        self._kept.popitem(last=False)
      return tile

  def _decode_stored(self, index: int) -> np.ndarray:
    offset, count = self._places[index]
    try:
      with self._path.open('rb') as file:
        file.seek(offset)
        encoded = file.read(count) or None
      tile, _, shape = self._page.decode(encoded, index, jpegtables=self._tables)
    except Exception as e:  # whatever the decoder of the compression raises
      raise SegjaxError(f'{self._path} cannot be decoded ({e}): replace it or leave it out') from e
    if tile is None:  # a tile that is not stored is background
      return np.zeros(shape[1:], np.uint8)
    return tile[0]


def open_windows(path: Path, page: int | None, channels: int) -> Windows | None:
  """A TIFF file to be read by windows; None where that would not help or cannot be done.

  Args:
    path: the file.
    page: of it, from 0.
    channels: 1 for gray, 3 for RGB; a file of the other kind is converted.

  Returns:
    None unless `tifffile` is installed and the file has 8 bits, gray or RGB, without alpha channel,
    upright, of a compression that can be read.
  """
  try:
    tifffile = importlib.import_module('tifffile')
  except ImportError:
    return None
  try:
    with tifffile.TiffFile(path) as file:
      found = file.pages[page or 0].aspage()
      if not _is_plain(found):
        return None
      windows = Windows(path, found, channels)
    windows[:1, :1]  # whether the compression can be read
    return windows
  except (tifffile.TiffFileError, *_CORRUPT):
    return None  # Pillow may read it, or says what is wrong


def _is_plain(page: Any) -> bool:
  """Whether the pixels of a page are those that a viewer shows, as they are stored."""
  upright = page.tags.valueof(_ORIENTATION, _UPRIGHT) == _UPRIGHT
  contiguous = page.planarconfig == 1 and page.imagedepth == 1 and not page.extrasamples
  photometric = {1: 'MINISBLACK', 3: 'RGB'}.get(page.samplesperpixel)
  return (
    upright and contiguous and page.dtype == np.uint8 and page.bitspersample == 8
  ) and page.photometric.name == photometric


def _rows(page: Any) -> int:
  return page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)


def _columns(page: Any) -> int:
  return page.tilewidth if page.is_tiled else page.imagewidth


def _as_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
  """u8[h, w, samples] as Pillow converts between gray and RGB."""
  if pixels.shape[2] == channels:
    return pixels
  if channels == 3:
    return np.repeat(pixels, 3, axis=2)
  return np.asarray(Image.fromarray(pixels).convert('L'))[..., None]
