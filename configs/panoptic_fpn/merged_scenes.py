r"""A semantic and an instance network merged, the baseline of "Panoptic segmentation" (arXiv
1801.00868), on the drawn scenes: U-Net and Mask R-CNN, each trained by itself.

Nothing is trained here: the run starts from two workdirs and is evaluated. Any two on the classes
of one panoptic data set will do; what each network is to see of an image follows from its own
config.

  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes
  segjax train --config=configs/mask_rcnn/scenes_tiny.py --workdir=runs/scenes_instances
  segjax train --config=configs/panoptic_fpn/merged_scenes.py --workdir=runs/scenes_merged \
    --config.model.semantic=runs/scenes --config.model.instance=runs/scenes_instances
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'merged.Merged',
      'semantic': 'runs/scenes',
      'instance': 'runs/scenes_instances',
    }
  )
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
    }
  )
  config.optim = ml_collections.ConfigDict({'name': 'sgd'})
  config.train = ml_collections.ConfigDict({'steps': 0, 'best_metric': 'pq'})
  return config
