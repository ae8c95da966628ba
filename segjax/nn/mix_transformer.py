"""Mix Transformer (MiT), the encoder of SegFormer: Xie et al., 2021, arXiv 2105.15203, §3.1.

Four stages of transformer blocks on feature maps of strides 4, 8, 16 and 32. Blocks have no
positions: the 3x3 convolution of each MLP tells a token where it is (§3.1, Mix-FFN). Epsilons of
LayerNorm are transformers' 1e-5; the authors' blocks have 1e-6.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.nn.conv import Conv, Dropout
from segjax.nn.resnet import he_normal_fan_out
from segjax.nn.vit import Attention, LayerNorm, dense
from segjax.types import Array, PositiveInt, SegjaxError


class MitSize(NamedTuple):
  """What a size of MiT is (Table 6).

  Attributes:
    widths: channels of each stage.
    depths: blocks of each stage.
  """

  widths: tuple[int, int, int, int]
  depths: tuple[int, int, int, int]


_WIDE = (64, 128, 320, 512)
SIZES = {
  'b0': MitSize((32, 64, 160, 256), (2, 2, 2, 2)),
  'b1': MitSize(_WIDE, (2, 2, 2, 2)),
  'b2': MitSize(_WIDE, (3, 4, 6, 3)),
  'b3': MitSize(_WIDE, (3, 4, 18, 3)),
  'b4': MitSize(_WIDE, (3, 8, 27, 3)),
  'b5': MitSize(_WIDE, (3, 6, 40, 3)),
}
SizeName = Literal['b0', 'b1', 'b2', 'b3', 'b4', 'b5']


class Stage(NamedTuple):
  """What a stage is, in all sizes.

  Attributes:
    kernel: of the convolution before it, which is padded by half of that.
    stride: of the same.
    heads: of the attention.
    reduction: rows and columns of tokens that make one key and value.
  """

  kernel: int
  stride: int
  heads: int
  reduction: int


STAGES = (Stage(7, 4, 1, 8), Stage(3, 2, 2, 4), Stage(3, 2, 5, 2), Stage(3, 2, 8, 1))
# Of the hidden channels of an MLP, to those of its block.
MLP_RATIO = 4
NORM_EPSILON = 1e-5
# Of height and width, so that each stage has a key.
SMALLEST_IMAGE = 29


class MixTransformer(nn.Module):
  """f[B, H, W, C] -> the four stages' f[B, ⌈H / s⌉, ⌈W / s⌉, D], of strides s = 4, 8, 16, 32.

  Layers: for each stage i from 1, stage<i>_patches and stage<i>_patches_norm, its blocks
  stage<i>_block<j>, and stage<i>_norm.

  Attributes:
    size: a key of `SIZES`.
    drop_path: rate of the last block at which it is left out for an image (`Block`); rates rise
      linearly from 0 at the first.
    remat: computes activations of the blocks again in the backward pass, see `segjax.nn.remat`.
    dtype: computation dtype.
  """

  size: SizeName
  drop_path: Dropout = 0.1
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> list[Array]:
    """The stages.

    Raises:
      SegjaxError: a side of the image is less than 29 pixels.
    """
    height, width = image.shape[1:3]
    # `jax.export` calls a size that is not known by a name.
    if any(isinstance(side, int) and side < SMALLEST_IMAGE for side in (height, width)):
      raise SegjaxError(
        f'an image of {height}x{width} is too small for a Mix Transformer: set config.data.size, '
        f'and config.eval.window and tile, to at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}'
      )
    block = nn.remat(Block) if self.remat else Block
    if not self.is_initializing():  # whose random numbers depend on it
      block = nn.jit(block)  # one trace for all blocks of a stage; XLA inlines them
    rates = np.linspace(0, self.drop_path, sum(SIZES[self.size].depths), dtype=np.float32)
    rates = iter(rates if train and self.drop_path else ())
    x, features = image, []
    for i, (stage, channels, depth) in enumerate(zip(STAGES, *SIZES[self.size], strict=True), 1):
      x = Conv(
        channels,
        (stage.kernel, stage.kernel),
        stage.stride,
        stage.kernel // 2,
        kernel_init=he_normal_fan_out,
        dtype=self.dtype,
        name=f'stage{i}_patches',
      )(x)
      x = _norm(self.dtype, f'stage{i}_patches_norm')(x)
      for j in range(depth):
        x = block(stage.heads, stage.reduction, self.dtype, name=f'stage{i}_block{j}')(
          x, next(rates, None)
        )
      x = _norm(self.dtype, f'stage{i}_norm')(x)
      features.append(x)
    return features


class Block(nn.Module):
  """x + attention(norm1(x)), then + mlp(norm2(x)): f[B, h, w, D] -> f[B, h, w, D].

  Attributes:
    heads: of the attention, divide D.
    reduction: see `Stage`.
    dtype: computation dtype.
  """

  heads: PositiveInt
  reduction: PositiveInt = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, rate: Array | None = None) -> Array:
    """The block.

    Args:
      x: tokens in their places.
      rate: f32[], at which each of the two sums is x alone, for an image (stochastic depth, Huang
        et al., arXiv 1603.09382), as `drop_path` says; None for never.
    """
    drop = lambda x: x if rate is None else drop_path(self.make_rng('dropout'), x, rate)
    x = x + drop(self._attend(_norm(self.dtype, 'norm1')(x)))
    return x + drop(MixMlp(self.dtype, name='mlp')(_norm(self.dtype, 'norm2')(x)))

  def _attend(self, x: Array) -> Array:
    """Efficient self-attention (eq. 2): keys and values are of `reduction` x `reduction` tokens."""
    others, r = x, self.reduction
    if r > 1:
      # Rows and columns that do not fill a window are left out.
      others = Conv(
        x.shape[-1],
        (r, r),
        r,
        'VALID',
        kernel_init=he_normal_fan_out,
        dtype=self.dtype,
        name='reduce',
      )(x)
      others = _norm(self.dtype, 'reduce_norm')(others)
    rows = lambda maps: maps.reshape(maps.shape[0], -1, maps.shape[-1])
    # Keys are few, so that scores are cheap to compute again.
    attend = Attention(self.heads, recompute=True, dtype=self.dtype, name='attention')
    return attend(rows(x), others=rows(others)).reshape(x.shape)


def drop_path(key: Array, x: Array, rate: Array) -> Array:
  """f[B, …], for each image 0 with the probability `rate`, f32[], or else x / (1 - rate)."""
  keep = jax.random.bernoulli(key, 1 - rate, (len(x), *[1] * (x.ndim - 1)))
  return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)


class MixMlp(nn.Module):
  """GELU(conv3x3(x W1)) W2 (eq. 3), the convolution depthwise: f[B, h, w, D] -> f[B, h, w, D].

  Attributes:
    dtype: computation dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width, hidden = x.shape[-1], MLP_RATIO * x.shape[-1]
    x = dense(hidden, self.dtype, 'fc1')(x)
    x = Conv(
      hidden,
      (3, 3),
      padding=1,
      feature_group_count=hidden,
      kernel_init=nn.initializers.normal((2 / 9) ** 0.5),  # He et al. 2015, of one channel
      dtype=self.dtype,
      name='depthwise',
    )(x)
    return dense(width, self.dtype, 'fc2')(nn.gelu(x, approximate=False))


def _norm(dtype: Any, name: str) -> LayerNorm:
  return LayerNorm(dtype, NORM_EPSILON, name=name)
