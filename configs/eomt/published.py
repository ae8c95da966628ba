r"""Published weights of EoMT (arXiv 2503.19108), evaluated without training.

The argument is another config of this directory and its size, large if it is left out: by default
coco_panoptic,large, of which the authors report a PQ of 56.0 on val2017; see
experiments/eomt_model_zoo for the others.

Cost: inference on 5,000 images; not run yet. `weights/eomt.bin` is `pytorch_model.bin` of the
authors' model zoo, see docs/weights.md.

  segjax train --config=configs/eomt/published.py --workdir=runs/eomt_published \
    --config.data.source=coco/ --config.init_from.path=weights/eomt.bin
"""

import ml_collections

from segjax.config import base_config


def get_config(argument: str = 'coco_panoptic,large') -> ml_collections.ConfigDict:
  name, _, size = argument.partition(',')
  size = size or 'large'
  config = base_config(__file__, f'{name}.py', size)
  config.model.annealing = ()
  config.init_from = {'path': 'weights/eomt.bin', 'source': f'eomt/{size}'}
  config.train = {'steps': 0, 'best_metric': config.train.best_metric}
  del config.optim
  return config
