"""The box head: classifies RoIs and refines their boxes (Fast R-CNN, arXiv 1504.08083; FPN, §4.2;
Mask R-CNN, Fig. 4)."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Norm
from segjax.nn.fpn import uniform_fan_in
from segjax.nn.roi import conv_layers, per_roi
from segjax.nn.rpn import Proposals
from segjax.ops import boxes as box_ops
from segjax.ops.matching import match
from segjax.ops.nms import best_detections
from segjax.ops.sampling import sample
from segjax.types import (
  Array,
  Detections,
  Fraction,
  Instances,
  NonNegativeInt,
  PositiveInt,
  SegjaxError,
)

# Detections with a shorter side are dropped, in pixels, as in torchvision.
MIN_SIDE = 1e-2
# Weights of the box deltas (Fast R-CNN's code).
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
  """Keys of `config.model.box_head`.

  Attributes:
    features: channels of the convolutions.
    norm: of the convolutions: 'none', 'batch' or 'group'.
    resolution: of the RoI features, resolution x resolution; on 'c4' shared with the mask head.
    convs: number of 3x3 convolutions; 4 in torchvision's v2.
    layers: number of fully-connected layers; 1 in torchvision's v2.
    hidden: channels of the fully-connected layers (paper: 1024).
    res5_stride: of res5 on 'c4': 1 in the paper, for 7x7 RoIs, 2 in Detectron2, for 14x14.
    samples: RoIs sampled per image in training (paper: 512).
    positive_fraction: maximum fraction of positive RoIs.
    positive_iou: RoIs with at least this IoU with an object are positive.
    max_detections: K, the maximum per image.
    score_threshold: detections with lower scores are dropped.
    nms_iou: IoU threshold of the class-wise NMS.
  """

  features: PositiveInt = 256
  norm: Norm = 'none'
  resolution: PositiveInt = 7
  convs: NonNegativeInt = 0
  layers: NonNegativeInt = 2
  hidden: PositiveInt = 1024
  res5_stride: Literal[1, 2] = 1
  samples: PositiveInt = 512
  positive_fraction: Fraction = 0.25
  positive_iou: Fraction = 0.5
  max_detections: PositiveInt = 100
  score_threshold: Fraction = 0.05
  nms_iou: Fraction = 0.5

  def __post_init__(self):
    if not self.max_positives:
      raise SegjaxError(
        f'config.model.box_head.positive_fraction={self.positive_fraction} of '
        f'samples={self.samples} leaves no positive RoI: raise one of them'
      )

  @property
  def max_positives(self) -> int:
    """The maximum number of positive RoIs per image; they come first in `SampledRoIs`."""
    return int(self.positive_fraction * self.samples)


class SampledRoIs(NamedTuple):
  """The R sampled RoIs of each image, in training.

  Attributes:
    boxes: f32[B, R, 4]; proposals are computed without gradient.
    index: i32[B, R], the matched object of a positive RoI.
    classes: i32[B, R], the class of that object.
    target: f32[B, R, 4], the box deltas to that object.
    positive: bool[B, R]; positives come first.
    valid: bool[B, R], False for padding.
  """

  boxes: Array
  index: Array
  classes: Array
  target: Array
  positive: Array
  valid: Array


class BoxSamples(NamedTuple):
  """logits f32[B, R, 1 + classes], the background first; deltas f32[B, R, classes, 4]; rois."""

  logits: Array
  deltas: Array
  rois: SampledRoIs


class BoxHead(nn.Module):
  """Convolutions and fully-connected layers, then class logits and box deltas (FPN, §4.2).

  Attributes:
    classes: number of thing classes.
    config: layers and their sizes.
    dtype: computation dtype.
  """

  classes: PositiveInt
  config: BoxHeadConfig = BoxHeadConfig()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4].

    `valid`, bool[B, R], is passed in training: the RoIs that norm 'batch' uses for statistics.
    """
    convs = functools.partial(
      conv_layers,
      count=self.config.convs,
      features=self.config.features,
      norm=self.config.norm,
      valid=valid,
      dtype=self.dtype,
    )
    x = per_roi(convs, x.astype(self.dtype))
    x = x.reshape(*x.shape[:2], -1)
    dense = functools.partial(
      nn.Dense, self.config.hidden, kernel_init=uniform_fan_in, dtype=self.dtype
    )
    for i in range(self.config.layers):
      x = nn.relu(dense(name=f'fc{6 + i}')(x))
    return _predict(x, self.classes, self.dtype)


