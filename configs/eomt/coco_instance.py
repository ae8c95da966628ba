r"""EoMT as published (arXiv 2503.19108) on COCO's instance task, at 640 x 640.

The authors' model zoo: mask AP 45.2 on val2017 (large), by pycocotools; 48.8 at 1280 x 1280. The
argument is the size, by default large; the others are not published. Otherwise as
configs/eomt/coco_panoptic.py, with the same steps: so do the authors, although fewer images have an
object than a segment.

Cost: as coco_panoptic.py; not run yet. `weights/dinov2.pth` is DINOv2's file for the size.

  segjax train --config=configs/eomt/coco_instance.py --workdir=runs/eomt_coco_instance \
    --config.data.source=coco/ --config.init_from.path=weights/dinov2.pth
"""

import ml_collections

from segjax.config import base_config


def get_config(argument: str = 'large') -> ml_collections.ConfigDict:
  config = base_config(__file__, 'coco_panoptic.py', argument)
  config.task = 'instance'
  config.model.classes = 80
  config.eval.metrics = ('coco',)
  data_size = config.data.size
  config.data = base_config(__file__, '../mask_rcnn/coco_r50_fpn.py').data
  config.data.size = data_size
  del config.batch.max_segments
  config.train.best_metric = 'mask_ap'
  return config
