"""Reading `.pkl` files of NumPy arrays: of every protocol, of old NumPy and Python, and hostile."""

import collections
import io
import os
import pickle

import numpy as np
import pytest

from segjax.convert.weights import read_weights
from segjax.types import SegjaxError

ARRAYS = {
  'kernel': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  'transposed': np.arange(6, dtype=np.float32).reshape(2, 3).T,
  'half': np.float16([1.5, -2]),
  'count': np.array(7),
  'empty': np.zeros((0, 3), np.float32),
  'big_endian': np.array([1, 2], '>f4'),
  'strided': np.arange(8.0)[::2],
}


class Python2(pickle._Pickler):
  """Writes bytes as the strings of Python 2, in protocol 2."""

  dispatch = pickle._Pickler.dispatch.copy()

  def save_bytes(self, obj):
    self.write(pickle.BINSTRING + len(obj).to_bytes(4, 'little') + obj)
    self.memoize(obj)

  dispatch[bytes] = save_bytes


def write(path, tree, protocol=2):
  path.write_bytes(pickle.dumps(tree, protocol))
  return path


def assert_read(path, expected):
  actual = read_weights(path)
  assert list(actual) == list(expected)
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
def test_reads_arrays_of_every_protocol(tmp_path, protocol):
  assert_read(write(tmp_path / 'x.pkl', ARRAYS, protocol), ARRAYS)


def test_reads_what_older_numpy_and_python_wrote(tmp_path):
  content = pickle.dumps(ARRAYS, 2)
  assert b'numpy._core' in content
  (tmp_path / 'x.pkl').write_bytes(content.replace(b'numpy._core', b'numpy.core'))
  assert_read(tmp_path / 'x.pkl', ARRAYS)
  buffer = io.BytesIO()
  Python2(buffer, 2).dump(ARRAYS)
  assert b'_codecs' in content
  assert b'_codecs' not in buffer.getvalue()
  (tmp_path / 'x.pkl').write_bytes(buffer.getvalue())
  assert_read(tmp_path / 'x.pkl', ARRAYS)


@pytest.mark.parametrize(
  'tree',
  [
    {'model': ARRAYS, '__author__': 'Detectron2 Model Zoo', 'matching_heuristics': True},
    {'model': collections.OrderedDict(ARRAYS), '__author__': 'someone', 'iteration': 3},
    {'blobs': ARRAYS, 'cfg': 'MODEL: …'},
  ],
)
def test_reads_the_model_of_a_file_with_more_in_it(tmp_path, tree):
  assert_read(write(tmp_path / 'x.pkl', tree), ARRAYS)


class Call:
  """Pickles into a call of `function`, and then sets `state`."""

  def __init__(self, function, *arguments, state=None):
    self.call = (function, arguments, *([] if state is None else [state]))

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(
  ('function', 'name'),
  [
    (os.system, 'posix.system'),
    (eval, 'builtins.eval|__builtin__.eval'),
    (np.load, 'numpy.load'),
    (np.frombuffer, 'numpy.*frombuffer'),
  ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_no_code_of_a_pickle_is_run(tmp_path, function, name, protocol):
  trace = tmp_path / 'trace'
  path = write(tmp_path / 'x.pkl', {'a': Call(function, f'touch {trace}')}, protocol)
  with pytest.raises(SegjaxError, match=f'x.pkl is a pickle that calls ({name}), and segjax does'):
    read_weights(path)
  assert not trace.exists()


RECONSTRUCT = np.zeros(2).__reduce__()[0]


@pytest.mark.parametrize(
  'state',
  [
    (1, (2,), np.dtype('f4'), False, b'1234'),
    (1, (-2,), np.dtype('f4'), False, b'12345678'),
    (1, (2**62, 4), np.dtype('f4'), False, b'12345678'),
    (1, (2,), np.dtype('O'), False, b'12345678' * 2),  # would be read as pointers
    (1, (2,), np.dtype('f4'), False, ['a', 'b']),
    (1, (2,), 'f4', False, b'12345678'),
    (1, (2,)),
  ],
)
def test_an_array_of_another_size_or_type_is_refused(tmp_path, state):
  good = (1, (2,), np.dtype('f4'), False, np.float32([1, 2]).tobytes())
  array = lambda state: {'a': Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=state)}
  np.testing.assert_array_equal(read_weights(write(tmp_path / 'x.pkl', array(good)))['a'], [1, 2])
  with pytest.raises(SegjaxError, match='x.pkl is truncated or corrupt'):
    read_weights(write(tmp_path / 'x.pkl', array(state)))


def test_other_things_than_arrays_are_refused(tmp_path):
  with pytest.raises(SegjaxError, match="x.pkl has 'lr' of type float, not an array"):
    read_weights(write(tmp_path / 'x.pkl', {'model': {**ARRAYS, 'lr': 0.1}}))
  for tree in ([1], {}, {'model': 3}):
    with pytest.raises(SegjaxError, match='x.pkl contains no named arrays'):
      read_weights(write(tmp_path / 'x.pkl', tree))


@pytest.mark.parametrize('protocol', [2, 5])
def test_every_cut_is_noticed(tmp_path, protocol):
  whole = pickle.dumps({'model': ARRAYS}, protocol)
  for size in range(0, len(whole), 7):
    (tmp_path / 'x.pkl').write_bytes(whole[:size])
    with pytest.raises(SegjaxError, match='x.pkl is truncated or corrupt'):
      read_weights(tmp_path / 'x.pkl')
