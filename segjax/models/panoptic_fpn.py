"""Panoptic FPN: Kirillov, Girshick, He, Dollár, "Panoptic feature pyramid networks", CVPR 2019,
arXiv 1901.02446.

Mask R-CNN on an FPN, with a lightweight semantic segmentation branch on the same FPN (§3.1, Fig.
3). The branch has one class for all things, "other", which comes first. The outputs are merged by
`segjax.ops.panoptic.merge_segments`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax.models.mask_rcnn import MaskRCNN
from segjax.nn.conv import Conv, he_normal
from segjax.ops.resize import enlarge
from segjax.types import Array, Detections, Instances, NonNegativeInt, PositiveInt, SegjaxError


@dataclasses.dataclass(frozen=True)
class SemanticBranchConfig:
  """Keys of `config.model.semantic`.

  Attributes:
    features: channels (paper: 128).
    groups: of the group normalization; must divide the channels (Detectron2: 32).
  """

  features: PositiveInt = 128
  groups: PositiveInt = 32

  def __post_init__(self):
    if self.features % self.groups:
      raise SegjaxError(
        f'config.model.semantic.groups={self.groups} must divide features={self.features}'
      )


class PanopticFPN(MaskRCNN, kw_only=True):
  """Mask R-CNN on an FPN, with a semantic branch.

  Attributes:
    stuff: number of stuff classes; `classes` is the number of thing classes.
    semantic: see `SemanticBranchConfig`.

  Raises:
    SegjaxError: `feature_maps` is not 'fpn', or see `MaskRCNN`.
  """

  stuff: NonNegativeInt
  semantic: SemanticBranchConfig = SemanticBranchConfig()

  # The semantic scores cover "other" and the stuff classes, not all classes.
  semantic_things = False

  def __post_init__(self):
    if not self._maps.pyramid:
      raise SegjaxError(
        f'config.model.feature_maps={self.feature_maps!r}: the semantic branch needs an FPN: '
        "set it to 'fpn'"
      )
    super().__post_init__()

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
    """The outputs of `MaskRCNN`, and `semantic`, logits f32[B, H, W, 1 + stuff], "other" first.

    With `given`, only the outputs of `MaskRCNN`.
    """
    resnet, levels = self._levels(image, train)
    outputs = self._run_heads(
      resnet, levels, image, size, instances, keys, given=given, train=train
    )
    if given is not None:
      return outputs
    branch = SemanticBranch(1 + self.stuff, self.semantic, dtype=self.dtype, name='semantic')
    strides = self._maps.strides
    logits = enlarge(branch(levels[: len(strides)]), strides[0])
    return {**outputs, 'semantic': logits[:, : image.shape[1], : image.shape[2]]}

  @property
  def needed_losses(self) -> tuple[tuple[str, ...], ...]:
    return (*super().needed_losses, ('semantic',))


class SemanticBranch(nn.Module):
  """Upsamples all levels to the finest one, sums them, and predicts classes (§3.1, Fig. 3).

  Layers by level: conv2_1; conv3_1; conv4_1, conv4_2; conv5_1 …, each with its …_norm, and score. A
  level is upsampled by 2 after each of its convolutions, except the finest one.

  Attributes:
    classes: channels of the scores.
    config: features and groups.
    dtype: computation dtype.
  """

  classes: PositiveInt
  config: SemanticBranchConfig = SemanticBranchConfig()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array]) -> Array:
    """f[B, h, w, C] per level, sizes halved and rounded up -> f32[B, h, w, classes]."""
    total = 0.0
    for level, x in enumerate(levels):
      for i in range(max(1, level)):
        x = self._conv(x, f'conv{level + 2}_{i + 1}')
        if level:
          finer = levels[level - i - 1].shape
          x = enlarge(x, 2)[:, : finer[1], : finer[2]]
      total += x
    # Small, so that all classes are about equally likely at initialization.
    normal = nn.initializers.normal(0.01)
    score = Conv(self.classes, (1, 1), kernel_init=normal, dtype=self.dtype, name='score')
    return score(total).astype(jnp.float32)

  def _conv(self, x: Array, name: str) -> Array:
    features, groups = self.config.features, self.config.groups
    conv = Conv(
      features, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype, name=name
    )
    norm = nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, name=f'{name}_norm')
    return nn.relu(norm(conv(x)))
