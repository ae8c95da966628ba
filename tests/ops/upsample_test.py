import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from segjax.ops import upsample

# input H, W; kernel; stride; padding. Odd and even, rectangular, kernel <, = and > stride.
CASES = [
  ((3, 4), (2, 2), 2, 0),
  ((3, 4), (2, 3), (2, 3), 0),
  ((2, 3), (4, 4), 2, 1),
  ((3, 2), (3, 3), 2, 1),
  ((4, 3), (5, 2), (1, 2), (2, 0)),
  ((3, 3), (2, 1), (3, 2), 0),
  ((3, 5), (1, 1), 1, 0),
  ((3, 3), (2, 2), 2, 1),
  ((4, 4), (1, 1), 2, 1),
]
FORMS = [
  upsample.conv_transpose_scatter,
  upsample.conv_transpose,
  upsample.conv_transpose_matrix,
]


def arrays(size, kernel, cin=3, cout=2):
  rng = np.random.default_rng(0)
  x, k = rng.normal(size=(2, *size, cin)), rng.normal(size=(*kernel, cin, cout))
  return jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32)


def definition(x, kernel, stride, padding):
  """output[s * i + j - p] += input[i] * kernel[j], in loops."""
  (sh, sw), (ph, pw) = np.broadcast_to(stride, 2), np.broadcast_to(padding, 2)
  b, h, w, _ = x.shape
  kh, kw, _, cout = kernel.shape
  y = np.zeros((b, sh * (h - 1) + kh - 2 * ph, sw * (w - 1) + kw - 2 * pw, cout))
  for i, j, m, n in np.ndindex(h, w, kh, kw):
    row, col = sh * i + m - ph, sw * j + n - pw
    if 0 <= row < y.shape[1] and 0 <= col < y.shape[2]:
      y[:, row, col] += x[:, i, j] @ kernel[m, n]
  return y


@functools.cache
def results(size, kernel, stride, padding):
  """Of each form the output and the gradients, compiled as one program."""

  def both(form):
    # The square makes the cotangent depend on the output.
    y, pullback = jax.vjp(lambda x, k: form(x, k, stride, padding), x, k)
    return y, pullback(2 * y)

  x, k = arrays(size, kernel)
  return jax.jit(lambda: [both(form) for form in FORMS])()


@pytest.mark.parametrize('case', CASES)
def test_forms_equal_the_definition(case):
  size, kernel, *window = case
  expected = definition(*(np.asarray(a, np.float64) for a in arrays(size, kernel)), *window)
  for y, _ in results(*case):
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_hand_computed():
  x = jnp.array([1.0, 10.0]).reshape(1, 1, 2, 1)
  k = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
  for form in FORMS:
    assert form(x, k, (1, 2)).ravel().tolist() == [1, 2, 13, 20, 30]
    assert form(x, k, (1, 2), (0, 1)).ravel().tolist() == [2, 13, 20]


def test_equals_lax_conv_transpose_with_the_rotated_kernel():
  x, k = arrays((4, 5), (4, 3))
  theirs = lax.conv_transpose(x, k[::-1, ::-1], (2, 3), 'VALID')
  np.testing.assert_allclose(upsample.conv_transpose(x, k, (2, 3)), theirs, rtol=1e-5, atol=1e-5)


