r"""SegNet (arXiv 1511.00561) on SUN RGB-D, 37 indoor classes, RGB only.

Paper: Table 4, best: global accuracy 72.63, class accuracy 44.76, mean IoU 31.84, BF 12.66 on the
5,050 test images. Recipe: that of camvid.py. The paper does not print this table's image size and
length; 224 x 224 and 260,000 steps are ours.

Cost: for a GPU; not run yet. `weights/vgg16.pth` is torchvision's file.

  segjax train --config=configs/segnet/sun_rgbd.py --workdir=runs/sun \
    --config.data.source=SUNRGBD/ --config.init_from.path=weights/vgg16.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'segnet.SegNet', 'classes': 37, 'dropout': 0.5})
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16_features'}
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})
  config.eval = ml_collections.ConfigDict({'metrics': ('confusion', 'boundary')})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'sun_rgbd',
      'train_split': 'train',
      'eval_split': 'test',
      'batch_size': 5,
      'image_size': (224, 224),
      # Of the ImageNet weights, for RGB.
      'mean': (123.675, 116.28, 103.53),
      'std': (58.395, 57.12, 57.375),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 1e-3,
      'momentum': 0.9,
      'weight_decay': 5e-4,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 260_000,
      'eval_every': 10_000,
      'checkpoint_every': 10_000,
      'best_metric': 'pixel_accuracy',
      'recompute_batch_norm': True,
    }
  )
  return config
