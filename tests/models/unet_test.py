"""U-Net against the numbers of the paper (arXiv 1505.04597, Fig. 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract, apply, count, filled

from segjax.models.unet import UNet, center_crop, pad_to_multiple
from segjax.training.compile import jit
from segjax.types import SegjaxError


def images(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tiny(**kwargs):
  return UNet(classes=2, **{'width': 2, 'depth': 2, 'dropout': 0.0} | kwargs)


def test_paper_has_31030658_parameters_and_maps_572_to_388():
  variables, logits = abstract(UNet(classes=2), (1, 572, 572, 1))
  assert count(variables) == 31_030_658
  assert logits.shape == (1, 388, 388, 2)
  assert UNet(classes=2).margin == (572 - 388) // 2


def test_paper_level_sizes(monkeypatch):
  sizes = []
  monkeypatch.setattr(
    'segjax.models.unet.max_pool_2x2', lambda x: (sizes.append(x.shape[1]), x[:, ::2, ::2])[1]
  )
  monkeypatch.setattr(
    'segjax.models.unet.center_crop',
    lambda x, h, w: (sizes.append((x.shape[1] - h) // 2), center_crop(x, h, w))[1],
  )
  model = UNet(classes=2, width=1)
  abstract(model, (1, 572, 572, 1))
  assert sizes == [568, 280, 136, 64, 4, 16, 40, 88]


@pytest.mark.parametrize('depth', [1, 2, 3, 4])
def test_valid_sizes_are_exactly_those_that_output_size_names(depth):
  model = UNet(classes=2, width=1, depth=depth)
  fits = []
  for size in range(2 * model.margin + 1, 2 * model.margin + 3 * model.stride):
    # Independent of `output_size`: all sizes before pooling must be even and positive.
    level, good = size, True
    for _ in range(depth):
      level -= 4
      good &= level > 0 and level % 2 == 0
      level //= 2
    if good and level > 4:
      fits.append(size - 2 * model.margin)
  assert [model.output_size(f) for f in fits] == fits
  assert model.output_size(1) == fits[0]
  assert model.output_size(fits[0] + 1) == fits[1]
  height, width = (out + 2 * model.margin for out in (fits[1], fits[0]))
  _, logits = abstract(model, (1, height, width, 1))
  assert logits.shape == (1, fits[1], fits[0], 2)
  with pytest.raises(SegjaxError, match=f'crop_size to {fits[1]}'):
    abstract(model, (1, width + 1, width, 1))


def test_error_names_the_size_that_fits():
  with pytest.raises(SegjaxError, match='570.*valid .* is 572.*crop_size to 388'):
    abstract(UNet(classes=2), (1, 570, 572, 1))


@pytest.mark.parametrize('size', [(16, 16), (17, 31), (1, 5), (3, 3)])
def test_same_padding_keeps_any_size(size):
  _, logits = abstract(tiny(padding='same', norm='batch'), (2, *size, 3))
  assert logits.shape == (2, *size, 2)


def test_unpadded_output_sees_only_its_own_receptive_field():
  """Shifting an image by the stride shifts the logits by the stride, to the pixel."""
  model = tiny()
  size = model.output_size(20) + 2 * model.margin
  image = images(1, size + model.stride, size, 1)
  variables = filled(abstract(model, image[:, :size])[0])
  first = apply(model, variables, image[:, :size])
  second = apply(model, variables, image[:, model.stride :])
  np.testing.assert_allclose(
    first[:, model.stride :], second[:, : -model.stride], rtol=1e-4, atol=1e-5
  )


def test_output_is_aligned_with_the_input():
  """Only a change inside the output's receptive field, centered on it, changes the output."""
  model = tiny()
  size = model.output_size(8) + 2 * model.margin
  image = np.ones((1, size, size, 1), np.float32)
  variables = jax.tree.map(np.abs, filled(abstract(model, image)[0]))  # so that no ReLU is zero
  of_one = lambda x: model.apply(variables, x)[0, 4, 4, 0]
  gradient = jit(jax.grad(of_one), once=True)(image)[0, :, :, 0]
  rows = np.flatnonzero(np.abs(gradient).sum(1))
  center = (rows.min() + rows.max()) / 2
  assert abs(center - (model.margin + 4)) <= model.stride / 2


