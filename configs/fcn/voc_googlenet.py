r"""FCN-32s on GoogLeNet (arXiv 1411.4038) on PASCAL VOC 2011.

Paper: Table 1, mean IoU 42.5 on VOC 2011 val. Recipe (section 4.3): that of voc.py with a learning
rate of 5e-5. The network is torchvision's, with batch normalisation, for whose weights
`weights/googlenet.pth` it is made; the paper's was the authors' own. The paper's form, which starts
anew: --config.model.form=caffe --config.init_from=none. Figures: experiments/fcn_table1.

Cost: for a GPU; not run yet.

  segjax train --config=configs/fcn/voc_googlenet.py --workdir=runs/fcn_googlenet \
    --config.data.source=VOCdevkit/ --config.init_from.path=weights/googlenet.pth
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {'name': 'fcn.FCNGoogLeNet', 'classes': 21, 'form': 'torchvision'}
  )
  config.init_from = ml_collections.ConfigDict(
    {'path': 'weights/googlenet.pth', 'source': 'torchvision/googlenet'}
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
      # Of torchvision's weights of GoogLeNet.
      'mean': (127.5,),
      'std': (127.5,),
    }
  )
  config.optim = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'learning_rate': 5e-5,
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
