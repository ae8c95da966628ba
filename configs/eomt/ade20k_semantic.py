r"""EoMT as published (arXiv 2503.19108) on ADE20K's semantic task, at 512 x 512.

The authors' model zoo: mean IoU on val 58.4 (large); the argument is the size, by default large;
the others are not published. 100 queries, scales from 0.5 to 2, and the ViT starts from DINOv2.
Otherwise as configs/eomt/ade20k_panoptic.py, with its schedule and its changes of color. Images are
evaluated with a shorter side of 512, by windows of 512 x 512 along the longer one; the mean IoU is
computed at that size, and the authors' at the images' own.

Cost: needs 4 to 8 GPUs; not run yet. `weights/dinov2.pth` is DINOv2's file for the size.

  segjax train --config=configs/eomt/ade20k_semantic.py --workdir=runs/eomt_ade20k_semantic \
    --config.data.source=ADEChallengeData2016/ --config.init_from.path=weights/dinov2.pth
"""

import ml_collections

from segjax.config import base_config


def get_config(argument: str = 'large') -> ml_collections.ConfigDict:
  size, _, _ = argument.partition(',')
  config = base_config(__file__, 'ade20k_panoptic.py', argument)
  config.task = 'semantic'
  config.model.update({'queries': 100, 'grid': (32, 32)})
  config.init_from = {'path': 'weights/dinov2.pth', 'source': f'dinov2/{size}_reg4'}
  config.eval = {'metrics': ('confusion',), 'window': (512, 512)}
  config.data.name = 'ade20k'
  config.data.size.update(
    {
      'image_size': (512, 512),  # in training; in evaluation:
      'short_side': (512,),
      'longest_side': 4096,
      'shapes': tuple(
        shape for side in (704, 1024, 2048, 4096) for shape in ((512, side), (side, 512))
      ),
    }
  )
  config.augment.large_scale_jitter = (0.5, 2.0)
  config.batch = {'size': 16, 'eval_size': 4}
  config.train.best_metric = 'mean_iou'
  return config
