"""Convolution with gradients that are fast on CPUs.

XLA computes both gradients of a convolution as convolutions. On a CPU its gradient with respect to
the kernel transposes the image and the gradient into shapes that its convolution reads slowly,
above all for small batches, and its gradient with respect to the image transposes the kernel. The
forms here are products and convolutions that need less of that; `experiments/speed` measures them.
"""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from segjax.types import Array

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[Pair, Pair]

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# Up to this many output pixels a batch, the image's gradient is one product: what its sum costs is
# less than the transposed kernel.
_FEW_PIXELS = 512
# Floats of the image that a step of a loop over rows reads: with the gradient they fit in a cache.
_CHUNK = 160_000
# Elements of a kernel: 3x3 of 1024 channels have 9 million, FCN's fc6 100 million.
_LARGE_KERNEL = 10_000_000


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(
  x: Array,
  kernel: Array,
  strides: Pair = (1, 1),
  padding: Padding = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
) -> Array:
  """Convolution, with G = C // Cin groups.

  Equal to `lax.conv_general_dilated`, but for the rounding of its gradients on a CPU, and there of
  depthwise convolution itself. Supports reverse mode only.

  Args:
    x: f[B, H, W, C].
    kernel: f[kh, kw, Cin, Cout], of x's dtype; Cin divides C, and G divides Cout.
    strides: of rows and columns.
    padding: zero padding (before, after) of rows and columns.
    dilation: of the kernel's rows and columns.

  Returns:
    f[B, H', W', Cout], with H' = (H + padding - dilation · (kh - 1) - 1) // stride + 1.
  """
  return _fast_convolve(x, kernel, strides, padding, dilation)


def _fast_convolve(x, kernel, strides, padding, dilation):
  if not _depthwise(kernel.shape, x.shape, strides):
    return _convolve(x, kernel, strides, padding, dilation)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, kernel: shifted_convolve(x, kernel, padding, dilation),
    default=lambda x, kernel: _convolve(x, kernel, strides, padding, dilation),
  )


def _convolve(x, kernel, strides, padding, dilation):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=_LAYOUT,
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def _forward(x, kernel, strides, padding, dilation):
  return _fast_convolve(x, kernel, strides, padding, dilation), (x, kernel)


def _backward(strides, padding, dilation, residuals, g):
  x, kernel = residuals
  window = (strides, padding, dilation)
  image = image_gradient_form(kernel.shape, g.shape, x.shape, *window)
  weights = kernel_gradient_form(kernel.shape, g.shape, x.shape, *window)
  dx = lax.platform_dependent(
    g,
    kernel,
    cpu=lambda g, kernel: image(g, kernel, x.shape, *window),
    default=lambda g, kernel: xla_image_gradient(g, kernel, x.shape, *window),
  )
  dkernel = lax.platform_dependent(
    x,
    g,
    cpu=lambda x, g: weights(x, g, kernel.shape, *window),
    default=lambda x, g: xla_kernel_gradient(x, g, kernel.shape, *window),
  )
  return dx, dkernel


conv.defvjp(_forward, _backward)


def image_gradient_form(kernel, g, x, strides, padding, dilation):
  """The form of the gradient with respect to x for a CPU, by the shapes of the three arrays."""
  if kernel[2] == x[-1]:
    if _pointwise(kernel, padding):
      return pointwise_image_gradient
    if strides == (1, 1) and math.prod(g[:3]) <= _FEW_PIXELS:
      return spread_image_gradient
    if jax.device_count() == 1:
      return flipped_image_gradient
  if _depthwise(kernel, x, strides):
    return shifted_image_gradient
  return xla_image_gradient


def kernel_gradient_form(kernel, g, x, strides, padding, dilation):
  """The form of the gradient with respect to the kernel for a CPU, by the shapes."""
  # Loops read a part of the images at a time: devices that share them would gather them.
  shared = jax.device_count() > 1
  if _depthwise(kernel, x, strides):
    return shifted_kernel_gradient if shared else shifted_rows_kernel_gradient
  if kernel[2] != x[-1] or _pointwise(kernel, padding):
    return tap_kernel_gradient
  if shared:
    return xla_kernel_gradient
  batch, height, width = g[:3]
  if strides != (1, 1) or dilation != (1, 1):
    return chunked_kernel_gradient
  # The batch is the innermost axis of what the form by batch reads, so that it gains with it.
  small = height * width < (256 if batch == 1 else 2048)
  # Each step of the form by rows adds to the whole gradient.
  large = math.prod(kernel) > _LARGE_KERNEL
  if batch > 2 or small or large or kernel[2] < 8:
    return batch_kernel_gradient
  return row_kernel_gradient


