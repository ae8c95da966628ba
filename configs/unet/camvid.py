"""U-Net (arXiv 1505.04597), the same-padded form, on CamVid at half resolution (180 x 240).

U-Net's paper does not use CamVid: no figure to compare. Sized for 2 CPU cores; at full size:
--config.data.image_size='(360,480)' --config.model.width=64.

  segjax train --config=configs/unet/camvid.py --workdir=runs/camvid --config.data.source=CamVid/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'unet.UNet',
      'classes': 11,
      'width': 16,
      'padding': 'same',
      'norm': 'batch',
      'dropout': 0.1,
    }
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'camvid',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 6,
      'image_size': (180, 240),
      'augment': {
        'flip_horizontal': 0.5,
        'scale': (0.75, 1.5),
        'brightness': 0.1,
        'contrast': 0.1,
        'saturation': 0.1,
      },
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 3e-3,
      'schedule': 'cosine',
      'warmup_steps': 100,
      'weight_decay': 1e-3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 1_200,
      'eval_every': 300,
      'checkpoint_every': 300,
    }
  )
  return config
