"""Reading weights files: real ones by PyTorch, see golden/make.py, and broken or hostile ones."""

import io
import os
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from segjax.convert.weights import read_metadata, read_weights
from segjax.types import SegjaxError

GOLDEN = pathlib.Path(__file__).parent / 'golden'
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize('name', ['views.pth', 'views_legacy.pth'])
def test_reads_every_kind_of_tensor_of_pytorch(name):
  expected = {
    'transposed': BASE.T,
    'part': BASE[1:3, ::2],
    'half': BASE.astype(np.float16),
    'bfloat16': BASE.astype(jnp.bfloat16),
    'count': np.array(7),
    'parameter': BASE[0],
    'empty': np.zeros((0, 3), np.float32),
  }
  arrays = read_weights(GOLDEN / name)
  assert list(arrays) == list(expected)
  for key, array in expected.items():
    assert arrays[key].dtype == array.dtype, key
    np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize('name', ['views.pth', 'views_legacy.pth', 'vgg16.pth', 'vgg16_bn.pth'])
def test_pytorch_reads_the_same(name):
  torch = pytest.importorskip('torch')
  expected = torch.load(GOLDEN / name, weights_only=True)
  for key, array in read_weights(GOLDEN / name).items():
    np.testing.assert_array_equal(array.astype('f4'), expected[key].detach().float().numpy())


def test_reads_safetensors_and_their_notes(tmp_path):
  arrays = {'a': BASE, 'b.c': np.float16([1.5])}
  safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors', {'note': 'here'})
  actual = read_weights(tmp_path / 'x.safetensors')
  assert actual.keys() == arrays.keys()
  for key, array in arrays.items():
    assert actual[key].dtype == array.dtype
    np.testing.assert_array_equal(actual[key], array)
  assert read_metadata(tmp_path / 'x.safetensors') == {'note': 'here'}
  assert read_metadata(tmp_path / 'none.safetensors') == {}
  assert read_metadata(GOLDEN / 'views.pth') == {}


# --- what is refused -----------------------------------------------------------------------------


class Call:
  """Pickles into a call of `function`."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def write_zip(path, tree):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x/data.pkl', pickle.dumps(tree, protocol=2))
  return path


def write_legacy(path, tree):
  system = {'little_endian': True}
  path.write_bytes(
    b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system, tree, []))
  )
  return path


@pytest.mark.parametrize('write', [write_zip, write_legacy])
@pytest.mark.parametrize(
  ('function', 'name'),
  [
    (os.system, 'posix.system'),
    (eval, '__builtin__.eval'),
    (getattr, '__builtin__.getattr'),
    (np.load, 'numpy.load'),
  ],
)
def test_no_code_of_a_pickle_is_run(tmp_path, write, function, name):
  trace = tmp_path / 'trace'
  path = write(tmp_path / 'x.pth', {'a': Call(function, f'touch {trace}')})
  with pytest.raises(SegjaxError, match=f'x.pth is a pickle that calls {name}.*state_dict'):
    read_weights(path)
  assert not trace.exists()


def test_a_whole_pickled_model_is_refused():
  with pytest.raises(SegjaxError, match='whole_model.pth is a pickle that calls torch.nn.modules'):
    read_weights(GOLDEN / 'whole_model.pth')


def test_other_things_than_tensors_are_refused(tmp_path):
  with pytest.raises(SegjaxError, match="has 'epoch' of type int, not a tensor"):
    read_weights(write_zip(tmp_path / 'x.pth', {'epoch': 3}))
  both = {'model': {'a': 1}, 'state_dict': {'a': 1}}
  with pytest.raises(SegjaxError, match="has 'model' of type dict, not a tensor"):
    read_weights(write_zip(tmp_path / 'x.pth', both))
  with pytest.raises(SegjaxError, match='has a list, not named tensors'):
    read_weights(write_zip(tmp_path / 'x.pth', [1]))


def test_the_network_of_a_checkpoint_with_other_things_is_found():
  """As Detectron2 and torchvision's reference scripts save it."""
  arrays = read_weights(GOLDEN / 'nested.pth')
  assert {name: array.shape for name, array in arrays.items()} == {'weight': (1, 1), 'bias': (1,)}


