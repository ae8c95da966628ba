"""SegNet against the numbers of the paper (arXiv 1511.00561) and against PyTorch's operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import abstract, apply, count

from segjax.models import segnet
from segjax.models.segnet import VARIANTS, SegNet, SegNetBasic
from segjax.nn.vgg import conv_layers
from segjax.ops.normalize import local_response_norm
from segjax.training.compile import jit
from segjax.types import SegjaxError

# Table 1: millions of parameters, with 11 classes.
TABLE_1 = {
  'Bilinear-Interpolation': 0.625,
  'SegNet-Basic': 1.425,
  'SegNet-Basic-EncoderAddition': 1.425,
  'SegNet-Basic-SingleChannelDecoder': 0.625,
  'FCN-Basic': 0.65,
  'FCN-Basic-NoAddition': 0.65,
  'FCN-Basic-NoDimReduction': 1.625,
  'FCN-Basic-NoAddition-NoDimReduction': 1.625,
}


def tiny(**kwargs):
  return SegNet(
    **{'classes': 3, 'stages': ((4, 1), (6, 2), (8, 1)), 'dropout_stages': (2, 3)} | kwargs
  )


def basic(**kwargs):
  return SegNetBasic(**{'classes': 3, 'width': 4, 'input_norm': 'none'} | kwargs)


def images(shape=(2, 13, 9, 3)):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def random_variables(model):
  """Random parameters, and positive random variances, without the cost of compiling `init`."""
  rng = np.random.default_rng(1)
  variables, _ = abstract(model, (1, 16, 16, 3))
  draw = lambda path, x: (
    (
      rng.uniform(0.5, 1.5, x.shape)
      if path[-1].key in ('var', 'scale')
      else rng.normal(size=x.shape)
    )
    * (np.prod(x.shape[:-1]) ** -0.5)
  ).astype(np.float32)
  return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.mark.parametrize('variant', VARIANTS)
def test_table_1_parameters(variant):
  variables, logits = abstract(SegNetBasic(classes=11, variant=variant), (1, 360, 480, 3))
  millions = count(variables['params']) / 1e6
  # The paper's numbers are multiples of 0.025. Its 1.625 cannot be had with the 8x8 kernels and 64
  # channels of section 3.1: four of them alone are 1.05 million on top of the encoder's 0.61.
  slack = 0.04 if TABLE_1[variant] == 1.625 else 0.0125
  assert millions == pytest.approx(TABLE_1[variant], abs=slack)
  assert logits.shape == (1, 360, 480, 11)


def test_segnet_has_the_paper_s_layers_and_size():
  variables, logits = abstract(SegNet(classes=11), (1, 360, 480, 3))
  params = variables['params']
  encoder = [name for stage in conv_layers() for name, _ in stage]
  assert len(encoder) == 13
  # VGG16 has 138,357,544 parameters, of which its three dense layers have these.
  dense = (7 * 7 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
  assert count([params[name] for name in encoder]) == 138_357_544 - dense
  decoder = [params[f'{name}_D']['kernel'].shape[-1] for name in reversed(encoder)]
  assert decoder == [512] * 3 + [512, 512, 256] + [256, 256, 128] + [128, 64] + [64, 11]
  assert set(params) == {f'{n}{end}' for n in encoder for end in ('', '_bn', '_D', '_D_bn')} - {
    'conv1_1_D_bn'
  }
  assert int(count(params) * 4 / 1e6) == 117  # Table 6, model size in MB.
  assert logits.shape == (1, 360, 480, 11)


def test_unpooling_restores_the_sizes_of_a_camvid_image(monkeypatch):
  sizes = []
  unpool = segnet.unpool_2x2
  monkeypatch.setattr(segnet, 'unpool_2x2', lambda *a: (sizes.append(a[2]), unpool(*a))[1])
  abstract(SegNetBasic(classes=11), (1, 360, 480, 3))
  assert sizes == [(45, 60), (90, 120), (180, 240), (360, 480)]
  sizes.clear()
  abstract(SegNet(classes=11), (1, 360, 480, 3))
  assert sizes == [(23, 30), (45, 60), (90, 120), (180, 240), (360, 480)]


@pytest.mark.parametrize('size', [(1, 1), (13, 9), (17, 32)])
def test_any_size_goes_in_and_the_same_comes_out(size):
  for model in (tiny(), *(basic(variant=v) for v in VARIANTS)):
    assert abstract(model, (1, *size, 3))[1].shape == (1, *size, 3)


def test_equals_torch_operations():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  model, x = tiny(), images()
  variables = random_variables(model)
  tensors = jax.tree.map(torch.tensor, variables)

  def unit(x, name):
    layer, norm = tensors['params'][name], tensors['params'].get(f'{name}_bn')
    x = functional.conv2d(x, layer['kernel'].permute(3, 2, 0, 1), layer['bias'], padding=1)
    if norm is None:
      return x
    stats = tensors['batch_stats'][f'{name}_bn']
    x = functional.batch_norm(
      x, stats['mean'], stats['var'], norm['scale'], norm['bias'], eps=model.bn_epsilon
    )
    return functional.relu(x)

  y = torch.tensor(x.transpose(0, 3, 1, 2))
  kept = []
  for layers in (['conv1_1'], ['conv2_1', 'conv2_2'], ['conv3_1']):
    for name in layers:
      y = unit(y, name)
    size = y.shape[2:]
    y, indices = functional.max_pool2d(y, 2, ceil_mode=True, return_indices=True)
    kept.append((indices, size))
  for layers in (['conv3_1_D'], ['conv2_2_D', 'conv2_1_D'], ['conv1_1_D']):
    indices, size = kept.pop()
    y = functional.max_unpool2d(y, indices, 2, output_size=size)
    for name in layers:
      y = unit(y, name)
  expected = y.numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(apply(model, variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'variant',
  [
    'SegNet-Basic-EncoderAddition',
    'SegNet-Basic-SingleChannelDecoder',
    'FCN-Basic',
    'FCN-Basic-NoDimReduction',
  ],
)
def test_every_layer_of_a_variant_is_trained(variant, monkeypatch):
  if VARIANTS[variant].single_channel:
    # In its depthwise form, of 49 products, our convolution takes a minute to compile for tests.
    monkeypatch.setattr(segnet, 'Conv', nn.Conv)
  model, x = basic(variant=variant), images((2, 33, 35, 3))
  variables = random_variables(model)

  @functools.partial(jit, once=True)
  @jax.grad
  def gradient(params):
    logits, _ = model.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
    return (logits**2).sum()

  for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(gradient(variables['params']))):
    if path[-1].key == 'kernel':
      assert np.abs(g).max() > 1e-6, path


def test_relus_are_in_the_encoders_and_in_segnet_s_decoder_only(monkeypatch):
  calls = []
  relu = nn.relu
  monkeypatch.setattr(nn, 'relu', lambda x: (calls.append(x.shape), relu(x))[1])
  for model, expected in ((basic(), 4), (tiny(), 4 + 3)):
    calls.clear()
    abstract(model, (1, 16, 16, 3))
    assert len(calls) == expected


def test_encoder_addition_adds_the_encoder_s_maps():
  variables = random_variables(basic())
  # Without the upper decoders, only the first encoder's map can reach the last decoder.
  variables['params']['conv_decode2_bn'] = {'scale': np.zeros(4), 'bias': np.zeros(4)}

  def spread(variant):
    logits = apply(basic(variant=variant), variables, images((1, 32, 32, 3)))
    return logits[:, 8:-8, 8:-8].std((1, 2)).max()

  assert spread('SegNet-Basic') < 1e-4
  assert spread('SegNet-Basic-EncoderAddition') > 1e-2


def test_transposed_convolutions_start_as_bilinear_interpolation():
  kernel = segnet.twofold_bilinear_init(jax.random.key(0), (8, 8, 2, 2))
  x = images((1, 6, 7, 2))
  layer = segnet.ConvTranspose(2, 8, 2, padding=3)
  y = apply(layer, {'params': {'kernel': kernel, 'bias': np.zeros(2)}}, x)
  expected = jax.image.resize(x, (1, 12, 14, 2), 'bilinear')
  assert y.shape == expected.shape
  np.testing.assert_allclose(y[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'model, sizes',
  [
    (SegNet(classes=2, stages=((4, 1),) * 5, dropout=0.5), [8, 4, 2, 4, 8, 16]),
    (basic(dropout=0.5), [8, 4, 8, 16]),
  ],
)
def test_dropout_is_in_the_deepest_encoders_and_decoders(model, sizes):
  variables = random_variables(model)
  _, state = apply(
    model,
    variables,
    images((1, 64, 64, 3)),
    sample=True,
    rngs={'dropout': jax.random.key(0)},
    capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    mutable=['intermediates'],
  )
  outputs = jax.tree.leaves(state)
  assert [y.shape[1] for y in outputs] == sizes
  assert all((np.asarray(y) == 0).mean() > 0.2 for y in outputs)


def test_samples_differ_and_use_the_running_statistics():
  model, x = tiny(dropout=0.5), images()
  variables = random_variables(model)

  @functools.partial(jit, once=True, static_argnums=1)
  def draw(seed, sample):
    # Not mutable: an attempt to update the statistics would be an error.
    return model.apply(variables, x, sample=sample, rngs={'dropout': jax.random.key(seed)})

  plain, other = (np.asarray(draw(seed, False)) for seed in (0, 1))
  np.testing.assert_array_equal(plain, other)
  first, again, second = (np.asarray(draw(seed, True)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - second).max() > 1e-3
  # Batch statistics are not used: a single image has the same logits.
  np.testing.assert_allclose(apply(model, variables, x[:1]), plain[:1], rtol=1e-4, atol=1e-5)


def test_batch_normalization_takes_its_options():
  x = images()
  model = tiny(bn_momentum=0.25, bn_epsilon=0.5)
  variables = random_variables(model)
  _, state = apply(model, variables, x, train=True, mutable=['batch_stats'])
  y = apply(nn.Conv(4, (3, 3)), {'params': variables['params']['conv1_1']}, x)
  old, new = (v['batch_stats']['conv1_1_bn']['mean'] for v in (variables, state))
  np.testing.assert_allclose(new, 0.25 * old + 0.75 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
  assert np.abs(apply(model, variables, x) - apply(tiny(), variables, x)).max() > 1e-3


def test_input_normalization():
  x = 30 * images() + 100
  variables = random_variables(basic())
  model = SegNetBasic(classes=3, width=4)

  @functools.partial(jit, once=True)
  def run(variables):
    of = lambda model, x: model.apply(variables, x)
    plain, normed = of(basic(), local_response_norm(x)), of(basic(input_norm='local_response'), x)
    return plain, normed, of(model, x), of(model, 2 * x + 10), of(basic(), x)

  plain, normed, y, brighter, without = map(np.asarray, run(variables))
  np.testing.assert_allclose(plain, normed, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(y, brighter, rtol=1e-2, atol=1e-2)
  assert np.abs(y - without).max() > 0.1


def test_kernels_start_as_he_et_al():
  init = jit(tiny(stages=((32, 2),)).init, once=True)
  params = jax.device_get(init(jax.random.key(0), images((1, 2, 2, 3)))['params'])
  assert params['conv1_2']['kernel'].std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
  assert params['conv1_2_D']['kernel'].std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
  assert not params['conv1_2']['bias'].any()


@pytest.mark.parametrize('make', [tiny, basic])
def test_bfloat16_computes_in_it_and_outputs_float32(make):
  variables = random_variables(make())
  exact, rough = (apply(make(dtype=d), variables, images()) for d in ('float32', 'bfloat16'))
  assert rough.dtype == jnp.float32
  assert 0 < np.abs(exact - rough).mean() < 0.1 * np.abs(exact).mean()


def test_an_unknown_variant_is_an_error():
  with pytest.raises(SegjaxError, match=r'config.model.variant: .* did you mean FCN-Basic\?'):
    abstract(basic(variant='FCN-Basics'), (1, 16, 16, 3))
