r"""EoMT as published (arXiv 2503.19108) on COCO's panoptic task, at 640 x 640.

The authors' model zoo: PQ on val2017 46.7 (small, 24 epochs), 51.6 (base, 24 epochs), 56.0 (large)
and 57.0 (giant); the argument is the size, by default large. The ViT starts from DINOv2 with
register tokens. Recipe: AdamW, 16 images, 12 epochs of 7,391 steps, learning rate 1e-4 with poly
decay of power 0.9, 0.8 times for each block further from the last, weight decay 0.05; the ViT is
frozen for 500 steps and warmed up over 1,000 more; large-scale jitter from 0.1 to 2; gradients are
clipped to a norm of 0.01. Masked attention is annealed in the blocks one after the other, each over
a sixth of the training, from one sixth of it to five. All of this is in the authors' code and
configs. Here the computation is in bfloat16 instead of float16 with loss scaling, and images are
padded with the mean color instead of black.

Cost: the authors train large for 6 hours on 4 H100; not run yet. `weights/dinov2.pth` is DINOv2's
file for the size, see docs/weights.md; --config.init_from.path=none downloads it.

  segjax train --config=configs/eomt/coco_panoptic.py --workdir=runs/eomt_coco_panoptic \
    --config.data.source=coco/ --config.init_from.path=weights/dinov2.pth

coco_panoptic.py:large,20000 trains for 20,000 steps, and anneals in proportion. At 1280 x 1280 the
authors report a PQ of 58.3 (large) and 59.2 (giant): --config.data.size.image_size='(1280, 1280)'
--config.model.grid='(80, 80)'.
"""

import ml_collections

from segjax.config import base_config, choose

# Blocks of the ViT, those of them that carry queries, and epochs.
SIZES = {'small': (12, 3, 24), 'base': (12, 3, 24), 'large': (24, 4, 12), 'giant': (40, 5, 12)}
STEPS_AN_EPOCH = 7_391
LAYER_DECAY = 0.8


def layer_decay(depth: int) -> tuple[tuple[str, float], ...]:
  """Multipliers of the learning rate: 1 for the last block, and the embedding as the first."""
  rates = [LAYER_DECAY ** (depth - 1 - i) for i in range(depth)]
  return (('^embedding/', rates[0]), *((f'^block{i}/', rate) for i, rate in enumerate(rates)))


def annealing(blocks: int, steps: int) -> tuple[tuple[int, int], ...]:
  """(first step, last step) for each of the blocks with queries; none in a trial of a few steps."""
  sixth = steps // 6
  if not sixth:
    return ()
  starts = [int(sixth + i * 3 * sixth / (blocks - 1) + 0.5) for i in range(blocks)]
  return tuple((start, start + sixth) for start in starts)


def get_config(argument: str = 'large') -> ml_collections.ConfigDict:
  size, _, given = argument.partition(',')
  depth, blocks, epochs = choose(SIZES, size, __file__)
  steps = int(given) if given else epochs * STEPS_AN_EPOCH
  coco = base_config(__file__, '../panoptic_fpn/coco_r50.py')
  config = ml_collections.ConfigDict()
  config.task = 'panoptic'
  config.model = {
    'name': 'eomt.EoMT',
    'classes': 133,
    'size': size,
    'annealing': annealing(blocks, steps),
    'remat': True,
    'dtype': 'bfloat16',
  }
  config.init_from = {'path': 'weights/dinov2.pth', 'source': f'dinov2/{size}_reg4'}
  config.losses = {
    'query_class': {'scale': 2.0},
    'query_mask': {'scale': 5.0},
    'query_dice': {'scale': 5.0},
  }
  config.eval = {'metrics': ('pq',)}
  config.data = coco.data
  config.data.size = {'image_size': (640, 640), 'resize': 'fit', 'interpolation': 'area'}
  config.augment = {'large_scale_jitter': (0.1, 2.0), 'flip_horizontal': 0.5}
  config.batch = {'size': 16, 'max_segments': 200}
  config.optim = {
    'name': 'adamw',
    'learning_rate': 1e-4,
    'schedule': 'poly',
    'power': 0.9,
    'warmup_steps': 500,
    'weight_decay': 0.05,
    'decay_exclude': (),
    'multipliers': layer_decay(depth),
    'late': ((r'^(embedding|block\d+|head/norm)/', 500, 1_000),),
    'clip_norm': 0.01,
  }
  config.train = {
    'steps': steps,
    'eval_every': STEPS_AN_EPOCH,
    'checkpoint_every': STEPS_AN_EPOCH,
    'best_metric': 'pq',
  }
  return config
