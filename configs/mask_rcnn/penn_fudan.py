r"""Mask R-CNN (arXiv 1703.06870) with ResNet-50-FPN on Penn-Fudan pedestrians, from scratch.

The paper's network and image size (short side 800) on 120 training images: group normalization
instead of pretrained frozen batch normalization, AdamW, shapes of anchors for people.

Cost: needs a GPU (58 images/s on an H200, after some minutes of compilation); for 2 CPU cores see
penn_fudan_cpu.py.

  segjax train --config=configs/mask_rcnn/penn_fudan.py --workdir=runs/penn_fudan \
    --config.data.source=PennFudanPed/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'penn_fudan_cpu.py')
  config.model = {
    'name': 'mask_rcnn.MaskRCNN',
    'classes': 1,
    'backbone': {'name': 'resnet50', 'norm': 'group'},
    'rpn': {'aspect_ratios': (1.0, 2.0, 3.0)},
    'roi': {'aligned': True},
  }
  config.data.size.short_side = (640, 672, 704, 736, 768, 800)
  config.data.size.longest_side = 1333
  config.data.size.shapes = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
  config.optim.learning_rate = 3e-4
  return config
