"""The same run on every layout of devices and processes: losses, parameters and metrics."""

import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaling import processes
from segjax import main as program
from segjax import run as run_lib
from segjax.workdir import Workdir

STEPS = 3


class Layout(NamedTuple):
  """Processes, devices of each, and overrides of `config.mesh`."""

  processes: int
  devices: int
  mesh: tuple[str, ...] = ()
  split: bool = False  # of the image height, in semantic tasks

  @property
  def name(self) -> str:
    return ' '.join([f'{self.processes} × {self.devices}', *self.mesh])


# Processes × devices. The first one is what the others are compared with.
LAYOUTS = (
  Layout(1, 1),
  Layout(1, 2),
  Layout(1, 4),
  Layout(2, 2),
  Layout(1, 4, ('fsdp=true',)),
  Layout(2, 2, ('fsdp=true',)),
  Layout(1, 4, ('space=4',), split=True),
  Layout(2, 2, ('space=2',), split=True),
  Layout(2, 2, ('space=4',), split=True),
)

_COMMON = (
  'data.name=scenes/tiny',
  'data.eval_split=val[:6]',
  'batch.size=4',
  'batch.eval_size=4',
  # Small, so that rounding stays rounding: no sampled box changes sides.
  'optim.learning_rate=1e-4',
  # Adam divides by the gradient, also where that is nothing but rounding.
  'optim.name=sgd',
  'optim.schedule=constant',
  'optim.warmup_steps=0',
  'train.log_every=1',
  'train.images=0',
)
_OBJECTS = (
  *_COMMON,
  'data.size.shapes=((64,64),)',
  'model.backbone.width=8',
  'model.neck.features=16',
  'model.box_head.hidden=32',
  'model.box_head.score_threshold=0.0',
  'model.rpn.train_proposals=(40,20)',
  'model.rpn.test_proposals=(40,20)',
)
_OWN = Path(__file__).with_name('config.py')
_INSTANCE = ('mask_rcnn/scenes_tiny', (*_OBJECTS, 'optim.ema=0.9'))
_SEMANTIC = ('unet/scenes', (*_COMMON, 'model.width=16', 'model.depth=2', 'optim.ema=0.9'))
# Name -> (config, overrides).
NETWORKS = {
  'semantic: U-Net': _SEMANTIC,
  'semantic: SegNet with indices': (f'{_OWN}:segnet', (*_COMMON, 'optim.ema=0.9')),
  'semantic: FCN-8s': (f'{_OWN}:fcn', (*_COMMON, 'optim.ema=0.9')),
  'instance: Mask R-CNN': _INSTANCE,
  'panoptic: Panoptic FPN': (
    'panoptic_fpn/scenes_tiny',
    (*_OBJECTS, 'model.semantic.features=16', 'eval.score_threshold=0.1'),
  ),
  'panoptic: merged U-Net and Mask R-CNN': (
    'panoptic_fpn/merged_scenes',
    ('data.name=scenes/tiny', 'data.eval_split=val[:6]', 'batch.eval_size=4', 'train.images=0'),
  ),
}


def compare(network: str, cache: str) -> list[dict[str, Any]]:
  """Each layout compared with the first one."""
  del cache  # by XDG_CACHE_HOME
  config, overrides = NETWORKS[network]
  rows, first, steps = [], None, STEPS
  with tempfile.TemporaryDirectory() as directory:
    if 'merged' in network:  # is evaluated only
      overrides, steps = (*overrides, *train_parts(Path(directory))), 0
    for number, layout in enumerate(LAYOUTS):
      if layout.split and not network.startswith('semantic'):
        continue
      workdir = Path(directory) / str(number)
      train(layout, config, overrides, workdir, steps)
      found = read(workdir)
      first = first or found
      rows.append({'layout': layout.name, **differences(first, found)})
  return rows


def train_parts(directory: Path) -> list[str]:
  """Trains the networks to merge; returns the keys that name them."""
  parts = {'semantic': _SEMANTIC, 'instance': _INSTANCE}
  for name, (config, overrides) in parts.items():
    train(LAYOUTS[0], config, overrides, directory / name)
  return [f'model.{name}={directory / name}' for name in parts]


def train(
  layout: Layout, config: str, overrides: Sequence[str], workdir: Path, steps: int = STEPS
) -> None:
  data = layout.processes * layout.devices
  mesh = [f'mesh.{key}' for key in layout.mesh]
  mesh += [] if layout.split else [f'mesh.data={data}']
  keys = [*overrides, f'train.steps={steps}', f'train.eval_every={STEPS}', *mesh]
  args = ['train', f'--config={config}', f'--workdir={workdir}', *(f'--config.{k}' for k in keys)]
  if layout.processes == 1:
    if program.main(args):
      raise RuntimeError(f'{layout.name} failed')
    return
  command = lambda address, index: [
    *(sys.executable, '-m', 'segjax.main', *args),
    f'--distributed={address},{layout.processes},{index}',
  ]
  processes.run(command, layout.processes, layout.devices)


def read(workdir: Path) -> dict[str, Any]:
  """Losses of the steps, metrics of the evaluation, and the arrays of the last checkpoint."""
  records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in records if r['split'] == 'train']
  [metrics] = [r for r in records if r['split'] != 'train']
  metrics = {k: v for k, v in metrics.items() if isinstance(v, float) and not k.startswith('loss')}
  return {
    'losses': np.array(losses),
    'metrics': metrics,
    'arrays': run_lib.restore(Workdir(str(workdir)), 'latest').state,
  }


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
  """The largest relative differences of the losses and arrays, and that of the metrics.

  Arrays are compared with the largest element of their kind, such as the parameters: a bias before
  batch normalization has no gradient but rounding.
  """
  kind = lambda name: name.partition('.')[0]
  largest: dict[str, float] = {}
  for name, array in a['arrays'].items():
    largest[kind(name)] = max(largest.get(kind(name), 0.0), float(np.abs(array).max()))
  arrays = [
    np.abs(array - b['arrays'][name]).max() / largest[kind(name)]
    for name, array in a['arrays'].items()
    if largest[kind(name)] > 0
  ]
  metrics = [abs(a['metrics'][name] - b['metrics'][name]) for name in a['metrics']]
  return {
    'loss': float(np.max(np.abs(a['losses'] / b['losses'] - 1), initial=0)),
    'arrays': float(np.max(arrays)),
    'metrics': float(np.nanmax(metrics)),
  }


_NAMES = ('unet', 'segnet', 'fcn', 'mask_rcnn', 'panoptic_fpn', 'merged')
ROWS = {
  f'layouts_{name}': functools.partial(compare, network)
  for name, network in zip(_NAMES, NETWORKS, strict=True)
}
