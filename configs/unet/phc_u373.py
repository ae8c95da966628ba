r"""U-Net as published (arXiv 1505.04597) on PhC-C2DH-U373 of the Cell Tracking Challenge.

Paper: Table 2, IoU 92.0% (second best in 2015: 83%) by the organizers' measure, the mean over cells
on hidden test images; here the IoU of the class "cell" on the held-out sequence, so the results are
not comparable. Recipe: as isbi2012.py, without class balancing.

Cost: needs a GPU; not run yet.

  segjax train --config=configs/unet/phc_u373.py --workdir=runs/phc_u373 \
    --config.data.source=PhC-C2DH-U373/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'isbi2012.py')
  config.eval.metrics = ('confusion',)
  config.data.name = 'cell_tracking/phc_u373'
  del config.data.weight_map.class_weights
  del config.train.best_metric, config.train.best_mode
  return config
