r"""SegNet (arXiv 1511.00561) on CamVid at half resolution (180 x 240), for 2 CPU cores.

The network of camvid.py without dropout, from VGG16's convolutions or, with
--config.init_from=none, from scratch. AdamW and a cosine schedule, so that a short run converges.
Results: experiments/segnet_table3.

Cost: 36 minutes on 2 busy CPU cores.

  segjax train --config=configs/segnet/camvid_cpu.py --workdir=runs/segnet \
    --config.data.source=CamVid/ --config.init_from.path=weights/vgg16.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'camvid.py')
  config.model = {'name': 'segnet.SegNet', 'classes': 11}
  config.data.size = {'image_size': (180, 240)}
  config.augment = {'flip_horizontal': 0.5}
  config.batch.size = 4
  config.optim = {
    'name': 'adamw',
    'learning_rate': 1e-3,
    'schedule': 'cosine',
    'warmup_steps': 30,
    'weight_decay': 1e-3,
  }
  config.train = {
    'steps': 300,
    'eval_every': 150,
    'checkpoint_every': 150,
    'best_metric': 'pixel_accuracy',
  }
  return config