class Res5BoxHead(nn.Module):
  """Class logits and box deltas from average-pooled res5 features (§3, Fig. 4, left).

  Attributes:
    classes: number of thing classes.
    dtype: computation dtype.
  """

  classes: PositiveInt
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4]."""
    del valid  # this head has no norm
    return _predict(x.mean((2, 3)), self.classes, self.dtype)


def _predict(x: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
  """The output layers of a box head, score and deltas, on f[B, R, C]."""
  dense = functools.partial(nn.Dense, dtype=dtype)
  init = nn.initializers.normal
  logits = dense(classes + 1, kernel_init=init(0.01), name='score')(x)
  deltas = dense(4 * classes, kernel_init=init(0.001), name='deltas')(x)
  deltas = deltas.reshape(*x.shape[:2], classes, 4)
  return logits.astype(jnp.float32), deltas.astype(jnp.float32)


def sample_rois(
  keys: Array, proposals: Proposals, instances: Instances, config: BoxHeadConfig
) -> SampledRoIs:
  """Samples training RoIs from the proposals and the ground-truth boxes.

  Args:
    keys: [B], one `jax.random` key per image.
    proposals: P per image.
    instances: ground truth.
    config: IoU threshold and number of RoIs.
  """

  def sample_one(key, proposals, instances):
    real = instances.valid & ~instances.crowd
    boxes = jnp.concatenate([proposals.boxes, instances.boxes])
    matches = match(
      boxes,
      instances.boxes,
      instances.valid,
      instances.crowd,
      high=config.positive_iou,
      low=config.positive_iou,
      valid=jnp.concatenate([proposals.valid, real]),
    )
    chosen = sample(
      key, matches.positive, matches.negative, config.samples, config.positive_fraction
    )
    index = matches.index[chosen.index]
    boxes = jnp.where(chosen.valid[:, None], boxes[chosen.index], 0)
    target = box_ops.encode(instances.boxes[index], boxes, BOX_WEIGHTS)
    classes = instances.classes[index]
    return SampledRoIs(boxes, index, classes, target, chosen.positive, chosen.valid)

  return jax.vmap(sample_one)(keys, proposals, instances)


def detect(
  logits: Array, deltas: Array, proposals: Proposals, size: Array, config: BoxHeadConfig
) -> Detections:
  """Detections without masks: decodes all classes of all proposals, class-wise NMS, the best K.

  Args:
    logits: f32[B, P, 1 + classes], the background first.
    deltas: f32[B, P, classes, 4].
    proposals: P per image.
    size: i32[B, 2], of the images.
    config: thresholds and K.
  """

  def detect_one(logits, deltas, proposals, size):
    scores = jax.nn.softmax(logits, -1)[:, 1:]
    boxes = box_ops.decode(deltas, proposals.boxes[:, None], BOX_WEIGHTS)
    boxes = box_ops.clip(boxes, size)
    valid = (scores > config.score_threshold) & proposals.valid[:, None]
    valid &= box_ops.nonempty(boxes, MIN_SIDE)
    classes = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
    return best_detections(
      boxes.reshape(-1, 4),
      *map(jnp.ravel, (classes, scores, valid)),
      nms_iou=config.nms_iou,
      count=config.max_detections,
    )

  return jax.vmap(detect_one)(logits, deltas, proposals, size)
