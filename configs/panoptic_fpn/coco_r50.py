r"""Panoptic FPN as published (arXiv 1901.02446) on COCO: ResNet-50.

Paper: PQ 39.0, PQ of things 45.9, of stuff 28.7, mask AP 33.3 and mIoU 41.0 on val2017. The recipe
is that of Mask R-CNN in Detectron, quoted from memory: 90,000 steps of 16 images at a learning rate
of 0.02, divided by 10 at 60,000 and 80,000, short side sampled from 640 to 800; the loss weights
are 1 and 0.5. Otherwise as configs/mask_rcnn/coco_r50_fpn.py.

Cost: needs 8 GPUs; not run yet. `weights/resnet50.pth` is torchvision's file.

  segjax train --config=configs/panoptic_fpn/coco_r50.py --workdir=runs/coco_panoptic \
    --config.data.source=coco/ --config.init_from.path=weights/resnet50.pth

On fewer devices, --config.optim.accumulate=8 accumulates the gradients of 8 microbatches. For k
times the batch size, use k times the learning rate and 1/k of the steps and boundaries (linear
scaling rule). ResNet-101: --config.model.backbone.name=resnet101
--config.init_from.source=torchvision/resnet101. For the data set as prepared by TFDS:
--config.data.name=coco/2017_panoptic --config.data.eval_split=validation
--config.data.name_key=image/filename --config.data.panoptic_key=panoptic_image
--config.data.segments_key=panoptic_objects --config.data.crowd_key=is_crowd.

A semantic network for the same 133 classes, such as for merging (see merged_scenes.py): without a
label map, semantic tasks derive the labels from the segments.

  segjax train --config=configs/fcn/voc.py --workdir=runs/coco_semantic \
    --config.data.name=coco_panoptic --config.data.source=coco/ --config.model.classes=133 \
    --config.data.eval_name=none --config.data.eval_split=val \
    --config.data.size.crop_size='(640,640)'
"""

import ml_collections

from segjax.config import base_config

# COCO's category ids, needed by its evaluation and not stored by TFDS: 80 things, 53 stuff.
CATEGORY_IDS = (
  *(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)),
  *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145),
  *(147, 148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181),
  *range(184, 201),
)


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../mask_rcnn/coco_r50_fpn.py')
  config.task = 'panoptic'
  config.model.update({'name': 'panoptic_fpn.PanopticFPN', 'stuff': 53})
  config.model.box_head.nms_iou = 0.5
  config.losses.semantic = {'scale': 0.5}
  config.eval.metrics = ('pq', 'coco')
  config.data.update(
    {
      'name': 'coco_panoptic',
      'num_classes': 133,
      'things': tuple(range(80)),
      'category_ids': CATEGORY_IDS,
    }
  )
  config.data.size.short_side = (640, 672, 704, 736, 768, 800)
  config.batch.max_segments = 200
  config.optim.boundaries = (60_000, 80_000)
  config.train.update({'steps': 90_000, 'best_metric': 'pq'})
  return config
