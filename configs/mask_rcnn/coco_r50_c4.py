r"""Mask R-CNN as published (arXiv 1703.06870) on COCO: ResNet-50-C4.

Paper: Table 2a, mask AP 30.3, AP50 51.2, AP75 31.5 on minival, here val2017. The recipe of
coco_r50_fpn.py on the ResNet's map of stride 16, whose stage 5, run on regions of 7x7 without its
stride, is what the heads share (Fig. 4, left): 64 regions an image to learn from, 300 proposals at
test time. How many proposals enter NMS (12,000 and 6,000), and 2,000 of them in training, is
quoted from memory of Faster R-CNN's code.

Cost: for 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_r50_c4.py --workdir=runs/coco_r50_c4 \
    --config.data.source=coco/ --config.init_from.path=weights/resnet50.pth

With k times the batch, take k times the learning rate, and 1/k of the steps and the boundaries.
Softmax masks (Table 2b): --config.model.mask_activation=softmax
--config.losses.mask.activation=softmax. RoIPool (2c): --config.model.roi=roi_pool. The map of
stride 32 (2d), with the heads of the pyramid: --config.model.feature_maps=c5.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 80,
      'backbone': 'resnet50',
      'frozen_stages': 2,
      'feature_maps': 'c4',
      'aligned': True,
      'train_proposals': (12000, 2000),
      'test_proposals': (6000, 300),
      'regions': 64,
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
      'name': 'coco_instances',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 16,
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
      'learning_rate': 0.02,
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
