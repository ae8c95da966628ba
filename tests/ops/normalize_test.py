import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.normalize import local_contrast_norm, local_response_norm, normalize_pixels


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
