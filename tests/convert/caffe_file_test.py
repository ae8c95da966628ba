"""Reading `.caffemodel` files: both generations, protobuf's own writing, and broken files."""

import itertools
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from caffe_encoder import blob, field, legacy_shape, net, varint

from segjax.convert.weights import read_weights
from segjax.types import SegjaxError

RNG = np.random.default_rng(0)
LAYERS = {
  'data': [],
  'conv1_1': [RNG.normal(size=(4, 3, 3, 2)), RNG.normal(size=4)],
  'relu': [],
  'inception/1x1': [RNG.normal(size=(2, 5))],
}
CORRUPT = 'x.caffemodel is truncated or corrupt .*: download the file again$'


def read(directory, content):
  path = directory / 'x.caffemodel'
  path.write_bytes(content)
  return read_weights(path)


def arrays_of(layers):
  return {f'{name}/{i}': a for name, arrays in layers.items() for i, a in enumerate(arrays)}


@pytest.mark.parametrize(
  ('v1', 'legacy', 'packed', 'double'), list(itertools.product((False, True), repeat=4))
)
def test_every_form_is_read(tmp_path, v1, legacy, packed, double):
  content = net(LAYERS, v1=v1, legacy=legacy, packed=packed, double=double)
  actual = read(tmp_path, content)
  assert list(actual) == ['conv1_1/0', 'conv1_1/1', 'inception/1x1/0']
  for key, array in arrays_of(LAYERS).items():
    expected = array.astype('f8' if double else 'f4')
    assert actual[key].dtype == expected.dtype
    assert actual[key].shape == (legacy_shape(array.shape) if legacy else array.shape)
    np.testing.assert_array_equal(actual[key].ravel(), expected.ravel())


def protobuf_messages():
  """Classes of protobuf's own for the messages of caffe.proto, as far as weights go."""
  pytest.importorskip('google.protobuf')
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  kinds = {'string': 9, 'int64': 3, 'int32': 5, 'float': 2, 'double': 1}
  # name, type, field number, and r for repeated, p for repeated and packed.
  messages = {
    'BlobShape': [('dim', 'int64', 1, 'p')],
    'BlobProto': [
      ('num', 'int32', 1, ''),
      ('channels', 'int32', 2, ''),
      ('height', 'int32', 3, ''),
      ('width', 'int32', 4, ''),
      ('data', 'float', 5, 'p'),
      ('diff', 'float', 6, 'p'),
      ('shape', 'BlobShape', 7, ''),
      ('double_data', 'double', 8, 'p'),
    ],
    'LayerParameter': [('name', 'string', 1, ''), ('blobs', 'BlobProto', 7, 'r')],
    'V1LayerParameter': [('name', 'string', 4, ''), ('blobs', 'BlobProto', 6, 'r')],
    'NetParameter': [
      ('name', 'string', 1, ''),
      ('layers', 'V1LayerParameter', 2, 'r'),
      ('layer', 'LayerParameter', 100, 'r'),
    ],
  }
  file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe', syntax='proto2')
  for message, fields in messages.items():
    described = file.message_type.add(name=message)
    for name, kind, number, repeated in fields:
      f = described.field.add(name=name, number=number, label=3 if repeated else 1)
      f.type = kinds.get(kind, 11)
      if kind not in kinds:
        f.type_name = f'.caffe.{kind}'
      if repeated == 'p':
        f.options.packed = True
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}'))
    for name in messages
  }


@pytest.mark.parametrize('v1', [False, True])
def test_what_protobuf_writes_is_read(tmp_path, v1):
  message = protobuf_messages()['NetParameter'](name='synthetic')
  for name, arrays in LAYERS.items():
    layer = (message.layers if v1 else message.layer).add(name=name)
    for array in arrays:
      b = layer.blobs.add(data=array.ravel(), diff=np.ones(array.size))
      if v1:
        b.num, b.channels, b.height, b.width = legacy_shape(array.shape)
      else:
        b.shape.dim.extend(array.shape)
  actual = read(tmp_path, message.SerializeToString())
  assert actual.keys() == arrays_of(LAYERS).keys()
  for key, array in arrays_of(LAYERS).items():
    assert actual[key].shape == (legacy_shape(array.shape) if v1 else array.shape)
    np.testing.assert_array_equal(actual[key].ravel(), array.astype('f4').ravel())


@pytest.mark.parametrize('v1', [False, True])
def test_the_files_of_these_tests_are_protobuf(v1):
  """So that the reader is not only tested on its own idea of the format."""
  message = protobuf_messages()['NetParameter']()
  message.ParseFromString(net(LAYERS, v1=v1, legacy=v1, packed=not v1))
  layers = message.layers if v1 else message.layer
  assert [layer.name for layer in layers] == list(LAYERS)
  for layer in layers:
    for b, array in zip(layer.blobs, LAYERS[layer.name], strict=True):
      np.testing.assert_array_equal(b.data, array.astype('f4').ravel())
      shape = (b.num, b.channels, b.height, b.width) if v1 else b.shape.dim
      assert tuple(shape) == (legacy_shape(array.shape) if v1 else array.shape)


def test_fields_come_in_any_order_and_data_in_parts(tmp_path):
  values = np.float32([1, 2, 3, 4, 5, 6])
  parts = field(5, values[:2].tobytes()) + field(5, 3.0) + field(5, values[3:].tobytes())
  layer = field(7, parts + field(7, field(1, 2) + field(1, varint(3)))) + field(1, 'fc')
  arrays = read(tmp_path, field(100, layer) + field(1, 'net'))
  np.testing.assert_array_equal(arrays['fc/0'], values.reshape(2, 3))


