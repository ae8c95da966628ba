r"""SegNet-Basic and the other decoders of Table 1 (arXiv 1511.00561) on CamVid, for 2 CPU cores.

The recipe of basic_camvid.py at half resolution (180 x 240), with batch size 4 and a cosine
schedule of 2,000 steps. Results and times: experiments/segnet_table1.

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
  config.train.update({'steps': 2_000, 'eval_every': 500, 'checkpoint_every': 500})
  return config
