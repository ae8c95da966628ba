r"""A small Mask R-CNN (arXiv 1703.06870) that learns eight images of COCO by heart, on 2 CPU cores.

A check of the whole chain on real annotations, crowds and objects of a few pixels among them: what
cannot learn eight images has a mistake in it. Figures: experiments/mask_rcnn.

Cost: 32 minutes on 2 busy CPU cores.

  segjax train --config=configs/mask_rcnn/coco_overfit.py --workdir=runs/coco8 \
    --config.data.source=coco/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 80,
      'backbone': 'resnet18',
      'width': 32,
      'norm': 'group',
      'features': 64,
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
    {'rpn_class': {}, 'rpn_box': {}, 'box_class': {}, 'box_regression': {}, 'mask': {'scale': 2.0}}
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'coco_instances',
      'train_split': 'train[:8]',
      'eval_split': 'train[:8]',
      'batch_size': 2,
      'eval_batch_size': 2,
      'num_classes': 80,
      'instances': 40,
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
      'steps': 1300,
      'eval_every': 650,
      'checkpoint_every': 650,
      'best_metric': 'mask_ap50',
    }
  )
  return config
