"""`init_from`: weights by name, from files and from other runs."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from segjax.convert.load import (
  SOURCES,
  Pretrained,
  as_parts,
  convert_file,
  flat_paths,
  load_into,
  nearest_source,
  read_pretrained,
)
from segjax.convert.weights import read_metadata
from segjax.types import SegjaxError

VGG16 = pathlib.Path(__file__).parent / 'golden' / 'vgg16.pth'
SOURCE = 'torchvision/vgg16'


def network():
  params = {'a': {'kernel': np.zeros((2, 3), 'f4')}, 'b': {'bias': np.full(3, 7, 'f4')}}
  return params, {'batch_stats': {'a_bn': {'mean': np.zeros(2, 'f4')}}}


def pretrained(**kwargs):
  arrays = {'params/a/kernel': np.ones((2, 3)), 'batch_stats/a_bn/mean': np.arange(2)}
  return Pretrained('FILE', arrays, **kwargs)


def test_arrays_go_where_their_names_are_and_the_rest_stays():
  params, model_state, report = load_into(*network(), pretrained())
  np.testing.assert_array_equal(params['a']['kernel'], np.ones((2, 3)))
  np.testing.assert_array_equal(params['b']['bias'], [7, 7, 7])
  np.testing.assert_array_equal(model_state['batch_stats']['a_bn']['mean'], [0, 1])
  assert {x.dtype for x in jax.tree.leaves((params, model_state))} == {np.dtype('f4')}
  assert report.loaded == ('batch_stats/a_bn/mean', 'params/a/kernel')
  assert report.new == ('params/b/bias',)
  assert str(report) == '2 arrays from FILE; b keep their initialization'


def test_a_parameter_of_the_network_itself_is_named():
  params, model_state = network()
  *_, report = load_into({**params, 'query': np.zeros(2, 'f4')}, model_state, pretrained())
  assert str(report) == '2 arrays from FILE; b, query keep their initialization'


def test_the_network_handed_in_is_not_changed():
  params, model_state = network()
  load_into(params, model_state, pretrained())
  assert not params['a']['kernel'].any()
  assert not model_state['batch_stats']['a_bn']['mean'].any()


def test_a_finer_network_starts_from_a_coarser_one():
  """As in FCN's 32s -> 16s: what only one of the two has is reported, not refused."""
  arrays = {'params/a/kernel': np.ones((2, 3)), 'params/upscore32/kernel': np.ones(4)}
  params, _, report = load_into(*network(), Pretrained('runs/32s', arrays))
  assert params['a']['kernel'].all()
  unmatched = 'a_bn, b keep their initialization; upscore32 are not used'
  assert str(report) == f'1 arrays from runs/32s; {unmatched}'


def test_a_reset_layer_keeps_its_initialization_whatever_the_file_has():
  """As in fine-tuning to other classes: neither its shape nor its absence in the file matters."""
  for shape in ((2, 3), (2, 9), None):
    arrays = {'batch_stats/a_bn/mean': np.arange(2)}
    if shape:
      arrays['params/a/kernel'] = np.ones(shape)
    strict = Pretrained('FILE', arrays, new=('^params/b/',), spare=())
    params, state, report = load_into(*network(), strict, ['^a/kernel$'])
    assert not params['a']['kernel'].any()
    assert state['batch_stats']['a_bn']['mean'].tolist() == [0, 1]
    assert (report.reset, report.unused) == (('params/a/kernel',), ())
    assert str(report) == '1 arrays from FILE; a are re-initialized; b keep their initialization'
  # What only the file has of the reset layers is no surplus, as another network's head.
  more = Pretrained('FILE', {**arrays, 'params/a/extra': np.ones(1)}, spare=())
  assert load_into(*network(), more, ['^a/'])[2].unused == ()


def test_patterns_of_reset_match_something():
  with pytest.raises(SegjaxError, match=r"init_from\.reset: 'c/' matches no .* like b/bias"):
    load_into(*network(), pretrained(), ['^a/', 'c/'])
  with pytest.raises(SegjaxError, match=r"init_from\.reset: '\(' is not a regular expression"):
    load_into(*network(), pretrained(), ['('])
  # The collection is not part of a path.
  with pytest.raises(SegjaxError, match='matches no parameter'):
    load_into(*network(), pretrained(), ['params'])


def test_errors_name_the_file_and_the_array():
  params, state = network()
  with pytest.raises(SegjaxError, match=r'FILE has no array .*\(it has x/y; .*config.init_from'):
    load_into(params, state, Pretrained('FILE', {'x/y': np.zeros(2)}))
  with pytest.raises(SegjaxError, match=r'FILE has params/a/kernel of shape \(3, 2\) .*\(2, 3\)'):
    load_into(params, state, Pretrained('FILE', {'params/a/kernel': np.zeros((3, 2))}))
  with pytest.raises(SegjaxError, match='for other classes set config.init_from.reset=heads'):
    load_into(params, state, Pretrained('FILE', {'params/a/kernel': np.zeros((3, 2))}))
  with pytest.raises(SegjaxError, match='FILE does not have params/b/bias'):
    load_into(params, state, pretrained(new=('^params/c',)))
  load_into(params, state, pretrained(new=('^params/b',)))
  more = pretrained(spare=('^params/c',))
  more.arrays['params/d/bias'] = np.zeros(1)
  with pytest.raises(SegjaxError, match='FILE has params/d/bias, which this network does not have'):
    load_into(params, state, more)


