"""torchvision's tables: complete on both sides, and equal outputs (golden/make.py)."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.convert import torchvision
from segjax.convert.load import SOURCES, flat_paths, load_into, read_pretrained
from segjax.convert.table import convert, leftovers, matches
from segjax.convert.torchvision import linear_to_1x1, linear_to_7x7, oihw_to_hwio
from segjax.convert.weights import read_weights
from segjax.models.fcn import FCN
from segjax.models.segnet import SegNet
from segjax.nn.vgg import VGG16
from segjax.ops.upsample import bilinear_kernel
from segjax.types import SegjaxError

GOLDEN = pathlib.Path(__file__).parent / 'golden'
STAGES = tuple((2, convolutions) for _, convolutions in VGG16)
MODELS = {
  'FCN': FCN(3, '32s', learned='none', stages=STAGES, fc_features=3),
  'FCN learned': FCN(3, '8s', learned='all', stages=STAGES, fc_features=3),
  'SegNet': SegNet(3, STAGES),
}
# Source, the network it is for, and how many arrays go over.
PAIRS = [
  ('torchvision/vgg16', 'FCN', 30),
  ('torchvision/vgg16', 'FCN learned', 30),
  ('torchvision/vgg16', 'SegNet', 26),
  ('torchvision/vgg16_features', 'FCN', 26),
  ('torchvision/vgg16_features', 'SegNet', 26),
  ('torchvision/vgg16_bn', 'SegNet', 78),
]


def golden(source):
  name = source.partition('/')[2].removesuffix('_features')
  return GOLDEN / f'{name}.pth'


@pytest.fixture(scope='module')
def expected():
  with np.load(GOLDEN / 'expected.npz') as file:
    return dict(file)


def zeros(model):
  """Zero variables of a model, without a compilation."""
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))


def loaded(model, pretrained):
  variables = zeros(model)
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


@pytest.mark.parametrize(('source', 'model', 'count'), PAIRS)
def test_every_array_of_either_side_is_accounted_for(source, model, count):
  variables, report = loaded(MODELS[model], read_pretrained(golden(source), source))
  table = SOURCES[source]
  assert len(report.loaded) == count
  assert set(report.loaded) | set(report.new) == flat_paths(variables).keys()
  assert set(report.loaded) | set(report.unused) == {row.path for row in table.rows}
  flat = flat_paths(variables)
  assert all(flat[path].any() for path in report.loaded)
  assert not any(flat[path].any() for path in report.new)
  # Each pattern is there for some array, so that none can hide a mistake.
  names = read_weights(golden(source))
  assert all(any(matches(name, [p]) for name in names) for p in table.left_out)


@pytest.mark.parametrize('source', torchvision.SOURCES)
def test_tables_name_each_side_once(source):
  rows = SOURCES[source].rows
  assert len({r.key for r in rows}) == len({r.path for r in rows}) == len(rows)
  assert all(matches(r.key, SOURCES[source].left_out) is False for r in rows)


def test_batch_norm_cannot_be_lost():
  """vgg16_bn's convolutions alone make no VGG16."""
  pretrained = read_pretrained(golden('torchvision/vgg16_bn'), 'torchvision/vgg16_bn')
  with pytest.raises(SegjaxError, match='does not have params/fc6/bias and 3 more'):
    loaded(MODELS['FCN'], pretrained)
  with pytest.raises(SegjaxError, match='has batch_stats/conv1_1_bn/mean and 51 more, which this'):
    loaded(MODELS['FCN'], dataclasses.replace(pretrained, new=('',)))


def test_fcn_sees_what_torchvision_sees(expected):
  """fc7, read through scores that hand it on and a bilinear kernel as known."""
  source = 'torchvision/vgg16'
  model = MODELS['FCN']
  variables, _ = loaded(model, read_pretrained(golden(source), source))
  variables['params']['score_fr']['kernel'] = np.eye(3, dtype='f4')[None, None]
  image = expected['image'].transpose(0, 2, 3, 1)[:, :26, :26]
  logits = jax.jit(model.apply)(variables, image)
  kernel = bilinear_kernel(64, 1)[19:45, 19:45, 0]
  fc7 = expected['vgg16_fc7']
  assert np.ptp(fc7) > 0.1
  np.testing.assert_allclose(logits[0], kernel * fc7, rtol=1e-4)


