"""Reads the `.pkl` files of Detectron and Detectron2: pickles of named NumPy arrays.

Unpickling can execute arbitrary code, and NumPy functions called by a malicious pickle can be made
to treat bytes as pointers. Therefore no NumPy function is called by name: replacements for the few
functions that these files need only store their arguments, and `np.frombuffer` creates the arrays.
"""

import collections
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segjax.types import SegjaxError


class _DType:
  """Replaces `numpy.dtype` for numeric types; the byte order is in its state."""

  def __init__(self, spec: str, *_: Any):
    if not re.fullmatch(r'[<>|=]?[fiub][1248]', spec):
      raise ValueError(f'an array of {spec}')
    self.dtype = np.dtype(spec)

  def __setstate__(self, state: tuple) -> None:
    byteorder = state[1]
    if byteorder in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(byteorder)


class _Array:
  """Replaces `numpy.ndarray`; type, shape and bytes are in its state."""

  value: np.ndarray

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, content = state
    self.value = _from_bytes(content, dtype, shape, 'F' if fortran else 'C')


def _from_bytes(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
  if not isinstance(dtype, _DType):
    raise TypeError('an array without a type')
  content = _encode(content) if isinstance(content, str) else content
  flat = np.frombuffer(content, dtype.dtype)
  if min(shape, default=0) < 0 or math.prod(shape) != flat.size:
    raise ValueError('an array of another size than its bytes')
  return flat.reshape(shape, order=order)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
  array = _Array()
  array.value = _from_bytes(content, dtype, shape, order)
  return array


def _reconstruct(kind: Any, *_: Any) -> _Array:
  if kind is not _Array:
    raise TypeError('not an array')
  return _Array()


def _encode(text: str, encoding: str = 'latin1') -> bytes:
  """Decodes bytes, which pickles of Python 2 and of protocol 2 store as latin-1 text."""
  if encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'the encoding {encoding}')
  return text.encode('latin1')


def _no_bytes() -> bytes:
  """`bytes()`, the content of empty arrays in pickles of protocol 2."""
  return b''


# All names that a pickle may look up; NumPy 2 renamed `core`.
_CALLABLE = {
  'collections.OrderedDict': collections.OrderedDict,
  '_codecs.encode': _encode,
  '__builtin__.bytes': _no_bytes,
  'numpy.ndarray': _Array,
  'numpy.dtype': _DType,
  **{f'numpy.{core}.multiarray._reconstruct': _reconstruct for core in ('core', '_core')},
  **{f'numpy.{core}.numeric._frombuffer': _frombuffer for core in ('core', '_core')},
}


class _CodeError(Exception):
  """The pickle refers to this function or class."""


class _Unpickler(pickle.Unpickler):
  """Only builds containers and `_Array`s."""

  def find_class(self, module: str, name: str) -> Any:
    full = f'{module}.{name}'
    if full not in _CALLABLE:
      raise _CodeError(full)
    return _CALLABLE[full]


def read_pkl(path: Path) -> dict[str, np.ndarray]:
  """The arrays by name, from `model` or `blobs` if the file has it, else from the top level.

  Arrays are read-only and in the byte order of the file.

  Raises:
    SegjaxError: the file has other content, or would execute code.
    Exception: any other, if the file is truncated, corrupt or of another format.
  """
  with path.open('rb') as file:
    try:
      tree = _Unpickler(file, encoding='latin1').load()
    except _CodeError as e:
      raise SegjaxError(
        f'{path} is a pickle that calls {e}, and segjax does not execute code in files: use a '
        ".pkl of Detectron2's model zoo"
      ) from e
  if isinstance(tree, Mapping):
    tree = tree.get('model', tree.get('blobs', tree))
  if not isinstance(tree, Mapping) or not tree:
    raise SegjaxError(f"{path} contains no named arrays: use a .pkl of Detectron2's model zoo")
  for name, value in tree.items():
    if not isinstance(value, _Array):
      raise SegjaxError(
        f'{path} has {name!r} of type {type(value).__name__}, not an array: use a .pkl of '
        "Detectron2's model zoo"
      )
  return {name: array.value for name, array in tree.items()}
