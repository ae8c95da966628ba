"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, ICCV 2017, arXiv 1703.06870, on a feature pyramid;
without the mask head Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

A region proposal network says where objects may be, a box head what and where exactly they are, a
mask head which pixels are theirs. Every size is fixed: the proposals of an image, the regions that
are learnt from, the detections; what is less is told by `valid`. The defaults are torchvision's
`maskrcnn_resnet50_fpn`, whose weights fit (`segjax.convert.torchvision`).
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.nn.conv import ConvTranspose, he_normal
from segjax.nn.fpn import FPN, uniform_fan_in
from segjax.nn.resnet import Name, Norm, ResNet
from segjax.ops import anchors as anchor_ops
from segjax.ops import boxes as box_ops
from segjax.ops.masks import crop_masks
from segjax.ops.matching import match
from segjax.ops.nms import nms
from segjax.ops.roi_align import multilevel_roi_align
from segjax.ops.sampling import Samples, sample
from segjax.types import Array, Detections, Instances

# Strides of P2 to P5, which regions are cut from; P6 only proposes.
STRIDES = (4, 8, 16, 32)
# Proposals and detections of smaller sides are dropped, in pixels: torchvision's.
MIN_PROPOSAL, MIN_DETECTION = 1e-3, 1e-2
# Weights of the regressed coordinates (Fast R-CNN).
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Proposals(NamedTuple):
  """Regions that may hold an object: boxes f32[B, P, 4] by falling score, valid bool[B, P]."""

  boxes: Array
  valid: Array


