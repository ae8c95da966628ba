"""Creates detection.npz, with PyTorch: python tests/convert/golden/make_detection.py

Of torchvision's Mask and Faster R-CNN, both versions, the names and shapes of their arrays; and
what narrow ones of both versions find in two images, with weights of `synthetic`, their outputs
centered and scaled so that there is something to find. Written with torch 2.13.0 and torchvision
0.28.0.
"""

import functools
import pathlib
import sys

import numpy as np
import torch
from torchvision.models import detection
from torchvision.models.detection import backbone_utils, faster_rcnn, mask_rcnn, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

DIRECTORY = pathlib.Path(__file__).parent
sys.path.append(str(DIRECTORY.parents[1] / 'helpers'))

from synthetic import synthetic, synthetic_image  # noqa: E402

NETWORKS = (
  'maskrcnn_resnet50_fpn',
  'maskrcnn_resnet50_fpn_v2',
  'fasterrcnn_resnet50_fpn',
  'fasterrcnn_resnet50_fpn_v2',
)
# Sizes of the two images, and of both with their padding.
SIZES, PADDED = ((90, 128), (96, 110)), (96, 128)
# Layers of the outputs in the order in which they see the image, and the standard deviation that
# each is to have: scores that differ, boxes that do not jump.
SPREADS = {
  'rpn.head.cls_logits': 2.0,
  'rpn.head.bbox_pred': 0.2,
  'roi_heads.box_predictor.cls_score': 3.0,
  'roi_heads.box_predictor.bbox_pred': 0.5,
  'roi_heads.mask_predictor.mask_fcn_logits': 3.0,
}


class NarrowResNet(ResNet):
  """resnet18 with a sixteenth of the channels."""

  def __init__(self):
    super().__init__(BasicBlock, [2, 2, 2, 2])
    self.conv1 = torch.nn.Conv2d(3, 4, 7, 2, 3, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(4)

  def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
    if planes == 64:
      self.inplanes = 4
    return super()._make_layer(block, planes // 16, blocks, stride, dilate)


def narrow(version: int) -> mask_rcnn.MaskRCNN:
  """Mask R-CNN of 5 classes with 16 channels in the pyramid and 32 in the box head."""
  norm = None if version == 1 else torch.nn.BatchNorm2d
  layers = {f'layer{i + 1}': str(i) for i in range(4)}
  backbone = backbone_utils.BackboneWithFPN(
    NarrowResNet(), layers, [4, 8, 16, 32], 16, LastLevelMaxPool(), norm
  )
  if version == 1:
    box_head = faster_rcnn.TwoMLPHead(16 * 7 * 7, 32)
  else:
    box_head = faster_rcnn.FastRCNNConvFCHead((16, 7, 7), [16] * 4, [32], norm)
  return mask_rcnn.MaskRCNN(
    backbone,
    rpn_anchor_generator=AnchorGenerator(
      tuple((s,) for s in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5
    ),
    rpn_head=rpn.RPNHead(16, 3, conv_depth=version),
    box_head=box_head,
    box_predictor=faster_rcnn.FastRCNNPredictor(32, 6),
    mask_head=mask_rcnn.MaskRCNNHeads(16, [16] * 4, 1, norm),
    mask_predictor=mask_rcnn.MaskRCNNPredictor(16, 16, 6),
    rpn_pre_nms_top_n_test=60,
    rpn_post_nms_top_n_test=40,
    box_detections_per_img=12,
  )


def fill(model: torch.nn.Module) -> None:
  """Weights of `synthetic`."""
  state = {k: torch.tensor(synthetic(k, tuple(x.shape))) for k, x in model.state_dict().items()}
  model.load_state_dict(state)


def find(model: mask_rcnn.MaskRCNN, images: torch.Tensor, sizes: tuple) -> dict:
  """The pyramid, proposals and detections, without torchvision's own resizing and padding."""
  features = model.backbone(images)
  batch = ImageList(images, list(sizes))
  proposals, _ = model.rpn(batch, features)
  found, _ = model.roi_heads(features, proposals, batch.image_sizes)
  return {'features': list(features.values()), 'proposals': proposals, 'detections': found}


def rescale(model: mask_rcnn.MaskRCNN, images: torch.Tensor, sizes: tuple) -> dict:
  """Centers each channel of the layers of `SPREADS`, and scales them.

  Returns:
    {'layer.factor': of the weight, 'layer.bias': the new one, …}.
  """
  changes = {}
  for name, spread in SPREADS.items():
    layer, seen = model.get_submodule(name), []
    hook = layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
    find(model, images, sizes)
    hook.remove()
    channels = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1)
    mean = channels.mean(1)
    factor = np.float32(spread / (channels - mean[:, None]).std())
    layer.weight *= factor
    layer.bias.copy_(factor * (layer.bias - mean))
    changes |= {f'{name}.factor': factor, f'{name}.bias': layer.bias.numpy()}
  return changes


@torch.no_grad()
def main() -> None:
  arrays = {}
  for name in NETWORKS:
    make = functools.partial(getattr(detection, name), weights=None, weights_backbone=None)
    with torch.device('meta'):
      shapes = {key: tuple(x.shape) for key, x in make().state_dict().items()}
    arrays[f'{name}/names'] = np.array(list(shapes))
    arrays[f'{name}/shapes'] = np.array(['x'.join(map(str, shape)) for shape in shapes.values()])
  image = torch.tensor(synthetic_image(PADDED, SIZES))
  arrays['padded'], arrays['sizes'] = np.array(PADDED), np.array(SIZES)
  for version in (1, 2):
    model = narrow(version)
    fill(model)
    model.eval()
    name = f'narrow_v{version}'
    arrays |= {f'{name}/{key}': x for key, x in rescale(model, image, SIZES).items()}
    state = model.state_dict()
    arrays[f'{name}/names'] = np.array(list(state))
    arrays[f'{name}/shapes'] = np.array(['x'.join(map(str, x.shape)) for x in state.values()])
    found = find(model, image, SIZES)
    arrays |= {f'{name}/p{i}': x[:, ::8].numpy() for i, x in enumerate(found['features'], 2)}
    for i, (boxes, detected, size) in enumerate(
      zip(found['proposals'], found['detections'], SIZES, strict=True)
    ):
      pasted = paste_masks_in_image(detected['masks'], detected['boxes'], size)[:, 0] > 0.5
      print(name, i, len(boxes), 'proposals', detected['labels'].tolist(), detected['scores'][:4])
      arrays |= {f'{name}/{i}/{key}': x.numpy() for key, x in detected.items() if key != 'masks'}
      arrays[f'{name}/{i}/masks'] = detected['masks'][:, 0, ::3, ::3].numpy()
      arrays[f'{name}/{i}/pasted'] = np.packbits(pasted.numpy(), axis=-1)
      arrays[f'{name}/{i}/proposals'] = boxes.numpy()
  np.savez_compressed(DIRECTORY / 'detection.npz', **arrays)


if __name__ == '__main__':
  main()