def _pointwise(kernel, padding):
  return kernel[:2] == (1, 1) and padding == ((0, 0), (0, 0))


def _depthwise(kernel, x, strides):
  """Whether each channel is convolved on its own, at stride 1."""
  return kernel[2] == 1 and kernel[3] == x[-1] > 1 and strides == (1, 1)


def shifted_convolve(x: Array, kernel: Array, padding: Padding, dilation: Pair) -> Array:
  """`conv` of each channel on its own at stride 1, as kh · kw shifted products.

  XLA's depthwise convolution on a CPU, and its gradients, take several times as long.
  """
  # Barriers, which our compiler options keep (`training.compile`): else XLA computes x again for
  # each product, and the sum for each of its readers.
  dtype = jnp.promote_types(x.dtype, jnp.float32)  # of the sum
  seen = _shifts(lax.optimization_barrier(x), kernel.shape, padding, dilation)
  kernel = kernel.astype(dtype)
  terms = [part.astype(dtype) * kernel[i, j, 0] for i, j, part in seen]
  return lax.optimization_barrier(sum(terms[1:], terms[0]).astype(x.dtype))


def _shifts(x, kernel, padding, dilation):
  """(i, j, what the element (i, j) of the kernel sees of x) at stride 1."""
  pads = [(before, after, 0) for before, after in ((0, 0), *padding, (0, 0))]
  padded = lax.pad(x, jnp.zeros((), x.dtype), pads)  # which also crops
  kh, kw = kernel[:2]
  height = padded.shape[1] - dilation[0] * (kh - 1)
  width = padded.shape[2] - dilation[1] * (kw - 1)
  for i in range(kh):
    for j in range(kw):
      row, col = i * dilation[0], j * dilation[1]
      yield i, j, padded[:, row : row + height, col : col + width]


def xla_image_gradient(
  g: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding, dilation: Pair
) -> Array:
  """The gradient of `conv` with respect to x of `shape`, as XLA computes it.

  Args:
    g: f[B, H', W', Cout], the gradient of the output.
    kernel: f[kh, kw, Cin, Cout].
  """
  convolve = lambda x: _convolve(x, kernel, strides, padding, dilation)
  return jax.linear_transpose(convolve, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]


def flipped_image_gradient(g, kernel, shape, strides, padding, dilation):
  """`xla_image_gradient` without groups, by a convolution with the flipped, transposed kernel.

  XLA's is the same, but without its fast convolution on a CPU inside loops and conditionals.
  """
  pads = []
  for axis in (0, 1):
    reach = dilation[axis] * (kernel.shape[axis] - 1)
    before = reach - padding[axis][0]
    spread = strides[axis] * (g.shape[1 + axis] - 1) + 1
    pads.append((before, shape[1 + axis] + reach - before - spread))
  return lax.conv_general_dilated(
    g,
    kernel[::-1, ::-1].transpose(0, 1, 3, 2),
    (1, 1),
    pads,
    lhs_dilation=strides,
    rhs_dilation=dilation,
    dimension_numbers=_LAYOUT,
  )


def pointwise_image_gradient(g, kernel, shape, strides, padding, dilation):
  """`xla_image_gradient` of a 1x1 kernel without padding and groups: one product."""
  del padding, dilation
  dx = _pixels(g) @ kernel[0, 0].T
  dx = dx.reshape(*g.shape[:3], -1)
  # The input pixels between and behind the strides have no gradient.
  gaps = [
    (0, size - stride * (count - 1) - 1, stride - 1)
    for size, stride, count in zip(shape[1:3], strides, g.shape[1:3], strict=True)
  ]
  return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def spread_image_gradient(g, kernel, shape, strides, padding, dilation):
  """`xla_image_gradient` at stride 1 without groups: one product and kh · kw shifted additions."""
  del strides
  kh, kw, cin, _ = kernel.shape
  height, width = g.shape[1:3]
  accumulator = jnp.promote_types(g.dtype, jnp.float32)
  # [B·H'·W', Cout] times [kh·kw·Cin, Cout]
  spread = lax.dot_general(
    _pixels(g),
    kernel.reshape(kh * kw * cin, -1),
    (((1,), (1,)), ((), ())),
    preferred_element_type=accumulator,
  ).reshape(*g.shape[:3], kh, kw, cin)
  (top, bottom), (left, right) = padding
  size = (shape[1] + top + bottom, shape[2] + left + right)
  dx = jnp.zeros((len(g), *size, cin), accumulator)
  for i in range(kh):
    for j in range(kw):
      row, col = i * dilation[0], j * dilation[1]
      dx = dx.at[:, row : row + height, col : col + width].add(spread[:, :, :, i, j])
  return dx[:, top : top + shape[1], left : left + shape[2]].astype(g.dtype)


