"""FCN: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
2015, arXiv 1411.4038, on VGG16.

The networks are those of the authors' released files, with Caffe's conventions: the image is padded
by 100, so that the unpadded fc6 has something to see at the border; poolings keep a last odd row
or column; and crops bring each layer's output to lie on the input, pixel on pixel.

The chain of the paper starts each network from the one before: 32s, 16s, 8s, by `init_from`; what
is new is zero or bilinear. FCN-32s-fixed of Table 2 is the 32s network of which only the score
layer learns: `optim.multipliers = ONLY_SCORE`.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.nn.conv import he_normal
from segjax.nn.vgg import VGG16, Stages, conv_layers
from segjax.ops.pooling import max_pool_2x2
from segjax.ops.upsample import bilinear_init, conv_transpose


@dataclasses.dataclass(frozen=True)
class Skip:
  """A pooling layer whose scores are added to those from below.

  Attributes:
    pool: stage of VGG16; its pooling has stride 2^pool.
    offset: rows and columns cut off the top and left of its scores before they are added.
    scale: what its features are multiplied by before they are scored.
  """

  pool: int
  offset: int
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Variant:
  """A network of §4 (Fig. 3).

  Attributes:
    stride: of the last transposed convolution; the kernel is twice as large.
    offset: rows and columns cut off the top and left of its output.
    skips: added one after another, each behind a transposed convolution of stride 2.
  """

  stride: int
  offset: int
  skips: tuple[Skip, ...] = ()


# Crop offsets and scales are those of the released files (voc-fcn32s, 16s, 8s, 8s-atonce).
VARIANTS = {
  '32s': Variant(32, 19),
  '16s': Variant(16, 27, (Skip(4, 5),)),
  '8s': Variant(8, 31, (Skip(4, 5), Skip(3, 9))),
  '8s-at-once': Variant(8, 31, (Skip(4, 5, 0.01), Skip(3, 9, 0.0001))),
}

# `config.optim.multipliers` with which nothing but the scores learns, and nothing else decays.
ONLY_SCORE = (('^(?!score_)', 0.0),)

# Padding of the image at conv1_1, on each side.
PAD = 100


class FCN(nn.Module):
  """FCN on VGG16: f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  Parameters are named as in the authors' files: conv1_1 … conv5_3, fc6, fc7, score_fr, score_pool4,
  score_pool3, and upscore… where the upsampling is learned.

  Attributes:
    classes: channels of the output.
    variant: a row of `VARIANTS`.
    learned: which transposed convolutions learn: 'none' as in the released files, 'intermediate' as
      in the paper (all but the last, §3.3 and §4.3), or 'all'. They start bilinear, without bias.
      One that does not learn is a constant: no parameter, and nothing for weight decay to shrink.
    stages: (channels, convolutions) of each of VGG's five stages.
    fc_features: channels of fc6 and fc7 (paper: 4096).
    dropout: rate after fc6 and after fc7.
    dtype: type of the computation up to the scores ('float32' or 'bfloat16'); parameters, and all
      that comes after the scores, are float32.
  """

  classes: int
  variant: Literal['32s', '16s', '8s', '8s-at-once'] = '8s'
  learned: Literal['none', 'intermediate', 'all'] = 'intermediate'
  stages: Stages = VGG16
  fc_features: int = 4096
  dropout: float = 0.5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels a pixel of the lowest level."""
    return 2 ** len(self.stages)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    variant = VARIANTS[self.variant]
    x = image.astype(self.dtype)
    pools = {}
    for stage, layers in enumerate(conv_layers(self.stages), 1):
      for name, features in layers:
        padding = PAD if name == 'conv1_1' else 1
        x = nn.relu(self._conv(features, 3, padding, name)(x))
      x = pools[stage] = max_pool_ceil(x)
    for name, kernel_size in (('fc6', 7), ('fc7', 1)):
      x = nn.relu(self._conv(self.fc_features, kernel_size, 0, name)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)

    scores = self._score(x, 'score_fr')
    above = 'upscore2'
    for skip in variant.skips:
      scores = Upsample(2, self.learned != 'none', name=above)(scores)
      fine = self._score(pools[skip.pool] * skip.scale, f'score_pool{skip.pool}')
      scores += crop(fine, skip.offset, scores.shape[1:3])
      above = f'upscore_pool{skip.pool}'
    last = Upsample(variant.stride, self.learned == 'all', name=f'upscore{variant.stride}')
    return crop(last(scores), variant.offset, image.shape[1:3])

  def _conv(self, features: int, kernel_size: int, padding: int, name: str) -> nn.Conv:
    return nn.Conv(
      features,
      (kernel_size, kernel_size),
      padding=padding,
      kernel_init=he_normal,
      dtype=self.dtype,
      name=name,
    )

  def _score(self, x: jax.Array, name: str) -> jax.Array:
    """A 1x1 convolution to the classes that starts at zero (§4.3)."""
    zeros = nn.initializers.zeros
    score = nn.Conv(self.classes, (1, 1), kernel_init=zeros, dtype=self.dtype, name=name)
    return score(x).astype(jnp.float32)


class Upsample(nn.Module):
  """Bilinear upsampling, or a transposed convolution that starts from it (§3.3).

  f[B, H, W, C] -> f[B, s(H+1), s(W+1), C] for the stride s: kernel 2s, no padding, no bias.

  Attributes:
    stride: s.
    learned: whether its kernel [2s, 2s, C, C] is a parameter.
  """

  stride: int
  learned: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if not self.learned:
      return bilinear_upsample(x, self.stride)
    shape = (2 * self.stride, 2 * self.stride, x.shape[-1], x.shape[-1])
    return conv_transpose(x, self.param('kernel', bilinear_init, shape), self.stride)


def bilinear_upsample(x: jax.Array, stride: int) -> jax.Array:
  """f[B, H, W, C] -> f[B, s(H+1), s(W+1), C]: a transposed convolution with the bilinear kernel.

  Rows and then columns, each by a matrix: equal to the transposed convolution of kernel 2s, and a
  small part of its work, which grows with the square of the kernel and of the channels.
  """
  rows, columns = (_interpolation(n, stride).astype(x.dtype) for n in x.shape[1:3])
  return jnp.einsum('vw,buwc->buvc', columns, jnp.einsum('uh,bhwc->buwc', rows, x))


def _interpolation(size: int, stride: int) -> np.ndarray:
  """[s(n+1), n]: how much of each of n inputs an output takes, a triangle as wide as the kernel."""
  outputs, inputs = np.ogrid[: stride * (size + 1), :size]
  return np.maximum(0, 1 - np.abs(outputs - stride * inputs - (stride - 0.5)) / stride)


def max_pool_ceil(x: jax.Array) -> jax.Array:
  """2x2 max-pooling of stride 2 that keeps a last odd row or column, as Caffe's does.

  f[B, H, W, C] -> f[B, ceil(H / 2), ceil(W / 2), C].
  """
  # The repeated row or column changes no maximum.
  pads = [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)]
  return max_pool_2x2(jnp.pad(x, pads, mode='edge'))


def crop(x: jax.Array, offset: int, size: tuple[int, int]) -> jax.Array:
  """The f[B, *size, C] of f[B, H, W, C] that starts `offset` from the top and left."""
  return x[:, offset : offset + size[0], offset : offset + size[1]]
