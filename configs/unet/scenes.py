"""U-Net (arXiv 1505.04597), the small same-padded form, on the built-in data set scenes.

The demo: pictures at half size, minutes on 2 CPU cores, no download.

  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'unet.UNet',
      'classes': 9,
      'width': 16,
      'depth': 4,
      'padding': 'same',
      'norm': 'batch',
      'dropout': 0.0,
    }
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'scenes',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 4,
      'image_size': (64, 64),
      'augment': {'flip_horizontal': 0.5},
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 3e-3,
      'schedule': 'cosine',
      'warmup_steps': 50,
      'weight_decay': 1e-4,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 1_600,
      'log_every': 50,
      'eval_every': 400,
      'checkpoint_every': 400,
    }
  )
  return config
