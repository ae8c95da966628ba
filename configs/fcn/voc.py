r"""FCN on VGG16 as published (arXiv 1411.4038) on PASCAL VOC, trained on SBD.

Paper: Table 2, mean IoU on the 736 images of seg11valid: FCN-32s 59.4, 16s 62.4, 8s 62.7, 32s-fixed
45.4. Recipe (section 4.3): SGD, batch size 20, momentum 0.9, learning rate 1e-4, 2x learning rate
for biases, weight decay 5e-4, original image sizes, no augmentation, no class balancing; the last
upsampling is fixed, the others are learned. The paper trains until convergence, about three days on
a GPU for 32s and one more for each finer network. Our schedule is 8,500 steps of 20 images (20
epochs). The learning rate assumes a mean over pixels; the paper does not say how its loss is
normalized.

Each network is initialized from the previous one:

  segjax train --config=configs/fcn/voc.py --workdir=runs/fcn32s \
    --config.data.source=benchmark_RELEASE/ --config.data.eval_source=VOCdevkit/ \
    --config.init_from.path=weights/vgg16.pth
  segjax train --config=configs/fcn/voc.py --workdir=runs/fcn16s … --config.model.variant=16s \
    --config.init_from.path=runs/fcn32s --config.init_from.source=none
  segjax train --config=configs/fcn/voc.py --workdir=runs/fcn8s … --config.model.variant=8s \
    --config.init_from.path=runs/fcn16s --config.init_from.source=none

FCN-32s-fixed, with only the score layer trained:
--config.optim.multipliers="(('^(?!score_)', 0.0), ('bias$', 2.0))".
Cost: needs a GPU; not run yet.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {'name': 'fcn.FCN', 'classes': 21, 'variant': '32s'}
  config.init_from = {'path': 'weights/vgg16.pth', 'source': 'torchvision/vgg16'}
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'sbd',
    'train_split': 'train',
    'eval_name': 'voc/2011',
    'eval_split': 'seg11valid',
    # No image is larger: images are padded, not cropped, and the padding is ignored.
    'size': {'crop_size': (500, 500)},
    # ImageNet statistics, RGB.
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
  }
  config.batch = {'size': 20, 'eval_size': 1}
  config.optim = {
    'name': 'sgd',
    'learning_rate': 1e-4,
    'momentum': 0.9,
    'weight_decay': 5e-4,
    'multipliers': (('bias$', 2.0),),
  }
  config.train = {'steps': 8_500, 'eval_every': 425, 'checkpoint_every': 425}
  return config
