r"""Mask R-CNN (arXiv 1703.06870) on COCO: ResNet-50-FPN as Detectron2 trains it, schedule 1x.

Detectron2's model zoo: box AP 38.6, mask AP 35.2 on val2017; 3x: 41.0 and 37.2. What differs from
coco_r50_fpn.py: 90,000 steps, a tenth of the rate from 60,000 and again from 80,000; short sides of
640 to 800; L1 for boxes; the losses of the RPN divided by the anchors asked for; its anchors; the
ResNet of MSRA. What differs from Detectron2: its RoIAlign takes as many samples as a bin has
pixels, here no more than 4 in each axis; it leaves out images without objects (from memory).

Cost: for 8 GPUs; not run yet. `weights/R-50.pkl` is Detectron2's file.

  segjax train --config=configs/mask_rcnn/coco_r50_fpn_detectron2.py --workdir=runs/coco_1x \
    --config.data.source=coco/ --config.init_from.path=weights/R-50.pkl

Schedule 3x: --config.train.steps=270000 --config.optim.boundaries="(210000, 250000)". With k times
the batch, take k times the learning rate, and 1/k of the steps and the boundaries.
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
      'stride_in_1x1': True,
      'frozen_stages': 2,
      'anchors': 'detectron2',
      'aligned': True,
      'sampling_ratio': 0,
      'max_samples': 4,
      'train_proposals': (2000, 1000),
      'test_proposals': (1000, 1000),
    }
  )
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/R-50.pkl', 'source': 'detectron2/R-50'}
  )
  config.losses = ml_collections.ConfigDict(
    {
      'rpn_class': {'divide_by': 'slots'},
      'rpn_box': {'beta': 0.0, 'divide_by': 'slots'},
      'box_class': {},
      'box_regression': {'beta': 0.0},
      'mask': {},
    }
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',), 'paste': 'detectron2'})

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
      'short_side': (640, 672, 704, 736, 768, 800),
      'longest_side': 1333,
      'shapes': ((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
      # Of the weights, for RGB; they want pixel values that are not divided.
      'mean': (123.675, 116.28, 103.53),
      'std': (1.0, 1.0, 1.0),
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
      'boundaries': (60_000, 80_000),
      'warmup_steps': 1_000,
      'warmup_factor': 0.001,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 90_000,
      'eval_every': 10_000,
      'checkpoint_every': 2_000,
      'best_metric': 'mask_ap',
    }
  )
  return config
