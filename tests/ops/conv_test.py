import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.ops.conv import full_window_conv, grouped_conv, kernel_gradient, spread_gradient
from segjax.training.compile import jit

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# Groups, kernel, strides, padding, dilation; the last has rows and columns that no window sees.
CASES = [
  (1, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
  (4, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
  (2, (3, 2), (1, 2), ((2, 0), (0, 1)), (2, 3)),
  (8, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
  (4, (2, 2), (3, 4), ((0, 0), (0, 0)), (1, 1)),
]


def block_diagonal(x, kernel, strides, padding, dilation):
  """The same as a convolution without groups, whose kernel is zero between groups."""
  kh, kw, cin, cout = kernel.shape
  groups = x.shape[-1] // cin
  parts = kernel.reshape(kh, kw, cin, groups, cout // groups)
  whole = jnp.einsum('kligo,gh->klhigo', parts, jnp.eye(groups, dtype=kernel.dtype))
  return lax.conv_general_dilated(
    x,
    whole.reshape(kh, kw, groups * cin, cout),
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=LAYOUT,
  )


def operands(groups, kernel_size, dtype=np.float32):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 9, 16)).astype(dtype)
  return x, rng.normal(size=(*kernel_size, 16 // groups, 24)).astype(dtype)


def test_the_gradient_is_defined_on_every_platform():
  groups, kernel_size, *window = CASES[1]
  loss = lambda x, kernel: grouped_conv(x, kernel, *window).sum()
  program = jax.jit(jax.grad(loss, argnums=1))
  exported = jax.export.export(program, platforms=('cpu', 'cuda', 'tpu'))(
    *operands(groups, kernel_size)
  )
  assert exported.platforms == ('cpu', 'cuda', 'tpu')


@pytest.mark.parametrize('case', CASES)
def test_equals_a_block_diagonal_kernel_forwards_and_backwards(case):
  groups, kernel_size, *window = case
  x, kernel = operands(groups, kernel_size)
  shape = jax.eval_shape(lambda x, kernel: grouped_conv(x, kernel, *window), x, kernel).shape
  g = np.random.default_rng(1).normal(size=shape).astype('f4')

  def both(function):
    y, pullback = jax.vjp(lambda x, kernel: function(x, kernel, *window), x, kernel)
    return y, *pullback(jnp.asarray(g))

  ours, theirs = jit(lambda: (both(grouped_conv), both(block_diagonal)), once=True)()
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert a.dtype == jnp.float32


@pytest.mark.parametrize('case', CASES)
def test_kernel_gradient_is_xla_s(case):
  """The form for CPUs, which `grouped_conv` takes here, and the one for all other devices."""
  groups, kernel_size, *window = case
  x, kernel = operands(groups, kernel_size)
  strides, padding, dilation = window

  def plain(kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      rhs_dilation=dilation,
      dimension_numbers=LAYOUT,
      feature_group_count=groups,
    )

  @functools.partial(jit, once=True)
  def both():
    y, pullback = jax.vjp(plain, kernel)
    return kernel_gradient(x, y, kernel.shape, *window), pullback(y)[0]

  np.testing.assert_allclose(*both(), rtol=1e-4, atol=1e-3)


def test_one_group_leaves_the_others_alone():
  x, kernel = operands(4, (3, 3))
  changed = x.copy()
  changed[..., 4:8] += 1
  a, b = (grouped_conv(v, kernel) for v in (x, changed))
  moved = np.abs(a - b).max((0, 1, 2)) > 0
  assert np.flatnonzero(moved).tolist() == list(range(6, 12))


def test_keeps_bfloat16():
  x, kernel = operands(4, (3, 3))
  gradient = jax.grad(lambda kernel, x: grouped_conv(x, kernel).astype(jnp.float32).sum())
  coarse = jit(gradient, once=True)(*(jnp.asarray(a, jnp.bfloat16) for a in (kernel, x)))
  assert coarse.dtype == jnp.bfloat16
  exact = jit(gradient, once=True)(kernel, x)
  np.testing.assert_allclose(np.asarray(coarse, np.float32), exact, rtol=0.02, atol=0.5)


@pytest.mark.parametrize('kernel_size', [(3, 5), (7, 9), (1, 1)])
def test_full_window_equals_the_convolution_forwards_and_backwards(kernel_size):
  x, kernel = operands(1, kernel_size)
  plain = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, (1, 1), 'VALID', dimension_numbers=LAYOUT
  )
  expected, pullback = jax.vjp(plain, x, kernel)
  result, own_pullback = jax.vjp(full_window_conv, x, kernel)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
  g = jnp.asarray(np.random.default_rng(1).normal(size=result.shape), jnp.float32)
  for a, b in zip(own_pullback(g), pullback(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  # Also where this is not a CPU, which is the only one to use it.
  np.testing.assert_allclose(
    spread_gradient(g, kernel, x.shape[1:3]), pullback(g)[0], rtol=1e-4, atol=1e-4
  )
