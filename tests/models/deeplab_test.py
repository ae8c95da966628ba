"""DeepLabV3 and DeepLabV3+; against torchvision: tests/convert/torchvision_resnet_test.py."""

import functools

import jax
import networks
import numpy as np
import pytest
from networks import abstract, apply, count, filled

from segjax.models.deeplab import DeepLabV3, DeepLabV3Plus, aspp
from segjax.models.fcn import FCNResNet
from segjax.nn.resnet import VARIANTS, Variant
from segjax.training.compile import jit

SIZE = (2, 37, 45, 3)
NETWORKS = (DeepLabV3, DeepLabV3Plus)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  monkeypatch.setitem(VARIANTS, 'shallow', Variant('basic', (1, 1, 1, 1)))


def tiny(network, **kwargs):
  options = {'classes': 3, 'variant': 'shallow', 'width': 4, 'rates': (1, 2), 'dropout': 0.0}
  return network(**options | kwargs)


def images(shape=SIZE):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Parameters as torchvision publishes them, 21 classes, with the auxiliary classifier.
@pytest.mark.parametrize(
  'variant, parameters', [('resnet50', 42_004_074), ('resnet101', 60_996_202)]
)
def test_parameters(variant, parameters):
  variables, logits = abstract(DeepLabV3(21, variant, auxiliary=True), (1, 520, 390, 3))
  assert logits.shape == (1, 520, 390, 21)
  assert count(variables['params']) == parameters


def test_the_decoder_of_the_paper():
  """arXiv 1802.02611, §3.1 and Tables 1 and 2: 48 channels of stage 2, two 3x3 convolutions."""
  params = abstract(DeepLabV3Plus(21), (1, 64, 64, 3))[0]['params']
  shapes = {key: x['kernel'].shape for key, x in params.items() if 'kernel' in x}
  assert shapes == {
    'aspp_conv': (1, 1, 2048, 256),
    **{f'aspp_atrous{i}': (3, 3, 2048, 256) for i in (1, 2, 3)},
    'aspp_pool': (1, 1, 2048, 256),
    'aspp_project': (1, 1, 5 * 256, 256),
    'decoder_low': (1, 1, 256, 48),
    'decoder_conv1': (3, 3, 256 + 48, 256),
    'decoder_conv2': (3, 3, 256, 256),
    'classifier_score': (1, 1, 256, 21),
  }


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('size', [(1, 1), (7, 16), (65, 47)])
def test_any_size_goes_in_and_the_same_comes_out(network, size):
  assert abstract(tiny(network), (2, *size, 3))[1].shape == (2, *size, 3)


