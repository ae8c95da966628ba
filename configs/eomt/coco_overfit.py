r"""A tiny EoMT (arXiv 2503.19108) that overfits four images of COCO panoptic, on 2 CPU cores.

A sanity check of the whole pipeline on real annotations, including crowds and void: correct code
can overfit four images, those of configs/panoptic_fpn/coco_overfit.py. The ViT is that of
scenes_tiny.py, with patches of 16 and 100 queries, at half the size of the images, without
augmentation and weight decay.

  segjax train --config=configs/eomt/coco_overfit.py --workdir=runs/coco4_eomt \
    --config.data.source=coco/
"""

import ml_collections

from segjax.config import base_config

STEPS = 2_500


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'scenes_tiny.py')
  config.model.update(
    {
      'classes': 133,
      'patch': 16,
      'queries': 100,
      'grid': (16, 20),
      'annealing': tuple((int(STEPS * i / 6), int(STEPS * (i + 1) / 6)) for i in (1, 2, 3)),
      'matching': {'points': 2048},
    }
  )
  config.data = base_config(__file__, '../panoptic_fpn/coco_overfit.py').data
  config.data.size.update(
    {'short_side': (256,), 'longest_side': 320, 'shapes': ((256, 320), (320, 256))}
  )
  del config.augment
  config.batch = {'size': 2, 'eval_size': 2, 'max_objects': 80, 'max_segments': 80}
  config.optim.update({'warmup_steps': 50, 'weight_decay': 0.0})
  config.train = {'steps': STEPS, 'eval_every': 500, 'checkpoint_every': 500, 'best_metric': 'pq'}
  return config
