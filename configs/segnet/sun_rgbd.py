r"""SegNet (arXiv 1511.00561) on SUN RGB-D, 37 indoor classes, RGB only.

Paper: Table 4, best: global accuracy 72.63, class accuracy 44.76, mean IoU 31.84, BF 12.66 on the
5,050 test images. Recipe: as camvid.py, with a batch size of 4 and 240,000 steps, as the paper.

Cost: needs a GPU; not run yet. `weights/vgg16.pth` is torchvision's file.

  segjax train --config=configs/segnet/sun_rgbd.py --workdir=runs/sun \
    --config.data.source=SUNRGBD/ --config.init_from.path=weights/vgg16.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'camvid.py')
  config.model.classes = 37
  config.data.update({'name': 'sun_rgbd', 'eval_split': 'test'})
  config.data.size = {'image_size': (360, 480)}
  config.batch.size = 4
  config.train.update({'steps': 240_000, 'eval_every': 10_000, 'checkpoint_every': 10_000})
  return config
