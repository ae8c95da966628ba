"""Writes `.caffemodel` files in protobuf's binary form, for the tests of what reads them."""

import struct

import numpy as np


def varint(number):
  """Seven bits a byte, the lowest first, as two's complement of 64 bits."""
  number %= 2**64
  content = bytearray()
  while number > 0x7F:
    content.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes(content) + bytes([number])


def field(number, value):
  """A field: an int as a varint, bytes with their length, a float as 32 bits."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  if isinstance(value, float):
    return varint(number << 3 | 5) + struct.pack('<f', value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(value)) + value


def legacy_shape(shape):
  """num, channels, height, width, as Caffe had them before it had shapes of any length."""
  return (1,) * (4 - len(shape)) + tuple(shape)


def blob(array, *, legacy=False, packed=True, double=False):
  """A BlobProto."""
  array = np.asarray(array)
  if legacy:
    content = b''.join(field(n, size) for n, size in enumerate(legacy_shape(array.shape), 1))
  else:
    dims = [varint(size) for size in array.shape]
    shape = field(1, b''.join(dims)) if packed else b''.join(b'\x08' + dim for dim in dims)
    content = field(7, shape)
  number, kind, dtype = (8, 1, '<f8') if double else (5, 5, '<f4')
  flat = array.astype(dtype).ravel()
  if packed:
    return content + field(number, flat.tobytes())
  return content + b''.join(varint(number << 3 | kind) + value.tobytes() for value in flat)


def net(layers, *, v1=False, **kwargs):
  """A NetParameter.

  Args:
    layers: `{name: arrays}`.
    v1: writes V1LayerParameters, as older files have them.
    **kwargs: of `blob`.
  """
  content = field(1, 'synthetic') + field(3, 'data') + b''.join(field(4, n) for n in (1, 3, 8, 8))
  for name, arrays in layers.items():
    blobs = [blob(array, **kwargs) for array in arrays]
    if v1:
      parts = [field(2, 'below'), field(3, name), field(4, name), field(5, 4)]
      parts += [field(6, b) for b in blobs] + [field(7, 1.0), field(10, field(1, 3))]
      content += field(2, b''.join(parts))
    else:
      parts = [field(1, name), field(2, 'Convolution'), field(3, 'below'), field(4, name)]
      parts += [field(6, field(3, 0.5))] + [field(7, b) for b in blobs]
      content += field(100, b''.join([*parts, field(10, 1), field(106, field(1, 3))]))
  return content