@pytest.mark.parametrize('name', ['views.pth', 'views_legacy.pth', 'x.safetensors'])
def test_every_cut_is_noticed(tmp_path, name):
  if name.endswith('.pth'):
    whole = (GOLDEN / name).read_bytes()
  else:
    whole = safetensors.numpy.save({'a': BASE})
  path = tmp_path / name
  for size in [*range(0, len(whole), 37), len(whole) - 1]:
    path.write_bytes(whole[:size])
    with pytest.raises(SegjaxError, match=f'{name} is truncated or corrupt'):
      read_weights(path)


def test_a_flipped_byte_of_a_zip_file_is_noticed(tmp_path):
  content = bytearray((GOLDEN / 'views.pth').read_bytes())
  content[content.index(BASE[0].tobytes())] ^= 1
  (tmp_path / 'x.pth').write_bytes(content)
  with pytest.raises(SegjaxError, match='truncated or corrupt'):
    read_weights(tmp_path / 'x.pth')


class Named:
  """Pickles as the name of a function or class that need not exist."""

  def __init__(self, module, name):
    self.full = module, name


class Writer(pickle._Pickler):
  """Writes `Named` by name, and tuples that start with 'storage' as persistent ids."""

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Named):
      self.write(b'c' + '\n'.join(obj.full).encode() + b'\n')
    else:
      super().save(obj, save_persistent_id)

  def persistent_id(self, obj):
    return obj if isinstance(obj, tuple) and obj[:1] == ('storage',) else None

  def save_call(self, function, arguments):
    self.save(function)
    self.save(arguments)
    self.write(pickle.REDUCE)


@pytest.mark.parametrize(
  ('offset', 'shape', 'stride'),
  [
    (0, (5,), (1,)),
    (1, (4,), (1,)),
    (-1, (2,), (1,)),
    (0, (2, 2), (3, 1)),
    (3, (2,), (-1,)),
    (0, (-1,), (1,)),
    (0, (10**12,), (0,)),
    (0, (2,), ()),
    (10**9, (), ()),
    (0, (2.0,), (1,)),
  ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, offset, shape, stride):
  """Such views would read foreign memory, or fill all of it."""

  def write(path, *view):
    buffer = io.BytesIO()
    writer = Writer(buffer, protocol=2)
    buffer.write(pickle.PROTO + b'\x02' + pickle.EMPTY_DICT)
    writer.save('a')
    storage = ('storage', Named('torch', 'FloatStorage'), '0', 'cpu', 4)
    writer.save_call(Named('torch._utils', '_rebuild_tensor_v2'), (storage, *view, False, None))
    buffer.write(pickle.SETITEM + pickle.STOP)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('x/data.pkl', buffer.getvalue())
      archive.writestr('x/data/0', struct.pack('<4f', 0, 1, 2, 3))
    return path

  good = read_weights(write(tmp_path / 'good.pth', 1, (3,), (1,)))
  np.testing.assert_array_equal(good['a'], [1, 2, 3])
  with pytest.raises(SegjaxError, match='truncated or corrupt'):
    read_weights(write(tmp_path / 'bad.pth', offset, shape, stride))


def test_other_files_are_refused(tmp_path):
  (tmp_path / 'x.h5').write_bytes(b'')
  with pytest.raises(SegjaxError, match=r'x.h5 is not a weights file: .* \.safetensors, \.pth'):
    read_weights(tmp_path / 'x.h5')
  with pytest.raises(SegjaxError, match='none.pth does not exist: set the path of a weights file'):
    read_weights(tmp_path / 'none.pth')
  (tmp_path / 'text.pth').write_text('<html>not found</html>')
  with pytest.raises(SegjaxError, match='text.pth is truncated or corrupt'):
    read_weights(tmp_path / 'text.pth')
