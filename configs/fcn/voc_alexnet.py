r"""FCN-32s on AlexNet (arXiv 1411.4038) on PASCAL VOC 2011.

Paper: Table 1, mean IoU 39.8 on VOC 2011 val; trained on SBD 48.0 on seg11valid. Recipe (section
4.3): as voc.py with a learning rate of 1e-3. To train on SBD: --config.data.name=sbd
--config.data.eval_name=voc/2011 --config.data.eval_split=seg11valid. `weights/alexnet.caffemodel`
is Caffe's bvlc_alexnet. Results: experiments/fcn_table1.

Cost: needs a GPU; not run yet.

  segjax train --config=configs/fcn/voc_alexnet.py --workdir=runs/fcn_alexnet \
    --config.data.source=VOCdevkit/ --config.init_from.path=weights/alexnet.caffemodel
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'voc.py')
  config.model = {'name': 'fcn.FCNAlexNet', 'classes': 21}
  config.init_from = {'path': 'weights/alexnet.caffemodel', 'source': 'caffe/alexnet'}
  config.data.update({'name': 'voc/2011', 'eval_name': None, 'eval_split': 'val'})
  # Statistics of Caffe's weights, RGB.
  config.data.update({'mean': (122.67892, 116.66877, 104.00699), 'std': (1.0,)})
  config.optim.learning_rate = 1e-3
  return config
