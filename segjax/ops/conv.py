"""Convolutions with gradients that are fast on CPUs."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from segjax.types import Array

Pair: TypeAlias = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def grouped_conv(
  x: Array,
  kernel: Array,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
) -> Array:
  """Grouped convolution with G = C // Cin groups.

  Equal to `lax.conv_general_dilated`. On CPUs the kernel gradient is computed by one matrix product
  per group and kernel element, with 32 groups tens of times faster than XLA's. Supports reverse
  mode only.

  Args:
    x: f[B, H, W, C].
    kernel: f[kh, kw, Cin, Cout], of x's dtype; Cin divides C, and G divides Cout.
    strides: of rows and columns.
    padding: zero padding (before, after) of rows and columns.
    dilation: of the kernel's rows and columns.

  Returns:
    f[B, H', W', Cout], with H' = (H + padding - dilation · (kh - 1) - 1) // stride + 1.
  """
  return _convolve(x, kernel, strides, padding, dilation)


def _convolve(x, kernel, strides, padding, dilation):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def _forward(x, kernel, strides, padding, dilation):
  return _convolve(x, kernel, strides, padding, dilation), (x, kernel)


def _backward(strides, padding, dilation, residuals, g):
  x, kernel = residuals
  window = (strides, padding, dilation)
  [dx] = jax.vjp(lambda x: _convolve(x, kernel, *window), x)[1](g)
  dkernel = lax.platform_dependent(
    x,
    g,
    cpu=lambda x, g: kernel_gradient(x, g, kernel.shape, *window),
    default=lambda x, g: jax.vjp(lambda k: _convolve(x, k, *window), kernel)[1](g)[0],
  )
  return dx, dkernel


grouped_conv.defvjp(_forward, _backward)


def kernel_gradient(
  x: Array,
  g: Array,
  shape: tuple[int, int, int, int],
  strides: Pair,
  padding: tuple[Pair, Pair],
  dilation: Pair,
) -> Array:
  """The gradient of `grouped_conv` with respect to a kernel of `shape`.

  Kernel element (i, j) multiplies the pixel at offset `dilation · (i, j)` of each window; its
  gradient is the sum over all windows of the products of these pixels with g.

  Args:
    x: f[B, H, W, C], the input.
    g: f[B, H', W', Cout], the gradient of the output.
  """
  kh, kw, cin, cout = shape
  groups = x.shape[-1] // cin
  x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
  g = g.reshape(*g.shape[:3], groups, cout // groups)
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  # Distance from the first pixel of the first window to that of the last one, plus 1.
  spans = [s * (n - 1) + 1 for s, n in zip(strides, g.shape[1:3], strict=True)]

  def element(i: int, j: int) -> Array:
    top, left = i * dilation[0], j * dilation[1]
    seen = x[:, top : top + spans[0] : strides[0], left : left + spans[1] : strides[1]]
    seen = seen.reshape(*g.shape[:4], cin)
    return jnp.einsum('bhwgi,bhwgo->igo', seen, g, preferred_element_type=accumulator)

  elements = [element(i, j) for i in range(kh) for j in range(kw)]
  return jnp.stack(elements).reshape(shape).astype(x.dtype)


@jax.custom_vjp
def full_window_conv(x: Array, kernel: Array) -> Array:
  """Unpadded convolution of stride 1 with a kernel about as large as its input, such as FCN's fc6.

  Equal to `lax.conv_general_dilated`. On CPUs the gradient with respect to x is one matrix product
  and kh · kw shifted additions, tens of times faster than XLA's convolution. Supports reverse mode
  only.

  Args:
    x: f[B, H, W, Cin].
    kernel: f[kh, kw, Cin, Cout], of x's dtype.

  Returns:
    f[B, H - kh + 1, W - kw + 1, Cout].
  """
  return _convolve(x, kernel, (1, 1), ((0, 0), (0, 0)), (1, 1))


def _full_window_backward(residuals, g):
  x, kernel = residuals
  convolve = full_window_conv.fun
  dx = lax.platform_dependent(
    g,
    kernel,
    cpu=lambda g, kernel: spread_gradient(g, kernel, x.shape[1:3]),
    default=lambda g, kernel: jax.vjp(lambda x: convolve(x, kernel), x)[1](g)[0],
  )
  [dkernel] = jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)
  return dx, dkernel


full_window_conv.defvjp(
  lambda x, kernel: (full_window_conv.fun(x, kernel), (x, kernel)), _full_window_backward
)


def spread_gradient(g: Array, kernel: Array, size: Pair) -> Array:
  """The gradient of `full_window_conv` with respect to x of height and width `size`.

  Args:
    g: f[B, H', W', Cout], the gradient of the output.
    kernel: f[kh, kw, Cin, Cout].
  """
  kh, kw, cin, _ = kernel.shape
  height, width = g.shape[1:3]
  spread = jnp.einsum('bhwo,ijco->ijbhwc', g, kernel, preferred_element_type=jnp.float32)
  dx = jnp.zeros((len(g), *size, cin), jnp.float32)
  for i in range(kh):
    for j in range(kw):
      dx = dx.at[:, i : i + height, j : j + width].add(spread[i, j])
  return dx.astype(g.dtype)
