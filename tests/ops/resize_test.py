"""Bilinear interpolation against `jax.image.resize`, SciPy and OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.ndimage import map_coordinates

from segjax.data.geometry import resize_image
from segjax.ops import resize

resize_inside = jax.jit(resize.resize_inside, static_argnums=3)
resize_images = jax.jit(resize.resize_images, static_argnums=3)


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('factor', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(3, 5), (1, 4)])
def test_enlarge_is_jax_image_resize(factor, size):
  x = random(2, *size, 3)
  shape = (2, factor * size[0], factor * size[1], 3)
  both = jax.jit(lambda x: (resize.enlarge(x, factor), jax.image.resize(x, shape, 'linear')))
  np.testing.assert_allclose(*both(x), rtol=1e-5, atol=1e-6)


def test_enlarge_in_a_narrow_type():
  assert resize.enlarge(jnp.ones((1, 2, 2, 1), jnp.bfloat16), 2).dtype == jnp.bfloat16


def test_gradient():
  check_grads(jax.jit(lambda x: resize.enlarge(x, 2)), (random(1, 2, 3, 1),), 1, ('rev',), eps=0.1)


@pytest.mark.parametrize('size', [(9, 13), (8, 10), (1, 1), (12, 16)])
@pytest.mark.parametrize('factor', [1, 4])
def test_enlarge_aligned_is_scipy_s_map_coordinates(factor, size):
  """Also of sizes beyond the last pixel, and smaller ones."""
  x = random(2, 3, 4, 2)
  found = jax.jit(lambda x: resize.enlarge_aligned(x, factor, size))(x)
  rows, columns = np.meshgrid(*(np.arange(n) / factor for n in size), indexing='ij')
  expected = np.empty_like(found)
  for b, c in np.ndindex(2, 2):
    expected[b, ..., c] = map_coordinates(x[b, ..., c], [rows, columns], order=1, mode='nearest')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_enlarge_aligned_in_a_narrow_type_and_of_one_pixel():
  x = jnp.full((1, 1, 1, 2), 3, jnp.bfloat16)
  found = resize.enlarge_aligned(x, 4, (5, 6))
  assert found.dtype == jnp.bfloat16 and found.shape == (1, 5, 6, 2)
  assert (found == 3).all()


def test_gradient_of_enlarge_aligned():
  enlarge = jax.jit(lambda x: resize.enlarge_aligned(x, 2, (5, 7)))
  check_grads(enlarge, (random(1, 2, 3, 1),), 1, ('rev',), eps=0.1)


@pytest.mark.parametrize('new', [(9, 14), (3, 4), (6, 7), (6, 20), (1, 1)])
def test_resize_inside_is_opencv(new):
  """Of two images of different sizes; what is in the padding does not matter."""
  x = random(2, 8, 9, 2)
  x[0, 6:], x[0, :, 7:] = np.nan, np.nan
  sizes = np.array([[6, 7], [8, 9]])
  found = resize_inside(x, sizes, np.array([new, (8, 9)]), (10, 21))
  assert found.shape == (2, 10, 21, 2)
  expected = cv2.resize(x[0, :6, :7], new[::-1], interpolation=cv2.INTER_LINEAR)
  np.testing.assert_allclose(found[0, : new[0], : new[1]], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found[1, :8, :9], x[1])
  assert np.isfinite(found).all()


@pytest.mark.parametrize('new', [(3, 3), (4, 7), (6, 3), (9, 14), (1, 1), (5, 4)])
def test_resize_images_is_how_images_are_resized(new):
  x = random(2, 8, 9, 2)
  x[0, 6:], x[0, :, 7:] = 100, 100
  sizes = np.array([[6, 7], [8, 9]])
  found = resize_images(x, sizes, np.array([new, (4, 9)]), (10, 15))
  expected = resize_image(x[0, :6, :7], new)
  np.testing.assert_allclose(found[0, : new[0], : new[1]], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1, :4, :9], x[1].reshape(4, 2, 9, 2).mean(1), atol=1e-5)
  assert not found[0, new[0] :].any() and not found[1, :, 9:].any()


def test_inside_mask_is_the_size():
  found = resize.inside_mask(np.array([[[2, 3], [0, 1]], [[4, 5], [9, 5]]]), (4, 5))
  for mask, (h, w) in zip(found.reshape(4, 4, 5), [(2, 3), (0, 1), (4, 5), (4, 5)], strict=True):
    expected = np.zeros((4, 5), bool)
    expected[:h, :w] = True
    np.testing.assert_array_equal(mask, expected)
