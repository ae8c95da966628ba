"""torchvision's Mask R-CNN with ResNet-50-FPN, with the weights that ours are converted from."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

from segjax.convert import torchvision_detection
from segjax.convert.table import convert
from speed import peers
from speed.row import Options, Program

# Factors of layers of the random weights, so that the network proposes boxes that differ from the
# anchors and detects as many objects as it may.
_FACTORS = {'rpn.head.bbox_pred.weight': 5, 'roi_heads.box_predictor.cls_score.weight': 60}


def mask_rcnn(classes: int) -> MaskRCNN:
  """The network with seeded random weights; frozen norms as ours, and all layers are trained."""
  torch.manual_seed(0)
  backbone = resnet_fpn_backbone(
    backbone_name='resnet50', weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
  )
  # Images are already as the network sees them: `stages` and `training` leave out its transform.
  model = MaskRCNN(backbone, classes + 1)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter *= _FACTORS.get(name, 1)
  return model


def converted(model: nn.Module) -> dict[str, Any]:
  """Our variables with the weights of `mask_rcnn`."""
  weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  name = 'torchvision/maskrcnn_resnet50_fpn_all'
  variables: dict[str, Any] = {}
  for path, array in convert(weights, torchvision_detection.SOURCES, name, name).items():
    node = variables
    *parents, last = path.split('/')
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = array
  return variables


def fpn_gradients(model: MaskRCNN, image: np.ndarray, options: Options) -> dict[str, Program]:
  """Forward and backward of the mean square of all levels; the loss and a gradient's norm."""

  def one(backbone: nn.Module, x: torch.Tensor) -> Program:
    lateral = dict(backbone.named_parameters())['fpn.inner_blocks.0.0.weight']

    def run() -> list[float]:
      backbone.zero_grad(set_to_none=True)
      with peers.precision(options):
        value = sum((level.float() ** 2).mean() for level in backbone(x).values())
      value.backward()
      peers.finish()
      return [value.item(), lateral.grad.norm().item()]

    return run

  state = model.backbone.state_dict()

  def make() -> nn.Module:
    backbone = mask_rcnn(80).backbone
    backbone.load_state_dict(state)
    return backbone.train()

  return {
    name: one(backbone, peers.image_tensor(image, layout))
    for name, backbone, layout in peers.variants(make, options)
  }


def _image_list(x: torch.Tensor) -> ImageList:
  return ImageList(x, [tuple(x.shape[-2:])] * len(x))


def inference(classes: int, image: np.ndarray, options: Options) -> dict[str, Program]:
  """The detections of each image of f[B, H, W, C], masks at the resolution of the mask head."""

  def one(model: MaskRCNN, x: torch.Tensor) -> Program:
    images = _image_list(x)

    def run() -> list[dict[str, torch.Tensor]]:
      with torch.inference_mode(), peers.precision(options):
        features = model.backbone(x)
        proposals, _ = model.rpn(images, features)
        found, _ = model.roi_heads(features, proposals, images.image_sizes)
      peers.finish()
      return found

    return run

  return {
    name.replace('torch', 'torchvision'): one(model.eval(), peers.image_tensor(image, layout))
    for name, model, layout in _layouts(classes)
  }


def training(
  classes: int,
  image: np.ndarray,
  objects: Sequence[Mapping[str, np.ndarray]],
  rate: float,
  options: Options,
) -> dict[str, Program]:
  """A train step on objects with `boxes`, `labels` from 1 and `masks` bool[N, H, W]."""
  targets = [
    {
      'boxes': torch.as_tensor(entry['boxes']).to(peers.device()),
      'labels': torch.as_tensor(entry['labels']).long().to(peers.device()),
      'masks': torch.as_tensor(entry['masks'].astype(np.uint8)).to(peers.device()),
    }
    for entry in objects
  ]
  return {
    name.replace('torch', 'torchvision'): peers.train_step(
      _Losses(model.train(), targets), lambda value: value, peers.image_tensor(image, layout),
      options, rate,
    )
    for name, model, layout in _layouts(classes)
  }  # fmt: skip


class _Losses(nn.Module):
  """x -> the sum of the losses, without the transform: images are prepared."""

  def __init__(self, model: MaskRCNN, targets: list[dict[str, torch.Tensor]]):
    super().__init__()
    self.model, self.targets = model, targets

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    images = _image_list(x)
    features = self.model.backbone(x)
    proposals, first = self.model.rpn(images, features, self.targets)
    _, second = self.model.roi_heads(features, proposals, images.image_sizes, self.targets)
    return sum({**first, **second}.values())


def sample_counts(
  classes: int, image: np.ndarray, objects: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, int]:
  """How many samples each part of the loss has: anchors, RoIs, and positive RoIs (masks)."""
  model = mask_rcnn(classes).train()
  seen: dict[str, int] = {}

  def watch(owner: Any, name: str, count: Any) -> None:
    wrapped = getattr(owner, name)

    @functools.wraps(wrapped)
    def watching(*args: Any) -> Any:
      found = wrapped(*args)
      seen.update(count(found))
      return found

    setattr(owner, name, watching)

  total = lambda masks: int(sum(mask.sum() for mask in masks))
  watch(
    model.rpn, 'fg_bg_sampler',
    lambda found: {'rpn_class': total(found[0]) + total(found[1]), 'rpn_positive': total(found[0])},
  )  # fmt: skip
  watch(
    model.roi_heads, 'select_training_samples',
    lambda found: {
      'box_class': sum(len(labels) for labels in found[2]),
      'mask': int(sum((labels > 0).sum() for labels in found[2])),
    },
  )  # fmt: skip
  targets = [
    {
      'boxes': torch.as_tensor(entry['boxes']),
      'labels': torch.as_tensor(entry['labels']).long(),
      'masks': torch.as_tensor(entry['masks'].astype(np.uint8)),
    }
    for entry in objects
  ]
  with torch.no_grad():
    _Losses(model, targets)(peers.image_tensor(image, torch.channels_last).cpu())
  return seen


def detections(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
  """Of an image, as ours: `boxes`, `classes` from 0, `scores`, `masks` f32[K, M, M]."""
  return {
    'boxes': found['boxes'].float().cpu().numpy(),
    'classes': found['labels'].cpu().numpy() - 1,
    'scores': found['scores'].float().cpu().numpy(),
    'masks': found['masks'][:, 0].float().cpu().numpy(),
  }


def _layouts(classes: int):
  # torch.compile does not take torchvision's detection networks as a whole: their sizes depend on
  # the data.
  for name, layout in peers.LAYOUTS.items():
    yield name, mask_rcnn(classes).to(peers.device(), memory_format=layout), layout