def test_is_the_transpose_of_the_convolution():
  # <convolve(g), x> = <g, conv_transpose(x)>, with the convolution straight from lax.
  x, k = arrays((3, 4), (4, 3))
  y = upsample.conv_transpose(x, k, 2, 1)
  g = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
  convolved = lax.conv_general_dilated(
    g, k.swapaxes(2, 3), (2, 2), [(1, 1), (1, 1)], dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  assert convolved.shape == x.shape
  np.testing.assert_allclose(jnp.vdot(convolved, x), jnp.vdot(g, y), rtol=1e-4)
  matrix = upsample.conv_matrix(k, (3, 4), 2, 1)
  np.testing.assert_allclose(
    g.reshape(2, -1) @ matrix.T, convolved.reshape(2, -1), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('case', CASES)
def test_gradient_equals_that_of_the_scatter_form(case):
  (_, expected), *others = results(*case)
  for _, ours in others:
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kernel, stride, padding', [(2, 2, 0), (3, 2, 1)])
def test_numerical_gradient_to_second_order(kernel, stride, padding):
  f = jax.jit(lambda x, k: upsample.conv_transpose(x, k, stride, padding))
  x, k = arrays((2, 2), (kernel, kernel), cin=1)
  check_grads(f, (x, k), 2, ['rev'], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('kernel, stride', [(2, 2), (4, 2)])
def test_under_jit_vmap_and_bfloat16(kernel, stride):
  x, k = arrays((3, 4), (kernel, kernel))

  def loss(x, k):
    y = upsample.conv_transpose(x, k, stride)
    assert y.dtype == x.dtype
    return (y.astype(jnp.float32) ** 2).sum()

  gradient = jax.jit(jax.grad(loss, (0, 1)))
  one, other = gradient(x, k), gradient(2 * x, -k)
  both = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(jnp.stack([x, 2 * x]), jnp.stack([k, -k]))
  low = gradient(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16))
  for i in range(2):
    np.testing.assert_allclose(both[i][0], one[i], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both[i][1], other[i], rtol=1e-4, atol=1e-4)
    assert low[i].dtype == jnp.bfloat16
    error = np.abs(low[i].astype(jnp.float32) - one[i])
    assert error.max() < 0.03 * np.abs(one[i]).max()


def test_no_convolution_of_a_dilated_input_forwards_or_backwards():
  # XLA's convolution multiplies the zeros in between, and its gradient is slow.
  x, k = arrays((5, 5), (4, 4))
  gradient = jax.grad(lambda x, k: (upsample.conv_transpose(x, k, 2, 1) ** 2).sum(), (0, 1))
  program = jax.jit(gradient).lower(x, k).as_text()
  assert program.count('stablehlo.convolution') >= 2
  assert 'lhs_dilate' not in program.replace('lhs_dilate = [1, 1]', '')


def test_bilinear_kernel_values():
  def axis(k):
    return np.asarray(upsample.bilinear_kernel((k, 1), 1)).ravel().tolist()

  assert axis(4) == [0.25, 0.75, 0.75, 0.25]
  assert axis(3) == [0.5, 1.0, 0.5]
  np.testing.assert_allclose(axis(5), np.array([1, 2, 3, 2, 1]) / 3, rtol=1e-6)
  kernel = np.asarray(upsample.bilinear_kernel(4, 3))
  assert kernel.shape == (4, 4, 3, 3)
  np.testing.assert_allclose(kernel[:, :, 1, 1], np.outer(axis(4), axis(4)))
  assert not kernel[:, :, 0, 1].any()


@pytest.mark.parametrize('size, factor', [(4, 2), (16, 8), (3, 2), (5, 3)])
def test_bilinear_kernel_interpolates_a_plane(size, factor):
  # Away from the border, a linear ramp comes out as a ramp `factor` times less steep.
  ramp = jnp.broadcast_to(jnp.arange(6.0)[:, None], (6, 6))[None, :, :, None]
  kernel = upsample.bilinear_kernel(size, 1)
  y = np.asarray(upsample.conv_transpose(ramp, kernel, factor))[0, size:-size, size:-size, 0]
  np.testing.assert_allclose(np.diff(y, axis=0), 1 / factor, rtol=1e-4)
  np.testing.assert_allclose(np.diff(y, axis=1), 0, atol=1e-5)


def test_bilinear_init():
  key = jax.random.key(0)
  kernel = upsample.bilinear_init(key, (4, 4, 2, 2), jnp.bfloat16)
  assert kernel.dtype == jnp.bfloat16
  np.testing.assert_array_equal(kernel, upsample.bilinear_kernel(4, 2, jnp.bfloat16))
  with pytest.raises(ValueError, match='equal input and output channels'):
    upsample.bilinear_init(key, (4, 4, 2, 3))
