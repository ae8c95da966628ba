"""A small same-padded U-Net (arXiv 1505.04597) on the built-in synthetic data set scenes.

The demo, at half resolution; needs no download. Results: experiments/unet. Cost: 3 minutes on 2 CPU
cores.

  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {
    'name': 'unet.UNet',
    'classes': 9,
    'width': 16,
    'depth': 4,
    'padding': 'same',
    'norm': 'batch',
    'dropout': 0.0,
  }
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'scenes',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {'image_size': (64, 64)},
  }
  config.augment = {'flip_horizontal': 0.5}
  config.batch = {'size': 4}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 3e-3,
    'schedule': 'cosine',
    'warmup_steps': 50,
    'weight_decay': 1e-4,
  }
  config.train = {'steps': 1_600, 'log_every': 50, 'eval_every': 400, 'checkpoint_every': 400}
  return config
