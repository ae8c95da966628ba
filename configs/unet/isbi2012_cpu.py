r"""U-Net (arXiv 1505.04597) on the ISBI 2012 EM challenge, at a size for 2 CPU cores.

The paper's recipe in `isbi2012.py` with a quarter of the channels, BatchNorm and
AdamW, so that about 20 minutes are enough. Figures: experiments/unet_table1.

  segjax train --config=configs/unet/isbi2012_cpu.py --workdir=runs/isbi \
    --config.data.source=isbi2012/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {
      'name': 'unet.UNet',
      'classes': 2,
      'width': 16,
      'norm': 'batch',
      'dropout': 0.2,
    }
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})
  config.eval = ml_collections.ConfigDict(
    {
      'metrics': ('confusion', 'isbi'),
      'test_time_augmentation': 'flip',
    }
  )

  config.data = ml_collections.ConfigDict(
    {
      'name': 'isbi2012',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 1,
      'eval_batch_size': 1,
      'crop_size': (388, 388),
      # Membranes are 22 % of the training pixels: each class gets half of the weight w_c.
      'weight_map': {
        'w0': 10.0,
        'sigma': 5.0,
        'background_only': True,
        'class_weights': (2.27, 0.64),
      },
      'augment': {
        'flip_horizontal': 0.5,
        'flip_vertical': 0.5,
        'rotate': 180.0,
        'elastic_sigma': 10.0,
        'brightness': 0.1,
        'contrast': 0.2,
      },
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 2e-3,
      'schedule': 'cosine',
      'warmup_steps': 50,
      'weight_decay': 1e-4,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 1_000,
      'eval_every': 250,
      'checkpoint_every': 250,
      'best_metric': 'rand_error',
      'best_mode': 'min',
      'pictures': 5,
    }
  )
  return config
