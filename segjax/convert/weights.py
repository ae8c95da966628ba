"""Reads weights files: `.safetensors`, Caffe's `.caffemodel`, Detectron2's `.pkl`, and PyTorch's
`.pth` without PyTorch.

A `.pth` file is a pickle, which can execute arbitrary code when it is read. This reader only builds
dictionaries and tensors and rejects anything else, so that no code in the file is executed.
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from segjax import storage
from segjax.convert.caffe_file import read_caffemodel
from segjax.convert.pickle_file import read_pkl
from segjax.types import SegjaxError

# PyTorch's storage classes -> element type; files are little-endian.
_STORAGES = {
  'DoubleStorage': '<f8',
  'FloatStorage': '<f4',
  'HalfStorage': '<f2',
  'BFloat16Storage': jnp.bfloat16,
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}
# Where a checkpoint of a training has the network.
_NESTED = ('model', 'state_dict', 'model_state_dict')
# Magic number of PyTorch's format before version 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
  """The arrays of a weights file by name, with their stored dtypes.

  Args:
    path: a `.safetensors` file, a `.caffemodel`, a `.pkl` of named NumPy arrays, or a `.pth`,
      `.pt` or `.bin` file with one `state_dict` (PyTorch's zip format, or the format before 1.6),
      or with one among other things, under a name of `_NESTED`, as Detectron2's checkpoints have.

  Raises:
    SegjaxError: the file is missing, has an unknown suffix, is truncated or corrupt, contains
      anything but tensors, or is a pickle that would execute code.
  """
  path = storage.user_path(path)
  readers = {
    '.safetensors': _read_safetensors,
    '.pth': _read_pth,
    '.pt': _read_pth,
    '.bin': _read_pth,
    '.caffemodel': read_caffemodel,
    '.pkl': read_pkl,
  }
  if path.suffix not in readers:
    raise SegjaxError(f'{path} is not a weights file: use one of {", ".join(readers)}')
  if not path.is_file():
    raise SegjaxError(f'{path} does not exist: set the path of a weights file')
  try:
    return readers[path.suffix](path)
  except SegjaxError:
    raise
  except _CodeError as e:
    raise SegjaxError(
      f'{path} is a pickle that calls {e}, and segjax does not execute code in files: save the '
      "model's state_dict() alone, or as .safetensors"
    ) from e
  except _ContentError as e:
    raise SegjaxError(f"{path} {e}: save the model's state_dict() alone") from e
  except Exception as e:  # corrupt files raise various exceptions
    raise SegjaxError(
      f'{path} is truncated or corrupt ({type(e).__name__}): download the file again'
    ) from e


def read_metadata(path: str | Path) -> dict[str, str]:
  """The metadata of a `.safetensors` file; empty for other or missing files."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return file.metadata() or {}
  except (OSError, safetensors.SafetensorError):
    return {}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(path)


# --- PyTorch -------------------------------------------------------------------------------------


class _CodeError(Exception):
  """A pickle asks for this function or class."""


class _ContentError(Exception):
  """The file contains something other than named tensors."""


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A buffer that tensors are views of: its name in the file and its element type."""

  key: str
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor as described in the pickle; the legacy format stores the elements after the pickle."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
  return _Tensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
  return data


# All names that a pickle may look up, in addition to the storage classes.
_CALLABLE = {
  'collections.OrderedDict': collections.OrderedDict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
}


class _Unknown:
  """Stands for what a class or function that is not built would have made, and does nothing."""

  name = ''

  def __init__(self, *args: Any, **kwargs: Any):
    del args, kwargs

  def _ignore(self, *args: Any) -> None:
    del args

  __setstate__ = __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
  """Only builds dictionaries, `_Tensor`s, and `_Unknown` for anything else."""

  def find_class(self, module: str, name: str) -> Any:
    full = f'{module}.{name}'
    if full in _CALLABLE:
      return _CALLABLE[full]
    if module == 'torch' and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    return type('_Unknown', (_Unknown,), {'name': full})

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, _, *view = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype) or any(view):
      raise _ContentError('has a storage of an unknown kind')
    return _Storage(key, dtype)


def _read_pth(path: Path) -> dict[str, np.ndarray]:
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      return _read_zip(archive)
  with path.open('rb') as file:
    return _read_legacy(file)


def _read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  [pickled] = [name for name in archive.namelist() if name.endswith('/data.pkl')]
  directory = pickled.removesuffix('data.pkl')
  byteorder = f'{directory}byteorder'
  if byteorder in archive.namelist() and archive.read(byteorder) != b'little':
    raise _ContentError('was written on a big-endian machine')
  tree = _Unpickler(io.BytesIO(archive.read(pickled))).load()
  return _arrays(tree, lambda storage: archive.read(f'{directory}data/{storage.key}'))


def _read_legacy(file: io.BufferedReader) -> dict[str, np.ndarray]:
  magic, _, system, tree, keys = (_Unpickler(file).load() for _ in range(5))
  if magic != _LEGACY_MAGIC:
    raise ValueError('not a PyTorch file')
  if not system['little_endian']:
    raise _ContentError('was written on a big-endian machine')
  itemsizes = {t.storage.key: t.storage.dtype.itemsize for t in _all_tensors(tree)}
  contents = {}
  for key in keys:
    [count] = struct.unpack('<q', file.read(8))
    contents[key] = file.read(count * itemsizes[key])
  return _arrays(tree, lambda storage: contents[storage.key])


def _tensors(tree: Any) -> dict[str, _Tensor]:
  if isinstance(tree, _Unknown):
    raise _CodeError(tree.name)
  if not isinstance(tree, Mapping):
    raise _ContentError(f'has a {type(tree).__name__}, not named tensors')
  nested = [key for key in _NESTED if isinstance(tree.get(key), Mapping)]
  if len(nested) == 1:
    return _tensors(tree[nested[0]])
  for name, value in tree.items():
    if isinstance(value, _Unknown) or (isinstance(value, type) and issubclass(value, _Unknown)):
      raise _CodeError(value.name)
    if not isinstance(value, _Tensor):
      raise _ContentError(f'has {name!r} of type {type(value).__name__}, not a tensor')
  return dict(tree)


def _all_tensors(tree: Any) -> Iterator[_Tensor]:
  if isinstance(tree, _Tensor):
    yield tree
  elif isinstance(tree, Mapping | list | tuple):
    for value in tree.values() if isinstance(tree, Mapping) else tree:
      yield from _all_tensors(value)


def _arrays(tree: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
  return {name: _array(tensor, read(tensor.storage)) for name, tensor in _tensors(tree).items()}


def _array(tensor: _Tensor, content: bytes) -> np.ndarray:
  """Copies the tensor to an array; checks bounds, since `as_strided` does not."""
  flat = np.frombuffer(content, tensor.storage.dtype)
  shape, stride = tensor.shape, tensor.stride
  last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
  if min((tensor.offset, *shape, *stride)) < 0 or math.prod(shape) > flat.size:
    raise ValueError('impossible tensor')
  if 0 in shape:
    return np.zeros(shape, flat.dtype)
  if last >= flat.size:
    raise ValueError('tensor outside its storage')
  strides = [s * flat.itemsize for s in stride]
  return np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, strides).copy()
