"""U-Net: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, arXiv 1505.04597.

The network of the paper is `UNet(classes=2)`: unpadded convolutions, 64 channels at the first of
five levels, 572 x 572 in and 388 x 388 out, 31,030,658 parameters for one input channel. The common
variant today is `UNet(classes=…, padding='same', norm='batch')`.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv, ConvTranspose, Dropout, Norm, he_normal, make_norm
from segjax.nn.remat import apply_block
from segjax.ops.pooling import max_pool_2x2
from segjax.types import Fraction, PositiveInt, Range, SegjaxError


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with norm and ReLU; unpadded, each reduces H and W by 2."""

  features: PositiveInt
  padding: Literal['valid', 'same']
  norm: Norm
  bn_momentum: Fraction
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in (1, 2):
      x = Conv(
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
  """Center crop of f[B, H, W, C]; an odd difference removes one more at the bottom and right."""
  top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
  return x[:, top : top + height, left : left + width]


class UNet(nn.Module):
  """U-Net (Fig. 1): f[B, H, W, C] -> logits f32[B, H', W', classes].

  With `padding='valid'` and the paper's depth, H must be stride·k + 60, and H' = H - 184. With
  `padding='same'`, H' = H and W' = W for any size: the image is padded by mirroring at the bottom
  and right to a multiple of the stride, and the logits are cropped.

  Attributes:
    classes: channels of the output.
    width: channels of the first level, doubled at each level below (paper: 64).
    depth: number of 2x2 poolings (paper: 4).
    padding: 'valid' as in the paper, or 'same'.
    norm: 'none' as in the paper, 'batch' or 'group'.
    dropout: rate at the end of the contracting path (§3.1; the paper gives no rate).
    bn_momentum: of the running means and variances, with norm 'batch'.
    dtype: computation dtype ('float32' or 'bfloat16'); parameters are float32.
    remat: compute the activations inside each pair of convolutions again in the backward pass
      instead of keeping them: less memory, more time, the same gradients.
  """

  classes: PositiveInt
  width: PositiveInt = 64
  depth: Annotated[int, Range(1, 8)] = 4
  padding: Literal['valid', 'same'] = 'valid'
  norm: Norm = 'none'
  dropout: Dropout = 0.5
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return 2**self.depth

  @property
  def margin(self) -> int:
    """Pixels by which the output is smaller on each side: 92 for the paper's network."""
    if self.padding == 'same':
      return 0
    # Two unpadded convolutions (2 pixels per side) at stride 2^i in the contracting path, and again
    # in the expanding path for every level but the deepest.
    return sum(2 * 2**i for i in range(self.depth + 1)) + sum(2 * 2**i for i in range(self.depth))

  def output_size(self, at_least: int) -> int:
    """The smallest possible output height or width that is >= `at_least`."""
    if self.padding == 'same':
      return max(at_least, 1)
    # All sizes before pooling are even if and only if output = -2·margin_up (mod stride), where
    # margin_up is the margin of the expanding path.
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

    def double_conv(x: jax.Array, features: int, name: str) -> jax.Array:
      options = (self.padding, self.norm, self.bn_momentum, self.dtype)
      layers = DoubleConv(features, *options, name=name)
      apply = lambda layers, x: layers(x, train=train)
      return apply_block(apply, layers, x, remat=self.remat and train)

    skips = []
    for level in range(self.depth):
      x = double_conv(x, self.width * 2**level, f'down{level}')
      skips.append(x)
      x = max_pool_2x2(x)
    x = double_conv(x, self.width * self.stride, f'down{self.depth}')
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    for level in reversed(range(self.depth)):
      features = self.width * 2**level
      x = ConvTranspose(features, 2, 2, dtype=self.dtype, name=f'upconv{level}')(x)
      skip = center_crop(skips[level], *x.shape[1:3])
      x = jnp.concatenate([skip, x], axis=-1)
      x = double_conv(x, features, f'up{level}')
    x = Conv(self.classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name='head')(x)
    return x[:, :height, :width].astype(jnp.float32)

  def _check(self, height: int, width: int) -> None:
    if self.padding == 'same':
      return
    for name, size in (('height', height), ('width', width)):
      out = size - 2 * self.margin
      if out < 1 or self.output_size(out) != out:
        fits = self.output_size(out) + 2 * self.margin
        raise SegjaxError(
          f'an unpadded U-Net of depth {self.depth} does not support an image {name} of {size}: '
          f'the next valid {name} is {fits} (set config.data.size.crop_size to '
          f'{fits - 2 * self.margin})'
        )


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
  """Pads f[B, H, W, C] by mirroring at the bottom and right, to multiples of `multiple`."""
  pads = [(0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)]
  return jnp.pad(x, pads, mode='symmetric')
