"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, ICCV 2017, arXiv 1703.06870, on a feature pyramid
or on one feature map; without the mask head Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

As in Fig. 1: a backbone, and perhaps a pyramid on it; a region proposal network; RoIAlign; a box
head; a mask head. Each part is a file of `segjax.nn` and has a config group. Every size is fixed:
the proposals of an image, the RoIs that are sampled in training, the detections; `valid` says how
many of them there are. The defaults are torchvision's `maskrcnn_resnet50_fpn`, whose weights fit
(`segjax.convert.torchvision_detection`).

What the paper varies in its Table 2 are keys, such as `feature_maps`. Those of Fig. 4, left, on
C4: RoIs of 7x7 and res5 without its stride, as in the paper (`box_head.resolution=7,
box_head.res5_stride=1`), or RoIs of 14x14 and res5 with it, as in Detectron2's weights
(`box_head.resolution=14, box_head.res5_stride=2`).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.box_head import (
  BoxHead,
  BoxHeadConfig,
  BoxSamples,
  Res5BoxHead,
  SampledRoIs,
  detect,
  sample_rois,
)
from segjax.nn.fpn import FPN, FPNConfig
from segjax.nn.mask_head import MaskHead, MaskHeadConfig, MaskMLP, MaskSamples, with_masks
from segjax.nn.resnet import ResNet, ResNetConfig, frozen_parameters
from segjax.nn.roi import RoIConfig, extract, per_roi
from segjax.nn.rpn import (
  RPNConfig,
  RPNHead,
  anchors_per_place,
  make_anchors,
  propose,
  sample_anchors,
)
from segjax.ops.masks import crop_masks
from segjax.types import Array, Detections, Instances, PositiveInt, SegjaxError


