r"""FCN-32s on VGG16 (arXiv 1411.4038) on NYUDv2, 40 indoor classes, RGB.

Paper: Table 4, RGB: pixel accuracy 60.0, class accuracy 42.2, mean IoU 29.2, frequency-weighted IoU
43.9 on the 654 test images, after training on the other 795. Recipe: as voc.py; our schedule is
4,000 steps of 20 images (100 epochs).

Cost: needs a GPU; not run yet.

  segjax train --config=configs/fcn/nyud.py --workdir=runs/nyud --config.data.source=nyudv2/ \
    --config.init_from.path=weights/vgg16.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'voc.py')
  config.model.classes = 40
  config.data.update({'name': 'nyud', 'train_split': 'train+val', 'eval_split': 'test'})
  del config.data.eval_name, config.data.size  # all images have the same size
  config.batch = {'size': 20}
  config.train = {'steps': 4_000, 'eval_every': 400, 'checkpoint_every': 400}
  return config
