r"""Mask R-CNN (arXiv 1703.06870) on Penn-Fudan pedestrians, from scratch, for 2 CPU cores.

A ResNet-18 of half the width with group normalization, an FPN of 64 channels, short side 224 to 288
pixels; 120 training images. Results: experiments/penn_fudan.

Cost: 25 minutes on 2 busy CPU cores, 40 on one.

  segjax train --config=configs/mask_rcnn/penn_fudan_cpu.py --workdir=runs/penn_fudan \
    --config.data.source=PennFudanPed/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'
  config.model = {
    'name': 'mask_rcnn.MaskRCNN',
    'classes': 1,
    'backbone': {'name': 'resnet18', 'width': 32, 'norm': 'group'},
    'neck': {'features': 64},
    'rpn': {
      'anchor_sizes': (16.0, 32.0, 64.0, 128.0, 256.0),
      'aspect_ratios': (1.0, 2.0, 3.0),
      'samples': 128,
      'train_proposals': (300, 150),
      'test_proposals': (300, 100),
    },
    'roi': {'aligned': True},
    'box_head': {'features': 64, 'hidden': 256, 'samples': 64, 'max_detections': 30},
    'mask_head': {'features': 64, 'convs': 2},
  }
  config.losses = {
    'rpn_class': {},
    'rpn_box': {},
    'box_class': {},
    'box_regression': {},
    'mask': {},
  }
  config.eval = {'metrics': ('coco',)}
  config.data = {
    'name': 'penn_fudan',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {
      'short_side': (224, 256, 288),
      'longest_side': 416,
      'interpolation': 'bilinear',
      'shapes': ((288, 416), (416, 288)),
    },
  }
  config.augment = {
    'flip_horizontal': 0.5,
    'brightness': 0.2,
    'contrast': 0.2,
    'saturation': 0.2,
  }
  config.batch = {'size': 4, 'max_objects': 20}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 1e-3,
    'schedule': 'cosine',
    'warmup_steps': 100,
    'weight_decay': 0.05,
    'clip_norm': 5.0,
  }
  config.train = {
    'steps': 1500,
    'eval_every': 500,
    'checkpoint_every': 250,
    'best_metric': 'mask_ap',
  }
  return config
