r"""EoMT as published (arXiv 2503.19108) on ADE20K's panoptic task, at 640 x 640.

The authors' model zoo: PQ on val 50.6 (large) and 51.3 (giant), from their weights for COCO without
the class head; the argument is the size, by default large; small and base are not published.
31 epochs of 1,262 steps, and color jitter: in the authors' code brightness, contrast,
saturation and hue each with probability 1/2, here all of them at once. Otherwise as
configs/eomt/coco_panoptic.py.

Cost: needs 4 to 8 GPUs; not run yet. `weights/eomt.bin` is the authors' `pytorch_model.bin` for
COCO's panoptic task at 640 x 640, see docs/weights.md; --config.init_from.path=none downloads it.

  segjax train --config=configs/eomt/ade20k_panoptic.py --workdir=runs/eomt_ade20k_panoptic \
    --config.data.source=ADEChallengeData2016/ --config.init_from.path=weights/eomt.bin

At 1280 x 1280 the authors report a PQ of 51.7 (large) and 52.8 (giant), from their weights for COCO
at that size: --config.data.size.image_size='(1280, 1280)' --config.model.grid='(80, 80)'.
"""

import ml_collections

from segjax.config import base_config

STEPS_AN_EPOCH = 1_262
EPOCHS = 31
# Of the base config's data set, which this one knows itself.
FACTS = ('num_classes', 'things', 'category_ids')


def get_config(argument: str = 'large') -> ml_collections.ConfigDict:
  size, _, steps = argument.partition(',')
  steps = steps or EPOCHS * STEPS_AN_EPOCH
  config = base_config(__file__, 'coco_panoptic.py', f'{size},{steps}')
  config.model.classes = 150
  config.init_from = {'path': 'weights/eomt.bin', 'source': f'eomt/{size}', 'reset': 'heads'}
  for key in FACTS:
    del config.data[key]
  config.data.name = 'ade20k_panoptic'
  config.augment.update({'brightness': 0.125, 'contrast': 0.5, 'saturation': 0.5, 'hue': 0.05})
  config.train.update({'eval_every': STEPS_AN_EPOCH, 'checkpoint_every': STEPS_AN_EPOCH})
  return config
