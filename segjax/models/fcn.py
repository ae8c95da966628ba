"""FCN: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
2015, arXiv 1411.4038, on VGG16 (`FCN`), AlexNet (`FCNAlexNet`) and GoogLeNet (`FCNGoogLeNet`).

The networks are those of the authors' released files, with Caffe's conventions: the image is padded
by 100, so that the unpadded fc6 has something to see at the border; poolings keep a last, partial
window; and crops bring each layer's output to lie on the input, pixel on pixel. For GoogLeNet no
file was released: it is that of Caffe, with the same conventions. `FCNResNet` is torchvision's FCN
on ResNet, which has none of these conventions.

The chain of the paper starts each network from the one before: 32s, 16s, 8s, by `init_from`; new
layers start at zero or bilinear. FCN-32s-fixed of Table 2 is the 32s network of which only the
score layer learns: `optim.multipliers = ONLY_SCORE`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.nn import alexnet, googlenet, resnet
from segjax.nn.conv import Dropout, he_normal
from segjax.nn.vgg import VGG16, Stages, conv_layers
from segjax.ops.conv import full_window_conv
from segjax.ops.pooling import max_pool_2x2
from segjax.ops.upsample import bilinear_init, conv_transpose
from segjax.ops.windows import Window, bilinear_crop, view
from segjax.types import Array, Fraction, PositiveFloat, PositiveInt


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

# Padding of the image at the first convolution, on each side.
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

  classes: PositiveInt
  variant: Literal['32s', '16s', '8s', '8s-at-once'] = '8s'
  learned: Literal['none', 'intermediate', 'all'] = 'intermediate'
  stages: Stages = VGG16
  fc_features: PositiveInt = 4096
  dropout: Dropout = 0.5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def windows(self) -> tuple[Window, ...]:
    """Of every layer up to the scores of the lowest level."""
    layers = []
    for convolutions in conv_layers(self.stages):
      layers += [Window(3, padding=1)] * len(convolutions) + [Window(2, 2)]
    return (Window(3, padding=PAD), *layers[1:], Window(7), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the lowest level."""
    return view(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    variant = VARIANTS[self.variant]
    x = image.astype(self.dtype)
    pools = {}
    for stage, layers in enumerate(conv_layers(self.stages), 1):
      for name, features in layers:
        padding = PAD if name == 'conv1_1' else 1
        x = conv_relu(x, features, 3, padding, dtype=self.dtype, name=name)
      x = pools[stage] = max_pool_ceil(x)
    x = fc_layers(x, 7, self.fc_features, rate=self.dropout, train=train, dtype=self.dtype)

    scores = score(x, self.classes, dtype=self.dtype)
    above = 'upscore2'
    for skip in variant.skips:
      scores = Upsample(2, self.learned != 'none', name=above)(scores)
      fine = pools[skip.pool] * skip.scale
      fine = score(fine, self.classes, dtype=self.dtype, name=f'score_pool{skip.pool}')
      scores += crop(fine, skip.offset, scores.shape[1:3])
      above = f'upscore_pool{skip.pool}'
    last = Upsample(variant.stride, self.learned == 'all', name=f'upscore{variant.stride}')
    return crop(last(scores), variant.offset, image.shape[1:3])


class FCNAlexNet(nn.Module):
  """FCN-32s on AlexNet (Table 1): f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  Parameters are named as in the authors' files: conv1 … conv5, fc6, fc7, score_fr. The upsampling
  is bilinear and does not learn.

  Attributes:
    classes: channels of the output.
    form: 'caffe' as in the authors' files; 'torchvision' is the network that torchvision's weights
      are for, with other channels, no groups and no local response normalization.
    width: factor of the channels of conv1 … conv5, which are rounded up to even numbers.
    fc_features: channels of fc6 and fc7 (paper: 4096).
    dropout: rate after fc6 and after fc7.
    dtype: type of the computation up to the scores ('float32' or 'bfloat16'); parameters, and all
      that comes after the scores, are float32.
  """

  classes: PositiveInt
  form: Literal['caffe', 'torchvision'] = 'caffe'
  width: PositiveFloat = 1.0
  fc_features: PositiveInt = 4096
  dropout: Dropout = 0.5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def windows(self) -> tuple[Window, ...]:
    """Of every layer up to the scores."""
    return (*alexnet.windows(PAD), Window(6), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the lowest level."""
    return view(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    form = alexnet.FORMS[self.form]
    x = alexnet.encode(image, form, width=self.width, padding=PAD, dtype=self.dtype)
    x = fc_layers(x, 6, self.fc_features, rate=self.dropout, train=train, dtype=self.dtype)
    return upscore(score(x, self.classes, dtype=self.dtype), self.windows, image.shape[1:3])


class FCNGoogLeNet(nn.Module):
  """FCN-32s on GoogLeNet (Table 1): f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  Without the final average pooling (§4.1), whose 7x7 the receptive field of 907 in Table 1 still
  counts; without it that is 715. Parameters are named as in Caffe's bvlc_googlenet, with _ for its
  slashes: conv1, conv2_reduce, conv2, inception_3a_1x1 …, score_fr. The upsampling is bilinear and
  does not learn.

  Attributes:
    classes: channels of the output.
    form: 'caffe' as in the paper of GoogLeNet; 'torchvision' is the network that torchvision's
      weights are for: batch normalization in place of biases and of local response normalization,
      3x3 for every 5x5, and a 2x2 pool4.
    width: factor of all channels before the scores, which are rounded up to even numbers.
    dropout: rate before the scores; GoogLeNet's is 0.4.
    dtype: type of the computation up to the scores ('float32' or 'bfloat16'); parameters, and all
      that comes after the scores, are float32.
  """

  classes: PositiveInt
  form: Literal['caffe', 'torchvision'] = 'caffe'
  width: PositiveFloat = 1.0
  dropout: Dropout = 0.4
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def windows(self) -> tuple[Window, ...]:
    """Of every layer up to the scores."""
    return (*googlenet.windows(googlenet.FORMS[self.form], PAD), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the lowest level."""
    return view(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    form = googlenet.FORMS[self.form]
    x = googlenet.encode(image, form, width=self.width, padding=PAD, train=train, dtype=self.dtype)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return upscore(score(x, self.classes, dtype=self.dtype), self.windows, image.shape[1:3])


def conv_relu(
  x: Array,
  features: int,
  kernel_size: int,
  padding: int,
  *,
  dtype: Any,
  name: str,
  **kwargs: Any,
) -> Array:
  """A convolution called `name` with a bias, and a ReLU; `kwargs` are more of `nn.Conv`'s."""
  x = nn.Conv(
    features,
    (kernel_size, kernel_size),
    padding=padding,
    kernel_init=he_normal,
    dtype=dtype,
    name=name,
    **kwargs,
  )(x)
  return nn.relu(x)


def fc_layers(
  x: Array, kernel_size: int, features: int, *, rate: float, train: bool, dtype: Any
) -> Array:
  """The fully-connected layers as convolutions (§3.1), fc6 of `kernel_size`, each with dropout."""
  # Strides, padding and layout, as `nn.Conv` passes them, are the only case of it.
  convolve = lambda x, kernel, *_, **__: full_window_conv(x, kernel)
  for name, size in (('fc6', kernel_size), ('fc7', 1)):
    x = conv_relu(x, features, size, 0, dtype=dtype, name=name, conv_general_dilated=convolve)
    x = nn.Dropout(rate, deterministic=not train)(x)
  return x


def score(x: Array, classes: int, *, dtype: Any, name: str = 'score_fr') -> Array:
  """f32[B, h, w, classes] by a 1x1 convolution that starts at zero (§4.3)."""
  zeros = nn.initializers.zeros
  layer = nn.Conv(classes, (1, 1), kernel_init=zeros, dtype=dtype, name=name)
  return layer(x).astype(jnp.float32)


def upscore(scores: Array, windows: Iterable[Window], size: tuple[int, int]) -> Array:
  """Scores that come from `windows`, upsampled to lie on the image: -> f32[B, *size, classes]."""
  seen = view(windows)
  kernel_size, offset = bilinear_crop(seen)
  return crop(bilinear_upsample(scores, seen.stride, kernel_size), offset, size)


class Upsample(nn.Module):
  """Bilinear upsampling, or a transposed convolution that starts from it (§3.3).

  f[B, H, W, C] -> f[B, s(H+1), s(W+1), C] for the stride s: kernel 2s, no padding, no bias.

  Attributes:
    stride: s.
    learned: whether its kernel [2s, 2s, C, C] is a parameter.
  """

  stride: PositiveInt
  learned: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if not self.learned:
      return bilinear_upsample(x, self.stride)
    shape = (2 * self.stride, 2 * self.stride, x.shape[-1], x.shape[-1])
    return conv_transpose(x, self.param('kernel', bilinear_init, shape), self.stride)


def bilinear_upsample(x: Array, stride: int, kernel_size: int | None = None) -> Array:
  """f[B, H, W, C] -> f[B, s(H-1)+k, s(W-1)+k, C]: a transposed convolution, the kernel bilinear.

  Rows and then columns, each by a matrix: equal to the transposed convolution of kernel k, and a
  small part of its work, which grows with the square of the kernel and of the channels. k is 2s, or
  2s - 1.
  """
  k = kernel_size or 2 * stride
  rows, columns = (_interpolation(n, stride, k).astype(x.dtype) for n in x.shape[1:3])
  return jnp.einsum('vw,buwc->buvc', columns, jnp.einsum('uh,bhwc->buwc', rows, x))


def _interpolation(size: int, stride: int, kernel_size: int) -> np.ndarray:
  """[s(n-1)+k, n]: how much of each of n inputs an output takes, a triangle of k pixels."""
  outputs, inputs = np.ogrid[: stride * (size - 1) + kernel_size, :size]
  return np.maximum(0, 1 - np.abs(outputs - stride * inputs - (kernel_size - 1) / 2) / stride)


def max_pool_ceil(x: Array) -> Array:
  """2x2 max-pooling of stride 2 that keeps a last odd row or column, as Caffe's does.

  f[B, H, W, C] -> f[B, ceil(H / 2), ceil(W / 2), C].
  """
  # The repeated row or column changes no maximum.
  pads = [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)]
  return max_pool_2x2(jnp.pad(x, pads, mode='edge'))


def crop(x: Array, offset: int, size: tuple[int, int]) -> Array:
  """The f[B, *size, C] of f[B, H, W, C] that starts `offset` from the top and left."""
  return x[:, offset : offset + size[0], offset : offset + size[1]]


class FCNResNet(nn.Module):
  """torchvision's FCN on a ResNet: f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  `FCNResNet(classes=21, variant='resnet50')` is its fcn_resnet50. The last two stages are dilated,
  so that the features have stride 8; a 3x3 convolution brings them to a quarter of their channels,
  a 1x1 convolution to the scores, and these are resized to the image. (Feature i lies on pixel 8i,
  and resizing takes it for 8i + 3.5, as torchvision does.)

  Layers: those of the ResNet in `backbone`, then classifier_conv, classifier_conv_norm and
  classifier_score; the same as aux_classifier_….

  Attributes:
    classes: channels of the output.
    variant: a row of `segjax.nn.resnet.VARIANTS`.
    width: channels of the ResNet's stem; all others but the scores are in proportion.
    norm: of the ResNet: 'batch', 'frozen' or 'group'; the classifier has 'batch' for 'frozen'.
    dilate: the stages of 3, 4, 5 that dilate in place of a stride; () leaves stride 32.
    auxiliary: whether there is a second classifier, on stage 4. `__call__` computes it for
      `with_auxiliary`; a loss on it is the caller's (torchvision: 0.5 times the main one).
    dropout: rate before the scores.
    bn_momentum: of the running means and variances.
    dtype: type of the computation up to the scores ('float32' or 'bfloat16'); parameters, and all
      that comes after the scores, are float32.
  """

  classes: PositiveInt
  variant: resnet.Name = 'resnet50'
  width: PositiveInt = 64
  norm: resnet.Norm = 'batch'
  dilate: tuple[resnet.HalvingStage, ...] = (4, 5)
  auxiliary: bool = False
  dropout: Dropout = 0.1
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the lowest level."""
    return 32 // 2 ** len(self.dilate)

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False, with_auxiliary: bool = False
  ) -> Array | tuple[Array, Array]:
    """Logits; with `with_auxiliary` a pair of them and those of the second classifier.

    Raises:
      ValueError: there is no second classifier.
    """
    if with_auxiliary and not self.auxiliary:
      raise ValueError('there is no second classifier: make the network with auxiliary=True')
    backbone = resnet.ResNet(
      variant=self.variant,
      width=self.width,
      norm=self.norm,
      dilate=self.dilate,
      bn_momentum=self.bn_momentum,
      dtype=self.dtype,
      name='backbone',
    )
    features = backbone(image, train=train)

    def classify(x: Array, name: str) -> Array:
      x = resnet.conv_norm(
        x,
        resnet.Conv(x.shape[-1] // 4, 3),
        norm='batch' if self.norm == 'frozen' else self.norm,
        train=train,
        momentum=self.bn_momentum,
        dtype=self.dtype,
        name=f'{name}_conv',
      )
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
      scores = score(x, self.classes, dtype=self.dtype, name=f'{name}_score')
      return jax.image.resize(scores, (*image.shape[:3], self.classes), 'bilinear')

    logits = classify(features['c5'], 'classifier')
    if with_auxiliary or (self.auxiliary and self.is_initializing()):
      auxiliary = classify(features['c4'], 'aux_classifier')
    return (logits, auxiliary) if with_auxiliary else logits
