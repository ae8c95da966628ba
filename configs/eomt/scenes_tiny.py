r"""A tiny EoMT (arXiv 2503.19108) on the built-in synthetic scenes, for 2 CPU cores.

All parts of the paper's network, scaled down: a ViT of 6 blocks and 96 channels with patches of 8
on images of 128 x 128, whose last 3 blocks carry 24 queries. Trained from scratch, without the
weights that the paper starts from. The argument is the task, by default panoptic, and all that
differs is what the data set has for it: its classes, and how many objects an image may have.

  segjax train --config=configs/eomt/scenes_tiny.py --workdir=runs/scenes_eomt
  segjax train --config=configs/eomt/scenes_tiny.py:semantic --workdir=runs/scenes_eomt_semantic
"""

import ml_collections

from segjax.config import base_config, choose

# Classes of scenes that the network tells apart: 4 of stuff, 5 of things.
CLASSES = {'semantic': 9, 'instance': 5, 'panoptic': 9}
BEST = {'semantic': 'mean_iou', 'instance': 'mask_ap', 'panoptic': 'pq'}
STEPS = 3_000


def get_config(task: str = 'panoptic') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = task
  config.model = {
    'name': 'eomt.EoMT',
    'classes': choose(CLASSES, task, __file__),
    'size': 'tiny',
    'patch': 8,
    'queries': 24,
    'query_blocks': 3,
    'grid': (16, 16),
    'registers': 0,
    'layer_scale': 0.1,
    'annealing': tuple(
      (int(STEPS * start), int(STEPS * end)) for start, end in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8))
    ),
    'matching': {'points': 512},
  }
  config.losses = {
    'query_class': {'scale': 2.0},
    'query_mask': {'scale': 5.0},
    'query_dice': {'scale': 5.0},
  }
  detector = base_config(__file__, '../mask_rcnn/scenes_tiny.py')
  config.data, config.augment = detector.data, detector.augment
  config.batch = {'size': 8, 'eval_size': 20}
  if task != 'semantic':
    config.batch.max_objects = 16
  if task == 'panoptic':
    config.data.segments_key = None  # pixel values encode class and instance
    config.batch.max_segments = 24
  config.optim = {
    'name': 'adamw',
    'learning_rate': 1e-3,
    'schedule': 'poly',
    'power': 0.9,
    'warmup_steps': 100,
    'weight_decay': 0.05,
    'clip_norm': 1.0,
  }
  config.train = {
    'steps': STEPS,
    'eval_every': 1_000,
    'checkpoint_every': 1_000,
    'best_metric': BEST[task],
  }
  return config
