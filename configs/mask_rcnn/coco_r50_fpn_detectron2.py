r"""Mask R-CNN (arXiv 1703.06870) on COCO: ResNet-50-FPN, Detectron2's 1x schedule.

Detectron2's model zoo: box AP 38.6, mask AP 35.2 on val2017; 3x: 41.0 and 37.2. Differences from
coco_r50_fpn.py: 90,000 steps, the learning rate divided by 10 at 60,000 and 80,000; short side
sampled from 640 to 800; L1 box losses; RPN losses divided by the configured number of samples;
Detectron2's anchors; the MSRA ResNet. Differences from Detectron2: its RoIAlign takes one sample
per pixel of a bin, here at most 4 per axis; it drops images without objects (from memory).

Cost: needs 8 GPUs; not run yet. `weights/R-50.pkl` is Detectron2's file.

  segjax train --config=configs/mask_rcnn/coco_r50_fpn_detectron2.py --workdir=runs/coco_1x \
    --config.data.source=coco/ --config.init_from.path=weights/R-50.pkl

3x schedule: --config.train.steps=270000 --config.optim.boundaries="(210000, 250000)".
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_r50_fpn.py')
  config.model.backbone.stride_in_1x1 = True
  config.model.rpn.anchor_style = 'detectron2'
  config.model.roi.update({'sampling_ratio': 0, 'max_samples': 4})
  config.model.box_head.nms_iou = 0.5
  config.init_from = {'path': 'weights/R-50.pkl', 'source': 'detectron2/R-50'}
  config.losses.rpn_class = {'divide_by': 'slots'}
  config.losses.rpn_box = {'beta': 0.0, 'divide_by': 'slots'}
  config.losses.box_regression.beta = 0.0
  config.eval.paste = 'detectron2'
  config.data.size.short_side = (640, 672, 704, 736, 768, 800)
  config.data.std = (1.0, 1.0, 1.0)  # the weights expect pixel values without division by std
  config.optim.update({'boundaries': (60_000, 80_000), 'warmup_steps': 1_000})
  config.optim.warmup_factor = 0.001
  config.train.steps = 90_000
  return config
