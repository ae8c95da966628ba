"""DeepLab on a ResNet: Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic
Image Segmentation", 2017, arXiv 1706.05587 (`DeepLabV3`), and Chen, Zhu, Papandreou, Schroff, Adam,
"Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
arXiv 1802.02611 (`DeepLabV3Plus`).

`DeepLabV3` is torchvision's: its rates for stride 8, a 3x3 convolution before the scores that the
paper does not have, no dilation that varies within a stage (the paper's multi-grid, §3.2.1), and
resizing with half-pixel centers.
"""

import flax.linen as nn
import jax.numpy as jnp

from segjax.models.fcn import FCNResNet, Layer, resize_logits, score
from segjax.nn import resnet
from segjax.nn.conv import Dropout
from segjax.ops.resize import enlarge_aligned
from segjax.types import Array, PositiveInt


class DeepLabV3(FCNResNet, kw_only=True):
  """torchvision's DeepLabV3: f[B, H, W, C] -> logits f32[B, H, W, classes], of any H and W.

  `DeepLabV3(classes=21, variant='resnet50')` is its deeplabv3_resnet50. The last two stages of the
  ResNet are dilated, so that the features have stride 8. Atrous spatial pyramid pooling (`aspp`)
  and a 3x3 convolution, of 4 · `width` channels (paper: 256), precede the scores, and these are
  resized to the image.

  Layers: the ResNet `backbone`; aspp_conv, aspp_atrous1 …, aspp_pool, aspp_project and
  classifier_conv, each with its …_norm; classifier_score; and aux_classifier_…, as in `FCNResNet`.

  Attributes:
    rates: dilations of the 3x3 convolutions of the pyramid; (6, 12, 18) for stride 16 (§3.3).
    dropout: rate after the pyramid; the auxiliary classifier has torchvision's 0.1.
  """

  rates: tuple[PositiveInt, ...] = (12, 24, 36)
  dropout: Dropout = 0.5

  @property
  def smallest_batch(self) -> int:
    """Images of a training step: of one, the mean over the image has no variance in the batch."""
    return 1 if self.norm == 'group' else 2

  @property
  def _fcn_dropout(self) -> float:
    return 0.1

  def _classify(
    self, features: dict[str, Array], size: tuple[int, int], conv_norm: Layer, dropout: Layer
  ) -> Array:
    x = dropout(aspp(features['c5'], 4 * self.width, self.rates, conv_norm), self.dropout)
    return self._decode(x, features, size, conv_norm)

  def _decode(
    self, x: Array, features: dict[str, Array], size: tuple[int, int], conv_norm: Layer
  ) -> Array:
    """The output of the pyramid, f[B, h, w, F], to logits f32[B, *size, classes]."""
    x = nn.relu(conv_norm(x, resnet.ConvSpec(x.shape[-1], 3), name='classifier_conv'))
    scores = score(x, self.classes, dtype=self.dtype, name='classifier_score')
    return resize_logits(scores, size)


class DeepLabV3Plus(DeepLabV3, kw_only=True):
  """DeepLabV3 with a decoder (arXiv 1802.02611, §3.1): f[B, H, W, C] -> f32[B, H, W, classes].

  The output of the pyramid is resized to the features of stage 2, of stride 4, and concatenated
  with 48 channels of these (for `width` 64); two 3x3 convolutions precede the scores. Resizing is
  aligned to the features (`enlarge_aligned`), as in the authors' code for sizes of 16 n + 1, so
  that both inputs of the decoder see the same pixels. The paper's Xception and its separable
  convolutions are not implemented.

  Layers: as `DeepLabV3`, but decoder_low, decoder_conv1 and decoder_conv2, each with its …_norm,
  instead of classifier_conv.

  Attributes:
    dilate: stages among 3, 4, 5 with dilation instead of stride: (5,) gives the paper's stride 16,
      (4, 5) 8.
    rates: dilations of the 3x3 convolutions of the pyramid; doubled for stride 8 (arXiv
      1706.05587, §3.3).
  """

  dilate: tuple[resnet.HalvingStage, ...] = (5,)
  rates: tuple[PositiveInt, ...] = (6, 12, 18)

  def _decode(
    self, x: Array, features: dict[str, Array], size: tuple[int, int], conv_norm: Layer
  ) -> Array:
    reduce = resnet.ConvSpec(max(1, 48 * self.width // 64))
    low = nn.relu(conv_norm(features['c2'], reduce, name='decoder_low'))
    x = enlarge_aligned(x, self.stride // 4, low.shape[1:3])
    x = jnp.concatenate([x, low], -1)
    for i in (1, 2):
      x = nn.relu(conv_norm(x, resnet.ConvSpec(4 * self.width, 3), name=f'decoder_conv{i}'))
    scores = score(x, self.classes, dtype=self.dtype, name='classifier_score')
    return enlarge_aligned(scores, 4, size)


def aspp(x: Array, features: int, rates: tuple[int, ...], conv_norm: Layer) -> Array:
  """Atrous spatial pyramid pooling (arXiv 1706.05587, §3.3): f[B, h, w, C] -> f[B, h, w, features].

  A 1x1 convolution, a 3x3 convolution of each dilation in `rates`, and the mean of the image with a
  1x1 convolution, of `features` channels each, are concatenated and projected to `features`.
  """
  point = resnet.ConvSpec(features)
  branches = [conv_norm(x, point, name='aspp_conv')]
  branches += [
    conv_norm(x, resnet.ConvSpec(features, 3, dilation=rate), name=f'aspp_atrous{i}')
    for i, rate in enumerate(rates, 1)
  ]
  # In float32: a mean over thousands of pixels.
  mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
  pooled = conv_norm(mean, point, name='aspp_pool')
  branches.append(jnp.broadcast_to(pooled, branches[0].shape))
  x = nn.relu(jnp.concatenate(branches, -1))
  return nn.relu(conv_norm(x, point, name='aspp_project'))
