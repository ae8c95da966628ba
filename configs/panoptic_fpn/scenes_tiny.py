r"""A tiny Panoptic FPN (arXiv 1901.02446) on the built-in synthetic scenes, for 2 CPU cores.

All parts of the paper's network, scaled down: the Mask R-CNN of configs/mask_rcnn/scenes_tiny.py
with a semantic branch of 32 channels, trained jointly with the paper's loss weights, 1 and 0.5.

Results: experiments/panoptic_fpn. Cost: 7 minutes on 2 busy CPU cores.

  segjax train --config=configs/panoptic_fpn/scenes_tiny.py --workdir=runs/scenes_panoptic
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../mask_rcnn/scenes_tiny.py')
  config.task = 'panoptic'
  config.model.update({'name': 'panoptic_fpn.PanopticFPN', 'stuff': 4})
  config.model.semantic = {'features': 32, 'groups': 4}
  config.losses.semantic = {'scale': 0.5}
  # A stuff area of 4096 in 640 x 480 is about 218 in 128 x 128.
  config.eval = {'metrics': ('pq', 'coco'), 'stuff_area': 64.0}
  config.data.segments_key = None  # pixel values encode class and instance
  config.batch.max_segments = 24
  config.train.best_metric = 'pq'
  return config
