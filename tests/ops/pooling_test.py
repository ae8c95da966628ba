import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from segjax.ops.pooling import argmax_pool_2x2, max_pool, max_pool_2x2, unpool_2x2
from segjax.ops.windows import Window


def reference(x):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


@pytest.mark.parametrize('shape', [(2, 4, 6, 3), (1, 5, 7, 2), (2, 2, 3, 1), (1, 1, 4, 1)])
def test_equals_the_library_forwards_and_backwards(shape):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  pooled = (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
  g = rng.normal(size=pooled).astype(np.float32)

  @jax.jit
  def both(x, g):
    results = [jax.vjp(pool, x) for pool in (max_pool_2x2, reference)]
    return [(y, pullback(g)[0]) for y, pullback in results], nn.max_pool(x, (2, 2), (2, 2))

  ((y, ours), (expected, theirs)), flax = both(x, g)
  assert y.shape == pooled
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_array_equal(y, flax)
  np.testing.assert_array_equal(ours, theirs)


def test_the_first_of_tied_maxima_has_the_gradient():
  gradients = [jax.grad(lambda x, f=f: f(x).sum()) for f in (max_pool_2x2, reference)]
  x = jnp.zeros((1, 4, 5, 1))
  ours, theirs = (gradient(x) for gradient in gradients)
  assert ours[0, 0, :4, 0].tolist() == [1, 0, 1, 0]
  np.testing.assert_array_equal(ours, theirs)


def test_keeps_the_type():
  assert max_pool_2x2(jnp.zeros((1, 4, 4, 1), jnp.bfloat16)).dtype == jnp.bfloat16
  assert max_pool_2x2(jnp.arange(4, dtype=jnp.int32).reshape(1, 2, 2, 1)).tolist() == [[[[3]]]]


WINDOWS = [Window(3, 2), Window(2, 2), Window(3, 1, 1), Window(3, 2, 1), Window(4, 3), Window(1)]


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize(
  ('size', 'partial'),
  [((1, 2), True), ((6, 7), True), ((9, 4), True), ((6, 7), False), ((9, 4), False)],
)
def test_max_pool_is_the_maximum_of_each_window(window, size, partial):
  """Of random negative numbers: a padded zero would win."""
  kernel, stride, padding = window
  x = -np.random.default_rng(0).uniform(1, 2, (2, *size, 3)).astype('f4')
  starts = []
  for n in size:
    rest = n + 2 * padding - kernel
    windows = max(0, math.ceil(rest / stride)) + 1 if partial else rest // stride + 1
    starts.append([stride * i - padding for i in range(windows)])
  g = np.random.default_rng(1).normal(size=(2, *map(len, starts), 3)).astype('f4')

  @jax.jit
  def pool(x, g):
    y, pullback = jax.vjp(lambda x: max_pool(x, window, partial=partial), x)
    return y, pullback(g)[0]

  y, actual = pool(x, g)
  expected, gradient = np.zeros_like(y), np.zeros_like(x)
  for (i, top), (j, left) in itertools.product(*map(enumerate, starts)):
    part = (slice(None), slice(max(0, top), top + kernel), slice(max(0, left), left + kernel))
    expected[:, i, j] = x[part].max((1, 2))
    gradient[part] += (x[part] == expected[:, i, j, None, None]) * g[:, i, j, None, None]
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_allclose(actual, gradient, atol=1e-6)


@pytest.mark.parametrize('partial', [True, False])
@pytest.mark.parametrize('window', WINDOWS)
def test_max_pool_equals_torch_in_either_mode(window, partial):
  torch = pytest.importorskip('torch')
  kernel, stride, padding = window
  x = np.random.default_rng(0).normal(size=(1, 8, 9, 2)).astype('f4')
  theirs = torch.nn.functional.max_pool2d(
    torch.tensor(x.transpose(0, 3, 1, 2)), kernel, stride, padding, ceil_mode=partial
  )
  ours = max_pool(x, window, partial=partial)
  np.testing.assert_array_equal(ours, theirs.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize('partial', [True, False])
def test_max_pool_has_no_empty_windows_and_keeps_the_type(partial):
  with pytest.raises(ValueError, match='can be outside the input'):
    max_pool(jnp.zeros((1, 4, 4, 1)), Window(2, 2, 1), partial=partial)
  pooled = max_pool(jnp.full((1, 4, 4, 1), -2, jnp.bfloat16), Window(3, 2, 1), partial=partial)
  assert pooled.dtype == jnp.bfloat16
  assert np.unique(pooled).tolist() == [-2]


def test_max_pool_without_partial_windows_needs_a_whole_one():
  window, x = Window(3, 2), jnp.zeros((1, 4, 2, 1))
  assert max_pool(x, window, partial=True).shape == (1, 2, 1, 1)
  with pytest.raises(ValueError, match='does not fit into 2 pixels: use a larger input'):
    max_pool(x, window, partial=False)


# Even, odd in one axis, odd in both, and windows that are all partial.
SIZES = [(4, 6), (5, 4), (4, 7), (5, 7), (1, 1), (1, 5), (3, 1)]


def grid(size, ties=False, batch=2, channels=3):
  """Images of few values, with many ties, or without ties."""
  rng = np.random.default_rng(0)
  shape = (batch, *size, channels)
  x = rng.integers(-2, 2, shape) if ties else rng.permutation(np.prod(shape)).reshape(shape)
  return x.astype(np.float32)


def defined_pool(x):
  """In loops: the values, the indices, and the row and column of each maximum."""
  b, h, w, c = x.shape
  shape = (b, (h + 1) // 2, (w + 1) // 2, c)
  values, indices, places = np.zeros(shape, x.dtype), np.zeros(shape, int), {}
  for n, i, j, k in np.ndindex(shape):
    places[n, i, j, k] = None
    for position in range(4):
      row, col = 2 * i + position // 2, 2 * j + position % 2
      inside = row < h and col < w
      if inside and (places[n, i, j, k] is None or x[n, row, col, k] > values[n, i, j, k]):
        places[n, i, j, k] = (n, row, col, k)
        values[n, i, j, k], indices[n, i, j, k] = x[n, row, col, k], position
  return values, indices, places


@jax.jit
def pool_both(x, g):
  """The values, their indices, and the gradient by g."""
  values, pullback, indices = jax.vjp(argmax_pool_2x2, x, has_aux=True)
  return values, indices, pullback(g)[0]


@functools.partial(jax.jit, static_argnames='size')
def unpool_both(y, indices, g, size):
  """The map, and the gradient by g."""
  restored, pullback = jax.vjp(lambda y: unpool_2x2(y, indices, size), y)
  return restored, pullback(g)[0]


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_argmax_pool_equals_the_definition_forwards_and_backwards(size, ties):
  x = grid(size, ties)
  expected, expected_indices, places = defined_pool(x)
  g = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
  values, indices, actual = pool_both(x, g)
  assert indices.dtype == jnp.uint8
  np.testing.assert_array_equal(values, expected)
  np.testing.assert_array_equal(indices, expected_indices)
  gradient = np.zeros_like(x)
  for window, place in places.items():
    gradient[place] = g[window]
  np.testing.assert_array_equal(actual, gradient)


@pytest.mark.parametrize('size', SIZES)
def test_unpool_equals_the_definition_forwards_and_backwards(size):
  _, indices, places = defined_pool(grid(size, ties=True))
  y = np.random.default_rng(1).normal(size=indices.shape).astype(np.float32)
  expected = np.zeros((2, *size, 3), np.float32)
  for window, place in places.items():
    expected[place] = y[window]
  g = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)
  restored, actual = unpool_both(y, indices.astype(np.uint8), g, size)
  np.testing.assert_array_equal(restored, expected)
  gradient = np.zeros_like(y)
  for window, place in places.items():
    gradient[window] = g[place]
  np.testing.assert_array_equal(actual, gradient)


@pytest.mark.parametrize('size', SIZES)
def test_the_gradients_of_pooling_and_unpooling_are_each_other(size):
  x = grid(size)
  shape = jax.eval_shape(argmax_pool_2x2, x)[0].shape
  g = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  values, indices, gradient = pool_both(x, g)
  restored, back = unpool_both(g, indices, x, size)
  np.testing.assert_array_equal(gradient, restored)
  np.testing.assert_array_equal(back, values)


def test_the_first_of_tied_maxima_takes_the_whole_gradient():
  x = jnp.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
  assert argmax_pool_2x2(x)[1].item() == 1
  gradient = jax.grad(lambda x: argmax_pool_2x2(x)[0].sum())(x)
  assert gradient.ravel().tolist() == [0, 1, 0, 0]
  assert argmax_pool_2x2(jnp.full((1, 1, 1, 1), -jnp.inf))[1].item() == 0


def test_segnet_sizes_of_a_camvid_image():
  sizes, x = [], jax.ShapeDtypeStruct((1, 360, 480, 1), jnp.float32)
  for _ in range(5):
    x, _ = jax.eval_shape(argmax_pool_2x2, x)
    sizes.append(x.shape[1:3])
  assert sizes == [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.int32])
def test_argmax_pool_and_unpool_keep_the_type(dtype):
  x = jnp.arange(-9, 0).reshape(1, 3, 3, 1).astype(dtype)
  values, indices = argmax_pool_2x2(x)
  restored = unpool_2x2(values, indices, (3, 3))
  assert values.dtype == restored.dtype == dtype
  assert values.ravel().tolist() == [-5, -4, -2, -1]
  assert restored.ravel().tolist() == [0, 0, 0, 0, -5, -4, 0, -2, -1]


@pytest.mark.parametrize('size', [(4, 4), (7, 4), (5, 5), (5, 2)])
def test_unpooling_to_a_size_that_does_not_fit_is_an_error(size):
  values, indices = argmax_pool_2x2(jnp.zeros((1, 5, 4, 1)))
  with pytest.raises(ValueError, match='does not pool to 3x2'):
    unpool_2x2(values, indices, size)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_equals_torch(size, ties):
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  x = grid(size, ties)
  theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  their_values, flat = functional.max_pool2d(theirs, 2, ceil_mode=True, return_indices=True)
  restored = functional.max_unpool2d(their_values, flat, 2, output_size=size)
  g = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  restored.backward(torch.tensor(g.transpose(0, 3, 1, 2)))

  def round_trip(x):
    values, indices = argmax_pool_2x2(x)
    return unpool_2x2(values, indices, size), (values, indices)

  ours, pullback, (values, indices) = jax.vjp(round_trip, x, has_aux=True)
  row, col = np.ogrid[: values.shape[1], : values.shape[2]]
  row, col = row[..., None] * 2 + indices // 2, col[..., None] * 2 + indices % 2
  for a, b in (
    (values, their_values.detach()),
    (row * size[1] + col, flat),
    (ours, restored.detach()),
    (pullback(g)[0], theirs.grad),
  ):
    np.testing.assert_array_equal(a, b.numpy().transpose(0, 2, 3, 1))
