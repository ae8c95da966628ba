r"""FCN-8s on VGG16 (arXiv 1411.4038) on CamVid, as SegNet's paper compares it (arXiv 1511.00561).

Paper: SegNet's Table 3, global accuracy 81.97, class accuracy 54.38, mean IoU 46.59, BF 22.86 after
40,000 iterations, with learned deconvolution 83.21/56.05/48.68/27.40; trained on 3,433 images, here
on the 367 public ones. Recipe: that of SegNet in configs/segnet/camvid.py. With every upsampling
fixed: --config.model.learned=none.

Cost: made for a GPU; 2 CPU cores take camvid_cpu.py.

  segjax train --config=configs/fcn/camvid.py --workdir=runs/fcn --config.data.source=CamVid/ \
    --config.init_from.path=weights/vgg16.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'fcn.FCN', 'classes': 11, 'variant': '8s'})
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16'}
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})
  config.eval = ml_collections.ConfigDict({'metrics': ('confusion', 'boundary')})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'camvid',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 5,
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
      'steps': 40_000,
      'eval_every': 1_000,
      'checkpoint_every': 1_000,
      'best_metric': 'pixel_accuracy',
    }
  )
  return config
