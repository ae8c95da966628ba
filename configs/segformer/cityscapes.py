r"""SegFormer (arXiv 2105.15203) on Cityscapes, from an encoder trained on ImageNet.

The argument is the size, by default b0. Mean IoU on val in percent, as published (Table 1) and in
mmsegmentation (segformer_mit-b*_8xb1-160k_cityscapes-1024x1024):

  size             b0     b1     b2     b3     b4     b5
  paper          76.2   78.5   81.0   81.7   82.3   82.4
  mmsegmentation 76.54  78.56  81.08  81.94  81.89  82.25

8 images per step, crops of 1024 x 1024 of images scaled by 0.5 to 2. Otherwise as ade20k.py.
Differences: images are evaluated whole, there by windows of 1024 x 1024 every 768 pixels; a class
may have all of a crop, there 75%; and colors are changed in other ways.

Cost: needs 4 to 8 GPUs; not run yet.

  segjax train --config=configs/segformer/cityscapes.py --workdir=runs/segformer_cityscapes \
    --config.data.source=cityscapes/

To evaluate a published network in place of that, such as the file of
nvidia/segformer-b2-finetuned-cityscapes-1024-1024 with the argument b2, add
--config.init_from.path=model.safetensors --config.init_from.source=transformers/segformer_b2
--config.train.steps=0
"""

import ml_collections

from segjax.config import base_config


def get_config(argument: str = 'b0') -> ml_collections.ConfigDict:
  config = base_config(__file__, 'ade20k.py', argument)
  config.model.classes = 19
  config.data.name = 'cityscapes'
  config.data.size = {'crop_size': (1024, 1024)}
  del config.augment.large_scale_jitter
  config.augment.scale = (0.5, 2.0)
  config.batch = {'size': 8}
  return config
