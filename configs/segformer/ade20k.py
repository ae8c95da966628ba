r"""SegFormer (arXiv 2105.15203) on ADE20K, from an encoder trained on ImageNet.

The argument is the size, by default b0. Mean IoU on val in percent, as published (Table 1) and in
mmsegmentation, whose recipe this is (segformer_mit-b*_8xb2-160k_ade20k-512x512):

  size             b0     b1     b2     b3     b4     b5
  paper          37.4   42.2   46.5   49.4   50.3   51.0 (at 640 x 640)
  mmsegmentation 37.41  40.97  45.58  47.82  48.46  49.13

AdamW with 16 images per step for 160,000 steps, and ten times the learning rate behind the encoder.
Differences: images are scaled so that their longer side is 341 to 1365, which for one of 4:3 makes
the shorter 256 to 1024, as it is there for all images, and cropped or padded to 512 x 512, without
a rule for how much of a crop one class may have; colors are changed in other ways;
images are evaluated with a shorter side of 512, padded to one of a few shapes, and the mean IoU is
computed at that size, not at the images' own.

Cost: needs a GPU (b0) to 8 GPUs; not run yet.

  segjax train --config=configs/segformer/ade20k.py --workdir=runs/segformer_ade20k \
    --config.data.source=ADEChallengeData2016/

Evaluates the published network in place of that:

  segjax train --config=configs/segformer/ade20k.py:b2 --workdir=runs/segformer_published \
    --config.data.source=ADEChallengeData2016/ --config.init_from.source=transformers/segformer_b2 \
    --config.train.steps=0
"""

import ml_collections


def get_config(argument: str = 'b0') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {'name': 'segformer.SegFormer', 'classes': 150, 'size': argument}
  config.init_from = {'source': f'transformers/mit_{argument}'}
  config.losses = {'softmax_cross_entropy': {}}
  config.data = {
    'name': 'ade20k',
    'train_split': 'train',
    'eval_split': 'val',
    'size': {
      'resize': 'fit',
      'image_size': (512, 512),  # in training; in evaluation:
      'short_side': (512,),
      'longest_side': 4096,
      'shapes': tuple(
        shape for side in (704, 1024, 2048, 4096) for shape in ((512, side), (side, 512))
      ),
    },
    # ImageNet statistics, RGB.
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
  }
  config.augment = {
    'flip_horizontal': 0.5,
    'large_scale_jitter': (2 / 3, 8 / 3),
    'brightness': 0.125,
    'contrast': 0.5,
    'saturation': 0.5,
  }
  config.batch = {'size': 16, 'eval_size': 4}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 6e-5,
    'schedule': 'poly',
    'power': 1.0,
    'warmup_steps': 1_500,
    'warmup_factor': 1e-6,
    'weight_decay': 0.01,
    'multipliers': (('^(?!backbone/)', 10.0),),
  }
  config.train = {'steps': 160_000, 'eval_every': 16_000, 'checkpoint_every': 16_000}
  return config
