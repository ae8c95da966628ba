r"""U-Net as published (arXiv 1505.04597) on DIC-C2DH-HeLa of the Cell Tracking Challenge.

Paper: Table 2, IoU 77.6% (second best in 2015: 46%), with a different measure, see phc_u373.py: the
results are not comparable. Recipe: as phc_u373.py.

Cost: needs a GPU; not run yet.

  segjax train --config=configs/unet/dic_hela.py --workdir=runs/dic_hela \
    --config.data.source=DIC-C2DH-HeLa/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'phc_u373.py')
  config.data.name = 'cell_tracking/dic_hela'
  return config