def shifted_image_gradient(g, kernel, shape, strides, padding, dilation):
  """`xla_image_gradient` of `shifted_convolve`: the same with the flipped kernel."""
  del shape, strides
  pads = tuple(
    (reach - before, reach - after)
    for reach, (before, after) in zip(
      (d * (k - 1) for d, k in zip(dilation, kernel.shape[:2], strict=True)), padding, strict=True
    )
  )
  return shifted_convolve(g, kernel[::-1, ::-1], pads, dilation)


def shifted_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`xla_kernel_gradient` of `shifted_convolve`: kh · kw sums of products."""
  del strides
  return _sums_of_products(x, g, shape, padding, dilation).astype(x.dtype)


def shifted_rows_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`shifted_kernel_gradient`, of a few rows of one image at a time.

  XLA copies what each element of the kernel sees, which then stays in a cache.
  """
  part = lambda x, g: _sums_of_products(x, g, shape, ((0, 0), (0, 0)), dilation)
  return _sum_over_rows(part, x, g, shape, strides, padding, dilation).astype(x.dtype)


def _sums_of_products(x, g, shape, padding, dilation):
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  sums = [
    jnp.einsum('bhwc,bhwc->c', part, g, preferred_element_type=accumulator)
    for _, _, part in _shifts(x, shape, padding, dilation)
  ]
  return jnp.stack(sums).reshape(shape)


def _pixels(x: Array) -> Array:
  """f[B, H, W, C] -> f[B · H · W, C].

  A product of arrays of more axes is the same, but XLA transposes them on a CPU before it.
  """
  return x.reshape(-1, x.shape[-1])


def xla_kernel_gradient(
  x: Array, g: Array, shape: tuple[int, ...], strides: Pair, padding: Padding, dilation: Pair
) -> Array:
  """The gradient of `conv` with respect to a kernel of `shape`, as XLA computes it.

  Args:
    x: f[B, H, W, C], the input.
    g: f[B, H', W', Cout], the gradient of the output.
  """
  convolve = lambda kernel: _convolve(x, kernel, strides, padding, dilation)
  return jax.linear_transpose(convolve, jax.ShapeDtypeStruct(shape, x.dtype))(g)[0]


def tap_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`xla_kernel_gradient` as one product per group and kernel element.

  Kernel element (i, j) multiplies the pixel at offset `dilation · (i, j)` of each window; its
  gradient is the sum over all windows of the products of these pixels with g.
  """
  return _taps(x, g, shape, strides, padding, dilation).astype(x.dtype)


def _taps(x, g, shape, strides, padding, dilation):
  """`tap_kernel_gradient`, of float32 at least."""
  kh, kw, cin, cout = shape
  groups = x.shape[-1] // cin
  x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  # Distance from the first pixel of the first window to that of the last one, plus 1.
  spans = [s * (n - 1) + 1 for s, n in zip(strides, g.shape[1:3], strict=True)]
  g = _pixels(g) if groups == 1 else _pixels(g).reshape(-1, groups, cout // groups)
  equation = 'ni,no->io' if groups == 1 else 'ngi,ngo->igo'

  def element(i: int, j: int) -> Array:
    top, left = i * dilation[0], j * dilation[1]
    seen = x[:, top : top + spans[0] : strides[0], left : left + spans[1] : strides[1]]
    seen = seen.reshape(*g.shape[:-1], cin)
    return jnp.einsum(equation, seen, g, preferred_element_type=accumulator)

  elements = [element(i, j) for i in range(kh) for j in range(kw)]
  return jnp.stack(elements).reshape(shape)


def chunked_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`tap_kernel_gradient` without groups, of a few rows of one image at a time."""
  part = lambda x, g: _taps(x, g, shape, strides, ((0, 0), (0, 0)), dilation)
  return _sum_over_rows(part, x, g, shape, strides, padding, dilation).astype(x.dtype)


