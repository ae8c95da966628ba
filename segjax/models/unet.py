"""U-Net: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, arXiv 1505.04597.

The network of the paper is `UNet(classes=2)`: unpadded convolutions, 64 channels at the first of
five levels, 572 x 572 in and 388 x 388 out, 31,030,658 parameters for one input channel. The form
that most people use today is `UNet(classes=…, padding='same', norm='batch')`.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import ConvTranspose, Dropout, Norm, he_normal, make_norm
from segjax.ops.pooling import max_pool_2x2
from segjax.types import Fraction, PositiveInt, Range, SegjaxError


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with its norm and a ReLU; unpadded, each takes 2 off H and W."""

  features: PositiveInt
  padding: Literal['valid', 'same']
  norm: Norm
  bn_momentum: Fraction
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in (1, 2):
      x = nn.Conv(
        self.features,
        (3, 3),
        padding=self.padding.upper(),
        use_bias=self.norm == 'none',
        kernel_init=he_normal,
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      norm = make_norm(
        self.norm, train=train, momentum=self.bn_momentum, dtype=self.dtype, name=f'norm{i}'
      )
      x = nn.relu(norm(x))
    return x


def center_crop(x: jax.Array, height: int, width: int) -> jax.Array:
  """The central f[B, height, width, C] of f[B, H, W, C]; an odd remainder stays at the end."""
  top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
  return x[:, top : top + height, left : left + width]


class UNet(nn.Module):
  """U-Net (Fig. 1): f[B, H, W, C] -> logits f32[B, H', W', classes].

  With `padding='valid'` H = stride·k + 60 for the paper's depth gives H' = H - 184, and any other H
  is an error. With `padding='same'` H' = H and W' = W, of any size: the bottom and right are
  padded by reflection to a multiple of the stride, and cropped off the logits.

  Attributes:
    classes: channels of the output.
    width: channels of the first level, doubled at each level below (paper: 64).
    depth: number of 2x2 poolings (paper: 4).
    padding: 'valid' as in the paper, or 'same'.
    norm: 'none' as in the paper, 'batch' or 'group'.
    dropout: rate at the end of the contracting path (§3.1; the paper gives no rate).
    bn_momentum: of the running means and variances that serve outside training, with norm 'batch'.
    dtype: type of the computation ('float32' or 'bfloat16'); parameters are float32.
  """

  classes: PositiveInt
  width: PositiveInt = 64
  depth: Annotated[int, Range(1, 8)] = 4
  padding: Literal['valid', 'same'] = 'valid'
  norm: Norm = 'none'
  dropout: Dropout = 0.5
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the lowest level."""
    return 2**self.depth

  @property
  def margin(self) -> int:
    """Pixels that the output lacks on each side of the input: 92 for the paper's network."""
    if self.padding == 'same':
      return 0
    # Two unpadded convolutions (2 pixels per side) act at stride 2^i on the way down, and again on
    # the way up for every level but the lowest.
    return sum(2 * 2**i for i in range(self.depth + 1)) + sum(2 * 2**i for i in range(self.depth))

  def output_size(self, at_least: int) -> int:
    """The smallest height or width that the network can output and that is >= `at_least`."""
    if self.padding == 'same':
      return max(at_least, 1)
    # Every pooled size is even exactly if output = -2·margin_up (mod stride), where margin_up
    # is what the expanding path takes off.
    rest = -sum(4 * 2**i for i in range(self.depth)) % self.stride
    least = rest or self.stride
    return max(least, at_least + (rest - at_least) % self.stride)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    height, width = image.shape[1:3]
    self._check(height, width)
    x = image.astype(self.dtype)
    if self.padding == 'same':
      x = pad_to_multiple(x, self.stride)
    block = {
      'padding': self.padding,
      'norm': self.norm,
      'bn_momentum': self.bn_momentum,
      'dtype': self.dtype,
    }

    skips = []
    for level in range(self.depth):
      x = DoubleConv(self.width * 2**level, **block, name=f'down{level}')(x, train=train)
      skips.append(x)
      x = max_pool_2x2(x)
    x = DoubleConv(self.width * self.stride, **block, name=f'down{self.depth}')(x, train=train)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    for level in reversed(range(self.depth)):
      features = self.width * 2**level
      x = ConvTranspose(features, 2, 2, dtype=self.dtype, name=f'upconv{level}')(x)
      skip = center_crop(skips[level], *x.shape[1:3])
      x = jnp.concatenate([skip, x], axis=-1)
      x = DoubleConv(features, **block, name=f'up{level}')(x, train=train)
    x = nn.Conv(self.classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name='head')(x)
    return x[:, :height, :width].astype(jnp.float32)

  def _check(self, height: int, width: int) -> None:
    if self.padding == 'same':
      return
    for name, size in (('height', height), ('width', width)):
      out = size - 2 * self.margin
      if out < 1 or self.output_size(out) != out:
        fits = self.output_size(out) + 2 * self.margin
        raise SegjaxError(
          f'an unpadded U-Net of depth {self.depth} cannot take an image of {name} {size}: the '
          f'next {name} that fits is {fits} (set config.data.size.crop_size to '
          f'{fits - 2 * self.margin})'
        )


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
  """f[B, H, W, C] padded by reflection at the bottom and right to multiples of `multiple`."""
  pads = [(0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)]
  return jnp.pad(x, pads, mode='symmetric')
