r"""SegNet (arXiv 1511.00561) on CamVid at half resolution (180 x 240), for 2 CPU cores.

The network of camvid.py, from VGG16's convolutions or, with --config.init_from=none, from scratch;
AdamW and a cosine schedule, so that a short run arrives. Figures: experiments/segnet_table3.

  segjax train --config=configs/segnet/camvid_cpu.py --workdir=runs/segnet \
    --config.data.source=CamVid/ --config.init_from.path=weights/vgg16.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'segnet.SegNet', 'classes': 11})
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
      'batch_size': 4,
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
      'learning_rate': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 30,
      'weight_decay': 1e-3,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 300,
      'eval_every': 150,
      'checkpoint_every': 150,
      'best_metric': 'pixel_accuracy',
    }
  )
  return config
