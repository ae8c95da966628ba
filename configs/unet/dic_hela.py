r"""U-Net as published (arXiv 1505.04597) on DIC-C2DH-HeLa of the Cell Tracking Challenge.

Paper: Table 2, IoU 77.6% (second best in 2015: 46%), measured as phc_u373.py says, whose recipe
this is: the results do not compare.

Cost: for a GPU; not run yet.

  segjax train --config=configs/unet/dic_hela.py --workdir=runs/dic_hela \
    --config.data.source=DIC-C2DH-HeLa/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'phc_u373.py')
  config.data.name = 'cell_tracking/dic_hela'
  return config