@pytest.mark.parametrize('network, of_scores', [(DeepLabV3, None), (DeepLabV3Plus, 4)])
@pytest.mark.parametrize('dilate, stride', [((4, 5), 8), ((5,), 16), ((), 32), ((5, 5), 16)])
def test_stride_is_that_of_the_pyramid(network, of_scores, dilate, stride):
  model, x = tiny(network, dilate=dilate), images((1, 64, 96, 3))
  run = functools.partial(model.apply, capture_intermediates=True, mutable=['intermediates'])
  state = jax.eval_shape(run, abstract(model, x.shape)[0], x)[1]['intermediates']
  assert model.stride == stride
  for name, expected in (('aspp_project', stride), ('classifier_score', of_scores or stride)):
    [features] = state[name]['__call__']
    assert features.shape[1:3] == (64 // expected, 96 // expected)


def test_the_pyramid_is_the_one_of_the_paper():
  """§3.3, by loops over pixels, without norms: a tap of rate r is r pixels away."""
  rng = np.random.default_rng(0)
  x, rates, features = rng.normal(size=(2, 5, 6, 3)), (1, 2, 4), 2
  kernels = {}

  def conv(x, spec, *, name):
    """A stand-in for a convolution with its norm."""
    k, (_, h, w, c) = spec.kernel, x.shape
    kernels[name] = kernel = rng.normal(size=(k, k, c, spec.features))
    y = np.zeros((len(x), h, w, spec.features))
    for i, j, a, b in np.ndindex(h, w, k, k):
      row, column = (p + spec.dilation * (t - k // 2) for p, t in ((i, a), (j, b)))
      if 0 <= row < h and 0 <= column < w:
        y[:, i, j] += np.asarray(x)[:, row, column] @ kernel[a, b]
    return y

  found = aspp(x, features, rates, conv)
  assert {name: kernel.shape for name, kernel in kernels.items()} == {
    'aspp_conv': (1, 1, 3, 2),
    'aspp_atrous1': (3, 3, 3, 2),
    'aspp_atrous2': (3, 3, 3, 2),
    'aspp_atrous3': (3, 3, 3, 2),
    'aspp_pool': (1, 1, 3, 2),
    'aspp_project': (1, 1, 10, 2),
  }
  padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
  parts = [x @ kernels['aspp_conv'][0, 0]]
  for i, rate in enumerate(rates, 1):
    taps = [
      padded[:, 4 + rate * a :, 4 + rate * b :][:, :5, :6]
      @ kernels[f'aspp_atrous{i}'][a + 1, b + 1]
      for a in (-1, 0, 1)
      for b in (-1, 0, 1)
    ]
    parts.append(sum(taps))
  pooled = x.mean((1, 2)) @ kernels['aspp_pool'][0, 0]
  parts.append(np.broadcast_to(pooled[:, None, None], parts[0].shape))
  joined = np.maximum(np.concatenate(parts, -1), 0)
  expected = np.maximum(joined @ kernels['aspp_project'][0, 0], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_the_decoder_lie_where_their_features_are():
  """Feature i of stride 4 is centered at pixel 4 i."""
  model = tiny(DeepLabV3Plus)
  logits, state = apply(
    model,
    filled(abstract(model, SIZE)[0]),
    images(),
    capture_intermediates=lambda module, _: module.name == 'classifier_score',
    mutable=['intermediates'],
  )
  [scores] = state['intermediates']['classifier_score']['__call__']
  assert np.ptp(scores) > 0.1
  np.testing.assert_allclose(logits[:, ::4, ::4], scores, rtol=1e-5, atol=1e-5)
  between = (scores[:, :-1] + scores[:, 1:]) / 2
  np.testing.assert_allclose(logits[:, 2:-2:4, ::4], between, rtol=1e-4, atol=1e-4)


def test_the_auxiliary_classifier_is_that_of_fcn():
  """It sees stage 4, and has a dropout of its own."""
  model, x = tiny(DeepLabV3, auxiliary=True, norm='group'), images()
  variables = filled(abstract(model, SIZE)[0])
  main, auxiliary = apply(model, variables, x, with_auxiliary=True)
  fcn = FCNResNet(3, 'shallow', width=4, auxiliary=True, norm='group')
  head = {k: v for k, v in filled(abstract(fcn, SIZE)[0])['params'].items() if k[:4] == 'clas'}
  expected = apply(fcn, {'params': variables['params'] | head}, x, with_auxiliary=True)[1]
  np.testing.assert_allclose(auxiliary, expected, rtol=1e-4, atol=1e-5)
  run = functools.partial(model.apply, train=True, with_auxiliary=True, mutable=['batch_stats'])
  run = jit(run, once=True)
  (main, first), (same, other) = (
    run(variables, x, rngs={'dropout': jax.random.key(i)})[0] for i in (0, 1)
  )
  np.testing.assert_array_equal(main, same)
  assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize('network, norm', [(DeepLabV3, 'frozen'), (DeepLabV3Plus, 'batch')])
def test_everything_learns_but_frozen_norms_of_the_backbone(network, norm):
  networks.check_everything_learns(tiny(network, norm=norm, dropout=0.1), images())


def test_dropout_acts_in_training_only():
  model = tiny(DeepLabV3Plus, dropout=0.5, norm='frozen')
  networks.check_dropout_acts_in_training_only(model, images())


@pytest.mark.parametrize('network', NETWORKS)
def test_bfloat16_computes_in_it_and_outputs_float32(network):
  networks.check_bfloat16_computes_in_it_and_outputs_float32(tiny(network), images())
