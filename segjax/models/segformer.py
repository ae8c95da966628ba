"""SegFormer: Xie, Wang, Yu, Anandkumar, Alvarez, Luo, NeurIPS 2021, arXiv 2105.15203.

A Mix Transformer (`segjax.nn.mix_transformer`) and a decoder of linear layers (§3.2), as in
transformers' `SegformerForSemanticSegmentation`.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.fcn import resize_logits, score
from segjax.nn import mix_transformer as mit
from segjax.nn.conv import Dropout, make_norm
from segjax.nn.vit import dense, trunc_normal
from segjax.types import Array, Fraction, PositiveInt

# Channels of the decoder (§4.1, Table 6).
FEATURES = {'b0': 256, 'b1': 256, 'b2': 768, 'b3': 768, 'b4': 768, 'b5': 768}


class SegFormer(nn.Module):
  """f[B, H, W, C] -> logits f32[B, H, W, classes], of H and W of at least 29.

  Logits of a quarter of the image's size are resized to it. (In transformers the caller does that.)

  Layers: the Mix Transformer `backbone`; project1 … project4 on its stages, the kernel `fuse`
  f32[4, F, F] and fuse_norm; classifier_score.

  Attributes:
    classes: channels of the output.
    size: of the Mix Transformer, a key of `segjax.nn.mix_transformer.SIZES`.
    features: F, channels of the decoder; None for the paper's, 256 of b0 and b1, else 768.
    dropout: rate before the scores.
    drop_path: rate at which the last block is left out for an image in training (stochastic depth,
      arXiv 1603.09382); rates rise linearly from 0 at the first block.
    bn_momentum: of the running mean and variance of the decoder's normalization.
    remat: computes activations of the blocks again in the backward pass: less memory, more time,
      the same gradients.
    dtype: computation dtype up to the scores ('float32' or 'bfloat16'); parameters and everything
      after the scores are float32.
  """

  classes: PositiveInt
  size: mit.SizeName = 'b0'
  features: PositiveInt | None = None
  dropout: Dropout = 0.1
  drop_path: Dropout = 0.1
  bn_momentum: Fraction = 0.9
  remat: bool = False
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @property
  def stride(self) -> int:
    """Input pixels per pixel of the coarsest feature map."""
    return 32

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    backbone = mit.MixTransformer(
      self.size, self.drop_path, self.remat, self.dtype, name='backbone'
    )
    x = self._decode(backbone(image, train=train))
    norm = make_norm(
      'batch', train=train, dtype=self.dtype, name='fuse_norm', momentum=self.bn_momentum
    )
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(norm(x)))
    scores = score(x, self.classes, dtype=self.dtype, name='classifier_score')
    return resize_logits(scores, image.shape[1:3])

  def _decode(self, stages: list[Array]) -> Array:
    """The stages projected, resized to the first and fused (eq. 4): -> f[B, h, w, F].

    The paper resizes and concatenates before it fuses, by a matrix of 4 F rows. As both are linear,
    each stage's part of the product can be resized instead of its projection, which costs a third.
    """
    features = self.features or FEATURES[self.size]
    kernel = self.param('fuse', trunc_normal, (len(stages), features, features))
    height, width = stages[0].shape[1:3]
    total = 0.0
    for i, x in enumerate(stages):
      x = dense(features, self.dtype, f'project{i + 1}')(x) @ kernel[i].astype(self.dtype)
      total += jax.image.resize(x, (x.shape[0], height, width, features), 'bilinear')
    return jnp.asarray(total, self.dtype)
