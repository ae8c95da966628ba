"""Decoding of image files: strictly, upright, and with the file's name in every error.

Images are decoded to what a viewer shows. The EXIF orientation flag is applied, to label maps too;
16 bits are reduced to their upper 8; what is transparent shows white; CMYK becomes RGB (color
profiles are not applied). A file with several pages or frames is not one image, and an error.
"""

import contextlib
import contextvars
import io
import os
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from segjax.types import SegjaxError

Size = tuple[int, int]

# Suffixes of image files that are looked for in directories.
SUFFIXES = (
  *('.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.pnm', '.ppm'),
  *('.tif', '.tiff', '.webp'),
)
# Pillow's own limit, twice the size at which it warns: a file of a few bytes may unpack to more.
MAX_PIXELS = 178_956_970

# Larger images are copied from Pillow by strips of so many rows, which spares a second copy.
_LARGE, _STRIP = 2**24, 512

_LIMIT = contextvars.ContextVar('max_pixels', default=MAX_PIXELS)
# Pillow's limit is one for the process; changed only while this is held.
_PILLOW = threading.Lock()

# Number of the flag in EXIF and in TIFF, and what puts an image upright that has its value.
_ORIENTATION = 0x0112
_UPRIGHT: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
  2: lambda pixels: pixels[:, ::-1],
  3: lambda pixels: pixels[::-1, ::-1],
  4: lambda pixels: pixels[::-1],
  5: lambda pixels: pixels.swapaxes(0, 1),
  6: lambda pixels: np.rot90(pixels, -1),
  7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
  8: lambda pixels: np.rot90(pixels),
}
# Values that exchange height and width.
_QUARTER_TURNS = (5, 6, 7, 8)

# Formats of which one file may have several images, and what these are called. Not MPO: the JPEG
# of a phone, whose further images are thumbnails and depth.
_SEVERAL = {'TIFF': 'pages', 'GIF': 'frames', 'PNG': 'frames', 'WEBP': 'frames'}
# TIFF's NewSubfileType, and its bits for a smaller copy of another page and for a mask.
_SUBFILE_TYPE, _NOT_A_PAGE = 254, 1 | 4

# Modes of 16-bit gray; 'I' is one in these formats, of older versions of Pillow.
_GRAY_16 = ('I;16', 'I;16B', 'I;16L', 'I;16N')
_GRAY_16_AS_I = ('PNG', 'PPM')

# What Pillow's decoders raise on corrupt files, and what some also do, such as that of TIFF, which
# would be a bug of ours anywhere else: see `_pillow`.
_CORRUPT = (OSError, SyntaxError, ValueError, struct.error)
_ALSO_CORRUPT = (TypeError, KeyError, IndexError, EOFError, OverflowError)

# What a file is that is not an image: position and bytes of its signature, and what to do.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
  (4, b'ftyphei', 'it is a HEIC file', 'convert it to JPEG'),
  (4, b'ftypmif1', 'it is a HEIF file', 'convert it to JPEG'),
  (4, b'ftyp', 'it is a video', 'save its frames as images'),
  (8, b'AVI ', 'it is a video', 'save its frames as images'),
  (0, b'\x1aE\xdf\xa3', 'it is a video', 'save its frames as images'),
  (0, b'\0\5\x16\7', 'it is a Mac resource file', 'delete it'),
  (128, b'DICM', 'it is a DICOM file', 'convert it to PNG'),
  (0, b'%PDF', 'it is a PDF', 'convert it to PNG'),
  (0, b'version https://git-lfs', 'it is a Git LFS pointer', 'run git lfs pull'),
)


def decode_image(
  encoded: bytes, channels: int, what: str, *, page: int | None = None
) -> np.ndarray:
  """The image in a file, upright.

  Args:
    encoded: the content of a file of any format that Pillow knows.
    channels: 1 for gray, 3 for RGB; a file of the other kind is converted.
    what: the image's name, for the error.
    page: which page of a TIFF file, from 0; None for the only one.

  Returns:
    uint8[H, W, channels].

  Raises:
    SegjaxError: the file is not an image, is truncated, has several pages or frames, more pixels
      than `pixel_limit`, or 32 bits a pixel.
  """
  with _decoding(encoded, what):
    image = _open(encoded, what, page)
    pixels = _pixels(image, channels, what)
  return _turn(pixels, image, encoded)


