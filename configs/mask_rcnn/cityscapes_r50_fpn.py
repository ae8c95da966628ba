r"""Mask R-CNN as published (arXiv 1703.06870) on Cityscapes, fine annotations: ResNet-50-FPN.

Paper: Table 7, AP 31.5 on val, 26.2 on test; from COCO weights 36.4 and 32.0. The paper uses the
benchmark's AP, this config COCO's. Recipe: 24,000 steps with a batch size of 8, learning rate 0.01,
divided by 10 at step 18,000, short side sampled from 800 to 1024 in training and 1024 at test time.
Otherwise as coco_r50_fpn.py.

Cost: needs 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/cityscapes_r50_fpn.py --workdir=runs/cityscapes \
    --config.data.source=cityscapes/ --config.init_from.path=weights/resnet50.pth

From COCO weights, with randomly initialized class-specific layers and 4,000 steps:
--config.train.steps=4_000 --config.optim.boundaries="(3_000,)" --config.model.roi.aligned=false
--config.model.backbone.bn_epsilon=0
--config.init_from.source=torchvision/maskrcnn_resnet50_fpn_body
--config.init_from.path=weights/maskrcnn_resnet50_fpn.pth.
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_r50_fpn.py')
  config.model.classes = 8
  config.data.name = 'cityscapes_instances'
  del config.data.num_classes
  config.data.size.update(
    {
      'short_side': (800, 832, 864, 896, 928, 960, 992, 1024),
      'longest_side': 2048,
      'shapes': ((1024, 2048),),
    }
  )
  config.batch.update({'size': 8, 'max_objects': 150})
  config.optim.update({'learning_rate': 0.01, 'boundaries': (18_000,)})
  config.train.update({'steps': 24_000, 'eval_every': 2_000})
  return config
