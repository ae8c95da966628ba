r"""A tiny Mask R-CNN (arXiv 1703.06870) on the built-in synthetic scenes, for 2 CPU cores.

All parts of the paper's network, scaled down: a narrow ResNet-18 with group normalization, an FPN
of 48 channels, anchors of 8 to 128 pixels on images of 128 x 128. Trained from scratch.

Results: experiments/mask_rcnn. Cost: 9 minutes on 2 busy CPU cores.

  segjax train --config=configs/mask_rcnn/scenes_tiny.py --workdir=runs/scenes_instances
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'
  config.model = {
    'name': 'mask_rcnn.MaskRCNN',
    'classes': 5,
    'backbone': {'name': 'resnet18', 'width': 16, 'norm': 'group'},
    'neck': {'features': 48},
    'rpn': {
      'anchor_sizes': (8.0, 16.0, 32.0, 64.0, 128.0),
      'samples': 128,
      'train_proposals': (200, 100),
      'test_proposals': (200, 60),
    },
    'roi': {'aligned': True},
    'box_head': {'features': 48, 'hidden': 128, 'samples': 48, 'max_detections': 20},
    'mask_head': {'features': 48, 'convs': 2},
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
    'name': 'scenes',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {'interpolation': 'bilinear', 'shapes': ((128, 128),)},
  }
  config.augment = {'flip_horizontal': 0.5, 'brightness': 0.1, 'contrast': 0.1}
  config.batch = {'size': 8, 'eval_size': 20, 'max_objects': 16}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 2e-3,
    'schedule': 'cosine',
    'warmup_steps': 50,
    'weight_decay': 1e-4,
    'clip_norm': 5.0,
  }
  config.train = {
    'steps': 1500,
    'eval_every': 500,
    'checkpoint_every': 500,
    'best_metric': 'mask_ap',
  }
  return config