class MaskRCNN(nn.Module):
  """Mask R-CNN with a ResNet and a feature pyramid.

  Attributes:
    classes: kinds of things; the background is not among them.
    backbone: a row of `segjax.nn.resnet.VARIANTS`.
    width: channels of the ResNet's stem; all its others are in proportion.
    norm: of the ResNet: 'frozen' for pretrained weights, 'batch', or 'group'.
    features: channels of the pyramid and of the mask head (paper: 256).
    anchor_sizes: one a level of the pyramid, P2 to P6, pixels.
    aspect_ratios: of the anchors, height over width.
    masks: whether there is a mask head.
    hidden: channels of the box head's two layers (paper: 1024).
    mask_convs: 3x3 convolutions of the mask head.
    box_bins: side of what the box head sees of a region.
    mask_bins: side of what the mask head sees; its masks are twice as large.
    sampling_ratio: samples a bin and axis of RoIAlign, 0 for the adaptive count.
    aligned: RoIAlign's half-pixel convention, which Detectron2 has and torchvision has not; with it
      mask targets are 0 or 1, without it shares of a pixel.
    rpn_samples: anchors of an image that the RPN learns from (paper: 256).
    rpn_high, rpn_low: IoU from which an anchor is positive, below which it is negative.
    train_proposals: (before, after) NMS, in training; before is of each level.
    test_proposals: the same outside training.
    rpn_nms: IoU above which a proposal suppresses another.
    regions: of an image that the heads learn from (paper: 512).
    region_positives: the most of them that are positive, a share.
    region_iou: from which a region is positive.
    detections: K, the most of an image.
    score_threshold: detections of lower scores are dropped.
    detection_nms: IoU above which a detection suppresses another of its class.
    dtype: type of the computation ('float32' or 'bfloat16'); parameters, and all coordinates and
      scores, are float32.
  """

  classes: int
  backbone: Name = 'resnet50'
  width: int = 64
  norm: Norm = 'frozen'
  features: int = 256
  anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
  aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  masks: bool = True
  hidden: int = 1024
  mask_convs: int = 4
  box_bins: int = 7
  mask_bins: int = 14
  sampling_ratio: int = 2
  aligned: bool = False
  rpn_samples: int = 256
  rpn_high: float = 0.7
  rpn_low: float = 0.3
  train_proposals: tuple[int, int] = (2000, 2000)
  test_proposals: tuple[int, int] = (1000, 1000)
  rpn_nms: float = 0.7
  regions: int = 512
  region_positives: float = 0.25
  region_iou: float = 0.5
  detections: int = 100
  score_threshold: float = 0.05
  detection_nms: float = 0.5
  dtype: Literal['float32', 'bfloat16'] = 'float32'

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
    """What is learnt from, in training, or what is found.

    Args:
      image: f[B, H, W, C], padded below and to the right.
      size: i32[B, 2], height and width of each image inside its padding.
      instances: to learn from, in training.
      keys: [B], `jax.random` keys that say, image by image, which anchors and regions are learnt
        from, in training.
      given: outside training, boxes to find the masks of, in place of what this image shows; all
        but its masks is handed through.
      train: which of the two.

    Returns:
      In training `rpn` (`RPNSamples`), `box` (`BoxSamples`) and, with a mask head, `mask`
      (`MaskSamples`); else `detections`.
    """
    stages = ResNet(
      self.backbone, width=self.width, norm=self.norm, dtype=self.dtype, name='backbone'
    )(image, train=train)
    pyramid = FPN(self.features, dtype=self.dtype, name='fpn')(list(stages.values()), train=train)
    mask_head = MaskHead(
      self.classes, self.features, self.mask_convs, dtype=self.dtype, name='mask'
    )
    cut = functools.partial(
      multilevel_roi_align,
      [level.astype(jnp.float32) for level in pyramid[: len(STRIDES)]],
      strides=STRIDES,
      sampling_ratio=self.sampling_ratio,
      aligned=self.aligned,
    )
    see_mask = lambda boxes: mask_head(cut(boxes, output_size=self.mask_bins))
    if given is not None:
      return {'detections': _with_masks(given, see_mask(given.boxes))}
    anchors = self._anchors(image.shape[1:3], [level.shape[1:3] for level in pyramid])
    logits, deltas = RPNHead(len(self.aspect_ratios), dtype=self.dtype, name='rpn')(pyramid)
    before, after = self.train_proposals if train else self.test_proposals
    proposals = propose(
      logits, deltas, anchors, size, before=before, after=after, threshold=self.rpn_nms
    )

    box_head = BoxHead(self.classes, self.hidden, dtype=self.dtype, name='box')
    see_box = lambda boxes: box_head(cut(boxes, output_size=self.box_bins))
    if not train:
      found = detect(
        *see_box(proposals.boxes),
        proposals,
        size,
        score_threshold=self.score_threshold,
        threshold=self.detection_nms,
        count=self.detections,
      )
      if self.masks:
        found = _with_masks(found, see_mask(found.boxes))
      return {'detections': found}

    rpn_key, region_key = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    choose_anchors = functools.partial(
      sample_anchors, high=self.rpn_high, low=self.rpn_low, count=self.rpn_samples
    )
    choose_regions = functools.partial(
      sample_regions, iou=self.region_iou, count=self.regions, positives=self.region_positives
    )
    flat = (jnp.concatenate(anchors), jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1))
    rpn = jax.vmap(choose_anchors, (0, None, 0, 0, 0))(rpn_key, *flat, instances)
    regions = jax.vmap(choose_regions)(region_key, proposals, instances)
    box_logits, box_deltas = see_box(regions.boxes)
    outputs = {'rpn': rpn, 'box': BoxSamples(box_logits, box_deltas, regions)}
    if self.masks:
      first = int(self.region_positives * self.regions)  # no other slot is positive
      positives = jax.tree.map(lambda x: x[:, :first], regions)
      target = crop_masks(
        instances.masks,
        positives.boxes,
        positives.index,
        size=2 * self.mask_bins,
        width=image.shape[2],
        aligned=self.aligned,
        threshold=0.5 if self.aligned else None,
      )
      outputs['mask'] = MaskSamples(see_mask(positives.boxes), target, positives)
    return outputs

  def _anchors(self, size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    bases = [anchor_ops.base_anchors([s], self.aspect_ratios) for s in self.anchor_sizes]
    return anchor_ops.pyramid_anchors(bases, grids, anchor_ops.grid_strides(size, grids))


class RPNSamples(NamedTuple):
  """The S anchors of each image that the RPN learns from.

  Attributes:
    logits: f32[B, S], that there is an object.
    deltas: f32[B, S, 4].
    target: f32[B, S, 4], what the deltas of a positive one are to be.
    positive: bool[B, S].
    valid: bool[B, S].
  """

  logits: Array
  deltas: Array
  target: Array
  positive: Array
  valid: Array


class Regions(NamedTuple):
  """The R regions of each image that the heads learn from.

  Attributes:
    boxes: f32[B, R, 4]; nothing is learnt through them.
    index: i32[B, R], the object of a positive one.
    classes: i32[B, R], its class.
    target: f32[B, R, 4], what the deltas are to be.
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
  """logits f32[B, R, 1 + classes], the background first; deltas f32[B, R, classes, 4]; regions."""

  logits: Array
  deltas: Array
  regions: Regions


class MaskSamples(NamedTuple):
  """logits f32[B, R', M, M, classes] and target f32[B, R', M, M] of the first R' regions.

  All positive regions are among them.
  """

  logits: Array
  target: Array
  regions: Regions


class RPNHead(nn.Module):
  """What each anchor says (Faster R-CNN, §3.1), the same weights at every level.

  Attributes:
    ratios: anchors a place.
    dtype: type of the computation.
  """

  ratios: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pyramid: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """f[B, h, w, C] a level -> logits f32[B, h·w·A] and deltas f32[B, h·w·A, 4] a level."""
    normal = nn.initializers.normal(0.01)
    layer = functools.partial(nn.Conv, kernel_init=normal, dtype=self.dtype)
    channels = pyramid[0].shape[-1]
    conv = layer(channels, (3, 3), name='conv')
    logits = layer(self.ratios, (1, 1), name='objectness')
    deltas = layer(4 * self.ratios, (1, 1), name='deltas')
    seen = [nn.relu(conv(level)) for level in pyramid]
    batch = len(pyramid[0])
    return (
      [logits(x).reshape(batch, -1).astype(jnp.float32) for x in seen],
      [deltas(x).reshape(batch, -1, 4).astype(jnp.float32) for x in seen],
    )


class BoxHead(nn.Module):
  """Two fully-connected layers, then what a region is and where (FPN, §4.2).

  Attributes:
    classes: of things.
    hidden: channels of the two layers.
    dtype: type of the computation.
  """

  classes: int
  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4]."""
    x = x.reshape(*x.shape[:2], -1).astype(self.dtype)
    for name in ('fc6', 'fc7'):
      x = nn.relu(nn.Dense(self.hidden, kernel_init=uniform_fan_in, dtype=self.dtype, name=name)(x))
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    init = nn.initializers.normal
    logits = dense(self.classes + 1, kernel_init=init(0.01), name='score')(x)
    deltas = dense(4 * self.classes, kernel_init=init(0.001), name='deltas')(x)
    deltas = deltas.reshape(*x.shape[:2], self.classes, 4)
    return logits.astype(jnp.float32), deltas.astype(jnp.float32)


class MaskHead(nn.Module):
  """Convolutions, a transposed one that doubles the size, and a mask for each class (Fig. 4).

  Attributes:
    classes: of things.
    features: channels.
    convs: 3x3 convolutions.
    dtype: type of the computation.
  """

  classes: int
  features: int
  convs: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """f[B, R, P, Q, C] -> logits f32[B, R, 2P, 2Q, classes]."""
    batch, regions = x.shape[:2]
    x = x.reshape(-1, *x.shape[2:]).astype(self.dtype)
    for i in range(1, self.convs + 1):
      layer = nn.Conv(
        self.features, (3, 3), kernel_init=he_normal, dtype=self.dtype, name=f'conv{i}'
      )
      x = nn.relu(layer(x))
    x = nn.relu(ConvTranspose(self.features, 2, 2, dtype=self.dtype, name='upconv')(x))
    score = nn.Conv(
      self.classes,
      (1, 1),
      kernel_init=nn.initializers.normal(0.001),
      dtype=self.dtype,
      name='score',
    )
    x = score(x).astype(jnp.float32)
    return x.reshape(batch, regions, *x.shape[1:])


def propose(
  logits: Sequence[Array],
  deltas: Sequence[Array],
  anchors: Sequence[np.ndarray],
  size: Array,
  *,
  before: int,
  after: int,
  threshold: float,
) -> Proposals:
  """The regions that the RPN proposes; nothing is learnt through them.

  Of each level the `before` of highest score are decoded, clipped to the image, and rid of those
  that suppress each other (never those of different levels); of all levels the `after` best stay.

  Args:
    logits: f32[B, A_l] a level.
    deltas: f32[B, A_l, 4] a level.
    anchors: f32[A_l, 4] a level.
    size: i32[B, 2], of the images.
  """

  def propose_one(logits, deltas, size):
    boxes, scores, levels = [], [], []
    for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
      score, best = lax.top_k(logit, min(before, len(anchor)))
      boxes.append(box_ops.clip(box_ops.decode(delta[best], jnp.asarray(anchor)[best]), size))
      scores.append(score)
      levels.append(jnp.full(len(best), level))
    boxes, scores, levels = map(jnp.concatenate, (boxes, scores, levels))
    large = box_ops.nonempty(boxes, MIN_PROPOSAL)
    kept, valid = nms(boxes, scores, large, levels, threshold=threshold, size=after)
    return Proposals(jnp.where(valid[:, None], boxes[kept], 0), valid)

  logits, deltas = lax.stop_gradient((list(logits), list(deltas)))
  return jax.vmap(propose_one)(logits, deltas, size)


def sample_anchors(
  key: Array,
  anchors: Array,
  logits: Array,
  deltas: Array,
  instances: Instances,
  *,
  high: float,
  low: float,
  count: int,
) -> RPNSamples:
  """The anchors of one image that the RPN learns from; logits f32[A], deltas f32[A, 4]."""
  found = match(
    anchors,
    instances.boxes,
    instances.valid,
    instances.crowd,
    high=high,
    low=low,
    low_quality=True,
  )
  chosen = sample(key, found.positive, found.negative, count, 0.5)
  target = box_ops.encode(instances.boxes[found.index[chosen.index]], anchors[chosen.index])
  return RPNSamples(
    logits[chosen.index], deltas[chosen.index], target, chosen.positive, chosen.valid
  )


def sample_regions(
  key: Array,
  proposals: Proposals,
  instances: Instances,
  *,
  iou: float,
  count: int,
  positives: float,
) -> Regions:
  """The regions of one image that the heads learn from: proposals, and the objects themselves."""
  real = instances.valid & ~instances.crowd
  boxes = jnp.concatenate([proposals.boxes, instances.boxes])
  found = match(
    boxes,
    instances.boxes,
    instances.valid,
    instances.crowd,
    high=iou,
    low=iou,
    valid=jnp.concatenate([proposals.valid, real]),
  )
  chosen: Samples = sample(key, found.positive, found.negative, count, positives)
  index = found.index[chosen.index]
  boxes = jnp.where(chosen.valid[:, None], boxes[chosen.index], 0)
  target = box_ops.encode(instances.boxes[index], boxes, BOX_WEIGHTS)
  return Regions(boxes, index, instances.classes[index], target, chosen.positive, chosen.valid)


def detect(
  logits: Array,
  deltas: Array,
  proposals: Proposals,
  size: Array,
  *,
  score_threshold: float,
  threshold: float,
  count: int,
) -> Detections:
  """What the box head finds: each class of each proposal by itself, NMS within a class, the best K.

  Args:
    logits: f32[B, P, 1 + classes], the background first.
    deltas: f32[B, P, classes, 4].
    proposals: P an image.
    size: i32[B, 2], of the images.
    score_threshold: only higher probabilities count.
    threshold: IoU above which one suppresses another.
    count: K.
  """

  def detect_one(logits, deltas, proposals, size):
    scores = jax.nn.softmax(logits, -1)[:, 1:]
    boxes = box_ops.decode(deltas, proposals.boxes[:, None], BOX_WEIGHTS)
    boxes = box_ops.clip(boxes, size)
    valid = (scores > score_threshold) & proposals.valid[:, None]
    valid &= box_ops.nonempty(boxes, MIN_DETECTION)
    classes = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
    boxes, scores, valid, classes = boxes.reshape(-1, 4), *map(jnp.ravel, (scores, valid, classes))
    kept, found = nms(boxes, scores, valid, classes, threshold=threshold, size=count)
    blank = lambda x: jnp.where(found.reshape(-1, *[1] * (x.ndim - 1)), x[kept], 0)
    return Detections(blank(boxes), blank(classes), blank(scores), None, found)

  return jax.vmap(detect_one)(logits, deltas, proposals, size)


def _with_masks(found: Detections, logits: Array) -> Detections:
  """Detections with the mask of each one's class, of logits f32[B, K, M, M, classes]."""
  return found._replace(masks=nn.sigmoid(of_class(logits, found.classes)))


def of_class(masks: Array, classes: Array) -> Array:
  """The channel of each region's class: f[B, R, M, M, C], i32[B, R] -> f[B, R, M, M]."""
  index = classes[:, :, None, None, None]
  return jnp.take_along_axis(masks, index, axis=-1)[..., 0]
