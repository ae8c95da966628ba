r"""Mask R-CNN as published (arXiv 1703.06870) on COCO: ResNet-50-C4.

Paper: Table 2a, mask AP 30.3, AP50 51.2, AP75 31.5 on minival, here val2017. The recipe of
coco_r50_fpn.py on the stride-16 feature map; the heads share res5, run on 7x7 RoIs at stride 1
(Fig. 4, left). 64 training RoIs per image, 300 proposals at test time. The numbers of proposals
before NMS (12,000 and 6,000), and the 2,000 after NMS in training, are those of Faster R-CNN's
code, quoted from memory.

Cost: needs 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/mask_rcnn/coco_r50_c4.py --workdir=runs/coco_r50_c4 \
    --config.data.source=coco/ --config.init_from.path=weights/resnet50.pth

Softmax masks (Table 2b): --config.model.mask_head.activation=softmax
--config.losses.mask.activation=softmax. RoIPool (2c): --config.model.roi.op=roi_pool. The
stride-32 feature map (2d), with the FPN's heads: --config.model.feature_maps=c5.
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_r50_fpn.py')
  config.model.feature_maps = 'c4'
  config.model.rpn.update({'train_proposals': (12_000, 2000), 'test_proposals': (6000, 300)})
  config.model.box_head.samples = 64
  return config
