"""FCN: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
2015, arXiv 1411.4038, on VGG16 (`FCN`), AlexNet (`FCNAlexNet`) and GoogLeNet (`FCNGoogLeNet`).

The networks match the authors' released files, with Caffe's conventions: the image is padded by
100, so that the unpadded fc6 is defined at the border; pooling keeps a partial last window; crops
align the output of each layer with the input. For GoogLeNet no file was released: it is Caffe's
network with the same conventions. `FCNResNet` is torchvision's FCN on ResNet, without these
conventions.

As in the paper, 32s, 16s and 8s are trained in turn, each initialized from the previous one
(`init_from`); new layers are initialized to zero or bilinear. FCN-32s-fixed of Table 2 is the 32s
network with only the score layer trained: `optim.multipliers = ONLY_SCORE`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.nn import alexnet, googlenet, resnet
from segjax.nn.conv import Conv, Dropout, he_normal
from segjax.nn.vgg import VGG16, Stages, conv_layers
from segjax.ops.pooling import argmax_pool_2x2
from segjax.ops.upsample import bilinear_init, conv_transpose
from segjax.ops.windows import Window, bilinear_crop, bottom_padding, receptive_field
from segjax.types import Array, Fraction, PositiveFloat, PositiveInt

# A layer of `FCNResNet`: `conv_norm(x, ConvSpec, name=…)`, or `dropout(x, rate)`.
Layer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Skip:
  """A pooling layer whose scores are added to the upsampled coarser ones.

  Attributes:
    pool: stage of VGG16; its pooling has stride 2^pool.
    offset: rows and columns cropped from the top and left of its scores before they are added.
    scale: factor of its features before scoring.
  """

  pool: int
  offset: int
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Variant:
  """A network of §4 (Fig. 3).

  Attributes:
    stride: of the last transposed convolution; its kernel size is twice the stride.
    offset: rows and columns cropped from the top and left of its output.
    skips: added in order, each after a transposed convolution of stride 2.
  """

  stride: int
  offset: int
  skips: tuple[Skip, ...] = ()


# Crop offsets and scales of the released files (voc-fcn32s, 16s, 8s, 8s-atonce).
VARIANTS = {
  '32s': Variant(32, 19),
  '16s': Variant(16, 27, (Skip(4, 5),)),
  '8s': Variant(8, 31, (Skip(4, 5), Skip(3, 9))),
  '8s-at-once': Variant(8, 31, (Skip(4, 5, 0.01), Skip(3, 9, 0.0001))),
}

# `config.optim.multipliers` that freeze all but the score layers, whose biases learn twice as fast.
ONLY_SCORE = (('^(?!score_)', 0.0), ('bias$', 2.0))

# Padding of the image at the first convolution, on each side.
PAD = 100


class FCN(nn.Module):
  """FCN on VGG16: f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  Parameters are named as in the authors' files: conv1_1 … conv5_3, fc6, fc7, score_fr, score_pool4,
  score_pool3, and upscore… if the upsampling is learned.

  Attributes:
    classes: channels of the output.
    variant: a key of `VARIANTS`.
    learned: which transposed convolutions are learned: 'none' as in the released files,
      'intermediate' as in the paper (all but the last, §3.3 and §4.3), or 'all'. They are
      initialized to bilinear interpolation and have no bias. Fixed ones are not parameters.
    stages: (channels, convolutions) of each of VGG's five stages.
    fc_features: channels of fc6 and fc7 (paper: 4096).
    dropout: rate after fc6 and after fc7.
    dtype: computation dtype up to the scores ('float32' or 'bfloat16'); parameters and everything
      after the scores are float32.
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
    """The kernel windows of all layers up to the coarsest scores."""
    layers = []
    for convolutions in conv_layers(self.stages):
      layers += [Window(3, padding=1)] * len(convolutions) + [Window(2, 2)]
    return (Window(3, padding=PAD), *layers[1:], Window(7), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return receptive_field(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    variant = VARIANTS[self.variant]
    x = image.astype(self.dtype)
    pools = {}
    for stage, layers in enumerate(conv_layers(self.stages), 1):
      for name, features in layers:
        padding = PAD if name == 'conv1_1' else 1
        x = conv_relu(x, features, 3, padding, dtype=self.dtype, name=name)
      x = pools[stage] = argmax_pool_2x2(x)[0]  # of partial windows too, as in Caffe
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
  is fixed bilinear interpolation.

  Attributes:
    classes: channels of the output.
    form: 'caffe' as in the authors' files; 'torchvision' matches torchvision's weights: different
      channels, no groups, no local response normalization, and pooling drops a partial last window.
      Where the scores would then end before the image does, it is padded by up to 26 more rows and
      columns at the bottom and right.
    width: multiplier of the channels of conv1 … conv5, rounded up to even numbers.
    fc_features: channels of fc6 and fc7 (paper: 4096).
    dropout: rate after fc6 and after fc7.
    dtype: computation dtype up to the scores ('float32' or 'bfloat16'); parameters and everything
      after the scores are float32.
  """

  classes: PositiveInt
  form: Literal['caffe', 'torchvision'] = 'caffe'
  width: PositiveFloat = 1.0
  fc_features: PositiveInt = 4096
  dropout: Dropout = 0.5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def windows(self) -> tuple[Window, ...]:
    """The kernel windows of all layers up to the scores."""
    return (*alexnet.windows(PAD), Window(6), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return receptive_field(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    form, size = alexnet.FORMS[self.form], image.shape[1:3]
    if not form.partial:
      pads = [(0, bottom_padding(receptive_field(self.windows), length)) for length in size]
      image = jnp.pad(image, [(0, 0), *pads, (0, 0)])
    x = alexnet.encode(image, form, width=self.width, padding=PAD, dtype=self.dtype)
    x = fc_layers(x, 6, self.fc_features, rate=self.dropout, train=train, dtype=self.dtype)
    return upscore(score(x, self.classes, dtype=self.dtype), self.windows, size)


class FCNGoogLeNet(nn.Module):
  """FCN-32s on GoogLeNet (Table 1): f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  The final average pooling is removed (§4.1). The receptive field of 907 in Table 1 still includes
  its 7x7 window; without it the receptive field is 715. Parameters are named as in Caffe's
  bvlc_googlenet, with _ for slashes: conv1, conv2_reduce, conv2, inception_3a_1x1 …, score_fr. The
  upsampling is fixed bilinear interpolation.

  Attributes:
    classes: channels of the output.
    form: 'caffe' as in the GoogLeNet paper; 'torchvision' matches torchvision's weights: batch
      normalization instead of biases and local response normalization, 3x3 instead of 5x5
      convolutions, and a 2x2 pool4.
    width: multiplier of all channels before the scores, rounded up to even numbers.
    dropout: rate before the scores; GoogLeNet's is 0.4.
    bn_momentum: of the running means and variances, with form 'torchvision'.
    dtype: computation dtype up to the scores ('float32' or 'bfloat16'); parameters and everything
      after the scores are float32.
  """

  classes: PositiveInt
  form: Literal['caffe', 'torchvision'] = 'caffe'
  width: PositiveFloat = 1.0
  dropout: Dropout = 0.4
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def windows(self) -> tuple[Window, ...]:
    """The kernel windows of all layers up to the scores."""
    return (*googlenet.windows(googlenet.FORMS[self.form], PAD), Window(1))

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return receptive_field(self.windows).stride

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    form = googlenet.FORMS[self.form]
    x = googlenet.encode(
      image,
      form,
      width=self.width,
      padding=PAD,
      train=train,
      momentum=self.bn_momentum,
      dtype=self.dtype,
    )
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
  """A convolution `name` with bias, and a ReLU; `kwargs` are passed to `nn.Conv`."""
  x = Conv(
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
  """fc6 (of `kernel_size`) and fc7 as convolutions (§3.1), each followed by dropout."""
  for name, size in (('fc6', kernel_size), ('fc7', 1)):
    x = conv_relu(x, features, size, 0, dtype=dtype, name=name)
    x = nn.Dropout(rate, deterministic=not train)(x)
  return x


def score(x: Array, classes: int, *, dtype: Any, name: str = 'score_fr') -> Array:
  """Scores f32[B, h, w, classes] by a 1x1 convolution, initialized to zero (§4.3)."""
  zeros = nn.initializers.zeros
  layer = Conv(classes, (1, 1), kernel_init=zeros, dtype=dtype, name=name)
  return layer(x).astype(jnp.float32)


def upscore(scores: Array, windows: Iterable[Window], size: tuple[int, int]) -> Array:
  """Upsamples scores computed by `windows` to the image grid: -> f32[B, *size, classes]."""
  seen = receptive_field(windows)
  kernel_size, offset = bilinear_crop(seen)
  return crop(bilinear_upsample(scores, seen.stride, kernel_size), offset, size)


class Upsample(nn.Module):
  """Bilinear upsampling, or a transposed convolution that is initialized to it (§3.3).

  f[B, H, W, C] -> f[B, s(H+1), s(W+1), C] for the stride s: kernel 2s, no padding, no bias.

  Attributes:
    stride: s.
    learned: whether the kernel [2s, 2s, C, C] is a parameter.
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
  """Transposed convolution with a bilinear kernel: f[B, H, W, C] -> f[B, s(H-1)+k, s(W-1)+k, C].

  The kernel is separable, so rows and columns are interpolated by one matrix each, at a fraction of
  the cost of the transposed convolution. k is 2s or 2s - 1.
  """
  k = kernel_size or 2 * stride
  rows, columns = (_interpolation(n, stride, k).astype(x.dtype) for n in x.shape[1:3])
  multiply = functools.partial(jnp.einsum, precision='highest')
  return multiply('vw,buwc->buvc', columns, multiply('uh,bhwc->buwc', rows, x))


def _interpolation(size: int, stride: int, kernel_size: int) -> np.ndarray | Array:
  """Interpolation matrix [s(n-1)+k, n]: a triangle filter of k pixels per input."""
  xp = np if isinstance(size, int) else jnp  # a size that `jax.export` calls by a name
  outputs, inputs = xp.arange(stride * (size - 1) + kernel_size)[:, None], xp.arange(size)
  return xp.maximum(0, 1 - xp.abs(outputs - stride * inputs - (kernel_size - 1) / 2) / stride)


def crop(x: Array, offset: int, size: tuple[int, int]) -> Array:
  """Crops f[B, H, W, C] to f[B, *size, C], starting at `offset` from the top and left."""
  return x[:, offset : offset + size[0], offset : offset + size[1]]


class FCNResNet(nn.Module):
  """torchvision's FCN on a ResNet: f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  `FCNResNet(classes=21, variant='resnet50')` is its fcn_resnet50. The last two stages are dilated,
  so that the features have stride 8. A 3x3 convolution reduces them to a quarter of the channels, a
  1x1 convolution computes the scores, and these are resized to the image. (Feature i is centered at
  pixel 8i, but resizing assumes 8i + 3.5, as in torchvision.)

  Layers: the ResNet `backbone`, then classifier_conv, classifier_conv_norm and classifier_score,
  and likewise aux_classifier_….

  Attributes:
    classes: channels of the output.
    variant: a key of `segjax.nn.resnet.VARIANTS`.
    width: channels of the ResNet's stem; all other channels but the scores scale with it.
    norm: of the ResNet: 'batch', 'frozen' or 'group'. With 'frozen', the classifier uses 'batch'.
    dilate: stages among 3, 4, 5 with dilation instead of stride; () gives stride 32.
    auxiliary: whether training has an auxiliary classifier, on stage 4, with losses of its own.
    auxiliary_scale: factor of these losses; 0.5 as in torchvision.
    dropout: rate before the scores.
    bn_momentum: of the running means and variances.
    dtype: computation dtype up to the scores ('float32' or 'bfloat16'); parameters and everything
      after the scores are float32.
    remat: compute the activations inside each block of the ResNet again in the backward pass
      instead of keeping them: less memory, more time, the same gradients.
  """

  classes: PositiveInt
  variant: resnet.Name = 'resnet50'
  width: PositiveInt = 64
  norm: resnet.Norm = 'batch'
  dilate: tuple[resnet.HalvingStage, ...] = (4, 5)
  auxiliary: bool = False
  auxiliary_scale: PositiveFloat = 0.5
  dropout: Dropout = 0.1
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return resnet.coarsest_stride(self.dilate)

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False, with_auxiliary: bool = False
  ) -> Array | tuple[Array, Array]:
    """Logits; with `with_auxiliary`, a pair with the logits of the auxiliary classifier.

    Raises:
      ValueError: `with_auxiliary` without an auxiliary classifier.
    """
    if with_auxiliary and not self.auxiliary:
      raise ValueError('no auxiliary classifier: create the network with auxiliary=True')
    backbone = resnet.ResNet(
      variant=self.variant,
      width=self.width,
      norm=self.norm,
      dilate=self.dilate,
      bn_momentum=self.bn_momentum,
      dtype=self.dtype,
      remat=self.remat,
      name='backbone',
    )
    features, size = backbone(image, train=train), image.shape[1:3]
    conv_norm = functools.partial(
      resnet.conv_norm,
      # With 'frozen', the layers outside the ResNet have no statistics yet.
      norm='batch' if self.norm == 'frozen' else self.norm,
      train=train,
      momentum=self.bn_momentum,
      dtype=self.dtype,
    )
    dropout = lambda x, rate: nn.Dropout(rate, deterministic=not train)(x)
    logits = self._classify(features, size, conv_norm, dropout)
    if with_auxiliary or (self.auxiliary and self.is_initializing()):
      auxiliary = self._fcn_head(features['c4'], size, conv_norm, dropout, 'aux_classifier')
    return (logits, auxiliary) if with_auxiliary else logits

  @property
  def _fcn_dropout(self) -> float:
    """The rate in `_fcn_head`."""
    return self.dropout

  def _classify(
    self, features: dict[str, Array], size: tuple[int, int], conv_norm: Layer, dropout: Layer
  ) -> Array:
    """The stages of the ResNet to logits f32[B, *size, classes]."""
    return self._fcn_head(features['c5'], size, conv_norm, dropout, 'classifier')

  def _fcn_head(
    self, x: Array, size: tuple[int, int], conv_norm: Layer, dropout: Layer, name: str
  ) -> Array:
    """torchvision's FCNHead: f[B, h, w, C] -> logits f32[B, *size, classes].

    Layers: `name`_conv, 3x3 with a quarter of the channels, its `name`_conv_norm, and `name`_score.
    """
    x = nn.relu(conv_norm(x, resnet.ConvSpec(x.shape[-1] // 4, 3), name=f'{name}_conv'))
    scores = score(
      dropout(x, self._fcn_dropout), self.classes, dtype=self.dtype, name=f'{name}_score'
    )
    return resize_logits(scores, size)


def resize_logits(scores: Array, size: tuple[int, int]) -> Array:
  """Bilinear, with half-pixel centers: f[B, h, w, C] -> f[B, *size, C]."""
  return jax.image.resize(scores, (scores.shape[0], *size, scores.shape[-1]), 'bilinear')
