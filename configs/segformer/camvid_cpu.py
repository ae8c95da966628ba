r"""SegFormer-B0 (arXiv 2105.15203) on CamVid at half resolution (180 x 240), for 2 CPU cores.

From scratch, with the recipe of configs/unet/camvid.py at a third of its learning rate. The paper
has no results on CamVid, and none without an encoder from ImageNet. Results and times:
experiments/camvid_half.

  segjax train --config=configs/segformer/camvid_cpu.py --workdir=runs/segformer \
    --config.data.source=CamVid/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../unet/camvid.py')
  config.model = {'name': 'segformer.SegFormer', 'classes': 11}
  config.optim.learning_rate = 1e-3
  return config
