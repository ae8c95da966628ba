r"""Published weights of Mask R-CNN (arXiv 1703.06870), evaluated on COCO as they are.

No step is trained: the run evaluates torchvision's `maskrcnn_resnet50_fpn` (box AP 37.9, mask AP
34.6), or by overrides another network, see experiments/model_zoo.

Cost: 5,000 images through the network; not run yet. `weights/maskrcnn_resnet50_fpn.pth` is
torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_published.py --workdir=runs/torchvision_v1 \
    --config.data.source=coco/ --config.init_from.path=weights/maskrcnn_resnet50_fpn.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'instance'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'mask_rcnn.MaskRCNN',
      'classes': 80,
      'backbone': 'resnet50',
      'bn_epsilon': 0.0,  # as torchvision has it with these weights
    }
  )
  config.init_from = ml_collections.ConfigDict(
    {
      'path': 'weights/maskrcnn_resnet50_fpn.pth',
      'source': 'torchvision/maskrcnn_resnet50_fpn',
    }
  )
  config.losses = ml_collections.ConfigDict(
    {
      'rpn_class': {},
      'rpn_box': {},
      'box_class': {},
      'box_regression': {},
      'mask': {},
    }
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('coco',)})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'coco_instances',
      'train_split': 'val',
      'eval_split': 'val',
      'batch_size': 8,
      'eval_batch_size': 8,
      'num_classes': 80,
      'instances': 100,
      'short_side': (800,),
      'longest_side': 1333,
      'shapes': ((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
      # Of the ImageNet weights, for RGB.
      'mean': (123.675, 116.28, 103.53),
      'std': (58.395, 57.12, 57.375),
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 0,
      'best_metric': 'mask_ap',
    }
  )
  return config
