"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, ICCV 2017, arXiv 1703.06870, on an FPN or a single
feature map; without the mask head Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

As in Fig. 1: a backbone, optionally with an FPN; a region proposal network; RoIAlign; a box head; a
mask head. Each part is a file of `segjax.nn` and has a config group. The numbers of proposals,
sampled RoIs and detections per image are fixed; `valid` marks the real ones. The defaults are those
of torchvision's `maskrcnn_resnet50_fpn`, whose weights can be loaded
(`segjax.convert.torchvision_detection`).

The ablations of the paper's Table 2 are config keys, such as `feature_maps`. The C4 heads of Fig.
4, left, take 7x7 RoIs with res5 at stride 1, as in the paper (`box_head.resolution=7,
box_head.res5_stride=1`), or 14x14 RoIs with res5 at stride 2, as in Detectron2's weights
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
from segjax.nn.mask_head import (
  MaskHead,
  MaskHeadConfig,
  MaskMLP,
  MaskSamples,
  first_positives,
  with_masks,
)
from segjax.nn.resnet import ResNet, ResNetConfig, frozen_parameters
from segjax.nn.roi import RoIConfig, extract, per_roi
from segjax.nn.rpn import (
  RPNConfig,
  RPNHead,
  anchors_per_location,
  make_anchors,
  propose,
  sample_anchors,
)
from segjax.ops.masks import crop_masks
from segjax.types import Array, Detections, Instances, PositiveInt, SegjaxError


