r"""A small Mask R-CNN (arXiv 1703.06870) that overfits eight images of COCO, on 2 CPU cores.

A sanity check of the whole pipeline on real annotations, including crowds and objects of a few
pixels: correct code can overfit eight images. The network is that of penn_fudan_cpu.py.
Results: experiments/mask_rcnn.

Cost: 32 minutes on 2 busy CPU cores.

  segjax train --config=configs/mask_rcnn/coco_overfit.py --workdir=runs/coco8 \
    --config.data.source=coco/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'penn_fudan_cpu.py')
  config.model.classes = 80
  config.model.rpn = {
    'anchor_sizes': (8.0, 20.0, 56.0, 144.0, 360.0),
    'train_proposals': (500, 300),
    'test_proposals': (500, 300),
  }
  config.model.box_head.update({'samples': 128, 'max_detections': 100})
  config.losses.mask.scale = 2.0
  config.data = {
    'name': 'coco_instances',
    'train_split': 'train[:8]',
    'eval_split': 'train[:8]',
    'size': {'interpolation': 'bilinear', 'shapes': ((512, 640), (640, 512))},
    'num_classes': 80,
  }
  del config.augment
  config.batch = {'size': 2, 'eval_size': 2, 'max_objects': 40}
  config.optim.update({'warmup_steps': 50, 'weight_decay': 0.0})
  config.train = {
    'steps': 1300,
    'eval_every': 650,
    'checkpoint_every': 650,
    'best_metric': 'mask_ap50',
  }
  return config
