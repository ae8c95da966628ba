r"""DeepLabV3+ (arXiv 1802.02611) on Cityscapes, by the recipe of mmsegmentation.

mmsegmentation's deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024: mean IoU 79.61 on val. ResNet-50
with stride 8, crops of 512 x 1024 of images scaled by 0.5 to 2, an auxiliary classifier, SGD with
8 images per step for 40,000 steps. Differences: its network has separable convolutions of 512
channels (here full ones of 256) and a stem of three 3x3 convolutions; its learning rate ends at
1e-4 (here at 0); a class has at most 75% of its crops; and colors are changed in other ways.

With 4 times the schedule: --config.train.steps=160000. Stride 16, as most of the paper's networks:
--config.model.dilate='(5,)' --config.model.rates='(6,12,18)'.

Cost: needs 4 GPUs; not run yet.

  segjax train --config=configs/deeplab/cityscapes.py --workdir=runs/deeplab_cityscapes \
    --config.data.source=cityscapes/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {
    'name': 'deeplab.DeepLabV3Plus',
    'classes': 19,
    'variant': 'resnet50',
    'dilate': (4, 5),
    'rates': (12, 24, 36),
    'auxiliary': True,
    'auxiliary_scale': 0.4,
    'dropout': 0.1,
  }
  config.init_from = {'source': 'torchvision/resnet50'}
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'cityscapes',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {'crop_size': (512, 1024)},
    # ImageNet statistics, RGB.
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
  }
  config.augment = {
    'flip_horizontal': 0.5,
    'scale': (0.5, 2.0),
    'brightness': 0.125,
    'contrast': 0.5,
    'saturation': 0.5,
  }
  config.batch = {'size': 8}
  config.optim = {
    'name': 'sgd',
    'learning_rate': 0.01,
    'schedule': 'poly',
    'power': 0.9,
    'momentum': 0.9,
    'weight_decay': 5e-4,
    'decay_exclude': (),
  }
  config.train = {'steps': 40_000, 'eval_every': 4_000, 'checkpoint_every': 4_000}
  return config