class FeatureMaps(NamedTuple):
  """The feature maps of the RPN and the RoI heads (§3, Network Architecture).

  Attributes:
    stages: of the ResNet, run on the image.
    strides: of the maps from which RoI features are extracted; an FPN also has P6, for the RPN.
    pyramid: whether there is an FPN, with one anchor size per level; a single map has all sizes.
    res5: whether the heads share the ResNet's stage 5, run on each RoI (Fig. 4, left), instead of
      the heads of the FPN (Fig. 4, right).
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
    classes: number of thing classes, without background.
    backbone: see `ResNetConfig`.
    neck: for 'fpn', see `FPNConfig`.
    rpn: see `RPNConfig`.
    roi: see `RoIConfig`.
    box_head: see `BoxHeadConfig`.
    mask_head: see `MaskHeadConfig`.
    masks: whether there is a mask head.
    feature_maps: 'fpn', P2 to P6; 'c4', the stride-16 map with res5 heads; or 'c5', the stride-32
      map with the heads of 'fpn' (Table 2a, 2d).
    dtype: computation dtype ('float32' or 'bfloat16'); parameters, coordinates and scores are
      float32.
    remat: compute the activations inside each block of the ResNet again in the backward pass
      instead of keeping them: less memory, more time, the same gradients.

  Raises:
    SegjaxError: the parts are incompatible.
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
  remat: bool = False

  # Keys of `config.model` that training does not read: they can be set for a trained network.
  inference_keys = (
    'rpn.test_proposals',
    *(f'box_head.{key}' for key in ('score_threshold', 'nms_iou', 'max_detections')),
  )

  def __post_init__(self):
    maps, sizes = self._maps, self.rpn.anchor_sizes
    if maps.pyramid and len(sizes) != len(maps.strides) + 1:
      raise SegjaxError(
        f'config.model.rpn.anchor_sizes={sizes}: the FPN has {len(maps.strides) + 1} levels, '
        'P2 to P6: set one size per level'
      )
    if maps.pyramid and self.roi.op != 'roi_align':
      raise SegjaxError(
        f'config.model.roi.op={self.roi.op} needs a single map: set config.model.feature_maps to '
        'c4 or c5'
      )
    if maps.res5 and self.backbone.norm == 'batch' and self.backbone.frozen_stages < 5:
      raise SegjaxError(
        "config.model.backbone.norm='batch': the statistics of res5 would include padding RoIs: "
        "use 'frozen' or 'group', or set config.model.backbone.frozen_stages=5"
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
    """Returns the inputs of the losses in training, else the detections.

    Args:
      image: f[B, H, W, C], padded at the bottom and right.
      size: i32[B, 2], height and width of each image without its padding.
      instances: ground truth, in training.
      keys: [B] `jax.random` keys to sample the anchors and RoIs of each image, in training.
      given: outside training, detections whose masks to predict; the other fields are returned
        unchanged.
      train: training mode.

    Returns:
      In training `rpn` (`RPNSamples`), `box` (`BoxSamples`) and, with a mask head, `mask`
      (`MaskSamples`); else `detections`. An empty dict from `init`, which computes no RoIs.
    """
    resnet, levels = self._levels(image, train)
    return self._run_heads(resnet, levels, image, size, instances, keys, given=given, train=train)

  def _levels(self, image: Array, train: bool) -> tuple[ResNet, list[Array]]:
    """The ResNet, and the feature maps f[B, h, w, C] of the RPN."""
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
      remat=self.remat,
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
    """Runs the RPN and the heads on the feature maps; returns what `__call__` returns."""
    box_features, mask_features = self._extractors(resnet, levels, train)
    box_head, mask_head = self._box_head(), self._mask_head()
    if given is not None:
      logits = mask_head(mask_features(given.boxes))
      return {'detections': with_masks(given, logits, self.mask_head)}

    per_location = anchors_per_location(self.rpn, pyramid=self._maps.pyramid)
    logits, deltas = RPNHead(per_location, self.rpn.convs, dtype=self.dtype, name='rpn')(levels)
    if self.is_initializing():
      # Parameters do not depend on RoIs, whose tracing takes longer than all else.
      rois = jnp.zeros((len(image), 1, 4))
      box_head(box_features(rois))
      if self.masks:
        mask_head(mask_features(rois))
      return {}
    anchors = self._anchors(image.shape[1:3], [level.shape[1:3] for level in levels])
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
      shared = features if mask_features is box_features else None

      def samples(head: nn.Module, rois: SampledRoIs) -> MaskSamples:
        count = rois.boxes.shape[1]
        found = mask_features(rois.boxes) if shared is None else shared[:, :count]
        target = self._mask_targets(rois, instances, image.shape[2], size)
        return MaskSamples(head(found, rois.positive), target, rois)

      positives = jax.tree.map(lambda x: x[:, : self.box_head.max_positives], rois)
      outputs['mask'] = first_positives(samples, mask_head, positives)
    return outputs

  def _extractors(
    self, resnet: ResNet, levels: list[Array], train: bool
  ) -> tuple[Extract, Extract]:
    """The RoI feature extractors of the box head and the mask head; shared on 'c4'."""
    cut = functools.partial(
      extract, levels[: len(self._maps.strides)], config=self.roi, strides=self._maps.strides
    )
    if self.is_initializing():  # zeros of the same shape
      channels = levels[0].shape[-1]
      cut = lambda boxes, resolution: jnp.zeros(
        (*boxes.shape[:2], resolution, resolution, channels)
      )
    box = functools.partial(cut, resolution=self.box_head.resolution)
    if self._maps.res5:
      res5 = lambda x: resnet(x, stages=(5,), train=train)['c5']
      shared = lambda boxes: per_roi(res5, box(boxes))
      return shared, shared
    return box, functools.partial(cut, resolution=self.mask_head.resolution)

  def _anchors(self, size: tuple[int, int], grids: list[tuple[int, int]]) -> list[Any]:
    """Anchors f32[h · w · A, 4] per level, for an image of `size` and grids (h, w)."""
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
    """Mask targets f32[B, R', M, M]: the mask of each RoI's object, cropped to the RoI."""
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
    """M, the side length of the predicted masks."""
    if self._maps.res5:
      return 2 * -(-self.box_head.resolution // self.box_head.res5_stride)
    return 2 * self.mask_head.resolution

  @property
  def needed_losses(self) -> tuple[tuple[str, ...], ...]:
    """Names of losses; without one of each group, a part stays as it is initialized."""
    names = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', *['mask'] * self.masks)
    return tuple((name,) for name in names)

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Regular expressions of the parameters without updates or weight decay."""
    return frozen_parameters('backbone', self.backbone.norm, self.backbone.frozen_stages)
