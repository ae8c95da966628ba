r"""FCN on VGG16 as the authors released it (arXiv 1411.4038), on PASCAL VOC, trained on SBD.

Released networks on seg11valid, mean IoU: 32s 63.63, 16s 65.01, 8s 65.51, 8s at-once 65.40. Recipe:
batch size 1, the loss summed over pixels, momentum 0.99, weight decay 5e-4, 2x learning rate and no
decay for biases, a fixed learning rate of 1e-10 (16s: 1e-12, 8s: 1e-14; at-once: 1e-10), 100,000
steps (at-once: 300,000), fixed upsampling. The authors' input is mean-subtracted BGR, for Caffe's
VGG16; for these weights set init_from.source=caffe/vgg16 and the mean and std that `segjax convert`
prints.

  segjax train --config=configs/fcn/voc_released.py --workdir=runs/fcn32s \
    --config.data.source=benchmark_RELEASE/ --config.data.eval_source=VOCdevkit/ \
    --config.init_from.path=weights/vgg16.pth
  segjax train --config=configs/fcn/voc_released.py --workdir=runs/fcn16s … \
    --config.model.variant=16s --config.optim.learning_rate=1e-12 \
    --config.init_from.path=runs/fcn32s --config.init_from.source=none
  segjax train --config=configs/fcn/voc_released.py --workdir=runs/fcn8s … \
    --config.model.variant=8s --config.optim.learning_rate=1e-14 \
    --config.init_from.path=runs/fcn16s --config.init_from.source=none

Cost: needs a GPU; not run yet.
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'voc.py')
  config.model.learned = 'none'
  config.losses.softmax_cross_entropy.divide_by = 'images'
  config.batch = {'size': 1}
  config.optim.update({'learning_rate': 1e-10, 'momentum': 0.99})
  config.train = {'steps': 100_000, 'eval_every': 4_000, 'checkpoint_every': 4_000}
  return config
