r"""U-Net as published (arXiv 1505.04597) on the ISBI 2012 EM challenge.

Paper: Table 1, warping error 0.000353, Rand error 0.0382, pixel error 0.0611 on the organizers' 30
test images, averaged over 7 rotations. Their labels are not public: here 25 of the 30 training
images are used for training and 5 for evaluation, so the results are not comparable. Recipe: SGD,
one large tile per step, momentum 0.99, border weights (w0 = 10, sigma = 5), elastic deformation on
a 3 x 3 grid (sigma = 10), shifts, rotations and gray value variations. The paper does not report
learning rate, number of steps and w_c; these are ours.

Cost: 5 minutes on an H200; for 2 CPU cores see isbi2012_cpu.py.

  segjax train --config=configs/unet/isbi2012.py --workdir=runs/isbi \
    --config.data.source=isbi2012/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {'name': 'unet.UNet', 'classes': 2}
  config.losses = {'softmax_cross_entropy': {}}
  config.eval = {'metrics': ('confusion', 'isbi'), 'test_time_augmentation': 'dihedral'}
  config.data = {
    'name': 'isbi2012',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {'crop_size': (388, 388)},
    # Membranes are 22% of the training pixels: w_c gives both classes the same total weight.
    'weight_map': {'w0': 10.0, 'sigma': 5.0, 'class_weights': (2.27, 0.64)},
  }
  config.augment = {
    'flip_horizontal': 0.5,
    'flip_vertical': 0.5,
    'rotate': 180.0,
    'elastic_sigma': 10.0,
    # Bilinear interpolation blurs the tiles, but not the images of an evaluation.
    'interpolation': 'bicubic',
    'brightness': 0.1,
    'contrast': 0.2,
  }
  config.batch = {'size': 1, 'eval_size': 1}
  config.optim = {'name': 'sgd', 'learning_rate': 1e-3, 'momentum': 0.99, 'schedule': 'poly'}
  config.train = {
    'steps': 20_000,
    'eval_every': 1_000,
    'checkpoint_every': 1_000,
    'best_metric': 'rand_error',
    'best_mode': 'min',
  }
  return config
