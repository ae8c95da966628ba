r"""DeepLabV3+ (arXiv 1802.02611) on CamVid at half resolution (180 x 240), for 2 CPU cores.

A ResNet-18 of half the width, from scratch, with the recipe of configs/unet/camvid.py. The paper
has no results on CamVid to compare with. Results and times: experiments/camvid_half.

  segjax train --config=configs/deeplab/camvid_cpu.py --workdir=runs/deeplab \
    --config.data.source=CamVid/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../unet/camvid.py')
  config.model = {
    'name': 'deeplab.DeepLabV3Plus',
    'classes': 11,
    'variant': 'resnet18',
    'width': 32,
    'dropout': 0.1,
  }
  return config
