r"""SegNet as published (arXiv 1511.00561) on CamVid, from VGG16's convolutions.

Paper: Table 3, global accuracy 88.81, class accuracy 59.93, mean IoU 50.02, BF 35.78 after 40,000
iterations, 90.40/71.20/60.10/46.84 at best (140,000), trained on 3,433 images without class
balancing; here on the 367 public ones. Recipe: SGD, momentum 0.9, learning rate 1e-3, batch size 5,
weight decay 5e-4, dropout 0.5 in the deeper layers, batch-norm statistics of the training set, the
checkpoint with the best validation global accuracy. With the class balancing of section 3.2:
--config.losses.softmax_cross_entropy.class_weights=median_frequency.

Cost: needs a GPU; for 2 CPU cores see camvid_cpu.py. `weights/vgg16.pth` is torchvision's file.

  segjax train --config=configs/segnet/camvid.py --workdir=runs/segnet \
    --config.data.source=CamVid/ --config.init_from.path=weights/vgg16.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {'name': 'segnet.SegNet', 'classes': 11, 'dropout': 0.5}
  config.init_from = {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16_features'}
  config.losses = {'softmax_cross_entropy': {}}
  config.eval = {'metrics': ('confusion', 'boundary')}
  config.data = {
    'name': 'camvid',
    'train_split': 'train',
    'eval_split': 'val',
    # ImageNet statistics, RGB.
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
  }
  config.batch = {'size': 5}
  config.optim = {'name': 'sgd', 'learning_rate': 1e-3, 'momentum': 0.9, 'weight_decay': 5e-4}
  config.train = {
    'steps': 40_000,
    'eval_every': 1_000,
    'checkpoint_every': 1_000,
    'best_metric': 'pixel_accuracy',
    'recompute_batch_norm': True,
  }
  return config
