r"""A semantic and an instance network merged, the baseline of "Panoptic segmentation" (arXiv
1801.00868), on the built-in synthetic scenes: U-Net and Mask R-CNN, trained separately.

This run only evaluates networks from two workdirs, which must have the classes of one panoptic data
set. The preprocessing of each network follows from its own config.

Results: experiments/panoptic_fpn. Cost: that of the two training runs, 3 and 9 minutes on 2 busy
CPU cores.

  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes
  segjax train --config=configs/mask_rcnn/scenes_tiny.py --workdir=runs/scenes_instances
  segjax train --config=configs/panoptic_fpn/merged_scenes.py --workdir=runs/scenes_merged \
    --config.model.semantic=runs/scenes --config.model.instance=runs/scenes_instances
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'
  config.model = {
    'name': 'merged.Merged',
    'semantic': 'runs/scenes',
    'instance': 'runs/scenes_instances',
  }
  config.eval = {'metrics': ('pq', 'coco'), 'stuff_area': 64.0}
  config.data = {
    'name': 'scenes',
    'train_split': 'train',
    'eval_split': 'val',
    'segments_key': None,  # pixel values encode class and instance
  }
  config.batch = {'size': 8, 'eval_size': 20, 'max_objects': 16, 'max_segments': 24}
  config.optim = {'name': 'sgd'}
  config.train = {'steps': 0, 'best_metric': 'pq'}
  return config
