"""Vision transformers: Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, as DINOv2 trains them.

Oquab et al., "DINOv2", arXiv 2304.07193; registers: Darcet et al., ICLR 2024, arXiv 2309.16588.
Shape letters: T tokens, D channels, g h x g w the grid of patches.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv
from segjax.ops.attention import attention
from segjax.ops.normalize import layer_norm
from segjax.types import Array, NonNegativeFloat, NonNegativeInt, PositiveInt, SegjaxError

# Epsilon of every LayerNorm of a ViT.
NORM_EPSILON = 1e-6


class VitSize(NamedTuple):
  """What a size of ViT is.

  Attributes:
    width: D.
    depth: blocks.
    heads: of the attention.
    swiglu: whether its MLP is SwiGLU (giant), not GELU.
  """

  width: int
  depth: int
  heads: int
  swiglu: bool = False


SIZES = {
  'tiny': VitSize(96, 6, 3),  # ours, for a CPU
  'small': VitSize(384, 12, 6),
  'base': VitSize(768, 12, 12),
  'large': VitSize(1024, 24, 16),
  'giant': VitSize(1536, 40, 24, swiglu=True),
}
SizeName = Literal['tiny', 'small', 'base', 'large', 'giant']

trunc_normal = nn.initializers.truncated_normal(0.02)


class Embedding(nn.Module):
  """Patches, positions, and the tokens before them.

  Parameters: `patches`, `class_token` f32[D], `registers` f32[n, D] if there are any, `position`
  f32[gh, gw, D].

  Attributes:
    width: D.
    patch: height and width of a patch.
    grid: (gh, gw), for which positions are learned; images of another size get them interpolated.
    registers: register tokens.
    dtype: computation dtype.
  """

  width: PositiveInt
  patch: PositiveInt
  grid: tuple[PositiveInt, PositiveInt]
  registers: NonNegativeInt = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """f[B, H, W, C] -> f[B, 1 + registers + gh · gw, D]: class, registers, patches by rows.

    Raises:
      SegjaxError: the patch does not divide the size of the image.
    """
    p, d = self.patch, self.width
    if image.shape[1] % p or image.shape[2] % p:
      height, width = image.shape[1:3]
      raise SegjaxError(
        f'an image of {height}x{width} is not a multiple of config.model.patch={p}: set '
        'config.data.size to multiples of that'
      )
    conv = Conv(
      d, (p, p), (p, p), 'VALID', kernel_init=trunc_normal, dtype=self.dtype, name='patches'
    )
    x = conv(image)
    position = self.param('position', trunc_normal, (*self.grid, d))
    x = x + resize_positions(position, x.shape[1:3]).astype(x.dtype)
    class_token = self.param('class_token', nn.initializers.normal(1e-6), (d,))
    first = class_token[None]
    if self.registers:
      registers = self.param('registers', nn.initializers.normal(1e-6), (self.registers, d))
      first = jnp.concatenate([first, registers])
    first = first.astype(x.dtype)
    first = jnp.broadcast_to(first, (x.shape[0], *first.shape))
    return jnp.concatenate([first, x.reshape(x.shape[0], -1, d)], axis=1)


def resize_positions(position: Array, grid: tuple[int, int]) -> Array:
  """f32[gh, gw, D] -> f32[*grid, D], by antialiased bicubic interpolation (Keys, a = -1/2)."""
  if position.shape[:2] == tuple(grid):
    return position
  return jax.image.resize(position, (*grid, position.shape[-1]), 'cubic', precision='highest')


class Block(nn.Module):
  """x + s1 · attention(norm1(x)), then + s2 · mlp(norm2(x)), with learned scales s (LayerScale).

  Touvron et al., "Going deeper with image transformers", arXiv 2103.17239.

  Attributes:
    size: see `SIZES`.
    layer_scale: initial value of s.
    dtype: computation dtype.
  """

  size: VitSize
  layer_scale: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None) -> Array:
    """f[B, T, D] -> f[B, T, D].

    Args:
      x: tokens.
      mask: bool[B, T, T], which tokens (axis 2) each token (axis 1) attends to; None for all.
    """
    width, _, heads, swiglu = self.size
    attend = Attention(heads, dtype=self.dtype, name='attention')
    mlp = Mlp(mlp_width(width, swiglu), swiglu, dtype=self.dtype, name='mlp')
    x = x + self._scale('scale1', width) * attend(LayerNorm(self.dtype, name='norm1')(x), mask)
    return x + self._scale('scale2', width) * mlp(LayerNorm(self.dtype, name='norm2')(x))

  def _scale(self, name: str, width: int) -> Array:
    init = nn.initializers.constant(self.layer_scale)
    return self.param(name, init, (width,)).astype(self.dtype)


class LayerNorm(nn.Module):
  """f[..., D] -> f[..., D], normalized over the channels, with a learned `scale` and `bias`.

  Attributes:
    dtype: computation dtype; means and variances are float32 at least.
    epsilon: added to the variance.
  """

  dtype: Any = jnp.float32
  epsilon: NonNegativeFloat = NORM_EPSILON

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    return layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


def mlp_width(width: int, swiglu: bool) -> int:
  """Hidden channels: 4 D, or of SwiGLU 2/3 of that, rounded up to a multiple of 8."""
  hidden = 4 * width
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


class Attention(nn.Module):
  """Multi-head attention of tokens to each other, or to others.

  Attributes:
    heads: divide D.
    recompute: see `segjax.ops.attention.attention`.
    dtype: computation dtype.
  """

  heads: PositiveInt
  recompute: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None, others: Array | None = None) -> Array:
    """f[B, T, D] -> f[B, T, D].

    Args:
      x: tokens.
      mask: bool[B, T, S], which tokens (axis 2) each of `x` attends to; None for all.
      others: f[B, S, D], whose keys and values are used; None for those of `x`.
    """
    batch, tokens, width = x.shape
    others = x if others is None else others
    query, key, value = (
      dense(width, self.dtype, name)(source).reshape(batch, source.shape[1], self.heads, -1)
      for name, source in (('query', x), ('key', others), ('value', others))
    )
    x = attention(query, key, value, mask, recompute=self.recompute)
    return dense(width, self.dtype, 'out')(x.reshape(batch, tokens, width))


class Mlp(nn.Module):
  """GELU(x W1) W2, or (SiLU(x W1) · (x W2)) W3 (SwiGLU, Shazeer, arXiv 2002.05202).

  Attributes:
    hidden: channels inside.
    swiglu: which of the two.
    dtype: computation dtype.
  """

  hidden: PositiveInt
  swiglu: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """f[..., D] -> f[..., D]."""
    width = x.shape[-1]
    if not self.swiglu:
      hidden = nn.gelu(dense(self.hidden, self.dtype, 'fc1')(x), approximate=False)
      return dense(width, self.dtype, 'fc2')(hidden)
    gate, value = jnp.split(dense(2 * self.hidden, self.dtype, 'fc1')(x), 2, axis=-1)
    return dense(width, self.dtype, 'fc2')(nn.silu(gate) * value)


def dense(
  features: int, dtype: Any, name: str | None, init: Callable[..., Array] = trunc_normal
) -> nn.Dense:
  """A linear layer f[..., D] -> f[..., features]; `name` is None in `setup`."""
  return nn.Dense(features, kernel_init=init, dtype=dtype, name=name)
