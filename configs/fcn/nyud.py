r"""FCN-32s on VGG16 (arXiv 1411.4038) on NYUDv2, 40 indoor classes, RGB.

Paper: Table 4, RGB: pixel accuracy 60.0, class accuracy 42.2, mean IoU 29.2, frequency-weighted IoU
43.9 on the 654 test images, after training on the other 795. Recipe: that of voc.py; 4,000 steps of
20 images (100 epochs) are ours.

Cost: for a GPU; not run yet.

  segjax train --config=configs/fcn/nyud.py --workdir=runs/nyud --config.data.source=nyudv2/ \
    --config.init_from.path=weights/vgg16.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'fcn.FCN', 'classes': 40, 'variant': '32s'})
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16'}
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'nyud',
      'train_split': 'train+val',
      'eval_split': 'test',
      'batch_size': 20,
      # Of the ImageNet weights, for RGB.
      'mean': (123.675, 116.28, 103.53),
      'std': (58.395, 57.12, 57.375),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 1e-4,
      'momentum': 0.9,
      'weight_decay': 5e-4,
      'multipliers': (('bias$', 2.0),),
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 4_000,
      'eval_every': 400,
      'checkpoint_every': 400,
    }
  )
  return config
