"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, ICCV 2017, arXiv 1703.06870, on a feature pyramid
or on one feature map; without the mask head Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

A region proposal network says where objects may be, a box head what and where exactly they are, a
mask head which pixels are theirs. Every size is fixed: the proposals of an image, the regions that
are learnt from, the detections; what is less is told by `valid`. The defaults are torchvision's
`maskrcnn_resnet50_fpn`, whose weights fit (`segjax.convert.torchvision_detection`).

What the paper varies in its Table 2 are fields, such as `feature_maps`. Those of Fig. 4, left, on
C4: regions of 7x7 and res5 without its stride, as in the paper (`box_bins=7, res5_stride=1`), or
regions of 14x14 and res5 with it, as in Detectron2's weights (`box_bins=14, res5_stride=2`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.nn.conv import ConvTranspose, he_normal, make_norm
from segjax.nn.conv import Norm as LearntNorm
from segjax.nn.fpn import FPN, uniform_fan_in
from segjax.nn.resnet import Name, Norm, ResNet, frozen_parameters
from segjax.ops import anchors as anchor_ops
from segjax.ops import boxes as box_ops
from segjax.ops.masks import crop_masks
from segjax.ops.matching import match
from segjax.ops.nms import nms
from segjax.ops.roi_align import Mode, multilevel_roi_align, roi_pool, roi_warp
from segjax.ops.sampling import Samples, sample
from segjax.types import Array, Detections, Instances, SegjaxError


class FeatureMaps(NamedTuple):
  """What regions are proposed on and cut from (§3, Network Architecture).

  Attributes:
    stages: of the ResNet, run on the image.
    strides: of the maps that regions are cut from; of a pyramid one more, P6, only proposes.
    pyramid: whether there is one, with a size of anchors a level; on one map a place has all sizes.
    res5: whether the heads are the ResNet's stage 5, run on each region (Fig. 4, left), and one
      layer; if not, those of the pyramid (Fig. 4, right).
  """

  stages: tuple[int, ...]
  strides: tuple[int, ...]
  pyramid: bool
  res5: bool


FEATURE_MAPS: dict[str, FeatureMaps] = {
  'fpn': FeatureMaps((1, 2, 3, 4, 5), (4, 8, 16, 32), pyramid=True, res5=False),
  'c4': FeatureMaps((1, 2, 3, 4), (16,), pyramid=False, res5=True),
  'c5': FeatureMaps((1, 2, 3, 4, 5), (32,), pyramid=False, res5=False),
}
# Proposals and detections of smaller sides are dropped, in pixels: torchvision's.
MIN_PROPOSAL, MIN_DETECTION = 1e-3, 1e-2
# Weights of the regressed coordinates (Fast R-CNN).
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Proposals(NamedTuple):
  """Regions that may hold an object: boxes f32[B, P, 4] by falling score, valid bool[B, P]."""

  boxes: Array
  valid: Array


