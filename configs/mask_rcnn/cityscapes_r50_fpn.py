r"""Mask R-CNN as published (arXiv 1703.06870) on Cityscapes, fine annotations: ResNet-50-FPN.

Paper: Table 7, AP 31.5 on val, 26.2 on test; from COCO's weights 36.4 and 32.0. They are measured
by the benchmark's own rules, here by COCO's. Recipe, quoted from memory but for the 24,000 steps: 8
images a step, rate 0.01, a tenth of it from 18,000, short side drawn from 800 to 1024 in training
and 1024 at test time. The rest is that of coco_r50_fpn.py.

Cost: for 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/cityscapes_r50_fpn.py --workdir=runs/cityscapes \
    --config.data.source=cityscapes/ --config.init_from.path=weights/resnet50.pth

From COCO, the layers with a row a class anew: --config.model.aligned=false
--config.model.bn_epsilon=0 --config.init_from.source=torchvision/maskrcnn_resnet50_fpn_body
--config.init_from.path=weights/maskrcnn_resnet50_fpn.pth. With k times the batch, take k times the
learning rate, and 1/k of the steps and the boundaries.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 8,
      'backbone': 'resnet50',
      'frozen_stages': 2,
      'aligned': True,
      'train_proposals': (2000, 1000),
      'test_proposals': (1000, 1000),
      'detection_nms': 0.3,
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
    }
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'cityscapes_instances',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 8,
      'workers': 8,
      'instances': 150,
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
      'boundaries': (18_000,),
      'warmup_steps': 500,
      'warmup_factor': 1 / 3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 24_000,
      'eval_every': 2_000,
      'checkpoint_every': 2_000,
      'best_metric': 'mask_ap',
    }
  )
  return config