class FeatureMaps(NamedTuple):
  """The maps that regions are proposed on and RoIs cut from (§3, Network Architecture).

  Attributes:
    stages: of the ResNet, run on the image.
    strides: of the maps that RoIs are cut from; of a pyramid one more, P6, only proposes.
    pyramid: whether there is one, with one anchor size per level; on one map a place has all sizes.
    res5: whether the heads are the ResNet's stage 5, run on each RoI (Fig. 4, left), and one
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

# f32[B, R, 4] -> the features of these RoIs, f[B, R, P, P, C].
Extract = Callable[[Array], Array]


class MaskRCNN(nn.Module):
  """Mask R-CNN on a ResNet.

  Attributes:
    classes: kinds of things; the background is not among them.
    backbone: see `ResNetConfig`.
    neck: of 'fpn', see `FPNConfig`.
    rpn: see `RPNConfig`.
    roi: see `RoIConfig`.
    box_head: see `BoxHeadConfig`.
    mask_head: see `MaskHeadConfig`.
    masks: whether there is a mask head.
    feature_maps: 'fpn', P2 to P6; 'c4', the ResNet's map of stride 16, whose heads are its res5; or
      'c5', that of stride 32 with the heads of 'fpn' (Table 2a, 2d).
    dtype: type of the computation ('float32' or 'bfloat16'); parameters, and all coordinates and
      scores, are float32.

  Raises:
    SegjaxError: where parts do not fit each other.
  """

  classes: PositiveInt
  backbone: ResNetConfig = ResNetConfig()
  neck: FPNConfig = FPNConfig()
  rpn: RPNConfig = RPNConfig()
  roi: RoIConfig = RoIConfig()
  box_head: BoxHeadConfig = BoxHeadConfig()
  mask_head: MaskHeadConfig = MaskHeadConfig()
  masks: bool = True
  feature_maps: Literal['fpn', 'c4', 'c5'] = 'fpn'
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    maps, sizes = self._maps, self.rpn.anchor_sizes
    if maps.pyramid and len(sizes) != len(maps.strides) + 1:
      raise SegjaxError(
        f'config.model.rpn.anchor_sizes={sizes}: the pyramid has {len(maps.strides) + 1} levels, '
        'P2 to P6: name one size for each'
      )
    if maps.pyramid and self.roi.op != 'roi_align':
      raise SegjaxError(
        f'config.model.roi.op={self.roi.op} takes one map: set config.model.feature_maps to c4 or '
        'c5'
      )
    if maps.res5 and self.backbone.norm == 'batch' and self.backbone.frozen_stages < 5:
      raise SegjaxError(
        "config.model.backbone.norm='batch': res5 would take statistics of slots without a RoI "
        "too: take 'frozen' or 'group', or set config.model.backbone.frozen_stages=5"
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
    """The inputs of the losses in training, else the detections.

    Args:
      image: f[B, H, W, C], padded below and to the right.
      size: i32[B, 2], height and width of each image inside its padding.
      instances: the ground truth, in training.
      keys: [B], in training: `jax.random` keys by which the anchors and the RoIs of each image are
        sampled.
      given: outside training, boxes to find the masks of, in place of what this image shows; all
        but its masks is passed through.
      train: which of the two.

    Returns:
      In training `rpn` (`RPNSamples`), `box` (`BoxSamples`) and, with a mask head, `mask`
      (`MaskSamples`); else `detections`.
    """
    resnet, levels = self._levels(image, train)
    return self._run_heads(resnet, levels, image, size, instances, keys, given=given, train=train)

  def _levels(self, image: Array, train: bool) -> tuple[ResNet, list[Array]]:
    """The ResNet, and the maps f[B, h, w, C] that regions are proposed on."""
    config = self.backbone
    resnet = ResNet(
      config.name,
      width=config.width,
      norm=config.norm,
      bn_epsilon=config.bn_epsilon,
      stride_in_1x1=config.stride_in_1x1,
      frozen_stages=config.frozen_stages,
      unstrided=(5,) if self._maps.res5 and self.box_head.res5_stride == 1 else (),
      dtype=self.dtype,
      name='backbone',
    )
    stages = list(resnet(image, stages=self._maps.stages, train=train).values())
    if not self._maps.pyramid:
      return resnet, stages[-1:]
    fpn = FPN(self.neck.features, norm=self.neck.norm, dtype=self.dtype, name='fpn')
    return resnet, fpn(stages, train=train)

  def _run_heads(
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
    """The RPN and the heads, on the maps of `_levels`: what `__call__` returns."""
    box_features, mask_features = self._extractors(resnet, levels, train)
    box_head, mask_head = self._box_head(), self._mask_head()
    if given is not None:
      logits = mask_head(mask_features(given.boxes))
      return {'detections': with_masks(given, logits, self.mask_head)}

    anchors = self._anchors(image.shape[1:3], [level.shape[1:3] for level in levels])
    per_place = anchors_per_place(self.rpn, pyramid=self._maps.pyramid)
    logits, deltas = RPNHead(per_place, self.rpn.convs, dtype=self.dtype, name='rpn')(levels)
    pre_nms, post_nms = self.rpn.train_proposals if train else self.rpn.test_proposals
    nms = {'pre_nms': pre_nms, 'post_nms': post_nms, 'nms_iou': self.rpn.nms_iou}
    proposals = propose(logits, deltas, anchors, size, **nms)

    if not train:
      found = detect(*box_head(box_features(proposals.boxes)), proposals, size, self.box_head)
      if self.masks:
        found = with_masks(found, mask_head(mask_features(found.boxes)), self.mask_head)
      return {'detections': found}

    rpn_keys, roi_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    rois = sample_rois(roi_keys, proposals, instances, self.box_head)
    features = box_features(rois.boxes)
    outputs = {
      'rpn': sample_anchors(rpn_keys, anchors, logits, deltas, instances, self.rpn),
      'box': BoxSamples(*box_head(features, rois.valid), rois),
    }
    if self.masks:
      first = lambda x: x[:, : self.box_head.max_positives]
      positives = jax.tree.map(first, rois)
      shared = mask_features is box_features
      features = first(features) if shared else mask_features(positives.boxes)
      target = self._mask_targets(positives, instances, image.shape[2], size)
      outputs['mask'] = MaskSamples(mask_head(features, positives.positive), target, positives)
    return outputs

  def _extractors(
    self, resnet: ResNet, levels: list[Array], train: bool
  ) -> tuple[Extract, Extract]:
    """How the box head and the mask head see RoIs; on 'c4' both see the same."""
    cut = functools.partial(
      extract, levels[: len(self._maps.strides)], config=self.roi, strides=self._maps.strides
    )
    box = functools.partial(cut, resolution=self.box_head.resolution)
    if self._maps.res5:
      res5 = lambda x: resnet(x, stages=(5,), train=train)['c5']
      shared = lambda boxes: per_roi(res5, box(boxes))
      return shared, shared
    return box, functools.partial(cut, resolution=self.mask_head.resolution)

  def _anchors(self, size: tuple[int, int], grids: list[tuple[int, int]]) -> list[Any]:
    """f32[h · w · A, 4] per level, of an image of `size` and grids (h, w)."""
    maps = self._maps
    return make_anchors(self.rpn, size, grids, stride=maps.strides[0], pyramid=maps.pyramid)

  def _box_head(self) -> nn.Module:
    if self._maps.res5:
      return Res5BoxHead(self.classes, dtype=self.dtype, name='box')
    return BoxHead(self.classes, self.box_head, dtype=self.dtype, name='box')

  def _mask_head(self) -> nn.Module:
    config = self.mask_head
    channels = config.channels(self.classes)
    if config.mlp:
      return MaskMLP(channels, config.mlp, self.mask_size, dtype=self.dtype, name='mask')
    convs = 0 if self._maps.res5 else config.convs
    return MaskHead(channels, config.features, convs, config.norm, dtype=self.dtype, name='mask')

  def _mask_targets(
    self, rois: SampledRoIs, instances: Instances, width: int, size: Array
  ) -> Array:
    """f32[B, R', M, M], the part of each RoI's object that is in the RoI."""
    return crop_masks(
      instances.masks,
      rois.boxes,
      rois.index,
      size=self.mask_size,
      width=width,
      aligned=self.roi.aligned,
      threshold=0.5 if self.roi.aligned else None,
      image_size=size,
    )

  @property
  def _maps(self) -> FeatureMaps:
    return FEATURE_MAPS[self.feature_maps]

  @property
  def mask_size(self) -> int:
    """M, the side of the masks."""
    if self._maps.res5:
      return 2 * -(-self.box_head.resolution // self.box_head.res5_stride)
    return 2 * self.mask_head.resolution

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Regular expressions of the parameters that neither learn nor decay."""
    return frozen_parameters('backbone', self.backbone.norm, self.backbone.frozen_stages)
