"""SegNet: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder
Architecture for Image Segmentation", PAMI 2017, arXiv 1511.00561. With dropout it is the Bayesian
SegNet of Kendall, Badrinarayanan, Cipolla, arXiv 1511.02680.

`SegNet(classes=11)` is the network of the paper, `SegNetBasic(classes=11, variant=…)` the small one
in the eight variants of Table 1. Both take images of any size and return logits of the same size;
pooling rounds odd sizes up (360x480 becomes 12x15) and unpooling restores them. Layers are named as
in the authors' Caffe files.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv, ConvTranspose, Dropout, he_normal
from segjax.nn.vgg import VGG16, Stages, conv_layers
from segjax.ops.normalize import local_contrast_norm, local_response_norm
from segjax.ops.pooling import argmax_pool_2x2, unpool_2x2
from segjax.ops.upsample import bilinear_kernel
from segjax.types import Array, Fraction, NonNegativeFloat, PositiveInt, SegjaxError, nearest

InputNorm = Literal['none', 'local_response', 'local_contrast']

INPUT_NORMS: dict[str, Callable[[Array], Array]] = {
  'none': lambda image: image,
  'local_response': local_response_norm,
  'local_contrast': local_contrast_norm,
}


class Variant(NamedTuple):
  """A decoder of Table 1 (section 3.1), applied once per pooling layer.

  Attributes:
    upsample: 'indices' unpools and then convolves; 'transposed' is an 8x8 transposed convolution
      initialized to bilinear interpolation; 'bilinear' is fixed bilinear interpolation.
    reduce: whether 1x1 convolutions first reduce the encoder's maps to the number of classes.
    add: whether the pooled encoder map of the same size is added after upsampling (the first is
      180x240 in the paper). Nothing is added after the last upsampling, to the image size.
    single_channel: whether the decoder's convolutions are depthwise.
  """

  upsample: Literal['indices', 'transposed', 'bilinear']
  reduce: bool = False
  add: bool = False
  single_channel: bool = False


# Table 1 of the paper, by its names.
VARIANTS = {
  'Bilinear-Interpolation': Variant('bilinear', reduce=True),
  'SegNet-Basic': Variant('indices'),
  'SegNet-Basic-EncoderAddition': Variant('indices', add=True),
  'SegNet-Basic-SingleChannelDecoder': Variant('indices', single_channel=True),
  'FCN-Basic': Variant('transposed', reduce=True, add=True),
  'FCN-Basic-NoAddition': Variant('transposed', reduce=True),
  'FCN-Basic-NoDimReduction': Variant('transposed', add=True),
  'FCN-Basic-NoAddition-NoDimReduction': Variant('transposed'),
}


class SegNet(nn.Module):
  """SegNet (Fig. 2): f[B, H, W, C] -> logits f32[B, H, W, classes].

  The encoder has VGG16's convolutions, each with batch normalization and ReLU. The decoder mirrors
  it: it unpools with the max-pooling indices of the encoder, and each convolution has as many
  output channels as its counterpart has input channels. The last one outputs the logits.

  Attributes:
    classes: channels of the output.
    stages: (channels, convolutions) of each encoder.
    dropout: rate after each of `dropout_stages`; Bayesian SegNet: 0.5.
    dropout_stages: stages, from 1, with dropout in encoder (after pooling) and decoder; by default
      the deepest, as in Bayesian SegNet's released files.
    input_norm: normalization of the image; the paper's network has none.
    bn_momentum: of the running means and variances.
    bn_epsilon: added to the variance; 1e-9 in the authors' files.
    dtype: computation dtype ('float32' or 'bfloat16'); parameters are float32.
  """

  classes: PositiveInt
  stages: Stages = VGG16
  dropout: Dropout = 0.0
  dropout_stages: tuple[PositiveInt, ...] = (3, 4, 5)
  input_norm: InputNorm = 'none'
  bn_momentum: Fraction = 0.9
  bn_epsilon: NonNegativeFloat = 1e-5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return 2 ** len(self.stages)

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False, sample: bool = False) -> Array:
    """`sample` enables dropout outside training, for Monte Carlo samples of the logits."""
    unit = functools.partial(
      conv_norm_relu,
      kernel_size=3,
      train=train,
      momentum=self.bn_momentum,
      epsilon=self.bn_epsilon,
      dtype=self.dtype,
    )
    drop = make_dropout(self.dropout, self.dropout_stages, active=train or sample)
    x = normalized(image, self.input_norm, self.dtype)

    encoders = list(enumerate(conv_layers(self.stages), 1))
    taken, pooled = {}, {}
    for stage, layers in encoders:
      for name, features in layers:
        taken[name] = x.shape[-1]
        x = unit(x, features, name=name)
      size = x.shape[1:3]
      x, indices = argmax_pool_2x2(x)
      pooled[stage] = (indices, size)
      x = drop(x, stage)

    for stage, layers in reversed(encoders):
      x = unpool_2x2(x, *pooled[stage])
      for name, _ in reversed(layers):
        if name == 'conv1_1':
          x = conv(x, self.classes, kernel_size=3, dtype=self.dtype, name='conv1_1_D')
        else:
          x = unit(x, taken[name], name=f'{name}_D')
      if stage > 1:
        x = drop(x, stage)
    return x.astype(jnp.float32)


class SegNetBasic(nn.Module):
  """SegNet-Basic and the other decoders of Table 1: f[B, H, W, C] -> logits f32[B, H, W, classes].

  Four encoder stages of one 7x7 convolution with batch normalization and ReLU, and four decoder
  stages of `VARIANTS[variant]`. Decoder convolutions have batch normalization but no ReLU (section
  3.1). Convolutions have biases, as in the authors' files.

  Attributes:
    classes: channels of the output.
    variant: a name in Table 1 of the paper, see `VARIANTS`.
    width: channels of every encoder (paper: 64).
    dropout: rate after each of `dropout_stages`; Bayesian SegNet-Basic: 0.5.
    dropout_stages: stages, from 1, with dropout in encoder (after pooling) and decoder.
    input_norm: 'local_contrast' as in the paper, 'local_response' as in the authors' files (for
      pixel values from 0 to 255), or 'none'.
    bn_momentum: of the running means and variances.
    bn_epsilon: added to the variance; 1e-9 in the authors' files.
    dtype: computation dtype ('float32' or 'bfloat16'); parameters are float32.
  """

  classes: PositiveInt
  variant: str = 'SegNet-Basic'
  width: PositiveInt = 64
  dropout: Dropout = 0.0
  dropout_stages: tuple[PositiveInt, ...] = (3, 4)
  input_norm: InputNorm = 'local_contrast'
  bn_momentum: Fraction = 0.9
  bn_epsilon: NonNegativeFloat = 1e-5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return 16

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False, sample: bool = False) -> Array:
    """`sample` enables dropout outside training, for Monte Carlo samples of the logits."""
    if self.variant not in VARIANTS:
      raise SegjaxError(
        f'config.model.variant: unknown variant {self.variant}{nearest(self.variant, VARIANTS)}'
      )
    variant = VARIANTS[self.variant]
    unit = functools.partial(
      conv_norm_relu,
      kernel_size=7,
      train=train,
      momentum=self.bn_momentum,
      epsilon=self.bn_epsilon,
      dtype=self.dtype,
    )
    project = functools.partial(conv, features=self.classes, kernel_size=1, dtype=self.dtype)
    drop = make_dropout(self.dropout, self.dropout_stages, active=train or sample)
    x = normalized(image, self.input_norm, self.dtype)

    pooled = {}
    for stage in (1, 2, 3, 4):
      x = unit(x, self.width, name=f'conv{stage}')
      size = x.shape[1:3]
      x, indices = argmax_pool_2x2(x)
      x = drop(x, stage)
      pooled[stage] = (x, indices, size)

    if variant.reduce:
      x = project(x, name='reduce4')
    for stage in (4, 3, 2, 1):
      _, indices, size = pooled[stage]
      if variant.upsample == 'indices':
        groups = self.width if variant.single_channel else 1
        decode = functools.partial(unit, groups=groups, relu=False, name=f'conv_decode{stage}')
        x = decode(unpool_2x2(x, indices, size), self.width)
      else:
        learned = variant.upsample == 'transposed'
        x = upsample(x, learned=learned, dtype=self.dtype, name=f'upsample{stage}')
      x = x[:, : size[0], : size[1]]
      if variant.add and stage > 1:
        encoded = pooled[stage - 1][0]
        x += project(encoded, name=f'reduce{stage - 1}') if variant.reduce else encoded
      x = drop(x, stage)
    if not variant.reduce:
      x = project(x, name='conv_classifier')
    return x.astype(jnp.float32)


def normalized(image: Array, kind: InputNorm, dtype: Any) -> Array:
  """The image, normalized by `kind` in float32 and cast to `dtype`."""
  return INPUT_NORMS[kind](image).astype(dtype)


def make_dropout(
  rate: float, stages: tuple[int, ...], *, active: bool
) -> Callable[[Array, int], Array]:
  """`(x, stage) -> x`: applies dropout in `stages`."""
  dropout = nn.Dropout(rate, deterministic=not active)
  return lambda x, stage: dropout(x) if stage in stages else x


def conv(
  x: Array, features: int, kernel_size: int, *, dtype: Any, name: str, groups: int = 1
) -> Array:
  """A same-padded convolution with bias and He initialization."""
  return Conv(
    features,
    (kernel_size, kernel_size),
    feature_group_count=groups,
    kernel_init=he_normal,
    dtype=dtype,
    name=name,
  )(x)


def conv_norm_relu(
  x: Array,
  features: int,
  kernel_size: int,
  *,
  train: bool,
  momentum: float,
  epsilon: float,
  dtype: Any,
  name: str,
  groups: int = 1,
  relu: bool = True,
) -> Array:
  """`conv` named `name`, batch normalization named `name`_bn, and an optional ReLU."""
  x = conv(x, features, kernel_size, dtype=dtype, name=name, groups=groups)
  x = nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    epsilon=epsilon,
    dtype=dtype,
    name=f'{name}_bn',
  )(x)
  return nn.relu(x) if relu else x


def upsample(x: Array, *, learned: bool, dtype: Any, name: str) -> Array:
  """f[B, H, W, C] -> f[B, 2H, 2W, C]: bilinear, or learned and initialized to bilinear."""
  if not learned:
    return jax.image.resize(x, (len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), 'bilinear')
  layer = ConvTranspose(
    x.shape[-1],
    kernel_size=8,
    stride=2,
    padding=3,
    kernel_init=twofold_bilinear_init,
    dtype=dtype,
    name=name,
  )
  return layer(x)


def twofold_bilinear_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
  """Initializer: the 4x4 kernel of 2x bilinear interpolation, centered in a larger even kernel."""
  del key
  pads = [((k - 4) // 2,) * 2 for k in shape[:2]]
  return jnp.pad(bilinear_kernel(4, shape[2], dtype), [*pads, (0, 0), (0, 0)])
