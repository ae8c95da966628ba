"""A synthetic paper with a table of two rows to train, the second starting from the first."""

import dataclasses

from segjax.tables import results

CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
    'task': 'semantic',
    'model': {'name': 'unet.UNet', 'classes': 9, 'width': 2, 'depth': 1, 'padding': 'same'},
    'losses': {'softmax_cross_entropy': {}},
    'data': {'name': 'scenes/tiny', 'size': {'image_size': (16, 16)}},
    'batch': {'size': 4},
    'optim': {'name': 'adamw', 'learning_rate': 1e-3},
    'train': {'steps': 2, 'log_every': 1, 'eval_every': 1, 'checkpoint_every': 1, 'images': 1},
  })
"""

TABLE = """
title = 'A paper, Table 1'
source = 'Author, arXiv 0000.00000, Table 1'
split = 'val'
notes = 'What else | there is.'

[legend]
mIoU = 'mean IoU'
Second = 'the one after the first'

[columns]
'mIoU' = { key = 'mean_iou', scale = 100, digits = 1 }
'sky' = { key = 'per_class.sky.iou', digits = 3, lower_is_better = true }
'size' = { key = 'parameters', scale = 1e-3, digits = 2, computed = true }
'price' = {}

[recipes.small]
config = 'configs/tiny/small.py'
differs = 'It is small.'
cost = 'seconds.'

[recipes.measured]
script = 'experiments/tiny_table1/measure.py'
differs = 'It is a script.'
cost = 'nothing.'

[rows.second]
title = 'Second'
paper = { 'mIoU' = 62.70, 'price' = 3 }
overrides.'optim.learning_rate' = 5e-4
init_from = 'first'
recipes.small = {}

[rows.first]
title = 'First'
paper = { 'mIoU' = 60.0, 'size' = .00125 }
source = 'elsewhere'
unverified = true
recipes.small.overrides.'eval.test_time_augmentation' = 'flip'
recipes.measured = {}

[rows.other]
title = 'Other | method'
paper = { 'mIoU' = 50 }
recipes = {}
"""


def write_table(root, text=TABLE):
  """The directory of a table in `root`, with its config and script."""
  files = {
    'experiments/tiny_table1/table.toml': text.replace('= .', '= 0.'),
    'experiments/tiny_table1/measure.py': 'import sys\nsys.exit(3)\n',
    'configs/tiny/small.py': CONFIG,
  }
  for name, content in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)
  return root / 'experiments/tiny_table1'


def make_record(**changes):
  base = results.Record(
    row='first', recipe='small', metrics={'mean_iou': 0.5}, seed=0, step=2, steps=2
  )
  return dataclasses.replace(base, **changes)
