"""FCN on ResNet against torchvision's."""

import functools

import jax
import networks
import numpy as np
import pytest
from networks import abstract, apply, count, filled

from segjax.convert.load import flat_paths
from segjax.models.fcn import FCNResNet
from segjax.nn.resnet import VARIANTS, Variant
from segjax.training.compile import jit

SIZE = (2, 37, 45, 3)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  monkeypatch.setitem(VARIANTS, 'shallow', Variant('basic', (1, 1, 1, 1)))


def tiny(**kwargs):
  return FCNResNet(**{'classes': 3, 'variant': 'shallow', 'width': 4, 'dropout': 0.0} | kwargs)


def images(shape=SIZE):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Parameters as torchvision publishes them, 21 classes, with the auxiliary classifier.
@pytest.mark.parametrize(
  'variant, parameters', [('resnet50', 35_322_218), ('resnet101', 54_314_346)]
)
def test_parameters(variant, parameters):
  variables, logits = abstract(FCNResNet(21, variant, auxiliary=True), (1, 520, 390, 3))
  assert logits.shape == (1, 520, 390, 21)
  params = variables['params']
  assert count(params) == parameters
  without = abstract(FCNResNet(21, variant), (1, 32, 32, 3))[0]['params']
  assert params.keys() - without.keys() == {
    'aux_classifier_conv',
    'aux_classifier_conv_norm',
    'aux_classifier_score',
  }
  assert params['classifier_conv']['kernel'].shape == (3, 3, 2048, 512)
  assert params['aux_classifier_conv']['kernel'].shape == (3, 3, 1024, 256)
  # As in torchvision, only the scores and the norms have biases.
  biased = {key for key, layer in params.items() if key != 'backbone' and 'bias' in layer}
  assert {key for key in biased if not key.endswith('_norm')} == {
    'classifier_score',
    'aux_classifier_score',
  }


@pytest.mark.parametrize('size', [(1, 1), (7, 16), (65, 47)])
def test_any_size_goes_in_and_the_same_comes_out(size):
  assert abstract(tiny(), (2, *size, 3))[1].shape == (2, *size, 3)


@pytest.mark.parametrize('dilate, stride', [((4, 5), 8), ((5,), 16), ((), 32)])
def test_stride_is_that_of_the_features(dilate, stride):
  model = tiny(dilate=dilate)
  _, state = jax.eval_shape(
    functools.partial(model.apply, capture_intermediates=True, mutable=['intermediates']),
    abstract(model, (1, 64, 96, 3))[0],
    images((1, 64, 96, 3)),
  )
  [scores] = state['intermediates']['classifier_score']['__call__']
  assert model.stride == stride
  assert scores.shape == (1, 64 // stride, 96 // stride, 3)


def test_scores_start_at_zero_and_kernels_do_not():
  params = jit(tiny(auxiliary=True).init, once=True)(jax.random.key(0), images())['params']
  for path, value in flat_paths(params).items():
    if path.endswith('kernel'):
      assert np.any(value) != ('_score/' in path), path


def resized(x, size):
  """PyTorch's bilinear interpolation, align_corners=False, in loops."""
  y = np.zeros((len(x), *size, x.shape[-1]))
  for i, j in np.ndindex(size):
    position = [
      max(0, (o + 0.5) * n / m - 0.5) for o, n, m in zip((i, j), x.shape[1:3], size, strict=True)
    ]
    for row, column in np.ndindex(2, 2):
      at = [int(p) + d for p, d in zip(position, (row, column), strict=True)]
      weight = np.prod([max(0, 1 - abs(p - a)) for p, a in zip(position, at, strict=True)])
      inside = [min(a, n - 1) for a, n in zip(at, x.shape[1:3], strict=True)]
      y[:, i, j] += weight * x[:, inside[0], inside[1]]
  return y


@pytest.mark.parametrize('size', [(1, 1), (37, 45)])
def test_scores_are_resized_to_the_image_by_the_centers_of_pixels(size):
  model = tiny()
  logits, state = apply(
    model,
    filled(abstract(model, SIZE)[0]),
    images((1, *size, 3)),
    capture_intermediates=lambda module, _: module.name == 'classifier_score',
    mutable=['intermediates'],
  )
  [scores] = state['intermediates']['classifier_score']['__call__']
  assert scores.shape[1:3] == tuple(-(-n // 8) for n in size)
  assert np.ptp(scores) > 0.1
  np.testing.assert_allclose(logits, resized(scores, size), rtol=1e-4, atol=1e-4)


def test_auxiliary_classifier_is_used_only_if_asked():
  model, x = tiny(auxiliary=True), images()
  variables = filled(abstract(model, SIZE)[0])
  main, auxiliary = apply(model, variables, x, with_auxiliary=True)
  assert main.shape == auxiliary.shape == (*SIZE[:3], 3)
  assert np.abs(main - auxiliary).max() > 0.1
  np.testing.assert_allclose(apply(model, variables, x), main, rtol=1e-4, atol=1e-4)
  # It sees stage 4 and not stage 5.
  changed = jax.tree.map(np.copy, variables)
  changed['params']['backbone']['res5_0_conv1']['kernel'] += 1
  other_main, same_auxiliary = apply(model, changed, x, with_auxiliary=True)
  assert np.abs(main - other_main).max() > 0.1
  np.testing.assert_array_equal(auxiliary, same_auxiliary)
  # Training without it does not change its statistics.
  _, state = apply(model, variables, x, train=True, mutable=['batch_stats'])
  old, new = (flat_paths(v['batch_stats']) for v in (variables, state))
  assert old.keys() == new.keys()
  for path in old:
    assert np.array_equal(old[path], new[path]) == path.startswith('aux_classifier'), path
  with pytest.raises(ValueError, match='create the network with auxiliary=True'):
    tiny().apply(variables, x, with_auxiliary=True)


@pytest.mark.parametrize('norm', ['batch', 'frozen', 'group'])
def test_everything_learns_but_frozen_norms_of_the_backbone(norm):
  statistics = networks.check_everything_learns(tiny(norm=norm, dropout=0.1), images())
  assert ('classifier_conv_norm/mean' in statistics) == (norm != 'group')


def test_without_momentum_the_statistics_are_the_batch_s():
  """Needed for `config.train.recompute_batch_norm`."""
  model, x = tiny(), images()
  variables = filled(abstract(model, SIZE)[0])
  _, state = apply(
    model.clone(bn_momentum=0.0),
    variables,
    x,
    train=True,
    mutable=['batch_stats', 'intermediates'],
    capture_intermediates=lambda module, _: module.name in ('stem', 'classifier_conv'),
  )
  seen, stats = state['intermediates'], state['batch_stats']
  for [features], norm in (
    (seen['backbone']['stem']['__call__'], stats['backbone']['stem_norm']),
    (seen['classifier_conv']['__call__'], stats['classifier_conv_norm']),
  ):
    np.testing.assert_allclose(norm['mean'], features.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
  networks.check_dropout_acts_in_training_only(tiny(dropout=0.5, norm='frozen'), images())


def test_bfloat16_computes_in_it_and_outputs_float32():
  networks.check_bfloat16_computes_in_it_and_outputs_float32(tiny(), images())
