r"""Panoptic FPN as published (arXiv 1901.02446) on Cityscapes, fine annotations: ResNet-50.

Paper: PQ 57.7, PQ of things 51.6, of stuff 62.2, AP 32.0 and mIoU 75.0 on val. The paper trains for
65,000 steps on 32 crops of 512 x 1024, from images scaled by 0.5 to 2, at a learning rate of 0.01,
divided by 10 at 40,000 and 55,000. Here a batch has as many pixels: 8 full images with a short side
sampled from 800 to 1024. The paper's semantic branch predicts all classes of things in place of one
class "other", and its loss weights for ResNet-50 are 0.5 and 1 in place of 1 and 1. Otherwise as
configs/mask_rcnn/cityscapes_r50_fpn.py.

Cost: needs 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/panoptic_fpn/cityscapes_r50.py --workdir=runs/cityscapes_panoptic \
    --config.data.source=cityscapes/ --config.init_from.path=weights/resnet50.pth

ResNet-101: --config.model.backbone.name=resnet101 --config.init_from.source=torchvision/resnet101.
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../mask_rcnn/cityscapes_r50_fpn.py')
  config.task = 'panoptic'
  config.model.update({'name': 'panoptic_fpn.PanopticFPN', 'stuff': 11})
  config.model.box_head.nms_iou = 0.5
  config.losses.semantic = {}
  config.eval.metrics = ('pq', 'coco')
  config.data.name = 'cityscapes_panoptic'
  config.batch.max_segments = 250
  config.optim.boundaries = (40_000, 55_000)
  config.train.update({'steps': 65_000, 'best_metric': 'pq'})
  return config