def read_pillow(image: Image.Image, channels: int, what: str) -> np.ndarray:
  """The pixels of an image that Pillow has opened, as `decode_image` reads them from its file.

  Raises:
    SegjaxError: it cannot be decoded, or has 32 bits a pixel.
  """
  with _decoding(b'?', what):
    with _pillow():
      image.load()
    pixels = _pixels(image, channels, what)
  return _turn(pixels, image, b'')


def decode_label(encoded: bytes, what: str, *, page: int | None = None) -> np.ndarray:
  """The label map in an image file, upright: a palette file's indices, not its colors.

  Args:
    encoded, what, page: see `decode_image`.

  Returns:
    An integer or boolean array [H, W].

  Raises:
    SegjaxError: as `decode_image`, or the file has more than one channel.
  """
  _, label = decode_stored(encoded, what, page=page)
  if label.ndim != 2 or label.dtype.kind not in 'bui':
    raise SegjaxError(
      f'{what} has pixels of {label.dtype}{list(label.shape[2:])}: convert it to one integer each'
    )
  return label.astype(label.dtype.newbyteorder('='), copy=False)


def decode_stored(encoded: bytes, what: str, *, page: int | None = None) -> tuple[str, np.ndarray]:
  """Pillow's mode of an image, such as 'RGB', and its pixels as they are stored, but upright.

  Args:
    encoded, what, page: see `decode_image`.

  Raises:
    SegjaxError: as `decode_image`.
  """
  with _decoding(encoded, what):
    image = _open(encoded, what, page)
    pixels = np.asarray(image)
  return image.mode, _turn(pixels, image, encoded)