def test_dropout_acts_in_training_only():
  model = tiny(padding='same', dropout=0.5)
  image = images(1, 16, 16, 1)
  variables = filled(abstract(model, image)[0])
  run = lambda key: model.apply(variables, image, train=True, rngs={'dropout': key})
  run = jit(run, once=True)
  first, second = (np.asarray(run(jax.random.key(i))) for i in (0, 1))
  assert not np.allclose(first, second)
  exact = tiny(padding='same', dropout=0.0)
  np.testing.assert_array_equal(apply(model, variables, image), apply(exact, variables, image))


def test_initialization_is_he_normal():
  """N(0, sqrt(2 / N)) with fan-in N (§3)."""
  model = UNet(classes=2, width=32, depth=1, padding='same')
  init = jit(lambda key: model.init(key, jnp.zeros((1, 2, 2, 1))), once=True)
  params = jax.device_get(init(jax.random.key(0))['params'])
  kernel = params['down1']['conv2']['kernel']
  assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
  assert not params['down1']['conv2']['bias'].any()


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  model = tiny(padding='same', norm='batch', dtype='bfloat16')
  image = images(1, 16, 16, 3)
  shapes, logits = abstract(model, image)
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  assert logits.dtype == jnp.float32
  variables = filled(shapes)
  coarse = apply(model, variables, image)
  exact = apply(tiny(padding='same', norm='batch'), variables, image)
  assert 0 < np.abs(coarse - exact).mean() < 0.05 * np.abs(exact).mean()


def test_group_norm_does_not_mix_examples():
  model = tiny(padding='same', norm='group')
  image = images(2, 16, 16, 3)
  variables = filled(abstract(model, image)[0])
  both = apply(model, variables, image, train=True)
  np.testing.assert_allclose(both[:1], apply(model, variables, image[:1]), rtol=1e-4, atol=1e-4)


def test_center_crop_and_pad_to_multiple():
  x = jnp.arange(5.0).reshape(1, 5, 1, 1)
  np.testing.assert_array_equal(center_crop(x, 2, 1)[0, :, 0, 0], [1, 2])
  np.testing.assert_array_equal(pad_to_multiple(x, 4)[0, :, 0, 0], [0, 1, 2, 3, 4, 4, 3, 2])


def reference(params, x, padding, statistics=None):
  """Fig. 1 in NumPy: logits [h, w, classes] of an image [H, W, C]; depth 2.

  `statistics`: running means and variances of a network with batch normalization.
  """

  def convolve(x, kernel):
    size = kernel.shape[:2]
    if padding == 'same' and size == (3, 3):
      x = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))
    return np.einsum('hwcij,ijco->hwo', windows, kernel)

  def double_conv(x, name):
    layers = params[name]
    for i in (1, 2):
      x = convolve(x, layers[f'conv{i}']['kernel'])
      if statistics is None:
        x = x + layers[f'conv{i}']['bias']
      else:
        norm, running = layers[f'norm{i}'], statistics[name][f'norm{i}']
        x = (x - running['mean']) / np.sqrt(running['var'] + 1e-5) * norm['scale'] + norm['bias']
      x = np.maximum(x, 0)
    return x

  skips = []
  for level in (0, 1):
    x = double_conv(x, f'down{level}')
    skips.append(x)
    x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
  x = double_conv(x, 'down2')
  for level in (1, 0):
    layer = params[f'upconv{level}']
    up = np.zeros((2 * x.shape[0], 2 * x.shape[1], layer['kernel'].shape[-1]))
    for i in (0, 1):
      for j in (0, 1):
        up[i::2, j::2] = x @ layer['kernel'][i, j] + layer['bias']
    top, left = ((skips[level].shape[axis] - up.shape[axis]) // 2 for axis in (0, 1))
    skip = skips[level][top : top + up.shape[0], left : left + up.shape[1]]
    x = double_conv(np.concatenate([skip, up], -1), f'up{level}')
  return convolve(x, params['head']['kernel']) + params['head']['bias']


@pytest.mark.parametrize(
  ('padding', 'norm', 'size'),
  [('valid', 'none', (44, 52)), ('same', 'none', (12, 20)), ('same', 'batch', (12, 20))],
)
def test_equals_the_figure_computed_by_hand(padding, norm, size):
  model = tiny(padding=padding, norm=norm)
  image = images(1, *size, 3)
  variables = filled(abstract(model, image.shape)[0])
  double = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
  statistics = double.get('batch_stats')
  expected = reference(double['params'], image[0].astype(np.float64), padding, statistics)
  found = apply(model, variables, image)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
