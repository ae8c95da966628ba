r"""Mask R-CNN as published (arXiv 1703.06870) on COCO: ResNet-50-FPN.

Paper: Table 2a, mask AP 33.6, AP50 55.2, AP75 35.3. Its trainval35k and minival are train2017 and
val2017 here. Recipe (section 3.1): SGD, momentum 0.9, weight decay 1e-4, batch size 16, 160,000
steps, learning rate 0.02, divided by 10 at step 120,000; short side 800; the stem, res2 and all
batch-norm layers of the ResNet are frozen. The warm-up of 500 steps is ours.

Cost: needs 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_r50_fpn.py --workdir=runs/coco_r50_fpn \
    --config.data.source=coco/ --config.init_from.path=weights/resnet50.pth

On fewer devices, --config.optim.accumulate=8 accumulates the gradients of 8 microbatches. For k
times the batch size, use k times the learning rate and 1/k of the steps and boundaries (linear
scaling rule). ResNet-101: --config.model.backbone.name=resnet101
--config.init_from.source=torchvision/resnet101. Without masks (Faster R-CNN):
--config.model.masks=false --config.losses.mask=none --config.eval.metrics="('coco_box',)"
--config.train.best_metric=box_ap.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'
  config.model = {
    'name': 'mask_rcnn.MaskRCNN',
    'classes': 80,
    'backbone': {'name': 'resnet50', 'frozen_stages': 2},
    'rpn': {'train_proposals': (2000, 1000), 'test_proposals': (1000, 1000)},
    'roi': {'aligned': True},
    'box_head': {'nms_iou': 0.3},
  }
  config.init_from = {'path': 'weights/resnet50.pth', 'source': 'torchvision/resnet50'}
  config.losses = {
    'rpn_class': {},
    'rpn_box': {},
    'box_class': {},
    'box_regression': {'beta': 1.0},
    'mask': {},
  }
  config.eval = {'metrics': ('coco',)}
  config.data = {
    'name': 'coco_instances',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {
      'short_side': (800,),
      'longest_side': 1333,
      'interpolation': 'bilinear',
      'shapes': ((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
    },
    'num_classes': 80,
    # ImageNet statistics, RGB.
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
  }
  config.augment = {'flip_horizontal': 0.5}
  config.batch = {'size': 16, 'eval_size': 8, 'workers': 8, 'max_objects': 100}
  config.optim = {
    'name': 'sgd',
    'learning_rate': 0.02,
    'momentum': 0.9,
    'weight_decay': 1e-4,
    'schedule': 'step',
    'boundaries': (120_000,),
    'warmup_steps': 500,
    'warmup_factor': 1 / 3,
  }
  config.train = {
    'steps': 160_000,
    'eval_every': 10_000,
    'checkpoint_every': 2_000,
    'best_metric': 'mask_ap',
  }
  return config