def test_segnet_encodes_as_torchvision_does(expected):
  source = 'torchvision/vgg16_bn'
  model = MODELS['SegNet']
  variables, _ = loaded(model, read_pretrained(golden(source), source))
  image = expected['image'].transpose(0, 2, 3, 1)

  @jax.jit
  def encode(variables):
    _, state = model.apply(
      variables,
      image,
      capture_intermediates=lambda module, _: module.name == 'conv5_3_bn',
      mutable=['intermediates'],
    )
    return state['intermediates']['conv5_3_bn']['__call__'][0]

  golden_output = expected['vgg16_bn_conv5_3'].transpose(0, 2, 3, 1)
  assert np.ptp(golden_output) > 0.1
  np.testing.assert_allclose(encode(variables), golden_output, rtol=1e-4, atol=1e-5)


def test_linear_layers_are_convolutions_over_the_map_they_flattened():
  rng = np.random.default_rng(0)
  chw = rng.normal(size=(2, 7, 7))
  weight = rng.normal(size=(5, chw.size))
  hwio = linear_to_7x7(weight)
  assert hwio.shape == (7, 7, 2, 5)
  np.testing.assert_allclose(
    np.einsum('hwi,hwio->o', chw.transpose(1, 2, 0), hwio), weight @ chw.ravel()
  )
  assert linear_to_1x1(weight).shape == (1, 1, 98, 5)
  np.testing.assert_array_equal(chw.ravel() @ linear_to_1x1(weight)[0, 0], weight @ chw.ravel())
  kernel = rng.normal(size=(2, 3, 4, 5))
  assert oihw_to_hwio(kernel)[1, 2, 0, 1] == kernel[1, 0, 1, 2]


# --- wrong files ---------------------------------------------------------------------------------


def arrays():
  return read_weights(golden('torchvision/vgg16'))


def check(changed, source='torchvision/vgg16'):
  return convert(changed, SOURCES, source, 'my.pth')


def test_a_missing_and_an_extra_array_are_named():
  changed = arrays()
  changed['features.99.weight'] = changed.pop('features.7.bias')
  with pytest.raises(
    SegjaxError, match=r'my.pth is not torchvision/vgg16, it has no features.7.bias and has '
  ) as error:
    check(changed)
  assert 'features.99.weight: use the file of that network' in str(error.value)


def test_another_network_is_named_where_it_is_known():
  bn = read_weights(golden('torchvision/vgg16_bn'))
  with pytest.raises(SegjaxError, match='use the source torchvision/vgg16_bn$'):
    check(bn)
  features = {k: v for k, v in arrays().items() if k.startswith('features')}
  with pytest.raises(SegjaxError, match='classifier.0.bias and 3 more: .*/vgg16_features$'):
    check(features)
  assert check(features, 'torchvision/vgg16_features').keys() < check(arrays()).keys()
  with pytest.raises(SegjaxError, match='has no classifier.0.bias and 29 more and has fc.weight'):
    check({'fc.weight': np.zeros(3)})


@pytest.mark.parametrize('key', ['features.0.weight', 'classifier.0.weight', 'classifier.3.weight'])
def test_a_wrong_shape_is_named(key):
  with pytest.raises(SegjaxError, match=f'its {key} is 3x5x2: use the file'):
    check(arrays() | {key: np.zeros((3, 5, 2))})


# --- the real thing ------------------------------------------------------------------------------


def test_the_real_vgg16_fills_fcn_and_segnet():
  directory = os.environ.get('SEGJAX_TEST_WEIGHTS')
  if not directory:
    pytest.skip('SEGJAX_TEST_WEIGHTS names no directory with vgg16_features.safetensors')
  path = pathlib.Path(directory) / 'vgg16_features.safetensors'
  source = 'torchvision/vgg16_features'
  raw = read_weights(path)
  assert leftovers(raw, SOURCES[source]) == ([], [])
  pretrained = read_pretrained(path, source)
  assert sum(a.size for a in pretrained.arrays.values()) == 14_714_688
  for model in (FCN(11, fc_features=8), SegNet(11)):
    variables, report = loaded(model, pretrained)
    assert len(report.loaded) == 26
    kernel = variables['params']['conv5_3']['kernel']
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[2, 0, 7, 9], raw['features.28.weight'][9, 7, 2, 0])
