r"""FCN (arXiv 1411.4038) on CamVid at half resolution (180 x 240), for 2 CPU cores.

The chain 32s, 16s, 8s from VGG16's convolutions, with a quarter of the channels in fc6 and fc7,
which start anew, and AdamW: short runs. Figures: experiments/segnet_table3.

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


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {'name': 'fcn.FCN', 'classes': 11, 'variant': '32s', 'fc_features': 1024}
  )
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16_features'}
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})
  config.eval = ml_collections.ConfigDict({'metrics': ('confusion', 'boundary')})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'camvid',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 2,
      'image_size': (180, 240),
      # Of the ImageNet weights, for RGB.
      'mean': (123.675, 116.28, 103.53),
      'std': (58.395, 57.12, 57.375),
      'augment': {'flip_horizontal': 0.5},
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 2e-4,
      'schedule': 'cosine',
      'warmup_steps': 20,
      'weight_decay': 1e-3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 160,
      'eval_every': 80,
      'checkpoint_every': 80,
    }
  )
  return config
