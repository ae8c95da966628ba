r"""Mask R-CNN (arXiv 1703.06870) on COCO: ResNeXt-101-FPN.

Paper: Table 2a, mask AP 36.7, AP50 59.5, AP75 38.9 on minival, here val2017. The recipe of
coco_r50_fpn.py with 8 images a step and half the learning rate. 32 groups of 8 channels are what
there are weights for; whether the paper's has the same is not known here.

Cost: for 8 GPUs; not run yet. `weights/resnext101_32x8d.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_x101_fpn.py --workdir=runs/coco_x101_fpn \
    --config.data.source=coco/ --config.init_from.path=weights/resnext101_32x8d.pth

With k times the batch, take k times the learning rate, and 1/k of the steps and the boundaries.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 80,
      'backbone': 'resnext101_32x8d',
      'frozen_stages': 2,
      'aligned': True,
      'train_proposals': (2000, 1000),
      'test_proposals': (1000, 1000),
      'detection_nms': 0.3,
    }
  )
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/resnext101_32x8d.pth', 'source': 'torchvision/resnext101_32x8d'}
  )
  config.losses = ml_collections.ConfigDict(
    {
      'rpn_class': {},
      'rpn_box': {},
      'box_class': {},
      'box_regression': {'beta': 1.0},
      'mask': {},
    }
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'coco_instances',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 8,
      'workers': 8,
      'num_classes': 80,
      'instances': 100,
      'short_side': (800,),
      'longest_side': 1333,
      'shapes': ((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
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
      'boundaries': (120_000,),
      'warmup_steps': 500,
      'warmup_factor': 1 / 3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 160_000,
      'eval_every': 10_000,
      'checkpoint_every': 2_000,
      'best_metric': 'mask_ap',
    }
  )
  return config