def test_two_networks_as_the_parts_of_one():
  """Each array of the large network comes from one of them, and none is unused."""
  a = Pretrained('A', {'params/x/kernel': np.ones(2), 'batch_stats/x/mean': np.zeros(3)})
  b = Pretrained('B', {'params/x/kernel': np.full(2, 5.0)})
  params = {part: {'x': {'kernel': np.zeros(2)}} for part in 'ab'}
  state = {'batch_stats': {'a': {'x': {'mean': np.ones(3)}}}}
  filled, filled_state, report = load_into(params, state, as_parts({'a': a, 'b': b}))
  assert filled['a']['x']['kernel'].tolist() == [1, 1]
  assert filled['b']['x']['kernel'].tolist() == [5, 5]
  assert filled_state['batch_stats']['a']['x']['mean'].tolist() == [0, 0, 0]
  assert (report.new, report.unused, report.where) == ((), (), 'A and B')
  with pytest.raises(SegjaxError, match='A and B does not have params/c'):
    load_into({**params, 'c': np.zeros(1)}, state, as_parts({'a': a, 'b': b}))
  with pytest.raises(SegjaxError, match='A and B has params/b/x/kernel, which this network'):
    load_into({'a': params['a']}, state, as_parts({'a': a, 'b': b}))


def test_a_converted_file_loads_as_the_weights_file(tmp_path):
  output = tmp_path / 'new' / 'vgg16.safetensors'
  assert convert_file(SOURCE, VGG16, output) == 30
  direct, again = read_pretrained(VGG16, SOURCE), read_pretrained(output)
  assert (again.new, again.spare) == (direct.new, direct.spare)
  assert again.arrays.keys() == direct.arrays.keys()
  for path, array in direct.arrays.items():
    assert again.arrays[path].dtype == np.float32
    np.testing.assert_array_equal(again.arrays[path], array)
  # A config may also name the source of its weights, but not another one.
  assert read_pretrained(output, SOURCE).arrays.keys() == direct.arrays.keys()
  with pytest.raises(
    SegjaxError, match='was converted from torchvision/vgg16, not from .*_bn: set'
  ):
    read_pretrained(output, f'{SOURCE}_bn')
  assert read_metadata(output)['input'].startswith('RGB')
  assert [p.name for p in output.parent.iterdir()] == ['vgg16.safetensors']


def test_a_failed_conversion_leaves_the_old_file(tmp_path):
  output = tmp_path / 'x.safetensors'
  output.write_bytes(b'old')
  with pytest.raises(SegjaxError, match=r'vgg16.pth is not torchvision/vgg16_bn'):
    convert_file('torchvision/vgg16_bn', VGG16, output)
  assert output.read_bytes() == b'old'
  assert len(list(tmp_path.iterdir())) == 1


def test_sources_and_outputs_are_checked(tmp_path):
  with pytest.raises(
    SegjaxError, match='unknown source torchvision/vgg: did you mean torchvision/vgg16'
  ):
    convert_file('torchvision/vgg', VGG16, tmp_path / 'x.safetensors')
  with pytest.raises(SegjaxError, match='x.npz must end in .safetensors'):
    convert_file(SOURCE, VGG16, tmp_path / 'x.npz')
  with pytest.raises(
    SegjaxError,
    match='not written by segjax convert: .*source=torchvision/vgg16 or .*/vgg16_features$',
  ):
    read_pretrained(VGG16)
  safetensors.numpy.save_file({'a': np.zeros(1)}, tmp_path / 'other.safetensors')
  with pytest.raises(SegjaxError, match='source=NAME .no known source'):
    read_pretrained(tmp_path / 'other.safetensors')
  with pytest.raises(SegjaxError, match='does not exist: set the path of a weights file'):
    read_pretrained(tmp_path / 'none.safetensors')


def test_paths_are_those_of_the_optimizer_s_patterns():
  assert list(flat_paths(dict(zip(('params', 'x'), network(), strict=True)))) == [
    'params/a/kernel',
    'params/b/bias',
    'x/batch_stats/a_bn/mean',
  ]
  assert all(row.path.count('/') >= 1 for s in SOURCES.values() for row in s.rows)


@pytest.mark.parametrize(
  ('name', 'found'),
  [
    ('nvidia/segformer-b0-finetuned-ade-512-512', 'transformers/segformer_b0'),
    ('https://huggingface.co/nvidia/mit-b3/', 'transformers/mit_b3'),
    ('tue-mps/coco_panoptic_eomt_large_640', 'eomt/large'),
    # Other weights of a network.
    ('nvidia/segformer-b1-finetuned-cityscapes-1024-1024', 'transformers/segformer_b1'),
    ('facebook/dinov2-base', 'dinov2/base'),
    ('SegFormer-B0', 'transformers/segformer_b0'),
    ('vgg16', 'torchvision/vgg16 or caffe/vgg16'),
    ('transformers/resnet50', 'torchvision/resnet50'),
    ('torchvision/vgg61', 'torchvision/vgg16'),
  ],
)
def test_names_of_the_hub_and_without_a_framework(name, found):
  assert nearest_source(name, SOURCES) == f': did you mean {found}?'


@pytest.mark.parametrize('name', ['', '/', 'xyz', 'google/vit-base-patch16'])
def test_names_that_are_like_none(name):
  assert nearest_source(name, SOURCES).startswith(': choose from caffe/alexnet, ')
