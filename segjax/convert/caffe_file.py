"""Reads Caffe's `.caffemodel` files, without Caffe and without protobuf.

A file is one message, caffe.proto's NetParameter, in protobuf's wire format: a sequence of fields,
each with a field number, a wire type and a value; nested messages are length-delimited values. Only
fields with weights are read.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segjax.types import SegjaxError

# Field numbers of caffe.proto. NetParameter's layers -> in each layer its name and its blobs:
# `layer` (LayerParameter) and, in older files, `layers` (V1LayerParameter).
_LAYERS = {100: (1, 7), 2: (4, 6)}
# BlobProto: num, channels, height and width of older files, or a BlobShape with its `dim`.
_LEGACY_DIMS = (1, 2, 3, 4)
_SHAPE, _DIM = 7, 1
# BlobProto's `data` and `double_data`, of which a blob has one.
_DATA = {5: '<f4', 8: '<f8'}

# Wire types: variable-length integers, length-delimited bytes, and fixed-length values in bytes.
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


def read_caffemodel(path: Path) -> dict[str, np.ndarray]:
  """The blobs of all layers by `layer/i`, i from 0: conv1_1/0 is a kernel, conv1_1/1 its bias.

  The arrays are read-only views of the memory-mapped file.

  Raises:
    SegjaxError: the file has no blobs.
    Exception: any other, if the file is truncated, corrupt or of another format.
  """
  with path.open('rb') as file:
    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  arrays = {}
  for number, layer in _fields(content):
    if number not in _LAYERS:
      continue
    name_field, blobs_field = _LAYERS[number]
    fields = list(_fields(layer))
    name = ''.join(str(value, 'utf-8') for n, value in fields if n == name_field)
    for i, blob in enumerate(value for n, value in fields if n == blobs_field):
      if f'{name}/{i}' in arrays:
        raise ValueError(f'two layers have the name {name}')
      arrays[f'{name}/{i}'] = _blob(blob)
  if not arrays:
    raise SegjaxError(f'{path} contains no weights: use a .caffemodel saved by Caffe')
  return arrays


def _blob(message: memoryview) -> np.ndarray:
  """A BlobProto as an array of its shape, float32 or float64."""
  legacy, shape = {}, []
  parts = {number: [] for number in _DATA}
  for number, value in _fields(message):
    if number in _LEGACY_DIMS:
      legacy[number] = value
    elif number == _SHAPE:
      shape += _dims(value)
    elif number in parts:
      parts[number].append(value)
  [(number, chunks)] = [(n, chunks) for n, chunks in parts.items() if chunks]
  flat = np.frombuffer(chunks[0] if len(chunks) == 1 else b''.join(chunks), _DATA[number])
  if legacy:  # takes precedence in Caffe too
    shape = [legacy.get(n, 0) for n in _LEGACY_DIMS]
  if math.prod(shape) != flat.size:
    raise ValueError(f'{flat.size} values for the shape {shape}')
  return flat.reshape(shape)


def _dims(message: memoryview) -> list[int]:
  """The sizes in a BlobShape, packed into one field or in separate fields."""
  dims = []
  for number, value in _fields(message):
    if number == _DIM and isinstance(value, int):
      dims.append(value)
    elif number == _DIM:
      position = 0
      while position < len(value):
        dim, position = _varint(value, position)
        dims.append(dim)
  return dims


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """Yields (number, value) of each field; the value is an int or, for other wire types, bytes.

  Raises:
    ValueError: a value exceeds the message, or has an unsupported wire type.
  """
  position = 0
  while position < len(message):
    tag, position = _varint(message, position)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      value, position = _varint(message, position)
    elif kind == _BYTES or kind in _FIXED:
      size = _FIXED.get(kind)
      if size is None:
        size, position = _varint(message, position)
      value = message[position : position + size]
      position += size
      if position > len(message):
        raise ValueError(f'field {number} goes beyond the end')
    else:
      raise ValueError(f'field {number} is of the unknown kind {kind}')
    if number == 0:
      raise ValueError('a field has the number 0')
    yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
  """The varint at `position` (7 bits per byte, least significant first), and the next position."""
  value = 0
  for i, byte in enumerate(message[position : position + 10]):
    value |= (byte & 0x7F) << (7 * i)
    if byte < 0x80:
      return value, position + i + 1
  raise ValueError('a number goes beyond the end')
