"""Decoding of image files: strictly, and with the file's name in every error."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from segjax.types import SegjaxError


def decode_image(encoded: bytes, channels: int, what: str) -> np.ndarray:
  """The image in a file, as it is stored: an orientation flag is not applied.

  Args:
    encoded: the content of a file of any format that Pillow knows.
    channels: 1 for gray, 3 for RGB; a file of the other kind is converted.
    what: the image's name, for the error.

  Returns:
    uint8[H, W, channels]; 16-bit gray keeps its upper 8 bits.

  Raises:
    SegjaxError: the file is not an image, or is truncated.
  """
  with _decoding(what):
    image = Image.open(io.BytesIO(encoded))
    if image.mode.startswith('I;16'):
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = {1: 'L', 3: 'RGB'}[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  return pixels.reshape(*pixels.shape[:2], channels)


def decode_label(encoded: bytes, what: str) -> np.ndarray:
  """The label map in an image file: a palette file's indices, not its colors.

  Returns:
    An integer or boolean array [H, W].

  Raises:
    SegjaxError: the file is not an image, is truncated, or has more than one channel.
  """
  with _decoding(what):
    label = np.asarray(Image.open(io.BytesIO(encoded)))
  if label.ndim != 2 or label.dtype.kind not in 'bui':
    raise SegjaxError(
      f'{what} has pixels of {label.dtype}{list(label.shape[2:])}: convert it to one integer each'
    )
  return label


def read_size(encoded: bytes, what: str) -> tuple[int, int]:
  """(height, width) in the header of an image file.

  Raises:
    SegjaxError: the file is not an image.
  """
  with _decoding(what):
    width, height = Image.open(io.BytesIO(encoded)).size
  return height, width


@contextlib.contextmanager
def _decoding(what: str) -> Iterator[None]:
  try:
    yield
  # Pillow's decoders raise all of these on corrupt files.
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise SegjaxError(f'{what} cannot be decoded: replace it or leave it out') from e