class MaskRCNN(nn.Module):
  """Mask R-CNN on a ResNet.

  Attributes:
    classes: kinds of things; the background is not among them.
    backbone: a row of `segjax.nn.resnet.VARIANTS`.
    width: channels of the ResNet's stem; all its others are in proportion.
    norm: of the ResNet: 'frozen' for pretrained weights, 'batch', or 'group'.
    bn_epsilon: added to the variances of the ResNet's norms; torchvision's first weights have 0.
    stride_in_1x1: of the ResNet; its authors' weights, which Detectron2 starts from, have it.
    frozen_stages: stages of the ResNet that learn nothing; 2, the stem and res2, in the paper.
    feature_maps: 'fpn', P2 to P6; 'c4', the ResNet's map of stride 16, whose heads are its res5; or
      'c5', that of stride 32 with the heads of 'fpn' (Table 2a, 2d).
    features: channels of the pyramid and of the heads' convolutions (paper: 256).
    fpn_norm: of the pyramid's convolutions: 'none' (paper), 'batch', which learns, or 'group'.
    anchor_sizes: one a level of the pyramid, P2 to P6, or all at each place of one map, pixels.
    aspect_ratios: of the anchors, height over width.
    anchors: 'torchvision' rounds them to pixels and their strides down, see `grid_strides`;
      'detectron2' does neither, and orders those of a place by size.
    masks: whether there is a mask head.
    rpn_convs: 3x3 convolutions of the RPN.
    box_convs: 3x3 convolutions of the box head, before its layers; 4 in torchvision's version 2.
    box_layers: fully-connected layers of the box head, before its outputs; 1 in that version.
    hidden: channels of these layers (paper: 1024).
    head_norm: as `fpn_norm`, of the 3x3 convolutions of the box and mask heads.
    mask_convs: 3x3 convolutions of the mask head; none on 'c4', where res5 comes before it.
    mask_mlp: channels of fully-connected layers in place of the convolutions; the MLPs of Table 2e
      are (1024, 1024) and (1024, 1024, 1024).
    mask_activation: 'sigmoid', or 'softmax' over the classes and the background (Table 2b).
    mask_agnostic: whether all classes share one mask (§4.1, Class-Specific vs. Class-Agnostic).
    box_bins: side of what the box head sees of a region; on 'c4' the mask head sees it too.
    mask_bins: side of what the mask head sees of a region; its masks are twice as large.
    res5_stride: of res5 on 'c4': 1 in the paper, for 7x7 regions, 2 in Detectron2, for 14x14.
    roi: the operation that cuts regions out (Table 2c); RoIPool and RoIWarp take one map.
    roi_mode: whether a bin is the average or the maximum of its samples, but for RoIPool.
    sampling_ratio: samples a bin and axis of RoIAlign, 0 for the adaptive count.
    max_samples: bounds the adaptive count; None for that of a region as large as the map.
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
  bn_epsilon: float = 1e-5
  stride_in_1x1: bool = False
  frozen_stages: int = 0
  feature_maps: Literal['fpn', 'c4', 'c5'] = 'fpn'
  features: int = 256
  fpn_norm: LearntNorm = 'none'
  anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
  aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  anchors: Literal['torchvision', 'detectron2'] = 'torchvision'
  masks: bool = True
  rpn_convs: int = 1
  box_convs: int = 0
  box_layers: int = 2
  hidden: int = 1024
  head_norm: LearntNorm = 'none'
  mask_convs: int = 4
  mask_mlp: tuple[int, ...] = ()
  mask_activation: Literal['sigmoid', 'softmax'] = 'sigmoid'
  mask_agnostic: bool = False
  box_bins: int = 7
  mask_bins: int = 14
  res5_stride: Literal[1, 2] = 1
  roi: Literal['roi_align', 'roi_pool', 'roi_warp'] = 'roi_align'
  roi_mode: Mode = 'avg'
  sampling_ratio: int = 2
  max_samples: int | None = None
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

    Raises:
      SegjaxError: `roi` takes one map and there is a pyramid.
    """
    resnet, levels = self._levels(image, train)
    return self._find(resnet, levels, image, size, instances, keys, given=given, train=train)

  def _levels(self, image: Array, train: bool) -> tuple[ResNet, list[Array]]:
    """The ResNet, and the maps f[B, h, w, C] that regions are proposed on."""
    kind = FEATURE_MAPS[self.feature_maps]
    resnet = ResNet(
      self.backbone,
      width=self.width,
      norm=self.norm,
      bn_epsilon=self.bn_epsilon,
      stride_in_1x1=self.stride_in_1x1,
      frozen_stages=self.frozen_stages,
      unstrided=(5,) if kind.res5 and self.res5_stride == 1 else (),
      dtype=self.dtype,
      name='backbone',
    )
    stages = list(resnet(image, stages=kind.stages, train=train).values())
    levels = stages[-1:]
    if kind.pyramid:
      fpn = FPN(self.features, norm=self.fpn_norm, dtype=self.dtype, name='fpn')
      levels = fpn(stages, train=train)
    return resnet, levels

  def _find(
    self,
    resnet: ResNet,
    levels: list[Array],
    image: Array,
    size: Array,
    instances: Instances | None,
    keys: Array | None,
    *,
    given: Detections | None,
    train: bool,
  ) -> dict[str, Any]:
    """What `__call__` returns, of the maps that `_levels` has."""
    kind = FEATURE_MAPS[self.feature_maps]
    cut = functools.partial(self._cut, levels[: len(kind.strides)])
    view_box = functools.partial(cut, bins=self.box_bins)
    view_mask = functools.partial(cut, bins=self.mask_bins)
    if kind.res5:
      if self.norm == 'batch' and self.frozen_stages < 5:
        raise SegjaxError(
          "config.model.norm='batch': res5 would learn its statistics from slots without a region "
          "too: take 'frozen' or 'group', or set config.model.frozen_stages=5"
        )
      stage5 = lambda x: resnet(x, stages=(5,), train=train)['c5']
      view_box = view_mask = lambda boxes: _of_regions(stage5, cut(boxes, bins=self.box_bins))
    mask_head = self._mask_head()
    if given is not None:
      return {'detections': self._with_masks(given, mask_head(view_mask(given.boxes)))}
    anchors = self._anchors(image.shape[1:3], [level.shape[1:3] for level in levels])
    ratios = len(self.aspect_ratios) * (1 if kind.pyramid else len(self.anchor_sizes))
    logits, deltas = RPNHead(ratios, self.rpn_convs, dtype=self.dtype, name='rpn')(levels)
    before, after = self.train_proposals if train else self.test_proposals
    proposals = propose(
      logits, deltas, anchors, size, before=before, after=after, threshold=self.rpn_nms
    )

    box_head = self._box_head()
    if not train:
      found = detect(
        *box_head(view_box(proposals.boxes)),
        proposals,
        size,
        score_threshold=self.score_threshold,
        threshold=self.detection_nms,
        count=self.detections,
      )
      if self.masks:
        found = self._with_masks(found, mask_head(view_mask(found.boxes)))
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
    seen = view_box(regions.boxes)
    outputs = {'rpn': rpn, 'box': BoxSamples(*box_head(seen, regions.valid), regions)}
    if self.masks:
      first = int(self.region_positives * self.regions)  # no other slot is positive
      positives = jax.tree.map(lambda x: x[:, :first], regions)
      target = crop_masks(
        instances.masks,
        positives.boxes,
        positives.index,
        size=self.mask_size,
        width=image.shape[2],
        aligned=self.aligned,
        threshold=0.5 if self.aligned else None,
        image_size=size,
      )
      seen = seen[:, :first] if view_mask is view_box else view_mask(positives.boxes)
      outputs['mask'] = MaskSamples(mask_head(seen, positives.positive), target, positives)
    return outputs

  @property
  def mask_size(self) -> int:
    """M, the side of the masks."""
    if FEATURE_MAPS[self.feature_maps].res5:
      return 2 * -(-self.box_bins // self.res5_stride)
    return 2 * self.mask_bins

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Regular expressions for the parameters that learn nothing, nor decay."""
    return frozen_parameters('backbone', self.norm, self.frozen_stages)

  def _cut(self, levels: Sequence[Array], boxes: Array, *, bins: int) -> Array:
    """Regions f32[B, R, bins, bins, C] of levels f[B, h, w, C] by boxes f32[B, R, 4]."""
    strides = FEATURE_MAPS[self.feature_maps].strides
    levels = [level.astype(jnp.float32) for level in levels]
    sampling = {'sampling_ratio': self.sampling_ratio, 'mode': self.roi_mode}
    if self.roi == 'roi_align':
      return multilevel_roi_align(
        levels,
        boxes,
        strides=strides,
        output_size=bins,
        aligned=self.aligned,
        max_samples=self.max_samples,
        **sampling,
      )
    if len(levels) > 1:
      raise SegjaxError(
        f'config.model.roi={self.roi} takes one map: set config.model.feature_maps to c4 or c5'
      )
    operation = roi_pool if self.roi == 'roi_pool' else functools.partial(roi_warp, **sampling)
    return operation(levels[0], boxes, output_size=bins, spatial_scale=1 / strides[0])

  def _anchors(self, size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """f32[h * w * A, 4] a level, of grids (h, w)."""
    kind, exact = FEATURE_MAPS[self.feature_maps], self.anchors == 'detectron2'
    sizes = [[size] for size in self.anchor_sizes] if kind.pyramid else [self.anchor_sizes]
    bases = [
      anchor_ops.base_anchors(s, self.aspect_ratios, rounded=not exact, sizes_first=exact)
      for s in sizes
    ]
    strides = [(kind.strides[0] * 2**level,) * 2 for level in range(len(grids))]
    return anchor_ops.pyramid_anchors(
      bases, grids, strides if exact else anchor_ops.grid_strides(size, grids)
    )

  def _box_head(self) -> nn.Module:
    if FEATURE_MAPS[self.feature_maps].res5:
      return Res5BoxHead(self.classes, dtype=self.dtype, name='box')
    return BoxHead(
      self.classes,
      self.hidden,
      layers=self.box_layers,
      convs=self.box_convs,
      features=self.features,
      norm=self.head_norm,
      dtype=self.dtype,
      name='box',
    )

  def _mask_head(self) -> nn.Module:
    kinds = (1 if self.mask_agnostic else self.classes) + (self.mask_activation == 'softmax')
    if self.mask_mlp:
      return MaskMLP(kinds, self.mask_mlp, self.mask_size, dtype=self.dtype, name='mask')
    convs = 0 if FEATURE_MAPS[self.feature_maps].res5 else self.mask_convs
    return MaskHead(kinds, self.features, convs, self.head_norm, dtype=self.dtype, name='mask')

  def _with_masks(self, found: Detections, logits: Array) -> Detections:
    """Detections with the mask of each one's class, of logits f32[B, K, M, M, channels]."""
    channels = jnp.zeros_like(found.classes) if self.mask_agnostic else found.classes
    if self.mask_activation == 'softmax':
      return found._replace(masks=of_class(nn.softmax(logits), channels + 1))
    return found._replace(masks=nn.sigmoid(of_class(logits, channels)))


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
  """logits f32[B, R', M, M, channels] and target f32[B, R', M, M] of the first R' regions.

  All positive regions are among them. There is a channel for each class, or one for all of them,
  and with `mask_activation='softmax'` one for the background before that.
  """

  logits: Array
  target: Array
  regions: Regions


class RPNHead(nn.Module):
  """What each anchor says (Faster R-CNN, §3.1), the same weights at every level.

  Attributes:
    ratios: anchors a place.
    convs: 3x3 convolutions.
    dtype: type of the computation.
  """

  ratios: int
  convs: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pyramid: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """f[B, h, w, C] a level -> logits f32[B, h·w·A] and deltas f32[B, h·w·A, 4] a level."""
    normal = nn.initializers.normal(0.01)
    layer = functools.partial(nn.Conv, kernel_init=normal, dtype=self.dtype)
    channels = pyramid[0].shape[-1]
    convs = [layer(channels, (3, 3), name=f'conv{i}') for i in range(1, self.convs + 1)]
    logits = layer(self.ratios, (1, 1), name='objectness')
    deltas = layer(4 * self.ratios, (1, 1), name='deltas')
    see = lambda x: functools.reduce(lambda y, conv: nn.relu(conv(y)), convs, x)
    seen = [see(level) for level in pyramid]
    batch = len(pyramid[0])
    return (
      [logits(x).reshape(batch, -1).astype(jnp.float32) for x in seen],
      [deltas(x).reshape(batch, -1, 4).astype(jnp.float32) for x in seen],
    )


class BoxHead(nn.Module):
  """Fully-connected layers, then what a region is and where (FPN, §4.2).

  Attributes:
    classes: of things.
    hidden: channels of the layers.
    layers: their number: fc6, fc7, …
    convs: 3x3 convolutions before them.
    features: their channels.
    norm: their norms.
    dtype: type of the computation.
  """

  classes: int
  hidden: int
  layers: int = 2
  convs: int = 0
  features: int = 256
  norm: LearntNorm = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4].

    `valid`, bool[B, R], is given in training: the regions that norm 'batch' learns from.
    """
    convs = functools.partial(
      _convs, count=self.convs, features=self.features, norm=self.norm, valid=valid
    )
    x = _of_regions(functools.partial(convs, dtype=self.dtype), x.astype(self.dtype))
    x = x.reshape(*x.shape[:2], -1)
    for name in (f'fc{6 + i}' for i in range(self.layers)):
      x = nn.relu(nn.Dense(self.hidden, kernel_init=uniform_fan_in, dtype=self.dtype, name=name)(x))
    return _what_and_where(x, self.classes, self.dtype)


class Res5BoxHead(nn.Module):
  """The mean of what res5 sees of a region, then what it is and where (§3, Fig. 4, left).

  Attributes:
    classes: of things.
    dtype: type of the computation.
  """

  classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """f[B, R, P, Q, C] -> logits f32[B, R, 1 + classes], deltas f32[B, R, classes, 4]."""
    del valid  # no norm of its own
    return _what_and_where(x.mean((2, 3)), self.classes, self.dtype)


def _what_and_where(x: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
  """The last layers of a box head, score and deltas, on f[B, R, C]."""
  dense = functools.partial(nn.Dense, dtype=dtype)
  init = nn.initializers.normal
  logits = dense(classes + 1, kernel_init=init(0.01), name='score')(x)
  deltas = dense(4 * classes, kernel_init=init(0.001), name='deltas')(x)
  deltas = deltas.reshape(*x.shape[:2], classes, 4)
  return logits.astype(jnp.float32), deltas.astype(jnp.float32)


class MaskHead(nn.Module):
  """Convolutions, a transposed one that doubles the size, and a mask for each class (Fig. 4).

  Attributes:
    classes: channels of masks.
    features: channels.
    convs: 3x3 convolutions.
    norm: their norms.
    dtype: type of the computation.
  """

  classes: int
  features: int
  convs: int
  norm: LearntNorm = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """f[B, R, P, Q, C] -> logits f32[B, R, 2P, 2Q, classes]; `valid` as in `BoxHead`."""
    return _of_regions(functools.partial(self._masks, valid=valid), x)

  def _masks(self, x: Array, valid: Array | None) -> Array:
    options = {'norm': self.norm, 'valid': valid, 'dtype': self.dtype}
    x = _convs(x.astype(self.dtype), count=self.convs, features=self.features, **options)
    x = nn.relu(ConvTranspose(self.features, 2, 2, dtype=self.dtype, name='upconv')(x))
    score = nn.Conv(
      self.classes,
      (1, 1),
      kernel_init=nn.initializers.normal(0.001),
      dtype=self.dtype,
      name='score',
    )
    return score(x).astype(jnp.float32)


class MaskMLP(nn.Module):
  """Fully-connected layers that see a whole region, and its masks (Table 2e).

  Attributes:
    classes: channels of masks.
    hidden: channels of the layers.
    size: M, the side of the masks.
    dtype: type of the computation.
  """

  classes: int
  hidden: tuple[int, ...]
  size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """f[B, R, P, Q, C] -> logits f32[B, R, M, M, classes]."""
    del valid  # no norm of its own
    x = x.reshape(*x.shape[:2], -1).astype(self.dtype)
    for i, channels in enumerate(self.hidden, 1):
      layer = nn.Dense(channels, kernel_init=he_normal, dtype=self.dtype, name=f'fc{i}')
      x = nn.relu(layer(x))
    score = nn.Dense(
      self.size**2 * self.classes,
      kernel_init=nn.initializers.normal(0.001),
      dtype=self.dtype,
      name='score',
    )
    return score(x).astype(jnp.float32).reshape(*x.shape[:2], self.size, self.size, self.classes)


def _convs(
  x: Array, *, count: int, features: int, norm: LearntNorm, valid: Array | None, dtype: Any
) -> Array:
  """`count` 3x3 convolutions of f[B · R, P, Q, C], conv1, conv2, …, each with its …_norm and ReLU.

  Args:
    x: regions.
    count: of the convolutions.
    features: their channels.
    norm: 'batch' takes the statistics of `valid` regions; of all, where none is, which are then
      blank: NaN otherwise.
    valid: bool[B, R], in training; None for the running statistics.
    dtype: type of the computation.
  """
  train = valid is not None
  mask = (valid | ~valid.any()).reshape(-1, 1, 1, 1) if train else None
  for name in (f'conv{i}' for i in range(1, count + 1)):
    layer = nn.Conv(
      features,
      (3, 3),
      use_bias=norm == 'none',
      kernel_init=he_normal,
      dtype=dtype,
      name=name,
    )
    x = make_norm(norm, train=train, dtype=dtype, name=f'{name}_norm')(layer(x), mask=mask)
    x = nn.relu(x)
  return x


def _of_regions(apply: Callable[[Array], Array], x: Array) -> Array:
  """`apply` on each region: f[B, R, P, Q, C] -> [B, R, …], of f[B', P, Q, C] -> [B', …]."""
  y = apply(x.reshape(-1, *x.shape[2:]))
  return y.reshape(*x.shape[:2], *y.shape[1:])


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


def of_class(masks: Array, classes: Array) -> Array:
  """The channel of each region's class: f[B, R, M, M, C], i32[B, R] -> f[B, R, M, M]."""
  index = classes[:, :, None, None, None]
  return jnp.take_along_axis(masks, index, axis=-1)[..., 0]
