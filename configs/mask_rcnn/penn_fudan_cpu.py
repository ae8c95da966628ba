r"""Mask R-CNN (arXiv 1703.06870) on Penn-Fudan's pedestrians, from scratch, for 2 CPU cores.

A ResNet-18 of half the width with group normalisation, a pyramid of 64 channels, images of 224 to
288 pixels on the shorter side; 120 photographs to learn from. Figures: experiments/mask_rcnn.

Cost: 23 minutes on 2 busy CPU cores.

  segjax train --config=configs/mask_rcnn/penn_fudan_cpu.py --workdir=runs/penn_fudan \
    --config.data.source=PennFudanPed/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 1,
      'backbone': 'resnet18',
      'width': 32,
      'norm': 'group',
      'features': 64,
      'anchor_sizes': (16.0, 32.0, 64.0, 128.0, 256.0),
      'aspect_ratios': (1.0, 2.0, 3.0),
      'hidden': 256,
      'mask_convs': 2,
      'aligned': True,
      'rpn_samples': 128,
      'train_proposals': (300, 150),
      'test_proposals': (300, 100),
      'regions': 64,
      'detections': 30,
    }
  )
  config.losses = ml_collections.ConfigDict(
    {'rpn_class': {}, 'rpn_box': {}, 'box_class': {}, 'box_regression': {}, 'mask': {}}
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'penn_fudan',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 4,
      'instances': 20,
      'short_side': (224, 256, 288),
      'longest_side': 416,
      'shapes': ((288, 416), (416, 288)),
      'augment': {'flip_horizontal': 0.5, 'brightness': 0.2, 'contrast': 0.2, 'saturation': 0.2},
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 100,
      'weight_decay': 0.05,
      'clip_norm': 5.0,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 1500,
      'eval_every': 500,
      'checkpoint_every': 250,
      'best_metric': 'mask_ap',
    }
  )
  return config
