r"""Mask R-CNN (arXiv 1703.06870) on COCO: ResNeXt-101-FPN.

Paper: Table 2a, mask AP 36.7, AP50 59.5, AP75 38.9 on minival, here val2017. The recipe of
coco_r50_fpn.py with batch size 8 and half the learning rate. Published weights have 32 groups of 8
channels (32x8d); the configuration of the paper's network was not verified.

Cost: needs 8 GPUs; not run yet. `weights/resnext101_32x8d.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_x101_fpn.py --workdir=runs/coco_x101_fpn \
    --config.data.source=coco/ --config.init_from.path=weights/resnext101_32x8d.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_r50_fpn.py')
  config.model.backbone.name = 'resnext101_32x8d'
  config.init_from = {
    'path': 'weights/resnext101_32x8d.pth',
    'source': 'torchvision/resnext101_32x8d',
  }
  config.batch.size = 8
  config.optim.learning_rate = 0.01
  return config
