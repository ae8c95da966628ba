r"""FCN-32s on AlexNet (arXiv 1411.4038) on PASCAL VOC 2011.

Paper: Table 1, mean IoU 39.8 on VOC 2011 val; trained on SBD 48.0 on seg11valid. Recipe (section
4.3): that of voc.py with a learning rate of 1e-3. Trained on SBD: --config.data.name=sbd
--config.data.eval_name=voc/2011 --config.data.eval_split=seg11valid. `weights/alexnet.caffemodel`
is Caffe's bvlc_alexnet. Figures: experiments/fcn_table1.

Cost: for a GPU; not run yet.

  segjax train --config=configs/fcn/voc_alexnet.py --workdir=runs/fcn_alexnet \
    --config.data.source=VOCdevkit/ --config.init_from.path=weights/alexnet.caffemodel
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict({'name': 'fcn.FCNAlexNet', 'classes': 21})
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/alexnet.caffemodel', 'source': 'caffe/alexnet'}
  )
  config.losses = ml_collections.ConfigDict({'softmax_cross_entropy': {}})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'voc/2011',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 20,
      'eval_batch_size': 1,
      # No image is larger: each keeps its size, and what is beyond it is ignored.
      'crop_size': (500, 500),
      # What Caffe's weights want, for RGB.
      'mean': (122.67892, 116.66877, 104.00699),
      'std': (1.0,),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 1e-3,
      'momentum': 0.9,
      'weight_decay': 5e-4,
      'multipliers': (('bias$', 2.0),),
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 8_500,
      'eval_every': 425,
      'checkpoint_every': 425,
    }
  )
  return config