def test_a_scalar_has_no_shape(tmp_path):
  assert read(tmp_path, net({'scale': [np.float32(7)]}))['scale/0'].shape == ()


def test_old_dims_go_first_as_in_caffe(tmp_path):
  both = field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3) + blob(np.zeros((3, 2)))
  arrays = read(tmp_path, field(100, field(1, 'fc') + field(7, both)))
  assert arrays['fc/0'].shape == (1, 1, 2, 3)


def test_a_large_file_is_not_read_into_memory(tmp_path):
  array = np.arange(2**22, dtype='f4').reshape(2, -1)
  path = tmp_path / 'x.caffemodel'
  path.write_bytes(net({'odd': [array[0, :1]], 'fc6': [array]}))
  tracemalloc.start()
  arrays = read_weights(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < array.nbytes / 20
  assert not arrays['fc6/0'].flags.writeable
  np.testing.assert_array_equal(arrays['fc6/0'], array)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize('v1', [False, True])
def test_every_cut_is_noticed(tmp_path, v1):
  """But for those between two layers, which leave a whole file of fewer layers."""
  head, *layers = LAYERS.items()
  pieces = [net(dict([head]), v1=v1)]
  nothing = len(net({}, v1=v1))
  pieces += [net(dict([layer]), v1=v1)[nothing:] for layer in layers]
  whole = b''.join(pieces)
  between = set(itertools.accumulate(map(len, pieces)))
  for size in range(len(whole)):
    if size not in between:
      with pytest.raises(SegjaxError, match='is truncated or corrupt|contains no weights'):
        read(tmp_path, whole[:size])
  assert len(read(tmp_path, whole[: sum(map(len, pieces[:2]))])) == 2
  assert len(read(tmp_path, whole)) == 3


def zipped(directory):
  with zipfile.ZipFile(directory / 'x.zip', 'w') as archive:
    archive.writestr('x/data.pkl', 'x')
  return (directory / 'x.zip').read_bytes()


def test_other_formats_are_refused(tmp_path):
  contents = {
    'nothing': b'',
    'HTML': b'<!DOCTYPE html><html>not found</html>',
    'prototxt': b'name: "VGG_ILSVRC_16_layers"\nlayer {\n  name: "conv1_1"\n}\n',
    'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:42\nsize 117809921\n',
    'pickle': pickle.dumps({'conv1_1': np.zeros(3)}),
    'zip': zipped(tmp_path),
    'safetensors': safetensors.numpy.save({'a': np.zeros(3)}),
    'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(100),
  }
  for content in contents.values():
    with pytest.raises(SegjaxError, match=CORRUPT):
      read(tmp_path, content)
  with pytest.raises(SegjaxError, match='none.caffemodel does not exist'):
    read_weights(tmp_path / 'none.caffemodel')


def test_random_bytes_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  for size in range(1, 300):
    with pytest.raises(SegjaxError, match=r'x.caffemodel (is truncated|contains no weights)'):
      read(tmp_path, rng.bytes(size))


def test_a_file_without_weights_is_reported(tmp_path):
  for content in (net({}), net({'data': [], 'relu': []}), net({'data': []}, v1=True)):
    with pytest.raises(SegjaxError, match=r'x.caffemodel contains no weights: use a \.caffe'):
      read(tmp_path, content)


def layer_with(content):
  return field(100, field(1, 'fc') + field(7, content))


@pytest.mark.parametrize(
  'content',
  [
    pytest.param(field(100, b'')[:-1] + varint(2**40), id='length beyond the end'),
    pytest.param(field(1, 'a') + b'\x80' * 20, id='number without an end'),
    pytest.param(b'\xa3\x06' + b'\xa4\x06', id='group'),
    pytest.param(b'\x02\x00', id='field 0'),
    pytest.param(b'\x0f', id='kind 7'),
    pytest.param(b'\x0d\x00\x00', id='32 bits of 16'),
    pytest.param(field(100, 7), id='layer that is a number'),
    pytest.param(field(100, field(1, 7) + field(7, blob([1.0]))), id='name that is a number'),
    pytest.param(field(100, field(1, b'\xff') + field(7, blob([1.0]))), id='name not UTF-8'),
    pytest.param(field(100, field(1, 'fc') + field(7, 7)), id='blob that is a number'),
    pytest.param(layer_with(b''), id='no values'),
    pytest.param(layer_with(field(5, 7)), id='values that are a varint'),
    pytest.param(layer_with(field(5, bytes(7))), id='values truncated'),
    pytest.param(layer_with(blob([1.0, 2.0]) + field(5, 3.0)), id='a value too many'),
    pytest.param(layer_with(blob([1.0]) + blob([1.0], double=True)), id='two types'),
    pytest.param(layer_with(blob(np.ones((2, 1))) + field(2, 2)), id='dims of another size'),
    pytest.param(
      layer_with(field(7, field(1, -1) + field(1, -2)) + field(5, bytes(8))), id='minus'
    ),
    pytest.param(layer_with(field(7, field(1, 2**62)) + field(5, bytes(8))), id='enormous'),
    pytest.param(layer_with(field(7, 2) + field(5, bytes(8))), id='shape that is a number'),
    pytest.param(layer_with(field(1, b'ab') + field(5, bytes(8))), id='dim that is text'),
    pytest.param(net({'fc': [[1.0]]}) * 2, id='two layers of one name'),
  ],
)
def test_broken_messages_are_refused(tmp_path, content):
  assert read(tmp_path, layer_with(blob([1.0])))['fc/0'] == [1]
  with pytest.raises(SegjaxError, match=CORRUPT):
    read(tmp_path, content)
