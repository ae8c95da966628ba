"""ResNet against the numbers of the papers (arXiv 1512.03385 and 1611.05431) and torchvision's."""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import linen as nn
from networks import apply, count, filled

from segjax.nn import resnet
from segjax.nn.resnet import VARIANTS, FrozenBatchNorm, ResNet, Variant, max_pool_3x3, stage_blocks
from segjax.ops.windows import Window, receptive_field
from segjax.training.compile import jit

# Parameter counts in torchvision's documentation, with the classifier for 1000 classes.
PARAMETERS = {
  'resnet18': 11_689_512,
  'resnet34': 21_797_672,
  'resnet50': 25_557_032,
  'resnet101': 44_549_160,
  'resnext101_32x8d': 88_791_336,
}
# Stages and numbers of blocks that cover all types of layers.
SHORT = (1, 2, 3)
SHALLOW = {
  'basic': Variant('basic', (1, 2, 1, 1)),
  'bottleneck': Variant('bottleneck', (1, 2, 1, 1)),
  'groups': Variant('bottleneck', (1, 2, 1, 1), groups=4, group_width=32),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  for name, variant in SHALLOW.items():
    monkeypatch.setitem(VARIANTS, name, variant)


def tiny(variant='bottleneck', **kwargs):
  return ResNet(variant, **{'width': 4} | kwargs)


def images(shape=(2, 37, 45, 3)):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def abstract(model, shape, **kwargs):
  return networks.abstract(model, shape, **kwargs)[0]


def random_variables(model, stages=resnet.STAGES):
  return filled(abstract(model, (1, 32, 32, 3), stages=stages))


def assert_close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters(name):
  model = ResNet(name)
  variables = abstract(model, (1, 224, 224, 3))
  features = jax.eval_shape(model.apply, variables, images((1, 224, 224, 3)))
  channels = features['c5'].shape[-1]
  assert count(variables['params']) + 1000 * (channels + 1) == PARAMETERS[name]
  # A running mean and variance for each scale and bias.
  norms = [layer for key, layer in variables['params'].items() if key.endswith('_norm')]
  assert count(variables['batch_stats']) == count(norms)
  # The layers that the name counts: all but the shortcuts, and the classifier.
  kernels = [key for key in variables['params'] if not key.endswith(('_norm', '_shortcut'))]
  assert f'{len(kernels) + 1}' == name.partition('_')[0].removeprefix('resnet').removeprefix(
    'resnext'
  )


def test_there_are_as_many_names_as_variants():
  assert set(typing.get_args(resnet.Name)) == VARIANTS.keys() - SHALLOW.keys() == PARAMETERS.keys()


@pytest.mark.parametrize('size', [(224, 224), (65, 47), (1, 33), (1, 1)])
def test_features_of_any_size(size):
  model = ResNet('resnet50')
  features = jax.eval_shape(model.apply, abstract(model, (1, *size, 3)), images((1, *size, 3)))
  assert {name: f.shape for name, f in features.items()} == {
    f'c{stage}': (1, *(math.ceil(n / 2**stage) for n in size), 256 * 2 ** (stage - 2))
    for stage in (2, 3, 4, 5)
  }


@pytest.mark.parametrize('dilate, strides', [((5,), (4, 8, 16, 16)), ((4, 5), (4, 8, 8, 8))])
def test_dilation_in_place_of_strides(dilate, strides):
  model = tiny(dilate=dilate)
  features = jax.eval_shape(model.apply, abstract(model, (1, 64, 64, 3)), images((1, 64, 64, 3)))
  assert [f.shape[1] for f in features.values()] == [64 // s for s in strides]


def test_where_strides_and_dilations_are():
  def windows(stage, **kwargs):
    blocks = stage_blocks(VARIANTS['resnet50'], stage, **kwargs)
    return [[(c.kernel, c.stride, c.dilation) for c in block.convs] for block in blocks]

  plain, halving = [(1, 1, 1), (3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 2, 1), (1, 1, 1)]
  assert windows(2) == [plain] * 3
  assert windows(3) == [halving] + [plain] * 3
  assert windows(3, stride_in_1x1=True) == [[(1, 2, 1), (3, 1, 1), (1, 1, 1)]] + [plain] * 3
  dilated = lambda d: [(1, 1, 1), (3, 1, d), (1, 1, 1)]
  assert windows(4, dilate=(4, 5)) == [dilated(1)] + [dilated(2)] * 5
  assert windows(5, dilate=(4, 5)) == [dilated(2)] + [dilated(4)] * 2
  for stage, kwargs in ((5, {'dilate': (5,)}), (3, {})):
    first, *rest = stage_blocks(VARIANTS['resnet50'], stage, **kwargs)
    assert first.shortcut.stride == (1 if kwargs else 2)
    assert all(block.shortcut is None for block in rest)
  # Only a basic block of stage 2 takes as many channels as it outputs.
  assert stage_blocks(VARIANTS['resnet18'], 2)[0].shortcut is None
  assert stage_blocks(VARIANTS['resnet50'], 2)[0].shortcut.features == 256


def test_resnext_has_twice_the_channels_in_groups():
  plain, grouped = (stage_blocks(VARIANTS[n], 5)[1] for n in ('resnet101', 'resnext101_32x8d'))
  assert [c.features for c in plain.convs] == [512, 512, 2048]
  assert [c.features for c in grouped.convs] == [2048, 2048, 2048]
  assert [c.groups for c in grouped.convs] == [1, 32, 1]
  kernel = abstract(ResNet('resnext101_32x8d'), (1, 32, 32, 3))['params']['res2_1_conv2']['kernel']
  assert kernel.shape == (3, 3, 8, 256)


# --- receptive fields ----------------------------------------------------------------------------


def seen(name, **kwargs):
  """The receptive field of each stage, from the windows of all its layers."""
  windows, views = [Window(7, 2, 3), Window(3, 2, 1)], {}
  for stage in (2, 3, 4, 5):
    for block in stage_blocks(VARIANTS[name], stage, **kwargs):
      for conv in block.convs:
        kernel = conv.dilation * (conv.kernel - 1) + 1
        windows.append(Window(kernel, conv.stride, kernel // 2))
    views[f'c{stage}'] = receptive_field(windows)
  return views


def test_receptive_fields():
  """Of stage 5; the last two are those of Araujo et al. 2019, distill.pub, for ResNet v1."""
  names = ('resnet18', 'resnet34', 'resnet50', 'resnet101')
  assert [seen(n)['c5'].size for n in names] == [435, 899, 427, 971]
  assert [seen(n, stride_in_1x1=True)['c5'].size for n in names[2:]] == [483, 1027]


@pytest.mark.parametrize(
  'variant, kwargs',
  [
    ('basic', {}),
    ('bottleneck', {}),
    ('bottleneck', {'stride_in_1x1': True}),
    ('groups', {'dilate': (4, 5)}),
  ],
)
def test_outputs_lie_on_pixels_and_see_what_the_table_says(variant, kwargs):
  """Exactly the outputs whose receptive field contains a NaN pixel become NaN."""
  model = tiny(variant, norm='frozen', **kwargs)
  variables = random_variables(model)
  pixel, height = 256, 512
  image = np.zeros((1, height, 1, 3), np.float32)
  image[0, pixel] = np.nan
  features = apply(model, variables, image)
  for name, (stride, center, size) in seen(variant, **kwargs).items():
    assert center == 0
    expected = [i for i in range(height // stride) if abs(stride * i - pixel) <= size // 2]
    actual = np.flatnonzero(np.isnan(features[name]).all((0, 2, 3)))
    assert actual.tolist() == expected


@pytest.mark.parametrize('size', [(1, 1), (4, 7), (5, 8)])
def test_max_pool_3x3(size):
  x = -np.random.default_rng(0).uniform(1, 2, (2, *size, 3)).astype('f4')
  ours, pullback = jax.vjp(max_pool_3x3, x)
  reference = lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
  theirs, their_pullback = jax.vjp(reference, x)
  np.testing.assert_array_equal(ours, theirs)
  g = np.random.default_rng(1).normal(size=ours.shape).astype('f4')
  assert_close(pullback(g)[0], their_pullback(g)[0], 1e-6)


# --- separate stages -----------------------------------------------------------------------------


def test_stages_run_apart_are_the_whole():
  class Separate(nn.Module):
    """As Mask R-CNN on C4: stage 5 runs twice, on two inputs."""

    @nn.compact
    def __call__(self, image):
      backbone = tiny(name='backbone')
      c4 = backbone(image, stages=(1, 2, 3, 4))['c4']
      return [backbone(x, stages=(5,))['c5'] for x in (c4, c4[:, :2])]

  variables = random_variables(tiny())
  x = images()
  whole = apply(tiny(), variables, x)
  c5, part = apply(Separate(), {k: {'backbone': v} for k, v in variables.items()}, x)
  assert_close(c5, whole['c5'])
  assert part.shape == (2, 1, *c5.shape[2:])
  shapes = abstract(Separate(), x.shape)
  assert {k: jax.tree.map(jnp.shape, v['backbone']) for k, v in shapes.items()} == jax.tree.map(
    jnp.shape, variables
  )


def test_stages_that_are_not_run_have_no_parameters():
  params = abstract(tiny(), (1, 32, 32, 3), stages=(1, 2))['params']
  assert {name[:4] for name in params} == {'stem', 'res2'}


def test_unstrided_stages_keep_the_size_and_the_parameters():
  shapes = [abstract(tiny(unstrided=u), (1, 32, 32, 3)) for u in ((), (5,))]
  assert shapes[0] == shapes[1]
  model, variables = tiny(unstrided=(5,)), shapes[0]
  x = jax.ShapeDtypeStruct((1, 7, 7, 64), jnp.float32)
  (c5,) = jax.eval_shape(functools.partial(model.apply, stages=(5,)), variables, x).values()
  assert c5.shape[1:3] == (7, 7)


def test_stages_that_a_config_may_name():
  """Only stages 3, 4 and 5 have a stride; up to 5 stages may be frozen."""
  hints = typing.get_type_hints(ResNet, include_extras=True)
  accepted = lambda hint: [stage for stage in range(-1, 8) if stage in typing.get_args(hint)[1]]
  for key in ('dilate', 'unstrided'):
    assert accepted(typing.get_args(hints[key])[0]) == [3, 4, 5]
  assert accepted(hints['frozen_stages']) == [0, 1, 2, 3, 4, 5]


# --- norms and training --------------------------------------------------------------------------


def gradient(model, variables, x):
  """Of the features' squares, for the parameters, and the new state."""

  @functools.partial(jax.grad, has_aux=True)
  def loss(params):
    features, state = model.apply(
      {**variables, 'params': params}, x, stages=SHORT, train=True, mutable=['batch_stats']
    )
    return sum((f**2).mean() for f in features.values()), state

  return jit(loss, once=True)(variables['params'])


@pytest.mark.parametrize(
  'variant, norm',
  [('basic', 'batch'), ('bottleneck', 'frozen'), ('groups', 'group')],
)
def test_everything_learns_but_frozen_norms(variant, norm):
  model = tiny(variant, norm=norm)
  variables = random_variables(model, SHORT)
  gradients, state = gradient(model, variables, images())
  for layer, parts in gradients.items():
    for name, g in parts.items():
      assert np.isfinite(g).all()
      learns = not (norm == 'frozen' and layer.endswith('_norm'))
      assert bool(np.any(g)) == learns, (layer, name)
  old, new = (jax.tree.leaves(s.get('batch_stats', {})) for s in (variables, state))
  assert len(old) == len(new) and bool(old) == (norm != 'group')
  assert all(np.array_equal(a, b) == (norm == 'frozen') for a, b in zip(old, new, strict=True))


def test_frozen_is_batch_normalization_with_the_running_statistics():
  x = images()
  variables = random_variables(tiny(), SHORT)
  shapes = dict(abstract(tiny(norm='frozen'), x.shape, stages=SHORT))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
  expected = apply(tiny(), variables, x, stages=SHORT)
  for train in (False, True):
    actual = apply(tiny(norm='frozen'), variables, x, stages=SHORT, train=train)
    for name in expected:
      assert_close(actual[name], expected[name])


def test_frozen_norm_passes_its_gradient_on():
  x = images((1, 2, 3, 4))
  layer = FrozenBatchNorm(jnp.float32)
  variables = {
    'params': {'scale': np.full(4, 3, 'f4'), 'bias': np.full(4, 5, 'f4')},
    'batch_stats': {'mean': np.full(4, 7, 'f4'), 'var': np.full(4, 4 - 1e-5, 'f4')},
  }
  y, pullback = jax.vjp(lambda x: layer.apply(variables, x), x)
  np.testing.assert_allclose(y, (x - 7) * 1.5 + 5, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], jnp.full(x.shape, 1.5), rtol=1e-6)


def test_batch_statistics_follow_the_batch_by_the_momentum():
  x = images()
  variables = random_variables(tiny(bn_momentum=0.25))
  model = tiny(bn_momentum=0.25)
  run = functools.partial(apply, model, variables, x, train=True)
  _, state = run(stages=(1,), mutable=['batch_stats'])
  kernel = {'params': {'kernel': variables['params']['stem']['kernel']}}
  stem = apply(nn.Conv(4, (7, 7), 2, padding=3, use_bias=False), kernel, x)
  old, new = (s['batch_stats']['stem_norm']['mean'] for s in (variables, state))
  assert_close(new, 0.25 * old + 0.75 * stem.mean((0, 1, 2)))


def test_kernels_start_as_he_et_al_by_what_goes_out():
  model = ResNet('bottleneck', width=64)
  init = functools.partial(model.init, stages=(1,))
  params = jit(init, once=True)(jax.random.key(0), images((1, 9, 9, 3)))['params']
  assert params['stem']['kernel'].std() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)
  assert (params['stem_norm']['scale'] == 1).all()


@pytest.mark.parametrize('norm', ['batch', 'frozen', 'group'])
def test_bfloat16_computes_in_it_with_float32_parameters(norm):
  variables = random_variables(tiny(norm=norm), SHORT)
  coarse = tiny(norm=norm, dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(abstract(coarse, (1, 9, 9, 3)))} == {np.dtype('f4')}
  a, b = (apply(m, variables, images(), stages=SHORT)['c3'] for m in (tiny(norm=norm), coarse))
  assert b.dtype == jnp.bfloat16
  assert 0 < np.abs(a - b).mean() < 0.05 * np.abs(a).mean()


@pytest.mark.parametrize('epsilon', [0.0, 1.0])
def test_frozen_norms_take_an_epsilon(epsilon):
  scale, bias, mean, var = np.float32([[2, 3], [1, 0], [1, 0], [4, 1e-6]])
  variables = {
    'params': {'scale': scale, 'bias': bias},
    'batch_stats': {'mean': mean, 'var': var},
  }
  x = np.float32([3, 1]).reshape(1, 1, 1, 2)
  y = apply(FrozenBatchNorm(jnp.float32, epsilon), variables, x)
  expected = scale / np.sqrt(var + epsilon) * (x - mean) + bias
  np.testing.assert_allclose(y, expected, rtol=1e-5)
