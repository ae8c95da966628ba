"""Where the rows work: commands in processes, recipes, and the runs that nothing disturbs."""

import collections
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax import main as program
from segjax import run as run_lib
from segjax.training.state import array_digests
from segjax.workdir import Workdir

ROOT = Path(__file__).resolve().parent.parent.parent
# Seconds after which a command hangs.
PATIENCE = 900.0
# Of the log's entries: what differs between two runs that do the same.
_TIMES = ('time', 'images_per_second')
_STEP = re.compile(r'step (\d+)/')
_START = re.compile(r'(?:resuming from|starting at) step (\d+)')


class Recipe(NamedTuple):
  """A training: a shipped config, shrunk, with what makes a lost state visible.

  Attributes:
    config: name of a shipped config.
    overrides: by key.
    steps: of the whole run.
  """

  config: str
  overrides: Mapping[str, object]
  steps: int

  def but(self, **changes: object) -> 'Recipe':
    """With other steps, or other overrides: `but(steps=3, train__eval_every=9)`."""
    steps = changes.pop('steps', self.steps)
    overrides = {key.replace('__', '.'): value for key, value in changes.items()}
    return self._replace(steps=steps, overrides={**self.overrides, **overrides})

  def arguments(self, workdir: Path, data: Path) -> list[str]:
    """Of `segjax train`."""
    given = {**self.overrides, 'data.dir': data, 'train.steps': self.steps}
    config = ROOT / 'configs' / f'{self.config}.py'
    keys = [f'--config.{key}={value}' for key, value in given.items()]
    return ['train', f'--config={config}', f'--workdir={workdir}', *keys]


_COMMON = {
  'data.name': 'scenes/tiny',
  'batch.size': 4,
  'optim.schedule': 'constant',
  'optim.warmup_steps': 0,
  'optim.ema': 0.9,
  'augment.elastic_sigma': 2,
  'train.log_every': 1,
  'train.images': 2,
}
SEMANTIC = Recipe(
  'unet/scenes',
  {
    **_COMMON,
    'data.size.image_size': '(32,32)',
    'model.width': 4,
    'model.depth': 2,
    'model.dropout': 0.3,
    'train.checkpoint_every': 5,
    'train.eval_every': 50,
  },
  steps=300,
)
INSTANCE = Recipe(
  'mask_rcnn/scenes_tiny',
  {
    **_COMMON,
    'data.size.shapes': '((64,64),)',
    'data.eval_split': 'val[:6]',
    'batch.eval_size': 4,
    'model.backbone.width': 4,
    'model.neck.features': 8,
    'model.box_head.hidden': 16,
    'model.box_head.max_detections': 5,
    'model.mask_head.features': 8,
    'model.mask_head.convs': 1,
    'model.rpn.train_proposals': '(40,20)',
    'model.rpn.test_proposals': '(40,20)',
    'train.checkpoint_every': 2,
    'train.eval_every': 30,
  },
  steps=90,
)


class Ended(NamedTuple):
  """How a command ended.

  Attributes:
    code: its exit code, negative for a signal; None if it hung and was killed.
    text: what it wrote on standard error.
  """

  code: int | None
  text: str

  def sentence(self) -> str | None:
    """The sentence with which it failed, or None if it did not or said more than that."""
    last = self.text.strip().rpartition('\n')[2]
    said = self.code == 2 and last.startswith('segjax: ') and 'Traceback' not in self.text
    return last.removeprefix('segjax: ') if said else None

  def describe(self) -> str:
    """In a few words."""
    if self.code is None:
      return 'hung'
    if self.code == 0:
      return 'done'
    if self.sentence():
      return 'one sentence'
    return 'a traceback' if 'Traceback' in self.text else f'exit code {self.code}'


