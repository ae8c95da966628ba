"""The box head: the class and the box of each RoI (Fast R-CNN, arXiv 1504.08083; FPN, §4.2;
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

# Detections with a smaller side are dropped, in pixels: torchvision's.
MIN_SIDE = 1e-2
# Weights of the regressed coordinates (Fast R-CNN's code).
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
  """Keys of `config.model.box_head`.

  Attributes:
    features: channels of its convolutions (256).
    norm: of its convolutions: 'none', 'batch' or 'group'.
    resolution: of the RoIs that it sees, resolution x resolution; on 'c4' the mask head sees them
      too.
    convs: 3x3 convolutions before its layers; 4 in torchvision's version 2.
    layers: fully-connected layers before its outputs; 1 in that version.
    hidden: channels of these layers (paper: 1024).
    res5_stride: of res5 on 'c4': 1 in the paper, for 7x7 RoIs, 2 in Detectron2, for 14x14.
    samples: RoIs sampled per image in training (paper: 512).
    positive_fraction: the share of them that may be positive.
    positive_iou: IoU with an object from which a RoI is positive.
    max_detections: K, the maximum per image.
    score_threshold: detections of lower scores are dropped.
    nms_iou: IoU above which a detection suppresses another of its class.
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
    """The most positive RoIs of an image; they are sampled first."""
    return int(self.positive_fraction * self.samples)


class SampledRoIs(NamedTuple):
  """The R RoIs of each image that are sampled in training.

  Attributes:
    boxes: f32[B, R, 4]; no gradient passes through them.
    index: i32[B, R], the object of a positive one.
    classes: i32[B, R], its class.
    target: f32[B, R, 4], the deltas to its box.
    positive: bool[B, R], the first ones.
    valid: bool[B, R].
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
    classes: of things.
    config: layers and their sizes.
    dtype: type of the computation.
  """

  classes: PositiveInt
  config: BoxHeadConfig = BoxHeadConfig()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4].

    `valid`, bool[B, R], is given in training: the RoIs of which norm 'batch' takes statistics.
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
  """Class logits and box deltas of the mean of res5's features of a RoI (§3, Fig. 4, left).

  Attributes:
    classes: of things.
    dtype: type of the computation.
  """

  classes: PositiveInt
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4]."""
    del valid  # no norm of its own
    return _predict(x.mean((2, 3)), self.classes, self.dtype)


def _predict(x: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
  """The last layers of a box head, score and deltas, on f[B, R, C]."""
  dense = functools.partial(nn.Dense, dtype=dtype)
  init = nn.initializers.normal
  logits = dense(classes + 1, kernel_init=init(0.01), name='score')(x)
  deltas = dense(4 * classes, kernel_init=init(0.001), name='deltas')(x)
  deltas = deltas.reshape(*x.shape[:2], classes, 4)
  return logits.astype(jnp.float32), deltas.astype(jnp.float32)


def sample_rois(
  keys: Array, proposals: Proposals, instances: Instances, config: BoxHeadConfig
) -> SampledRoIs:
  """A random subset of the proposals and of the objects' own boxes, to train the heads on.

  Args:
    keys: [B], one `jax.random` key per image.
    proposals: P per image.
    instances: of the images.
    config: IoU, and how many RoIs.
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
  """The detections, without masks: each class of each proposal, NMS within a class, the best K.

  Args:
    logits: f32[B, P, 1 + classes], the background first.
    deltas: f32[B, P, classes, 4].
    proposals: P per image.
    size: i32[B, 2], of the images.
    config: thresholds, and K.
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
