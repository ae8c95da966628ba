r"""Published weights of Mask R-CNN (arXiv 1703.06870), evaluated on COCO without training.

Evaluates torchvision's `maskrcnn_resnet50_fpn` (box AP 37.9, mask AP 34.6), or other networks by
overrides, see experiments/model_zoo.

Cost: inference on 5,000 images; not run yet. `weights/maskrcnn_resnet50_fpn.pth` is torchvision's
file.

  segjax train --config=configs/mask_rcnn/coco_published.py --workdir=runs/torchvision_v1 \
    --config.data.source=coco/ --config.init_from.path=weights/maskrcnn_resnet50_fpn.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_r50_fpn.py')
  config.model = {
    'name': 'mask_rcnn.MaskRCNN',
    'classes': 80,
    # As in torchvision with these weights.
    'backbone': {'name': 'resnet50', 'bn_epsilon': 0.0},
  }
  config.init_from = {
    'path': 'weights/maskrcnn_resnet50_fpn.pth',
    'source': 'torchvision/maskrcnn_resnet50_fpn',
  }
  config.losses.box_regression = {}
  config.data.train_split = 'val'
  config.batch = {'size': 8, 'eval_size': 8, 'max_objects': 100}
  config.train = {'steps': 0, 'best_metric': 'mask_ap'}
  del config.augment, config.optim
  return config
