"""Transposed convolution in three equivalent forms, and FCN's bilinear initialization.

Definition, per axis, with stride `s`, padding `p` and kernel size `k`:

  output[s * i + j - p] += input[i] * kernel[j]        for 0 <= j < k

The padding removes `p` rows and columns from each side of the output: `n` inputs give
`s * (n - 1) + k - 2 * p` outputs. It is the transpose (the gradient) of the convolution with the
same stride, padding and kernel.

A kernel is `f[kh, kw, Cin, Cout]` and is not flipped: a one-hot input reproduces it. It is
`lax.conv_transpose`'s kernel rotated by 180 degrees, and PyTorch's `ConvTranspose2d` weight
`[Cin, Cout, kh, kw]` with its axes permuted.
"""

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from segjax.ops.conv import conv
from segjax.types import Array

IntOrPair: TypeAlias = int | tuple[int, int]


def _pair(value: IntOrPair) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def conv_transpose(x: Array, kernel: Array, stride: IntOrPair, padding: IntOrPair = 0) -> Array:
  """Transposed convolution by sub-pixels, with a fast forward and backward pass.

  Output s * q + r is the sum over m of x[q - m] * kernel[r + s * m]: a convolution with
  ceil(k / s) elements per axis gives the s * s outputs of each q as channels, and a depth-to-space
  interleaves them. No element of an input dilated by zeros is multiplied (Shi et al. 2016, arXiv
  1609.07009). If the kernel size equals the stride, the convolution is a matrix product. Supports
  reverse mode only.

  Args:
    x: f[B, H, W, Cin].
    kernel: f[kh, kw, Cin, Cout], of x's dtype; for its orientation see the module docstring.
    stride: an int or (rows, columns).
    padding: rows and columns removed from each side of the output, an int or (rows, columns).

  Returns:
    f[B, s * (H - 1) + kh - 2 * p, s * (W - 1) + kw - 2 * p, Cout].
  """
  (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
  kh, kw, cin, cout = kernel.shape
  th, tw = -(-kh // sh), -(-kw // sw)
  kernel = jnp.pad(kernel, [(0, th * sh - kh), (0, tw * sw - kw), (0, 0), (0, 0)])
  kernel = kernel.reshape(th, sh, tw, sw, cin, cout)[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(th, tw, cin, sh * sw * cout)
  y = conv(x, kernel, padding=((th - 1, th - 1), (tw - 1, tw - 1)))
  b, h, w, _ = y.shape
  y = y.reshape(b, h, w, sh, sw, cout).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * sh, w * sw, cout)
  height, width = (
    s * (n - 1) + k - 2 * p
    for s, n, k, p in zip((sh, sw), x.shape[1:3], (kh, kw), (ph, pw), strict=True)
  )
  return y[:, ph : ph + height, pw : pw + width]


def conv_transpose_scatter(
  x: Array, kernel: Array, stride: IntOrPair, padding: IntOrPair = 0
) -> Array:
  """`conv_transpose` by its definition: each input adds a scaled kernel to the output."""
  (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
  b, h, w, _ = x.shape
  kh, kw, _, cout = kernel.shape
  full_h, full_w = sh * (h - 1) + kh, sw * (w - 1) + kw
  y = jnp.zeros((b, full_h, full_w, cout), jnp.result_type(x, kernel))
  for i in range(kh):
    for j in range(kw):
      rows, cols = slice(i, i + sh * (h - 1) + 1, sh), slice(j, j + sw * (w - 1) + 1, sw)
      y = y.at[:, rows, cols].add(x @ kernel[i, j])
  return y[:, ph : full_h - ph, pw : full_w - pw]


def conv_transpose_matrix(
  x: Array, kernel: Array, stride: IntOrPair, padding: IntOrPair = 0
) -> Array:
  """`conv_transpose` as a product with the transpose of `conv_matrix`. For tests and teaching."""
  b, h, w, _ = x.shape
  kh, kw, _, cout = kernel.shape
  (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
  matrix = conv_matrix(kernel, (h, w), stride, padding)
  y = (matrix.T @ x.reshape(b, -1).T).T
  return y.reshape(b, sh * (h - 1) + kh - 2 * ph, sw * (w - 1) + kw - 2 * pw, cout)


def conv_matrix(
  kernel: Array, size: tuple[int, int], stride: IntOrPair, padding: IntOrPair = 0
) -> Array:
  """The matrix of the strided convolution that `conv_transpose` transposes.

  Args:
    kernel: f[kh, kw, Cin, Cout]. The convolution runs from Cout channels to Cin.
    size: (H, W), rows and columns of the convolution's output, `conv_transpose`'s input.
    stride: of the convolution, an int or (rows, columns).
    padding: zeros around the convolution's input, an int or (rows, columns).

  Returns:
    f[H * W * Cin, H' * W' * Cout], mostly zeros.
  """
  kh, kw, cin, cout = kernel.shape
  taps_h, taps_w = (
    _taps(n, k, s, p)
    for n, k, s, p in zip(size, (kh, kw), _pair(stride), _pair(padding), strict=True)
  )
  matrix = jnp.einsum('hkp,wlq,klio->hwipqo', taps_h, taps_w, kernel)
  return matrix.reshape(size[0] * size[1] * cin, taps_h.shape[-1] * taps_w.shape[-1] * cout)


def _taps(size: int, k: int, stride: int, padding: int) -> np.ndarray:
  """Along one axis: [i, j, o] is 1 if convolution output i reads input o with kernel element j."""
  i, j = np.ogrid[:size, :k]
  o = np.arange(stride * (size - 1) + k - 2 * padding)
  return (o == (stride * i + j - padding)[..., None]).astype(np.int8)


def bilinear_kernel(size: IntOrPair, channels: int, dtype: jnp.dtype = jnp.float32) -> Array:
  """The kernel of a transposed convolution for bilinear interpolation of each channel (FCN, 3.3).

  With `factor = (size + 1) // 2` and `center = factor - 1` for odd sizes, `factor - 0.5` for even,
  the kernel along an axis is `1 - |i - center| / factor`. With stride `factor`, a constant image
  stays constant, except at its borders.

  Args:
    size: kernel rows and columns, odd or even.
    channels: number of channels, which are upsampled separately.
    dtype: of the result.

  Returns:
    f[size, size, channels, channels], zero between different channels.
  """
  rows, cols = (_triangle(k) for k in _pair(size))
  return jnp.asarray(np.multiply.outer(np.outer(rows, cols), np.eye(channels)), dtype)


def _triangle(size: int) -> np.ndarray:
  factor = (size + 1) // 2
  center = factor - 1 if size % 2 else factor - 0.5
  return 1 - np.abs(np.arange(size) - center) / factor


def bilinear_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
  """`bilinear_kernel` as an initializer for shapes [kh, kw, C, C]; the key is not used."""
  del key
  if shape[2] != shape[3]:
    raise ValueError(f'bilinear_init needs equal input and output channels, got shape {shape}')
  return bilinear_kernel(shape[:2], shape[2], dtype)
