"""Two trained networks merged into a panoptic one: Kirillov et al., "Panoptic segmentation", arXiv
1801.00868, section 7, the paper's baseline.

A semantic and an instance network, trained independently; nothing is trained jointly.
`segjax.ops.panoptic.merge_segments` merges their outputs.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from segjax.ops.resize import inside_mask, resize_images, resize_inside
from segjax.types import AnyFloat, Array, PositiveFloat, PositiveInt, SegjaxError


class Merged(nn.Module):
  """A semantic and an instance network, each with its own preprocessing.

  In a config both are groups with the name and arguments of a model, or workdirs, from which
  `segjax train` derives these and all other fields (`segjax.merge`).

  Attributes:
    semantic: f[B, H, W, C] -> logits f32[B, H, W, classes] of all classes, including things.
    instance: a model such as `segjax.models.mask_rcnn.MaskRCNN`.
    semantic_size: (height, width) to which images are resized for the semantic network; its scores
      are resized back. None for no resizing.
    semantic_resize: 'stretch' to that size, or 'fit': keep the aspect ratio and pad.
    semantic_scale, semantic_shift: the input of the semantic network is `image * scale + shift`,
      one value or one per channel, if the two were trained with different means or standard
      deviations. Padding is 0, which in training is the mean color, rounded to an integer.
  """

  semantic: Any
  instance: Any
  semantic_size: tuple[PositiveInt, PositiveInt] | None = None
  semantic_resize: Literal['stretch', 'fit'] = 'stretch'
  semantic_scale: tuple[PositiveFloat, ...] = (1.0,)
  semantic_shift: tuple[AnyFloat, ...] = (0.0,)

  # The fields that are networks. The semantic scores cover all classes.
  parts = ('semantic', 'instance')
  semantic_things = True

  def __call__(
    self,
    image: Array,
    size: Array,
    instances: Any = None,
    keys: Any = None,
    *,
    train: bool = False,
  ) -> dict[str, Any]:
    """`detections`, and `semantic`, logits f32[B, H, W, classes].

    Args:
      image: f[B, H, W, C], padded at the bottom and right.
      size: i32[B, 2], height and width of each image without its padding.
      instances, keys: not used.
      train: must be False.

    Raises:
      SegjaxError: `train` is set, or the semantic network's output is smaller than its input.
    """
    del instances, keys
    if train:
      raise SegjaxError(
        'config.train.steps: a merged network cannot be trained: set it to 0, and train its parts'
      )
    if getattr(self.semantic, 'margin', 0):
      raise SegjaxError(
        'config.model.semantic has an output smaller than its input: use a padded network'
      )
    return {**self.instance(image, size), 'semantic': self._scores(image, size)}

  @property
  def masks(self) -> bool:
    """Whether there is a mask head."""
    return getattr(self.instance, 'masks', True)

  def _scores(self, image: Array, size: Array) -> Array:
    scale, shift = jnp.array(self.semantic_scale), jnp.array(self.semantic_shift)
    image = image * scale + shift
    if self.semantic_size is None:
      inside = inside_mask(size, image.shape[1:3])
      return self.semantic(jnp.where(inside[..., None], image, 0), train=False)
    limit = jnp.array(self.semantic_size)
    seen = jnp.broadcast_to(limit, size.shape)
    if self.semantic_resize == 'fit':
      ratio = (limit / size).min(1, keepdims=True)
      seen = jnp.clip(jnp.round(size * ratio).astype(jnp.int32), 1, limit)
    scores = self.semantic(resize_images(image, size, seen, self.semantic_size), train=False)
    return resize_inside(scores, seen, size, image.shape[1:3])
