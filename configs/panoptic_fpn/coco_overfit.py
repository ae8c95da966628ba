r"""A small Panoptic FPN (arXiv 1901.02446) that learns four images of COCO by heart, on 2 cores.

A check of the whole chain on real annotations, crowds and void among them: what cannot learn four
images has a mistake in it. The network is that of configs/mask_rcnn/coco_overfit.py, with a
semantic branch of 64 channels.

Figures: experiments/panoptic_fpn. Cost: 25 minutes on 2 busy CPU cores.

  segjax train --config=configs/panoptic_fpn/coco_overfit.py --workdir=runs/coco4_panoptic \
    --config.data.source=coco/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'panoptic_fpn.PanopticFPN',
      'classes': 80,
      'stuff': 53,
      'backbone': 'resnet18',
      'width': 32,
      'norm': 'group',
      'features': 64,
      'semantic_features': 64,
      'semantic_groups': 8,
      'anchor_sizes': (8.0, 20.0, 56.0, 144.0, 360.0),
      'hidden': 256,
      'mask_convs': 2,
      'aligned': True,
      'train_proposals': (500, 300),
      'test_proposals': (500, 300),
      'regions': 128,
      'detections': 100,
    }
  )
  config.losses = ml_collections.ConfigDict(
    {
      'rpn_class': {},
      'rpn_box': {},
      'box_class': {},
      'box_regression': {},
      'mask': {'scale': 2.0},
      'semantic': {},
    }
  )
  # Small areas of stuff are to be learnt too.
  config.eval = ml_collections.ConfigDict({'metrics': ('pq',), 'stuff_area': 256.0})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'coco_panoptic',
      'train_split': 'train[:4]',
      'eval_split': 'train[:4]',
      'batch_size': 2,
      'eval_batch_size': 2,
      'num_classes': 133,
      'things': tuple(range(80)),
      'instances': 40,
      'segments': 80,
      'shapes': ((512, 640), (640, 512)),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 50,
      'weight_decay': 0.0,
      'clip_norm': 5.0,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 700,
      'eval_every': 350,
      'checkpoint_every': 350,
      'best_metric': 'pq',
    }
  )
  return config
