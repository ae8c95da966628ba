r"""A small Panoptic FPN (arXiv 1901.02446) that overfits four images of COCO, on 2 CPU cores.

A sanity check of the whole pipeline on real annotations, including crowds and void: correct code
can overfit four images. The network is that of configs/mask_rcnn/coco_overfit.py, with a semantic
branch of 64 channels.

Results: experiments/panoptic_fpn. Cost: 25 minutes on 2 busy CPU cores.

  segjax train --config=configs/panoptic_fpn/coco_overfit.py --workdir=runs/coco4_panoptic \
    --config.data.source=coco/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../mask_rcnn/coco_overfit.py')
  config.task = 'panoptic'
  config.model.update({'name': 'panoptic_fpn.PanopticFPN', 'stuff': 53})
  config.model.semantic = {'features': 64, 'groups': 8}
  config.losses.semantic = {}
  # Keep small stuff segments.
  config.eval = {'metrics': ('pq',), 'stuff_area': 256.0}
  config.data.update({'name': 'coco_panoptic', 'num_classes': 133, 'things': tuple(range(80))})
  config.data.update({'train_split': 'train[:4]', 'eval_split': 'train[:4]'})
  config.batch.max_segments = 80
  config.train = {'steps': 700, 'eval_every': 350, 'checkpoint_every': 350, 'best_metric': 'pq'}
  return config