def row_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`xla_kernel_gradient` at stride 1 without groups, by convolutions over rows alone.

  The contraction over columns is that over the channels of a convolution along the rows, which
  reads x transposed to [Cin, rows, columns]. Its output channels are the Cout channels of g at each
  of the kw offsets. A few rows of one image are taken at a time, so that the transposed parts stay
  in a cache.
  """
  kh, kw, cin, cout = shape
  whole = jnp.promote_types(x.dtype, jnp.float32)

  def part(x: Array, g: Array) -> Array:
    image = x[0].transpose(2, 0, 1)[:, :, None]  # [Cin, rows + kh - 1, 1, columns + kw - 1]
    offsets = [jnp.pad(g[0], [(0, 0), (j, kw - 1 - j), (0, 0)]) for j in range(kw)]
    offsets = jnp.concatenate(offsets, axis=-1)[:, None]  # [rows, 1, columns + kw - 1, kw · Cout]
    return lax.conv_general_dilated(
      image, offsets, (1, 1), 'VALID', dimension_numbers=_LAYOUT, preferred_element_type=whole
    )

  total = _sum_over_rows(part, x, g, shape, strides, padding, dilation)
  total = total.reshape(cin, kh, kw, cout).transpose(1, 2, 0, 3)
  return total.astype(x.dtype)


def batch_kernel_gradient(x, g, shape, strides, padding, dilation):
  """`xla_kernel_gradient` at stride 1 without groups, of up to 32 images at a time.

  Each part is the convolution of x as [Cin, H, W, B] by g as [H', W', B, Cout], as in XLA's form,
  which has no fast convolution on a CPU inside loops and conditionals. In a loop the transposes are
  not fused with what made x and g, which would compute that in the slow order of the transpose.
  """
  del strides, dilation
  kh, kw, cin, cout = shape
  count = 1 if len(x) < 4 else max(2, -(-len(x) // 32))
  size = -(-len(x) // count)
  # Images of zeros, so that all parts are equal.
  extra = (0, count * size - len(x))
  x = jnp.pad(x, [extra, *padding, (0, 0)])
  g = jnp.pad(g, [extra, (0, 0), (0, 0), (0, 0)])
  whole = jnp.promote_types(x.dtype, jnp.float32)

  def part(i: int | Array) -> Array:
    image, gradient = (lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, g))
    return lax.conv_general_dilated(
      image.transpose(3, 1, 2, 0),
      gradient.transpose(1, 2, 0, 3),
      (1, 1),
      'VALID',
      dimension_numbers=_LAYOUT,
      preferred_element_type=whole,
    )

  if count == 1:
    total = part(0)
  else:
    add = lambda i, total: total + part(i)
    total = lax.fori_loop(0, count, add, jnp.zeros((cin, kh, kw, cout), whole))
  return total.transpose(1, 2, 0, 3).astype(x.dtype)


def _sum_over_rows(part, x, g, shape, strides, padding, dilation):
  """The sum of part(f[1, rows of x, W, C], f[1, rows, W', Cout]) over all images and their rows."""
  batch, height, width, cout = g.shape
  stride, reach = strides[0], dilation[0] * (shape[0] - 1) + 1
  rows = _CHUNK // (width * max(strides[1] * x.shape[-1], cout))
  rows = min(height, max(rows, 4))
  chunks = -(-height // rows)
  # Rows of zeros at the bottom of g, so that all parts are equal, and what they see of x.
  extra = chunks * rows - height
  end = max(0, stride * (chunks * rows - 1) + reach - x.shape[1] - sum(padding[0]))
  x = jnp.pad(x, [(0, 0), (padding[0][0], padding[0][1] + end), padding[1], (0, 0)])
  g = jnp.pad(g, [(0, 0), (0, extra), (0, 0), (0, 0)])
  seen = stride * (rows - 1) + reach

  def add(step: Array, total: Array) -> Array:
    image, chunk = step // chunks, step % chunks
    start = (image, chunk * rows * stride, 0, 0)
    x_part = lax.dynamic_slice(x, start, (1, seen, *x.shape[2:]))
    g_part = lax.dynamic_slice(g, (image, chunk * rows, 0, 0), (1, rows, width, cout))
    return total + part(x_part, g_part)

  parts = [(a, (1, n, *a.shape[2:])) for a, n in ((x, seen), (g, rows))]
  total = jax.eval_shape(part, *(jax.ShapeDtypeStruct(size, a.dtype) for a, size in parts))
  return lax.fori_loop(0, batch * chunks, add, jnp.zeros(total.shape, total.dtype))
