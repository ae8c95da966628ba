r"""SegNet-Basic and the other decoders of Table 1 (arXiv 1511.00561) on CamVid, for 2 CPU cores.

The recipe of basic_camvid.py at half resolution (180 x 240), with batch size 4 and fewer steps.
Results: experiments/segnet_table1. Cost: 8 to 15 minutes per decoder on 2 busy CPU cores.

  segjax train --config=configs/segnet/basic_camvid_cpu.py --workdir=runs/basic \
    --config.data.source=CamVid/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'basic_camvid.py')
  config.data.size = {'image_size': (180, 240)}
  config.batch.size = 4
  config.optim.schedule = 'cosine'
  config.train.update({'steps': 600, 'eval_every': 200, 'checkpoint_every': 200})
  del config.train.recompute_batch_norm
  return config
