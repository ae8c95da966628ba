r"""U-Net (arXiv 1505.04597) on the ISBI 2012 EM challenge, scaled down for 2 CPU cores.

The paper's recipe in isbi2012.py with a quarter of the channels, BatchNorm and AdamW. Results:
experiments/unet_table1. Cost: an hour on one busy core of 2.

  segjax train --config=configs/unet/isbi2012_cpu.py --workdir=runs/isbi \
    --config.data.source=isbi2012/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'isbi2012.py')
  config.model.update({'width': 16, 'norm': 'batch', 'dropout': 0.2})
  config.eval.test_time_augmentation = 'flip'
  config.data.weight_map.background_only = True
  config.optim = {
    'name': 'adamw',
    'learning_rate': 2e-3,
    'schedule': 'cosine',
    'warmup_steps': 50,
    'weight_decay': 1e-4,
  }
  config.train.update({'steps': 2_500, 'eval_every': 500, 'checkpoint_every': 500, 'images': 5})
  # The running averages are those of augmented tiles, which are still smoother than the images.
  config.train.recompute_batch_norm = True
  return config