class Command:
  """A command in a process, whose lines on standard error are read as they come."""

  def __init__(self, line: Sequence[str], environment: Mapping[str, str]):
    self.lines: list[str] = []
    self._changed = threading.Condition()
    self._read_all = False
    self.process = subprocess.Popen(
      line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    for line in self.process.stderr:
      with self._changed:
        self.lines.append(line)
        self._changed.notify_all()
    with self._changed:
      self._read_all = True
      self._changed.notify_all()

  def last_step(self) -> int | None:
    """The last step whose line was read."""
    return next((int(m[1]) for line in reversed(self.lines) if (m := _STEP.match(line))), None)

  def first_step(self) -> int | None:
    """The step that it starts at or resumes from."""
    return next((int(m[1]) for line in self.lines if (m := _START.search(line))), None)

  def wait_for_step(self, step: int) -> bool:
    """Waits for the line of a step; False if the command ended before, or hangs."""
    return self.wait(lambda: (self.last_step() or 0) >= step)

  def wait(self, condition: Any, seconds: float = PATIENCE) -> bool:
    """Waits for a condition on the lines; False if the command ended before, or hangs."""
    with self._changed:
      self._changed.wait_for(lambda: condition() or self._read_all, seconds)
      return condition()

  def signal(self, number: int) -> None:
    """Sends a signal; nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
      self.process.send_signal(number)

  def end(self, seconds: float = PATIENCE) -> Ended:
    """Waits for the end; kills a command that does not come to it."""
    try:
      code = self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      code = None
    self._reader.join(10)
    return Ended(code, ''.join(self.lines))

  def kill(self) -> Ended:
    """SIGKILL."""
    self.signal(signal.SIGKILL)
    return self.end()


class Place:
  """A directory with prepared data, compiled programs and runs."""

  def __init__(self, root: Path):
    self.root = root
    self.compiled = root / 'compiled'
    self._count = 0
    self._whole: dict[str, Path] = {}

  def environment(self, **more: str) -> dict[str, str]:
    """Of commands: this checkout, and caches below the root."""
    return {
      'JAX_PLATFORMS': 'cpu',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'PYTHONUNBUFFERED': '1',
      'XDG_CACHE_HOME': str(self.root / 'cache'),
      'JAX_COMPILATION_CACHE_DIR': str(self.compiled),
      **more,
    }

  def new(self, name: str) -> Path:
    """A path below the root that does not exist."""
    while (path := self.root / f'{name}{self._count}').exists():
      self._count += 1
    self._count += 1
    return path

  def start(self, *args: object, fault: Sequence[str] = (), **environment: str) -> Command:
    """Starts `segjax args`, with a fault of `inject.py` if one is named."""
    start = [str(Path(__file__).with_name('inject.py')), *fault] if fault else ['-m', 'segjax.main']
    return Command([sys.executable, *start, *map(str, args)], self.environment(**environment))

  def data(self) -> Path:
    """The directory of the prepared data."""
    data = self.root / 'data'
    if not data.exists():
      ended = self.start('data', 'prepare', 'scenes/tiny', f'--data_dir={data}').end()
      if ended.code:
        raise RuntimeError(f'segjax data prepare failed: {ended.text[-1000:]}')
    return data

  def train(self, recipe: Recipe, workdir: Path, **more: Any) -> Command:
    """Starts `segjax train`."""
    return self.start(*recipe.arguments(workdir, self.data()), **more)

  def undisturbed(self, recipe: Recipe) -> Path:
    """The workdir of a run of the recipe from its first to its last step."""
    key = json.dumps([recipe.config, recipe.steps, dict(recipe.overrides)])
    if key not in self._whole:
      # A directory that is kept has it already, and the command finds nothing left to do.
      workdir = self.root / f'whole-{hashlib.sha256(key.encode()).hexdigest()[:8]}'
      ended = self.train(recipe, workdir).end()
      if ended.code:
        raise RuntimeError(f'the undisturbed run failed: {ended.text[-1000:]}')
      self._whole[key] = workdir
    return self._whole[key]

  def copy(self, path: Path) -> Path:
    """A copy of a directory."""
    return Path(shutil.copytree(path, self.new(f'{path.name}_')))


def here(*args: object) -> tuple[Ended, str]:
  """Runs a command in this process: how it ended, and its standard output."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      code = program.main([str(a) for a in args])
    except Exception as error:  # what a user would see a traceback of
      code = 1
      print(f'Traceback: {type(error).__name__}: {error}', file=sys.stderr)
  return Ended(code, err.getvalue()), out.getvalue()


def state(workdir: Path) -> dict[str, str]:
  """The digest of each array of the newest checkpoint that can be read: parameters, statistics,
  optimizer, moving average and step.

  Raises:
    SegjaxError: no checkpoint can be read.
  """
  return array_digests(run_lib.restore(Workdir(str(workdir)), 'latest').state)


def differences(workdir: Path, whole: Path) -> Iterator[str]:
  """What a run that has ended lost, compared with one that nothing disturbed."""
  found, wanted = state(workdir), state(whole)
  if found['step'] != wanted['step']:
    yield 'the last steps'
  if found != wanted:
    yield 'the same state, bit for bit'
  logs = [_entries(directory) for directory in (workdir, whole)]
  counts = [collections.Counter((e['step'], e['split']) for e in log) for log in logs]
  if counts[0] - counts[1]:
    yield 'entries of the log once'
  if counts[1] - counts[0]:
    yield 'entries of the log'
  if not (counts[0] - counts[1] or counts[1] - counts[0]) and logs[0] != logs[1]:
    yield 'equal values in the log'


def _entries(workdir: Path) -> list[dict[str, Any]]:
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in lines]


def until(condition: Any, seconds: float, every: float = 0.001) -> bool:
  """Looks until a condition holds; False if it does not in time."""
  end = time.monotonic() + seconds
  while not condition():
    if time.monotonic() > end:
      return False
    time.sleep(every)
  return True
