r"""FCN-32s on GoogLeNet (arXiv 1411.4038) on PASCAL VOC 2011.

Paper: Table 1, mean IoU 42.5 on VOC 2011 val. Recipe (section 4.3): as voc.py with a learning rate
of 5e-5. The network is torchvision's, with batch normalization, to load its weights
`weights/googlenet.pth`; the paper used the authors' own network. The paper's network, from scratch:
--config.model.form=caffe --config.init_from=none. Results: experiments/fcn_table1.

Cost: needs a GPU; not run yet.

  segjax train --config=configs/fcn/voc_googlenet.py --workdir=runs/fcn_googlenet \
    --config.data.source=VOCdevkit/ --config.init_from.path=weights/googlenet.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'voc.py')
  config.model = {'name': 'fcn.FCNGoogLeNet', 'classes': 21, 'form': 'torchvision'}
  config.init_from = {'path': 'weights/googlenet.pth', 'source': 'torchvision/googlenet'}
  config.data.update({'name': 'voc/2011', 'eval_name': None, 'eval_split': 'val'})
  # Statistics of torchvision's GoogLeNet weights.
  config.data.update({'mean': (127.5,), 'std': (127.5,)})
  config.optim.learning_rate = 5e-5
  return config
