"""Panoptic FPN: Kirillov, Girshick, He, Dollár, "Panoptic feature pyramid networks", CVPR 2019,
arXiv 1901.02446.

Mask R-CNN on a feature pyramid, and a small branch on the same pyramid that says the class of each
pixel (§3.1, Fig. 3). All things are one class there, "other", which comes first. What both parts
find is merged by `segjax.ops.panoptic.merge_segments`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax.models.mask_rcnn import FEATURE_MAPS, MaskRCNN
from segjax.nn.conv import he_normal
from segjax.ops.resize import enlarge
from segjax.types import Array, Detections, Instances, SegjaxError


class PanopticFPN(MaskRCNN, kw_only=True):
  """Mask R-CNN on a pyramid, with a semantic branch.

  Attributes:
    stuff: kinds of stuff; `classes` are the kinds of things.
    semantic_features: channels of the semantic branch (paper: 128).
    semantic_groups: groups of its normalisation, which divide them (Detectron2: 32).
  """

  stuff: int
  semantic_features: int = 128
  semantic_groups: int = 32

  # The semantic scores are of "other" and the kinds of stuff, not of all classes.
  semantic_things = False

  @nn.compact
  def __call__(
    self,
    image: Array,
    size: Array,
    instances: Instances | None = None,
    keys: Array | None = None,
    *,
    given: Detections | None = None,
    train: bool = False,
  ) -> dict[str, Any]:
    """What `MaskRCNN` returns, and `semantic`, logits f32[B, H, W, 1 + stuff], "other" first.

    With `given`, what `MaskRCNN` returns alone.

    Raises:
      SegjaxError: there is no pyramid.
    """
    if not FEATURE_MAPS[self.feature_maps].pyramid:
      raise SegjaxError(
        f'config.model.feature_maps={self.feature_maps!r}: the semantic branch is on a pyramid: '
        "set it to 'fpn'"
      )
    resnet, levels = self._levels(image, train)
    outputs = self._find(resnet, levels, image, size, instances, keys, given=given, train=train)
    if given is not None:
      return outputs
    branch = SemanticBranch(
      1 + self.stuff,
      self.semantic_features,
      self.semantic_groups,
      dtype=self.dtype,
      name='semantic',
    )
    strides = FEATURE_MAPS[self.feature_maps].strides
    logits = enlarge(branch(levels[: len(strides)]), strides[0])
    return {**outputs, 'semantic': logits[:, : image.shape[1], : image.shape[2]]}


class SemanticBranch(nn.Module):
  """Each level at the size of the finest one, their sum, and a class for each place (§3.1, Fig. 3).

  Layers: conv2_1; conv3_1; conv4_1, conv4_2; conv5_1 … by level, each with its …_norm, and score. A
  level is doubled after each of its convolutions, the finest not at all.

  Attributes:
    classes: channels of scores.
    features: channels.
    groups: of the normalisation.
    dtype: type of the computation.
  """

  classes: int
  features: int
  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array]) -> Array:
    """f[B, h, w, C] a level, each half of the one before, rounded up -> f32[B, h, w, classes]."""
    total = 0.0
    for level, x in enumerate(levels):
      for i in range(max(1, level)):
        x = self._conv(x, f'conv{level + 2}_{i + 1}')
        if level:
          finer = levels[level - i - 1].shape
          x = enlarge(x, 2)[:, : finer[1], : finer[2]]
      total += x
    # Small, so that no class is preferred at first.
    normal = nn.initializers.normal(0.01)
    score = nn.Conv(self.classes, (1, 1), kernel_init=normal, dtype=self.dtype, name='score')
    return score(total).astype(jnp.float32)

  def _conv(self, x: Array, name: str) -> Array:
    conv = nn.Conv(
      self.features, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype, name=name
    )
    norm = nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name=f'{name}_norm')
    return nn.relu(norm(conv(x)))
