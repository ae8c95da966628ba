r"""FCN (arXiv 1411.4038) on CamVid at half resolution (180 x 240), for 2 CPU cores.

32s, 16s and 8s in turn, starting from VGG16's convolutions. fc6 and fc7 have a quarter of the
channels and are randomly initialized. AdamW, so that a short run converges. Results:
experiments/segnet_table3.

Cost: 15 minutes for 32s and 8 for each finer network, on 2 busy CPU cores.

  segjax train --config=configs/fcn/camvid_cpu.py --workdir=runs/fcn32s \
    --config.data.source=CamVid/ --config.init_from.path=weights/vgg16.pth
  segjax train --config=configs/fcn/camvid_cpu.py --workdir=runs/fcn16s \
    --config.data.source=CamVid/ --config.model.variant=16s --config.optim.learning_rate=5e-5 \
    --config.train.steps=80 \
    --config.init_from.path=runs/fcn32s --config.init_from.source=none
  segjax train --config=configs/fcn/camvid_cpu.py --workdir=runs/fcn8s \
    --config.data.source=CamVid/ --config.model.variant=8s --config.optim.learning_rate=5e-5 \
    --config.train.steps=80 \
    --config.init_from.path=runs/fcn16s --config.init_from.source=none
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'camvid.py')
  config.model.update({'variant': '32s', 'fc_features': 1024})
  config.init_from.source = 'torchvision/vgg16_features'
  config.data.size = {'image_size': (180, 240)}
  config.augment = {'flip_horizontal': 0.5}
  config.batch.size = 2
  config.optim = {
    'name': 'adamw',
    'learning_rate': 2e-4,
    'schedule': 'cosine',
    'warmup_steps': 20,
    'weight_decay': 1e-3,
  }
  config.train = {'steps': 160, 'eval_every': 80, 'checkpoint_every': 80}
  return config
