r"""SegNet-Basic and the other decoders of Table 1 (arXiv 1511.00561) on CamVid, for 2 CPU cores.

The recipe of basic_camvid.py at half resolution (180 x 240), with batches of 4 and few steps.
Figures: experiments/segnet_table1.

  segjax train --config=configs/segnet/basic_camvid_cpu.py --workdir=runs/basic \
    --config.data.source=CamVid/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {'name': 'segnet.SegNetBasic', 'classes': 11, 'variant': 'SegNet-Basic'}
  )
  config.losses = ml_collections.ConfigDict(
    {'softmax_cross_entropy': {'class_weights': 'median_frequency'}}
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('confusion', 'boundary')})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'camvid',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 4,
      'image_size': (180, 240),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 0.1,
      'momentum': 0.9,
      'schedule': 'cosine',
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'steps': 600,
      'eval_every': 200,
      'checkpoint_every': 200,
      'best_metric': 'pixel_accuracy',
    }
  )
  return config
