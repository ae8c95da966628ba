r"""A tiny Mask R-CNN (arXiv 1703.06870) on the drawn scenes, for 2 CPU cores.

All of the paper's parts at a small size: a narrow ResNet-18 with group normalisation from scratch,
a pyramid of 32 channels, anchors of 8 to 128 pixels on pictures of 128 x 128.

Figures: experiments/mask_rcnn. Cost: 9 minutes on 2 busy CPU cores.

  segjax train --config=configs/mask_rcnn/scenes_tiny.py --workdir=runs/scenes_instances
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 5,
      'backbone': 'resnet18',
      'width': 16,
      'norm': 'group',
      'features': 48,
      'anchor_sizes': (8.0, 16.0, 32.0, 64.0, 128.0),
      'hidden': 128,
      'mask_convs': 2,
      'aligned': True,
      'rpn_samples': 128,
      'train_proposals': (200, 100),
      'test_proposals': (200, 60),
      'regions': 48,
      'detections': 20,
    }
  )
  config.losses = ml_collections.ConfigDict(
    {'rpn_class': {}, 'rpn_box': {}, 'box_class': {}, 'box_regression': {}, 'mask': {}}
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'scenes',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 20,
      'instances': 16,
      'shapes': ((128, 128),),
      'augment': {'flip_horizontal': 0.5, 'brightness': 0.1, 'contrast': 0.1},
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 2e-3,
      'schedule': 'cosine',
      'warmup_steps': 50,
      'weight_decay': 1e-4,
      'clip_norm': 5.0,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 1500,
      'eval_every': 500,
      'checkpoint_every': 500,
      'best_metric': 'mask_ap',
    }
  )
  return config
