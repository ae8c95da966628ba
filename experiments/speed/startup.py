"""From the start of a process to the end of its first step, and what it compiles."""

import functools
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from speed import commands
from speed.row import Options, Row, Work

# How often the file of metrics is looked at.
_LOOK = 0.01
_COMPILED = re.compile(r'Finished XLA compilation of (\S+)')
_DATA = {'data.name': 'scenes/tiny'}
# Config -> overrides with which it runs on the built-in scenes.
CONFIGS: dict[str, Mapping[str, object]] = {
  'unet/scenes': _DATA,
  'mask_rcnn/scenes_tiny': _DATA,
  'panoptic_fpn/scenes_tiny': _DATA,
  # The full network, whose program takes longest to trace and to read, on a small image.
  'mask_rcnn/coco_r50_fpn': {
    **_DATA,
    'data.eval_split': 'val',
    'data.size.short_side': '(128,)',
    'data.size.longest_side': 128,
    'data.size.shapes': '((128, 128),)',
    'batch.size': 1,
    'batch.workers': 0,
    'batch.eval_size': 1,
    'data.num_classes': 'none',
    'model.classes': 5,
    'init_from': 'none',
  },
}


class _Run:
  """Runs of a config, with data that are prepared once and a directory of compiled programs."""

  def __init__(self, config: str):
    self.config = config
    self.root = commands.scratch()
    self.count = 0

  def prepare(self) -> None:
    """Prepares the data set, in this process."""
    from segjax.data import datasets

    if not (self.root / 'data').exists():
      datasets.load('scenes/tiny', str(self.root / 'data'))

  def arguments(self, overrides: Mapping[str, object]) -> list[str]:
    self.count += 1
    workdir, given = self.root / f'run{self.count}', {**CONFIGS[self.config], **overrides}
    return commands.train_arguments(self.config, workdir, self.root / 'data', given)

  def first_step(self, cold: bool) -> float:
    """Seconds until the first line of metrics is written; the process is then ended."""
    self.prepare()
    cache = self.root / 'cache'
    if cold:
      shutil.rmtree(cache, ignore_errors=True)
    command = commands.line(*self.arguments({'train.log_every': 1}))
    metrics = self.root / f'run{self.count}' / 'metrics.jsonl'
    start = time.perf_counter()
    child = subprocess.Popen(
      command,
      env=commands.environment(cache),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      while not (metrics.exists() and '\n' in metrics.read_text()):
        if child.poll() is not None:
          raise RuntimeError(f'segjax train ended with {child.returncode}: {" ".join(command)}')
        time.sleep(_LOOK)
      return time.perf_counter() - start
    finally:
      child.kill()
      child.wait()

  def compiled(self, overrides: Mapping[str, object]) -> list[str]:
    """The names of the programs that a train and evaluate run compiles or reads."""
    self.prepare()
    env = {**commands.environment(self.root / 'cache'), 'JAX_LOG_COMPILES': '1'}
    return _COMPILED.findall(commands.segjax(*self.arguments(overrides), env=env))


def _first_step(config: str, cold: bool, options: Options) -> Work:
  del options
  run = _Run(config)
  if not cold:
    warm = functools.cache(lambda: run.first_step(cold=True))

    def after_warming() -> float:
      warm()
      return run.first_step(cold=False)

    return Work(after_warming)
  return Work(lambda: run.first_step(cold=True))


def _help(options: Options) -> Work:
  del options
  return Work(lambda: commands.segjax('--help') and 0)


def _compilations(config: str, options: Options) -> Work:
  """Programs that a run of eight steps and two evaluations compiles beyond one of half."""
  del options
  run = _Run(config)
  notes: dict[str, Any] = {}

  def count() -> int:
    common = {'train.log_every': 1, 'train.checkpoint_every': 4, 'train.eval_every': 4}
    # The same schedule, so that the programs are the same.
    common |= {'optim.schedule': 'constant', 'optim.warmup_steps': 0}
    half, whole = (run.compiled({**common, 'train.steps': steps}) for steps in (4, 8))
    notes['programs in all'] = len(whole)
    return len(whole) - len(half)

  return Work(count, notes=notes)


def _rows() -> dict[str, Row]:
  found = {'help': Row('segjax --help, processor time', _help, 0.5, value='own', reads='processor')}
  for config in CONFIGS:
    name = config.replace('/', '_')
    for state, cold, target in (('cold', True, None), ('warm', False, 6.0)):
      found[f'first_step_{name}_{state}'] = Row(
        f'{config}, start to the end of the first step, {state}',
        functools.partial(_first_step, config, cold),
        target,
        value='own',
        reads='result',
        rounds=1 if cold else 3,
        first=0,
      )
  for config in ('unet/scenes', 'mask_rcnn/scenes_tiny'):
    found[f'compilations_{config.replace("/", "_")}'] = Row(
      f'{config}, programs compiled after the first evaluation',
      functools.partial(_compilations, config),
      0,
      value='own',
      reads='result',
      unit='',
      rounds=1,
      first=0,
    )
  return found


ROWS = _rows()
