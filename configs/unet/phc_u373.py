r"""U-Net as published (arXiv 1505.04597) on PhC-C2DH-U373 of the Cell Tracking Challenge.

Paper: Table 2, IoU .9203 (second best in 2015: .83) by the organisers' measure, the mean over cells
on their hidden test images; here the IoU of the class "cell" on the sequence that does not train,
so that the figures do not compare. Recipe: that of isbi2012.py, without its class balance.

Cost: for a GPU; not run yet.

  segjax train --config=configs/unet/phc_u373.py --workdir=runs/phc_u373 \
    --config.data.source=PhC-C2DH-U373/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'unet.UNet', 'classes': 2})
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})
  config.eval = ml_collections.ConfigDict(
    {
      'metrics': ('confusion',),
      'test_time_augmentation': 'dihedral',
    }
  )

  config.data = ml_collections.ConfigDict(
    {
      'name': 'cell_tracking/phc_u373',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 1,
      'eval_batch_size': 1,
      'crop_size': (388, 388),
      'weight_map': {'w0': 10.0, 'sigma': 5.0},
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
      'name': 'sgd',
      'learning_rate': 1e-3,
      'momentum': 0.99,
      'schedule': 'poly',
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 20_000,
      'eval_every': 1_000,
      'checkpoint_every': 1_000,
    }
  )
  return config
