"""Convolution, transposed convolution and normalization layers."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops import upsample
from segjax.ops.conv import conv
from segjax.types import NonNegativeInt, PositiveInt, Range

Norm = Literal['none', 'batch', 'group']
Dropout = Annotated[float, Range(0, 1, open='high')]

# N(0, sqrt(2 / N)) with fan-in N: He et al. 2015, U-Net §3.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def scaled(channels: int, width: float) -> int:
  """`width · channels`, rounded up to an even number, which two groups divide."""
  return 2 * math.ceil(width * channels / 2)


def make_norm(
  kind: Norm,
  *,
  train: bool,
  dtype: Any,
  name: str,
  momentum: float = 0.9,
  epsilon: float = 1e-5,
) -> Callable[..., jax.Array]:
  """The normalization layer `kind`, a function of f[B, H, W, C].

  `'batch'` uses batch statistics in training, synchronized over all devices, and updates running
  means by `momentum`. Examples where `mask`, bool[B, 1, 1, 1], is False are excluded from both.
  `'group'` has groups of 16 channels, or one group if 16 does not divide C.
  """
  if kind == 'none':
    return lambda x, mask=None: x
  if kind == 'batch':
    return nn.BatchNorm(
      use_running_average=not train, momentum=momentum, epsilon=epsilon, dtype=dtype, name=name
    )

  def group_norm(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    channels = x.shape[-1]
    groups = channels // 16 if channels % 16 == 0 else 1
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, dtype=dtype, name=name)(x)

  return group_norm


def linen_conv(x, kernel, strides, padding, *, rhs_dilation=(1, 1), **_):
  """Adapts `conv` to the call in `nn.Conv`; other arguments have their defaults."""
  if isinstance(padding, str):
    reach = [d * (k - 1) + 1 for d, k in zip(rhs_dilation, kernel.shape[:2], strict=True)]
    padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
  pairs = tuple((int(before), int(after)) for before, after in padding)
  return conv(x, kernel, tuple(strides), pairs, tuple(rhs_dilation))


# Linen's convolution, with the gradients of `segjax.ops.conv`.
Conv = functools.partial(nn.Conv, conv_general_dilated=linen_conv)


class ConvTranspose(nn.Module):
  """Transposed convolution with bias: f[B, H, W, Cin] -> f[B, s(H-1)+k-2p, s(W-1)+k-2p, Cout].

  Attributes:
    features: Cout.
    kernel_size: k, for rows and columns.
    stride: s.
    padding: p, rows and columns cropped from each side of the output.
    kernel_init: initializer for the kernel [k, k, Cin, Cout].
    dtype: computation dtype; parameters are float32.
  """

  features: PositiveInt
  kernel_size: PositiveInt
  stride: PositiveInt
  padding: NonNegativeInt = 0
  kernel_init: Callable[..., jax.Array] = he_normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k = self.kernel_size
    kernel = self.param('kernel', self.kernel_init, (k, k, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
    return upsample.conv_transpose(x, kernel, self.stride, self.padding) + bias
