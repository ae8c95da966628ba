"""Region proposal network: Ren, He, Girshick, Sun, "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497,
§3; on an FPN as in its §4.1."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.nn.conv import Conv
from segjax.ops import anchors as anchor_ops
from segjax.ops import boxes as box_ops
from segjax.ops.matching import match
from segjax.ops.nms import nms
from segjax.ops.sampling import sample
from segjax.types import (
  Array,
  Fraction,
  Instances,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  SegjaxError,
)

# Proposals with a shorter side are dropped, in pixels, as in torchvision.
MIN_SIDE = 1e-3
# Maximum fraction of positives among the sampled anchors (§3.1.3).
POSITIVE_FRACTION = 0.5
# torchvision pads the sides of images to multiples of this.
_PADDED_TO = 32


@dataclasses.dataclass(frozen=True)
class RPNConfig:
  """Keys of `config.model.rpn`.

  Attributes:
    anchor_sizes: in pixels; one per FPN level, P2 to P6, or all sizes on a single map.
    aspect_ratios: of the anchors, height / width.
    anchor_style: 'torchvision' rounds anchors to pixels and rounds their strides down, see
      `segjax.ops.anchors.grid_strides`; 'detectron2' does neither, and orders the anchors of a
      location by size.
    convs: number of 3x3 convolutions.
    samples: anchors sampled per image in training (paper: 256).
    positive_iou: anchors with at least this IoU with an object are positive.
    negative_iou: anchors with lower IoU with all objects are negative.
    train_proposals: number (before, after) NMS in training; before is per level.
    test_proposals: the same outside training.
    nms_iou: IoU threshold of the NMS.
  """

  anchor_sizes: tuple[PositiveFloat, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
  aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
  anchor_style: Literal['torchvision', 'detectron2'] = 'torchvision'
  convs: NonNegativeInt = 1
  samples: PositiveInt = 256
  positive_iou: Fraction = 0.7
  negative_iou: Fraction = 0.3
  train_proposals: tuple[PositiveInt, PositiveInt] = (2000, 2000)
  test_proposals: tuple[PositiveInt, PositiveInt] = (1000, 1000)
  nms_iou: Fraction = 0.7

  def __post_init__(self):
    for key in ('anchor_sizes', 'aspect_ratios'):
      if not getattr(self, key):
        raise SegjaxError(f'config.model.rpn.{key}=() is empty: set at least one')
    if self.negative_iou > self.positive_iou:
      raise SegjaxError(
        f'config.model.rpn.negative_iou={self.negative_iou} must be at most '
        f'positive_iou={self.positive_iou}'
      )
    if not int(POSITIVE_FRACTION * self.samples):
      raise SegjaxError(
        f'config.model.rpn.samples={self.samples} leaves no positive anchor: raise it to at least '
        f'{round(1 / POSITIVE_FRACTION)}'
      )


class Proposals(NamedTuple):
  """Region proposals: boxes f32[B, P, 4] in descending order of score, valid bool[B, P]."""

  boxes: Array
  valid: Array


class RPNSamples(NamedTuple):
  """The S sampled anchors of each image.

  Attributes:
    logits: f32[B, S], objectness.
    deltas: f32[B, S, 4], predicted box deltas.
    target: f32[B, S, 4], the box deltas from a positive anchor to its object.
    positive: bool[B, S].
    valid: bool[B, S], False for padding.
  """

  logits: Array
  deltas: Array
  target: Array
  positive: Array
  valid: Array


class RPNHead(nn.Module):
  """Objectness and box deltas of each anchor (§3.1), with weights shared by all levels.

  Attributes:
    anchors: A, the number of anchors per location.
    convs: number of 3x3 convolutions.
    dtype: computation dtype.
  """

  anchors: PositiveInt
  convs: NonNegativeInt = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """f[B, h, w, C] per level -> logits f32[B, h·w·A] and deltas f32[B, h·w·A, 4] per level."""
    normal = nn.initializers.normal(0.01)
    layer = functools.partial(Conv, kernel_init=normal, dtype=self.dtype)
    channels = levels[0].shape[-1]
    convs = [layer(channels, (3, 3), name=f'conv{i}') for i in range(1, self.convs + 1)]
    logits = layer(self.anchors, (1, 1), name='objectness')
    deltas = layer(4 * self.anchors, (1, 1), name='deltas')
    hidden = lambda x: functools.reduce(lambda y, conv: nn.relu(conv(y)), convs, x)
    features = [hidden(level) for level in levels]
    batch = levels[0].shape[0]
    return (
      [logits(x).reshape(batch, -1).astype(jnp.float32) for x in features],
      [deltas(x).reshape(batch, -1, 4).astype(jnp.float32) for x in features],
    )


def anchors_per_location(config: RPNConfig, *, pyramid: bool) -> int:
  """A: aspect ratios times sizes; an FPN level has one size, a single map has all."""
  return len(config.aspect_ratios) * (1 if pyramid else len(config.anchor_sizes))


def make_anchors(
  config: RPNConfig,
  image_size: tuple[int, int],
  grids: Sequence[tuple[int, int]],
  *,
  stride: int,
  pyramid: bool,
) -> list[np.ndarray]:
  """The anchors f32[h · w · A, 4] of each level.

  torchvision pads images to multiples of 32 and then divides, see `grid_strides`. Its strides are
  therefore those of the image padded so, also where the image here is not.

  Args:
    config: sizes, aspect ratios and style.
    image_size: (height, width), including padding.
    grids: (h, w) of each level.
    stride: of the first level; it doubles with each level.
    pyramid: one size per level, instead of one level with all sizes.
  """
  exact = config.anchor_style == 'detectron2'
  sizes = [[size] for size in config.anchor_sizes] if pyramid else [config.anchor_sizes]
  bases = [
    anchor_ops.base_anchors(s, config.aspect_ratios, rounded=not exact, sizes_first=exact)
    for s in sizes
  ]
  strides = [(stride * 2**level,) * 2 for level in range(len(grids))]
  if not exact:
    padded = tuple(-(-side // _PADDED_TO) * _PADDED_TO for side in image_size)
    theirs = [tuple(-(-side // step) for side in padded) for step, _ in strides]
    strides = anchor_ops.grid_strides(padded, theirs)
  return anchor_ops.pyramid_anchors(bases, grids, strides)


def propose(
  logits: Sequence[Array],
  deltas: Sequence[Array],
  anchors: Sequence[np.ndarray],
  size: Array,
  *,
  pre_nms: int,
  post_nms: int,
  nms_iou: float,
) -> Proposals:
  """Decodes proposals, without gradient.

  The `pre_nms` best of each level are decoded and clipped to the image. NMS runs within each level,
  and the `post_nms` best of all levels are kept.

  Args:
    logits: f32[B, A_l] per level.
    deltas: f32[B, A_l, 4] per level.
    anchors: f32[A_l, 4] per level.
    size: i32[B, 2], of the images.
    pre_nms: maximum number of boxes per level before NMS.
    post_nms: P, the number of proposals.
    nms_iou: IoU threshold of the NMS.
  """

  def propose_one(logits, deltas, size):
    boxes, scores, levels = [], [], []
    for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
      score, best = lax.top_k(logit, min(pre_nms, len(anchor)))
      boxes.append(box_ops.clip(box_ops.decode(delta[best], jnp.asarray(anchor)[best]), size))
      scores.append(score)
      levels.append(jnp.full(len(best), level))
    boxes, scores, levels = map(jnp.concatenate, (boxes, scores, levels))
    large = box_ops.nonempty(boxes, MIN_SIDE)
    kept, valid = nms(boxes, scores, large, levels, threshold=nms_iou, size=post_nms)
    return Proposals(jnp.where(valid[:, None], boxes[kept], 0), valid)

  logits, deltas = lax.stop_gradient((list(logits), list(deltas)))
  return jax.vmap(propose_one)(logits, deltas, size)


def sample_anchors(
  keys: Array,
  anchors: Sequence[np.ndarray],
  logits: Sequence[Array],
  deltas: Sequence[Array],
  instances: Instances,
  config: RPNConfig,
) -> RPNSamples:
  """Samples anchors with their predictions and targets (§3.1.2, §3.1.3).

  Args:
    keys: [B], one `jax.random` key per image.
    anchors: f32[A_l, 4] per level.
    logits: f32[B, A_l] per level.
    deltas: f32[B, A_l, 4] per level.
    instances: ground truth.
    config: IoU thresholds and number of anchors.
  """
  anchors = jnp.concatenate(anchors)

  def sample_one(key, logits, deltas, instances):
    matches = match(
      anchors,
      instances.boxes,
      instances.valid,
      instances.crowd,
      high=config.positive_iou,
      low=config.negative_iou,
      low_quality=True,
    )
    chosen = sample(key, matches.positive, matches.negative, config.samples, POSITIVE_FRACTION)
    objects = instances.boxes[matches.index[chosen.index]]
    target = box_ops.encode(objects, anchors[chosen.index])
    return RPNSamples(
      logits[chosen.index], deltas[chosen.index], target, chosen.positive, chosen.valid
    )

  flat = (jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1))
  return jax.vmap(sample_one)(keys, *flat, instances)
