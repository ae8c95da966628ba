"""U-Net (arXiv 1505.04597), same-padded, on CamVid at half resolution (180 x 240).

U-Net's paper has no results on CamVid to compare with. Results: experiments/unet.
At full size: --config.data.size.image_size='(360,480)' --config.model.width=64.

Cost: 24 minutes on 2 busy CPU cores.

  segjax train --config=configs/unet/camvid.py --workdir=runs/camvid --config.data.source=CamVid/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {
    'name': 'unet.UNet',
    'classes': 11,
    'width': 16,
    'padding': 'same',
    'norm': 'batch',
    'dropout': 0.1,
  }
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'camvid',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {'image_size': (180, 240)},
  }
  config.augment = {
    'flip_horizontal': 0.5,
    'scale': (0.75, 1.5),
    'brightness': 0.1,
    'contrast': 0.1,
    'saturation': 0.1,
  }
  config.batch = {'size': 6}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 3e-3,
    'schedule': 'cosine',
    'warmup_steps': 100,
    'weight_decay': 1e-3,
  }
  config.train = {'steps': 1_200, 'eval_every': 300, 'checkpoint_every': 300}
  return config
