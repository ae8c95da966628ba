"""The commands of segjax in this process, and the shipped configs of the scenes, shrunk."""

import json
from pathlib import Path

from segjax import main as program
from segjax.run import restore
from segjax.workdir import Workdir

ROOT = Path(__file__).parent.parent.parent
CONFIGS = {
  'semantic': f'--config={ROOT / "configs/unet/scenes.py"}',
  'instance': f'--config={ROOT / "configs/mask_rcnn/scenes_tiny.py"}',
  'panoptic': f'--config={ROOT / "configs/panoptic_fpn/scenes_tiny.py"}',
  'merged': f'--config={ROOT / "configs/panoptic_fpn/merged_scenes.py"}',
}
_COMMON = [
  'data.name=scenes/tiny',
  'batch.size=4',
  # A learning rate that does not depend on the steps: one compilation for runs of any length.
  'optim.schedule=constant',
  'optim.warmup_steps=0',
  'train.log_every=1',
  'train.images=2',
]
# Of the two networks with objects: as few channels as they can have.
_OBJECTS = [
  *_COMMON,
  'data.size.shapes=((64,64),)',
  'data.eval_split=val[:6]',
  'batch.eval_size=4',
  'model.backbone.width=4',
  'model.neck.features=8',
  'model.box_head.hidden=16',
  'model.box_head.score_threshold=0.0',
  'model.box_head.max_detections=5',
  'model.mask_head.features=8',
  'model.mask_head.convs=1',
  'model.rpn.train_proposals=(40,20)',
  'model.rpn.test_proposals=(40,20)',
  'train.eval_every=2',
  'train.checkpoint_every=1',
]
_SMALL = {
  'semantic': [
    *_COMMON,
    'data.size.image_size=(32,32)',
    # Other than the instance network's, which a merged network has to reconcile.
    'data.mean=(120.0,)',
    'data.std=(60.0,)',
    'model.width=2',
    'model.depth=2',
    'train.eval_every=2',
    'train.checkpoint_every=2',
  ],
  'instance': [*_OBJECTS, 'eval.draw_threshold=0.0'],
  'panoptic': [
    *_OBJECTS,
    'model.semantic.features=8',
    'eval.score_threshold=0.1',
    'eval.metrics=("pq",)',
  ],
}
SMALL = {task: [f'--config.{key}' for key in keys] for task, keys in _SMALL.items()}


def run(*args):
  """The exit code of `segjax args`."""
  return program.main([str(a) for a in args])


def train_args(workdir, *args, task='semantic', steps=2):
  """The command line that trains the small network of a task."""
  steps = f'--config.train.steps={steps}'
  return ['train', CONFIGS[task], f'--workdir={workdir}', *SMALL[task], steps, *args]


def train(workdir, *args, **kwargs):
  """The exit code of the training of `train_args`."""
  return run(*train_args(workdir, *args, **kwargs))


def fails(capsys, *args):
  """The sentence that a failing command prints."""
  capsys.readouterr()
  assert run(*args) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'Traceback' not in captured.err
  last = captured.err.strip().splitlines()[-1]
  assert last.startswith('segjax: ')
  return last


def output(capsys, *args):
  """The JSON that a command prints."""
  capsys.readouterr()
  assert run(*args, '--json') == 0
  return json.loads(capsys.readouterr().out)


def info(workdir, capsys):
  return output(capsys, 'info', f'--workdir={workdir}')


def read_log(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def arrays(workdir):
  """The arrays of the newest checkpoint by name."""
  return restore(Workdir(workdir), 'latest').state
