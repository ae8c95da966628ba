r"""EoMT as published (arXiv 2503.19108) on Cityscapes' semantic task, at 1024 x 1024.

The authors' model zoo: mean IoU on val 84.2 (large); the argument is the size, by default large;
the others are not published. 107 epochs of 186 steps. Otherwise as configs/eomt/ade20k_semantic.py.

Cost: needs 4 to 8 GPUs; not run yet. `weights/dinov2.pth` is DINOv2's file for the size.

  segjax train --config=configs/eomt/cityscapes_semantic.py --workdir=runs/eomt_cityscapes \
    --config.data.source=cityscapes/ --config.init_from.path=weights/dinov2.pth
"""

import ml_collections

from segjax.config import base_config

STEPS_AN_EPOCH = 186
EPOCHS = 107


def get_config(argument: str = 'large') -> ml_collections.ConfigDict:
  size, _, steps = argument.partition(',')
  steps = steps or EPOCHS * STEPS_AN_EPOCH
  config = base_config(__file__, 'ade20k_semantic.py', f'{size},{steps}')
  config.model.update({'classes': 19, 'grid': (64, 64)})
  config.eval.window = (1024, 1024)
  config.data.name = 'cityscapes'
  config.data.size.update(
    {'image_size': (1024, 1024), 'short_side': (1024,), 'shapes': ((1024, 2048),)}
  )
  # Every tenth epoch.
  config.train.update({'eval_every': 10 * STEPS_AN_EPOCH, 'checkpoint_every': 10 * STEPS_AN_EPOCH})
  return config
