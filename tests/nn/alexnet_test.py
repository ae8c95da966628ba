"""AlexNet's tables against the numbers of Krizhevsky et al. 2012 and of torchvision."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.nn import alexnet
from segjax.nn.alexnet import FORMS, conv_of_groups
from segjax.ops.windows import receptive_field


class Encoder(nn.Module):
  form: str
  padding: int
  width: float = 1.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, image):
    form = FORMS[self.form]
    return alexnet.encode(image, form, width=self.width, padding=self.padding, dtype=self.dtype)


def abstract(model, height, width=None):
  image = jax.ShapeDtypeStruct((1, height, width or height, 3), jnp.float32)
  return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


@pytest.mark.parametrize(
  # The parameters of Caffe's reference model and of torchvision's, less the classifiers'.
  ('form', 'size', 'padding', 'parameters'),
  [
    ('caffe', 227, 0, 60_965_224 - (256 * 36 + 1) * 4096 - 4097 * 4096 - 4097 * 1000),
    ('torchvision', 224, 2, 61_100_840 - (256 * 36 + 1) * 4096 - 4097 * 4096 - 4097 * 1000),
  ],
)
def test_256_maps_of_6x6_come_out(form, size, padding, parameters):
  features, variables = abstract(Encoder(form, padding), size)
  assert features.shape == (1, 6, 6, 256)
  assert sum(x.size for x in jax.tree.leaves(variables)) == parameters
  assert receptive_field(alexnet.windows(padding)).size == 195


def pytorch_size(size, padding, *, ceil):
  """The sides of the features: five convolutions and three poolings, in the formula of PyTorch."""
  for kernel, stride, pad in [(11, 4, padding), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 2, 0)]:
    rest = size + 2 * pad - kernel
    size = (math.ceil(rest / stride) if ceil and kernel == 3 else rest // stride) + 1
  return size


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
  'size', [(217, 333), (63, 127), (75, 91), (224, 227), (259, 101), (300, 98)]
)
def test_caffes_pooling_rounds_up_and_torchvisions_down(form, size):
  features, _ = abstract(Encoder(form, 2, width=1 / 64), *size)
  expected = tuple(pytorch_size(n, 2, ceil=form == 'caffe') for n in size)
  assert features.shape[1:3] == expected
  if size == (217, 333):
    assert expected == {'caffe': (6, 10), 'torchvision': (5, 9)}[form]


def test_torchvisions_features_have_the_same_sizes():
  torch, models = pytest.importorskip('torch'), pytest.importorskip('torchvision.models')
  with torch.device('meta'):
    theirs = models.AlexNet().features
    for size in [(217, 333), (63, 64), (75, 91), (96, 97), (126, 127), (158, 159), (259, 101)]:
      expected = tuple(theirs(torch.zeros(1, 3, *size)).shape[2:])
      features, _ = abstract(Encoder('torchvision', 2, width=1 / 64), *size)
      assert features.shape[1:3] == expected


def test_an_image_without_a_whole_window_is_refused():
  assert abstract(Encoder('torchvision', 2, width=1 / 64), 63)[0].shape == (1, 1, 1, 4)
  with pytest.raises(ValueError, match='does not fit into 2 pixels: use a larger input'):
    abstract(Encoder('torchvision', 2, width=1 / 64), 62)


def test_groups_see_their_own_channels_alone():
  """Filters of two groups: 5x5x48, 3x3x192 and 3x3x192 (section 3.5)."""
  _, variables = abstract(Encoder('caffe', 0), 227)
  shapes = [variables['params'][f'conv{i}']['kernel'].shape for i in range(1, 6)]
  assert shapes == [(11, 11, 3, 96), (5, 5, 48, 256), (3, 3, 256, 384), (3, 3, 192, 384)] + [
    (3, 3, 192, 256)
  ]


def test_width_narrows_every_layer():
  features, variables = abstract(Encoder('caffe', 100, width=1 / 64), 27)
  assert features.shape == (1, 6, 6, 4)
  assert [variables['params'][f'conv{i}']['bias'].size for i in range(1, 6)] == [2, 4, 6, 6, 4]


def test_only_the_caffe_form_normalizes():
  """y = x / (1 + 2e-5 Σ x²)^0.75, twice, if every kernel averages its channels."""
  image = jnp.full((1, 67, 67, 1), 1e4)
  outputs = {}
  for form in FORMS:
    model = Encoder(form, 0, width=1e-9)
    variables = jax.tree.map(
      lambda x: np.zeros(x.shape, 'f4'), jax.eval_shape(model.init, jax.random.key(0), image)
    )
    for layer in variables['params'].values():
      kernel = layer['kernel']
      kernel[len(kernel) // 2, len(kernel) // 2] = 1 / kernel.shape[2]
    outputs[form] = jax.jit(model.apply)(variables, image)
  once = 1e4 / (1 + 2e-5 * 2 * 1e8) ** 0.75
  twice = once / (1 + 2e-5 * 2 * once**2) ** 0.75
  np.testing.assert_allclose(outputs['torchvision'], 1e4, rtol=1e-5)
  np.testing.assert_allclose(outputs['caffe'], twice, rtol=1e-4)


@pytest.mark.parametrize(('groups', 'stride', 'padding'), [(1, 2, 0), (2, 1, 2), (3, 2, 1)])
def test_conv_of_groups_equals_the_library_forwards_and_backwards(groups, stride, padding):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 7, 6)).astype('f4')
  kernel = rng.normal(size=(3, 3, 6 // groups, 12)).astype('f4')
  rest = ((stride, stride), [(padding, padding)] * 2)
  options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': groups}

  def run(conv):
    y, pullback = jax.vjp(lambda x, kernel: conv(x, kernel, *rest, **options), x, kernel)
    return y, pullback(jnp.cos(y))

  ours, theirs = jax.jit(lambda: (run(conv_of_groups), run(lax.conv_general_dilated)))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  features, variables = abstract(Encoder('caffe', 0, dtype='bfloat16'), 227)
  assert features.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
