import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from segjax.ops.normalize import (
  layer_norm,
  local_contrast_norm,
  local_response_norm,
  normalize_pixels,
)
from segjax.training.compile import jit


def image(shape=(2, 6, 7, 3), scale=60.0):
  return (np.random.default_rng(0).normal(size=shape) * scale + 100).astype(np.float32)


@pytest.mark.parametrize(
  ('channels', 'mean', 'std'),
  [
    (1, (100.4,), (57.3,)),
    (3, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    (3, (9,), (1,)),
  ],
)
def test_pixels_are_normalized_to_the_last_bit(channels, mean, std):
  pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(channels, axis=1)[None, :, None]
  found = jax.jit(lambda x: normalize_pixels(x, mean, std))(pixels)
  assert found.dtype == jnp.float32
  expected = (pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)
  np.testing.assert_array_equal(found, expected)


def layer(shape, dtype='f4'):
  """x, a scale and a bias."""
  rng = np.random.default_rng(0)
  x = 3 * rng.normal(size=shape) + 2
  return tuple(a.astype(dtype) for a in (x, *rng.normal(size=(2, shape[-1]))))


@pytest.mark.parametrize('shape', [(5, 1), (7, 16), (2, 3, 8), (2, 3, 4, 24)])
def test_layers_are_normalized_by_the_definition(shape):
  x, scale, bias = layer(shape, float)
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  expected = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
  found = layer_norm(*layer(shape), 1e-3)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def linen(x, scale, bias):
  return nn.LayerNorm(1e-6).apply({'params': {'scale': scale, 'bias': bias}}, x)


@pytest.mark.parametrize('shape', [(7, 16), (2, 3, 8), (2, 3, 4, 24)])
def test_layer_norm_equals_linen_forwards_and_backwards(shape):
  g = np.random.default_rng(1).normal(size=shape).astype('f4')

  def both(function, *args):
    y, pullback = jax.vjp(function, *args)
    return y, *pullback(g)

  given = layer(shape)
  run = jit(lambda *args: (both(layer_norm, *args), both(linen, *args)), once=True)
  for a, b in zip(*run(*given), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_numerical_gradient_of_layer_norm_to_second_order():
  x, scale, bias = layer((3, 6))
  check_grads(jax.jit(layer_norm), (x, scale, bias), 2, ['rev'], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('offset', [0, 100])
def test_the_gradients_of_layer_norm_are_as_exact_as_linens(offset):
  """Far from zero the mean cancels, in the same way."""
  x, scale, bias = layer((50, 64), float)
  x = x + offset
  g = np.random.default_rng(1).normal(size=x.shape)
  inverse = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  y, a = (x - x.mean(-1, keepdims=True)) * inverse, g * scale
  dx = inverse * (a - a.mean(-1, keepdims=True) - y * (a * y).mean(-1, keepdims=True))
  exact = dx, (g * y).sum(0), g.sum(0)

  def errors(function):
    given = (jnp.asarray(v, jnp.float32) for v in (x, scale, bias))
    found = jax.vjp(function, *given)[1](jnp.asarray(g, jnp.float32))
    return np.array([np.abs(a - b).max() for a, b in zip(found, exact, strict=True)])

  assert (errors(layer_norm) < 1.5 * errors(linen) + 1e-6).all()


def test_layer_norm_of_float64():
  with jax.enable_x64(True):
    x, scale, bias = layer((7, 16), float)
    gradient = lambda f: jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))(x, scale, bias)
    for a, b in zip(gradient(layer_norm), gradient(linen), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-10)


def test_layer_norm_of_one_channel():
  x, scale, bias = layer((5, 1))
  found = jax.grad(lambda *a: layer_norm(*a).sum(), (0, 1, 2))(x, scale, bias)
  for a, b in zip(found, (np.zeros((5, 1)), [0], [5]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_layer_norm_under_vmap_and_checkpoint():
  x, scale, bias = layer((3, 4, 8))
  gradient = jax.grad(lambda *a: (layer_norm(*a) ** 2).sum(), (0, 1, 2))
  again = jax.grad(jax.checkpoint(lambda *a: (layer_norm(*a) ** 2).sum()), (0, 1, 2))
  whole, mapped = gradient(x, scale, bias), jax.vmap(gradient, (0, None, None))(x, scale, bias)
  np.testing.assert_allclose(mapped[0], whole[0], rtol=1e-4, atol=1e-5)
  for a, b, c in zip(mapped[1:], whole[1:], again(x, scale, bias)[1:], strict=True):
    np.testing.assert_allclose(a.sum(0), b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(c, b, rtol=1e-4, atol=1e-5)


def test_layer_norm_is_defined_on_every_platform():
  gradient = jax.grad(lambda *a: layer_norm(*a).sum(), (0, 1, 2))
  exported = jax.export.export(jax.jit(gradient), platforms=('cpu', 'cuda', 'tpu'))
  assert exported(*layer((3, 4, 8))).platforms == ('cpu', 'cuda', 'tpu')


def test_devices_that_share_two_axes_gather_none_for_layer_norm():
  x, scale, bias = layer((4, 6, 5, 8))
  mesh = jax.make_mesh((2, 2), ('data', 'space'))
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data', 'space'), ()))
  gradient = jax.grad(lambda *a: (layer_norm(*a) ** 2).sum(), (0, 1, 2))
  places = (split, whole, whole)
  shared = jax.jit(gradient, in_shardings=places, out_shardings=places).lower(x, scale, bias)
  shared = shared.compile()
  assert not re.search('all-gather|all-to-all|collective-permute', shared.as_text())
  given = jax.device_put((x, scale, bias), places)
  for a, b in zip(shared(*given), gradient(x, scale, bias), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_layer_norm_of_a_constant():
  _, scale, bias = layer((1, 6))
  x = jnp.full((2, 6), 7.0)
  np.testing.assert_allclose(layer_norm(x, scale, bias), np.tile(bias, (2, 1)), atol=1e-6)
  gradient = jax.grad(lambda x: (layer_norm(x, scale, bias) ** 2).sum())(x)
  assert np.isfinite(gradient).all()


def test_layer_norm_keeps_bfloat16():
  x, scale, bias = layer((9, 16))
  loss = lambda x, scale, bias: (layer_norm(x, scale, bias).astype(jnp.float32) ** 2).sum()
  found = jax.grad(loss, (0, 1, 2))(jnp.asarray(x, jnp.bfloat16), scale, bias)
  assert [a.dtype for a in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
  for a, b in zip(found, jax.grad(loss, (0, 1, 2))(x, scale, bias), strict=True):
    assert np.abs(np.asarray(a, np.float32) - b).max() < 0.03 * np.abs(b).max()


@pytest.mark.parametrize('channels', [1, 3, 8])
@pytest.mark.parametrize('size', [1, 3, 5])
def test_local_response_equals_the_definition(channels, size):
  x = image((1, 2, 3, channels)).astype(np.float64)
  expected = np.zeros_like(x)
  for n, i, j, c in np.ndindex(x.shape):
    near = [x[n, i, j, k] ** 2 for k in range(channels) if abs(k - c) <= size // 2]
    expected[n, i, j, c] = x[n, i, j, c] / (2 + 1e-4 / size * sum(near)) ** 0.6
  y = local_response_norm(jnp.asarray(x, jnp.float32), size, alpha=1e-4, beta=0.6, k=2.0)
  np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_local_response_defaults_are_those_of_caffe():
  # One channel: y = x / (1 + 1e-4 / 5 · x²)^0.75.
  assert local_response_norm(jnp.full((1, 1, 1, 1), 100.0)).item() == pytest.approx(
    100 / (1 + 1e-4 / 5 * 1e4) ** 0.75
  )


def test_local_response_of_bfloat16_is_that_of_float32_rounded():
  x = jnp.asarray(image(), jnp.bfloat16)
  y = local_response_norm(x)
  assert y.dtype == jnp.bfloat16
  exact = local_response_norm(x.astype(jnp.float32))
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_local_response_equals_torch():
  torch = pytest.importorskip('torch')
  x = image((2, 3, 4, 7))
  theirs = torch.nn.functional.local_response_norm(
    torch.tensor(x.transpose(0, 3, 1, 2)), 5, alpha=1e-4, beta=0.75, k=1.0
  )
  np.testing.assert_allclose(
    local_response_norm(x), theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-5
  )


def defined_contrast(x, size, sigma):
  """Jarrett et al. 2009, in loops and float64, for an image f[H, W, C]."""
  h, w, c = x.shape
  r = size // 2

  def average(a):
    y = np.zeros((h, w, 1))
    for i, j in np.ndindex(h, w):
      total = weights = 0.0
      for p, q in np.ndindex(size, size):
        row, col = i + p - r, j + q - r
        if 0 <= row < h and 0 <= col < w:
          weight = np.exp(-((p - r) ** 2 + (q - r) ** 2) / (2 * sigma**2))
          total += weight * a[row, col].sum()
          weights += weight * c
      y[i, j] = total / weights
    return y

  v = x - average(x)
  s = np.sqrt(average(v**2))
  return v / np.maximum(s, s.mean())


@pytest.mark.parametrize('channels, size, sigma', [(3, 9, 2.25), (1, 3, 0.8), (2, 5, 10.0)])
def test_local_contrast_equals_the_definition(channels, size, sigma):
  x = image((2, 6, 7, channels))
  x[:, :, :4] = 0.05 * x[:, :, :4]  # A part of low contrast, for the mean in the divisor.
  expected = [defined_contrast(a.astype(np.float64), size, sigma) for a in x]
  np.testing.assert_allclose(local_contrast_norm(x, size, sigma), expected, rtol=1e-3, atol=1e-4)


def test_local_contrast_does_not_see_brightness_and_contrast():
  x = image()
  np.testing.assert_allclose(
    local_contrast_norm(3 * x + 20), local_contrast_norm(x), rtol=1e-3, atol=1e-4
  )


def test_local_contrast_of_a_flat_image_is_zero():
  flat = jnp.full((1, 5, 8, 3), 255.0)
  np.testing.assert_allclose(local_contrast_norm(flat), 0, atol=0.1)
  assert (local_contrast_norm(0 * flat) == 0).all()
  assert jnp.isfinite(jax.grad(lambda x: local_contrast_norm(x).sum())(flat)).all()


@pytest.mark.parametrize('function', [local_response_norm, local_contrast_norm])
def test_even_windows_are_an_error(function):
  with pytest.raises(ValueError, match='size 4 must be odd'):
    function(jnp.zeros((1, 2, 2, 1)), size=4)
