r"""A tiny Panoptic FPN (arXiv 1901.02446) on the drawn scenes, for 2 CPU cores.

All of the paper's parts at a small size: the Mask R-CNN of configs/mask_rcnn/scenes_tiny.py, with a
semantic branch of 32 channels, trained together with the paper's weights of the losses, 1 and 0.5.

Figures: experiments/panoptic_fpn. Cost: 7 minutes on 2 busy CPU cores.

  segjax train --config=configs/panoptic_fpn/scenes_tiny.py --workdir=runs/scenes_panoptic
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'panoptic_fpn.PanopticFPN',
      'classes': 5,
      'stuff': 4,
      'backbone': 'resnet18',
      'width': 16,
      'norm': 'group',
      'features': 48,
      'semantic_features': 32,
      'semantic_groups': 4,
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
    {
      'rpn_class': {},
      'rpn_box': {},
      'box_class': {},
      'box_regression': {},
      'mask': {},
      'semantic': {'scale': 0.5},
    }
  )
  # A stuff area of 4096 in 640 x 480 is about 218 in 128 x 128.
  config.eval = ml_collections.ConfigDict({'metrics': ('pq', 'coco'), 'stuff_area': 64.0})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'scenes',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 20,
      'instances': 16,
      'segments': 24,
      # Class and number are in one value of the picture.
      'segments_key': None,
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
      'best_metric': 'pq',
    }
  )
  return config
