"""The images in files: one in an image file, one on each page of a TIFF, each frame of a video."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from segjax.data import images
from segjax.data.windows import Windows, open_windows
from segjax.types import SegjaxError

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
SUFFIXES = images.SUFFIXES + VIDEO_SUFFIXES
_TIFF = ('.tif', '.tiff')

# Codecs for videos that are written, the best first: browsers play VP9; every OpenCV has MPEG-4.
_CODECS = ('vp09', 'mp4v')
# What is wrong with a video is an error here: FFmpeg and OpenCV have no lines of their own.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
_OPENCV_ERRORS = 2  # cv2.utils.logging.LOG_LEVEL_ERROR
# OpenCV 5 has moved the function.
(getattr(cv2, 'setLogLevel', None) or cv2.utils.logging.setLogLevel)(_OPENCV_ERRORS)

# Frames a second of a video that does not say it.
_RATE = 25.0


class Source(NamedTuple):
  """A file with images.

  Attributes:
    path: the file.
    kind: what its images are: itself, the pages of a TIFF, or the frames of a video.
    pages: of a TIFF, from 0.
  """

  path: Path
  kind: Literal['image', 'page', 'frame']
  pages: tuple[int, ...] = ()

  @property
  def stem(self) -> str:
    """The name of the file without its suffix."""
    return self.path.stem


class Frame(NamedTuple):
  """An image of a file.

  Attributes:
    source: the file.
    name: the file's stem and, where it has several images, which one: clip_frame000001.
    pixels: u8[H, W, C], or of a large TIFF file what reads windows of it, see `read_frames`.
    rate: frames a second of a video.
  """

  source: Source
  name: str
  pixels: np.ndarray | Windows
  rate: float | None = None

  @property
  def file_name(self) -> str:
    """The name with the file's suffix."""
    return f'{self.name}{self.source.path.suffix}'

  @property
  def area(self) -> int:
    """Number of pixels."""
    return self.pixels.shape[0] * self.pixels.shape[1]


def find_source(path: Path) -> Source:
  """What images a file has, by its suffix and, of a TIFF, its header."""
  if path.suffix.lower() in VIDEO_SUFFIXES:
    return Source(path, 'frame')
  pages = images.find_pages(path) if path.suffix.lower() in _TIFF else [0]
  return Source(path, 'page', tuple(pages)) if len(pages) > 1 else Source(path, 'image')


def read_frames(
  source: Source,
  channels: int,
  *,
  max_pixels: int = images.MAX_PIXELS,
  windows_above: int | None = None,
) -> Iterator[Frame]:
  """The images of a file, one by one.

  Args:
    source: from `find_source`.
    channels: 1 for gray, 3 for RGB.
    max_pixels: an image file with more is an error.
    windows_above: a TIFF file with more pixels is read by windows, where that is possible; None
      reads each image as a whole.

  Raises:
    SegjaxError: the file cannot be decoded; a video ends early, after the frames that it has.
    OSError: it cannot be read.
  """
  if source.kind == 'frame':
    yield from _read_video(source, channels)
    return
  # tifffile would read the first pages of a truncated file, and not say that there were others.
  is_tiff = source.path.suffix.lower() in _TIFF
  if windows_above is not None and not (is_tiff and images.has_all_pages(source.path)):
    windows_above = None
  digits = len(str(len(source.pages)))
  for number, page in enumerate(source.pages or (None,), 1):
    with images.pixel_limit(max_pixels):
      pixels = _read_page(source.path, page, channels, windows_above)
    name = source.stem if page is None else f'{source.stem}_page{number:0{digits}}'
    yield Frame(source, name, pixels)


def _read_page(
  path: Path, page: int | None, channels: int, windows_above: int | None
) -> np.ndarray | Windows:
  what = str(path)
  if windows_above is not None:
    found = open_windows(path, page, channels)
    if found and found.shape[0] * found.shape[1] > windows_above:
      images.check_pixels(*found.shape[:2], what)
      return found
  return images.decode_image(path.read_bytes(), channels, what, page=page)


def _read_video(source: Source, channels: int) -> Iterator[Frame]:
  path = source.path
  path.open('rb').close()  # OpenCV does not say why it cannot read a file
  with contextlib.closing(_Capture(path)) as capture:
    rate, count = capture.rate, 0
    for count, pixels in enumerate(capture, 1):  # noqa: B007 -- used after the loop
      color = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB
      pixels = cv2.cvtColor(pixels, color).reshape(*pixels.shape[:2], channels)
      yield Frame(source, f'{source.stem}_frame{count:06}', pixels, rate)
    # What a file says is an estimate in some formats: right to a second.
    if count == 0 or count < capture.announced - rate:
      raise SegjaxError(
        f'{path} ends after {count} of {capture.announced} frames: replace it, or leave it out'
      )


class _Capture:
  """The frames u8[H, W, 3], BGR, of a video, turned as its header says."""

  def __init__(self, path: Path):
    self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not self._capture.isOpened():
      raise SegjaxError(f'{path} cannot be decoded as a video: replace it or leave it out')
    self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    rate = self._capture.get(cv2.CAP_PROP_FPS)
    self.rate = rate if math.isfinite(rate) and rate > 0 else _RATE
    self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

  def __iter__(self) -> Iterator[np.ndarray]:
    while (found := self._capture.read())[0]:
      yield found[1]

  def close(self) -> None:
    self._capture.release()


class VideoWriter:
  """Writes frames of one size as an MP4 file, which is there once it is whole; a context manager.

  Args:
    path: on a disk, ends in .mp4; `close` replaces an existing file.
    rate: frames a second.
  """

  def __init__(self, path: Path, rate: float):
    self.path, self._rate = path, rate
    self._part = path.with_name(f'.{path.stem}.{os.getpid()}.part.mp4')
    self._writer: cv2.VideoWriter | None = None

  def __enter__(self) -> 'VideoWriter':
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    self.close() if kind is None else self.discard()

  def close(self) -> None:
    """Completes the file."""
    if self._writer is not None:
      self._writer.release()
      self._writer = None
      self._part.replace(self.path)

  def discard(self) -> None:
    """Removes what was written, and leaves a file of the same name as it was."""
    if self._writer is not None:
      self._writer.release()
      self._writer = None
    self._part.unlink(missing_ok=True)

  def write(self, rgb: np.ndarray) -> None:
    """Appends u8[H, W, 3]; an odd side grows by a repeated pixel, as codecs need even ones.

    Raises:
      SegjaxError: OpenCV cannot write videos here.
    """
    bottom, right = (side % 2 for side in rgb.shape[:2])
    even = cv2.copyMakeBorder(rgb, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    if self._writer is None:
      self._writer = self._open(even.shape[1::-1])
    self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

  def _open(self, size: Sequence[int]) -> cv2.VideoWriter:
    for codec in _CODECS:
      code = cv2.VideoWriter.fourcc(*codec)
      writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, code, self._rate, size)
      if writer.isOpened():
        return writer
    raise SegjaxError(
      f'{self.path} cannot be written: check that its directory is writable and that OpenCV has '
      f'one of the codecs {", ".join(_CODECS)}'
    )