def read_palette(encoded: bytes, what: str) -> np.ndarray | None:
  """The colors of a palette file, u8[256, 3], with black for those that it lacks; else None.

  Raises:
    SegjaxError: the file is not an image.
  """
  with _decoding(encoded, what):
    image = _open_header(io.BytesIO(encoded))
    found = image.getpalette('RGB') if image.mode == 'P' else None
  if found is None:
    return None
  colors = np.zeros((256, 3), np.uint8)
  colors[: len(found) // 3] = np.reshape(found, (-1, 3))
  return colors


def read_size(encoded: bytes, what: str) -> Size:
  """(height, width) of an image that is upright, from the header of its file.

  Raises:
    SegjaxError: the file is not an image.
  """
  with _decoding(encoded, what):
    image = _open_header(io.BytesIO(encoded))
    width, height = image.size
    turned = _flag(image, encoded) in _QUARTER_TURNS and image.format != 'TIFF'
  return (width, height) if turned else (height, width)


def walk(directory: Path, suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
  """The files below a directory with one of these suffixes (lower case), each of them once.

  Also those behind links to directories elsewhere, but without hidden ones, whose name, or whose
  directory's, starts with a dot: `._im0.jpg` of a Mac.

  Raises:
    SegjaxError: a name is not UTF-8, as of an archive that was made on another system.
  """
  read = [Path(directory).resolve()]

  def is_new(path: Path) -> bool:
    if not path.is_symlink():
      return True
    real = path.resolve()
    if any(real.is_relative_to(other) for other in read) or read[0].is_relative_to(real):
      return False
    read.append(real)
    return True

  for root, inner, names in os.walk(directory, followlinks=True):
    shown = sorted(name for name in inner if not name.startswith('.'))
    inner[:] = [name for name in shown if is_new(Path(root, name))]
    for name in sorted(names):
      path = Path(root, name)
      if path.suffix.lower() not in suffixes or name.startswith('.'):
        continue
      try:
        str(path).encode()
      except UnicodeEncodeError as e:
        raise SegjaxError(
          f'{os.fsencode(path)!r} is not UTF-8: rename the file or directory'
        ) from e
      yield path


def find_pages(path: Path) -> list[int]:
  """The pages of a TIFF file, from 0, but for smaller copies and masks; only headers are read.

  Returns:
    [0] of a file of another format, and of one that cannot be decoded.
  """
  return _list_pages(path) or [0]


def has_all_pages(path: Path) -> bool:
  """Whether the headers of all pages of a file are there, and not those of the first ones alone."""
  return _list_pages(path) is not None


def count_pixels(path: Path) -> int:
  """The pixels of the image in a file, by its header; 0 if it has none that can be read."""
  with contextlib.suppress(*_CORRUPT), open(path, 'rb') as file:
    width, height = _open_header(file).size
    return width * height
  return 0


def check_pixels(height: int, width: int, what: str) -> None:
  """Raises a SegjaxError for an image with more pixels than `pixel_limit`."""
  most = _LIMIT.get()
  if width * height > most:
    raise SegjaxError(
      f'{what} is {width}x{height} = {width * height:,} pixels, more than config.data.max_pixels='
      f'{most}: set config.data.max_pixels={width * height} to read it, or divide it into tiles'
    )


def is_unrotated(encoded: bytes, size: Size) -> bool:
  """Whether `size` is that of an image before the quarter turn that its orientation flag asks for.

  False of a file that is not an image.
  """
  with contextlib.suppress(SegjaxError), _decoding(encoded, ''):
    height, width = read_size(encoded, '')
    return size == (width, height) != (height, width) and (
      _flag(_open_header(io.BytesIO(encoded)), encoded) in _QUARTER_TURNS
    )
  return False


def size_error(encoded: bytes, what: str, other: str, size: Size, remedy: str) -> SegjaxError:
  """The error that an annotation has another size than its image.

  Args:
    encoded: the image file.
    what: its name.
    other: the annotation: 'its label masks/a.png', 'image 3 of instances_train.json'.
    size: (height, width) of the annotation.
    remedy: what to do, unless the sizes are those with and without the orientation flag.
  """
  (height, width), (other_height, other_width) = read_size(encoded, what), size
  if not is_unrotated(encoded, size):
    return SegjaxError(
      f'{what} is {width}x{height} pixels but {other} is {other_width}x{other_height}: {remedy}'
    )
  return SegjaxError(
    f'{what} is {width}x{height} pixels as its EXIF orientation flag turns it but {other} is '
    f'{other_width}x{other_height}, as without the flag: turn the annotation too, or remove the '
    'flag from the image'
  )


@contextlib.contextmanager
def pixel_limit(most: int) -> Iterator[None]:
  """Sets how many pixels an image may have, for what is decoded inside in the same thread."""
  token = _LIMIT.set(most)
  try:
    yield
  finally:
    _LIMIT.reset(token)


def current_limit() -> int:
  """How many pixels an image may have here, for the threads and processes that this one starts."""
  return _LIMIT.get()


# --- files ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _decoding(encoded: bytes, what: str) -> Iterator[None]:
  try:
    yield
  except _CORRUPT as e:
    reason, remedy = _explain(encoded, e)
    raise SegjaxError(f'{what} cannot be decoded{reason}: {remedy}') from e


@contextlib.contextmanager
def _pillow() -> Iterator[None]:
  """Around calls of Pillow's decoders alone: all that a corrupt file raises is in `_CORRUPT`."""
  try:
    yield
  except _ALSO_CORRUPT as e:
    raise OSError(str(e)) from e


def _explain(encoded: bytes, error: Exception) -> tuple[str, str]:
  """Why a file cannot be decoded, as far as that is known, and what to do."""
  replace = 'replace it or leave it out'
  if not encoded:
    return ' (it is empty)', replace
  for position, signature, reason, remedy in _SIGNATURES:
    if encoded[position:].startswith(signature):
      return f' ({reason})', f'{remedy}, or leave it out'
  return (' (it is truncated)' if 'truncated' in str(error) else ''), replace


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
  with _PILLOW:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      yield
    finally:
      Image.MAX_IMAGE_PIXELS = limit


def _open_header(file: BinaryIO) -> Image.Image:
  with _without_pillows_limit(), _pillow():
    return Image.open(file)


def _open(encoded: bytes, what: str, page: int | None) -> Image.Image:
  """The image or a page of a file, loaded."""
  image = _open_header(io.BytesIO(encoded))
  if page is not None and image.format == 'TIFF':
    with _pillow():
      try:
        image.seek(page)
      except EOFError as e:
        raise SegjaxError(f'{what} has no page {page + 1}: replace it or leave it out') from e
  elif image.format in _SEVERAL:
    pages, kind = _pages(image), _SEVERAL[image.format]
    if len(pages) > 1:
      raise SegjaxError(
        f'{what} has {len(pages)} {kind}, not one image: save each of them as a file of its own'
      )
    with _pillow():
      image.seek(pages[0])
  width, height = image.size
  check_pixels(height, width, what)
  # Pillow's readers of some formats check again; smaller images are loaded in parallel.
  large = width * height > MAX_PIXELS // 2
  with _without_pillows_limit() if large else contextlib.nullcontext(), _pillow():
    image.load()
  return image


def _list_pages(path: Path) -> list[int] | None:
  """As `find_pages`, None of a file that cannot be decoded."""
  with contextlib.suppress(*_CORRUPT), open(path, 'rb') as file:
    image = _open_header(file)
    return _pages(image) if image.format == 'TIFF' else [0]
  return None


def _pages(image: Image.Image) -> list[int]:
  """The pages of a file that are images of their own."""
  kinds = []
  with _pillow():
    for page in range(getattr(image, 'n_frames', 1)):
      image.seek(page)
      kinds.append(image.tag_v2.get(_SUBFILE_TYPE, 0) if image.format == 'TIFF' else 0)
    return [page for page, kind in enumerate(kinds) if not kind & _NOT_A_PAGE] or [0]


# --- pixels ---------------------------------------------------------------------------------------


def _pixels(image: Image.Image, channels: int, what: str) -> np.ndarray:
  """u8[H, W, channels], as stored: not turned by the orientation flag."""
  shown = _as_shown(image, what)
  mode = {1: 'L', 3: 'RGB'}[channels]
  convert = lambda part: part if part.mode == mode else part.convert(mode)
  width, height = shown.size
  if width * height <= _LARGE:
    return np.asarray(convert(shown)).reshape(height, width, channels)
  pixels = np.empty((height, width, channels), np.uint8)
  for top in range(0, height, _STRIP):
    bottom = min(top + _STRIP, height)
    part = np.asarray(convert(shown.crop((0, top, width, bottom))))
    pixels[top:bottom] = part.reshape(bottom - top, width, channels)
  return pixels


def _as_shown(image: Image.Image, what: str) -> Image.Image:
  """The image in a mode that converts to gray and to RGB as a viewer shows it."""
  if image.mode in _GRAY_16 or (image.mode == 'I' and image.format in _GRAY_16_AS_I):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise SegjaxError(
      f'{what} has 32 bits a pixel, of which nothing says which values are black and white: '
      'convert it to 8 or 16 bits'
    )
  if not image.has_transparency_data:
    return image
  white = Image.new('RGBA', image.size, 'white')
  white.alpha_composite(image.convert('RGBA'))
  return white.convert('RGB')


def _flag(image: Image.Image, encoded: bytes) -> int:
  """The orientation flag of a file, 1 for none: that of EXIF, as in browsers, not that of XMP."""
  try:
    if image.format == 'TIFF':
      return image.tag_v2.get(_ORIENTATION, 1)
    if image.format == 'PNG' and 'exif' not in image.info and b'eXIf' in encoded:
      image.load()  # it follows the pixels
    exif = Image.Exif()
    exif.load(image.info.get('exif', b''))
    return exif.get(_ORIENTATION, 1)
  except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
    return 1  # corrupt: viewers show the image


def _turn(pixels: np.ndarray, image: Image.Image, encoded: bytes) -> np.ndarray:
  """The pixels [H, W, ...] of an image, upright. Pillow turns those of TIFF itself."""
  flag = 1 if image.format == 'TIFF' else _flag(image, encoded)
  turn = _UPRIGHT.get(flag) if isinstance(flag, int) else None
  return pixels if turn is None else np.ascontiguousarray(turn(pixels))
