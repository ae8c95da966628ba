r"""U-Net (arXiv 1505.04597), same-padded, on the trimaps of Oxford-IIIT Pet.

An example of a TFDS data set with masks, used by config alone: segjax prepares the same features as
TFDS, without TensorFlow.

Cost: needs a GPU; not run yet. The paper has no result for it.

  segjax data prepare oxford_iiit_pet
  segjax train --config=configs/unet/oxford_iiit_pet.py --workdir=runs/pet
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {
    'name': 'unet.UNet',
    'classes': 3,
    'width': 32,
    'padding': 'same',
    'norm': 'batch',
  }
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'oxford_iiit_pet',
    'train_split': 'train',
    'eval_split': 'test',
    'size': {'image_size': (128, 128)},
    'label_key': 'segmentation_mask',
    'label_offset': -1,
    'class_names': ('pet', 'background', 'border'),
  }
  config.augment = {'flip_horizontal': 0.5}
  config.batch = {'size': 16}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 1e-3,
    'schedule': 'cosine',
    'weight_decay': 1e-4,
  }
  config.train = {'steps': 10_000, 'eval_every': 1_000, 'checkpoint_every': 1_000}
  return config
