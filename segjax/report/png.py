"""PNG files of large images, written strip by strip: memory is that of a strip."""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Bits of a channel, the color type RGB, and the only methods of compression, filter and order.
_FORMAT = (8, 2, 0, 0, 0)
# Of zlib: fast, as for other images that are looked at.
_LEVEL = 1
# Each row begins with its filter: differences from the pixel to the left.
_FILTER_LEFT = 1


def write_rgb(file: BinaryIO, size: tuple[int, int], strips: Iterable[np.ndarray]) -> None:
  """Writes a PNG.

  Args:
    file: to write to.
    size: height and width.
    strips: u8[h, width, 3], from the top; their heights add up to that of the image.
  """
  height, width = size
  file.write(_SIGNATURE)
  _write_chunk(file, b'IHDR', struct.pack('>2I5B', width, height, *_FORMAT))
  compressor = zlib.compressobj(_LEVEL)
  for strip in strips:
    _write_chunk(file, b'IDAT', compressor.compress(_filtered(strip)))
  _write_chunk(file, b'IDAT', compressor.flush())
  _write_chunk(file, b'IEND', b'')


def _filtered(strip: np.ndarray) -> bytes:
  flat = strip.reshape(len(strip), -1)
  rows = np.empty((len(strip), 1 + flat.shape[1]), np.uint8)
  rows[:, 0] = _FILTER_LEFT
  rows[:, 1:4] = flat[:, :3]
  np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])  # modulo 256
  return rows.tobytes()


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
  file.write(struct.pack('>I', len(content)) + kind + content)
  file.write(struct.pack('>I', zlib.crc32(content, zlib.crc32(kind))))
