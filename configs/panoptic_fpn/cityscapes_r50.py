r"""Panoptic FPN as published (arXiv 1901.02446) on Cityscapes, fine annotations: ResNet-50.

Paper: PQ 57.7, PQ of things 51.6, of stuff 62.2, AP 32.0 and mIoU 75.0 on val. The paper trains
for 65,000 steps on 32 crops of 512 x 1024, from images scaled by 0.5 to 2, at 0.01, a tenth of it
from 40,000 and a hundredth from 55,000 (quoted from memory). Here a step is on as many pixels, 8
whole images, of a short side drawn from 800 to 1024; what the paper does besides for rare classes
and colours is left out, and the weights of the losses, 1 and 1, are ours. ResNet frozen as in
configs/mask_rcnn/coco_r50_fpn.py.

Cost: for 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/panoptic_fpn/cityscapes_r50.py --workdir=runs/cityscapes_panoptic \
    --config.data.source=cityscapes/ --config.init_from.path=weights/resnet50.pth

With k times the batch, take k times the learning rate, and 1/k of the steps and the boundaries.
ResNet-101: --config.model.backbone=resnet101 --config.init_from.source=torchvision/resnet101.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'panoptic_fpn.PanopticFPN',
      'classes': 8,
      'stuff': 11,
      'backbone': 'resnet50',
      'frozen_stages': 2,
      'aligned': True,
      'train_proposals': (2000, 1000),
      'test_proposals': (1000, 1000),
    }
  )
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/resnet50.pth', 'source': 'torchvision/resnet50'}
  )
  config.losses = ml_collections.ConfigDict(
    {
      'rpn_class': {},
      'rpn_box': {},
      'box_class': {},
      'box_regression': {'beta': 1.0},
      'mask': {},
      'semantic': {},
    }
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('pq', 'coco')})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'cityscapes_panoptic',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 8,
      'workers': 8,
      'instances': 150,
      'segments': 250,
      'short_side': (800, 832, 864, 896, 928, 960, 992, 1024),
      'longest_side': 2048,
      'shapes': ((1024, 2048),),
      # Of the ImageNet weights, for RGB.
      'mean': (123.675, 116.28, 103.53),
      'std': (58.395, 57.12, 57.375),
      'augment': {'flip_horizontal': 0.5},
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 0.01,
      'momentum': 0.9,
      'weight_decay': 1e-4,
      'schedule': 'step',
      'boundaries': (40_000, 55_000),
      'warmup_steps': 500,
      'warmup_factor': 1 / 3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 65_000,
      'eval_every': 2_000,
      'checkpoint_every': 2_000,
      'best_metric': 'pq',
    }
  )
  return config
