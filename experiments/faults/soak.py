"""A long training: whether memory, files, threads or compilations grow."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faults.place import Command, Place, Recipe
from faults.row import Options, Outcome

# Seconds between two samples.
_EVERY = 2.0
# The part of the run that is left out at its start: allocators, caches and pools fill up.
_WARM_UP = 0.25
# Slopes of memory below this share of it an hour are no growth, whatever their error.
_SHARE = 0.02
_TICKS = os.sysconf('SC_CLK_TCK')


class Sample(NamedTuple):
  """Of a process.

  Attributes:
    processor: seconds of processor time so far.
    memory: resident bytes.
    files: open file descriptors.
    threads: their number.
    compiled: programs compiled so far, or read from the cache.
    step: the last one of the log.
  """

  processor: float
  memory: float
  files: int
  threads: int
  compiled: int
  step: int


def sample(command: Command) -> Sample | None:
  """Of a command that runs with `JAX_LOG_COMPILES`; None if it has ended."""
  path = Path(f'/proc/{command.process.pid}')
  try:
    # After the name of the program, which may have spaces.
    stat = (path / 'stat').read_text().rpartition(')')[2].split()
    status = _status(path)
    files = len(list((path / 'fd').iterdir()))
  except OSError:
    return None
  if 'VmRSS' not in status:
    return None
  return Sample(
    processor=(int(stat[11]) + int(stat[12])) / _TICKS,
    memory=1024 * int(status['VmRSS'].split()[0]),
    files=files,
    threads=int(status['Threads']),
    compiled=sum('Finished XLA compilation' in line for line in list(command.lines)),
    step=command.last_step() or 0,
  )


def _status(process: Path) -> dict[str, str]:
  return dict(line.split(':', 1) for line in (process / 'status').read_text().splitlines())


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Of the least-squares line through samples, and its standard error.

  Args:
    x, y: f[n], n of 3 or more.
  """
  x = x - x.mean()
  value = float(x @ y / (x @ x))
  rest = y - y.mean() - value * x
  return value, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def soak(recipe: Recipe):
  """Trains for `options.minutes` of processor time, with evaluations and checkpoints."""

  def run(place: Place, options: Options) -> Outcome:
    outcome, samples = Outcome(tries=1), []
    workdir = place.new('soak')
    command = place.train(recipe, workdir, JAX_LOG_COMPILES='1')
    try:
      while found := sample(command):
        samples.append(found)
        if found.processor > 60 * options.minutes:
          break
        time.sleep(_EVERY)
    finally:
      ended = command.kill()
    if ended.code == 0 or ended.sentence() or not samples:
      raise RuntimeError(f'the run ended before its time: {ended.text[-500:]}')
    judge(samples, outcome)
    outcome.notes['arrays of a checkpoint'] = arrays_of_newest(workdir)
    return outcome

  return run


def saves_alone(*arrays: int):
  """As many arrays saved by Orbax without segjax, in a process each."""

  def run(place: Place, options: Options) -> Outcome:
    del place, options
    outcome = Outcome(tries=len(arrays))
    for count in arrays:
      script = Path(__file__).with_name('orbax_alone.py')
      ended = subprocess.run(
        [sys.executable, script, str(count)], check=True, capture_output=True, text=True
      )
      found = json.loads(ended.stdout)
      outcome.happened['saves'] += found['saves']
      outcome.notes[f'bytes a save of {count} arrays'] = found['bytes a save']
    return outcome

  return run


def arrays_of_newest(workdir: Path) -> int:
  """That the newest checkpoint lists; 0 without one."""
  steps = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
  if not steps:
    return 0
  newest = max(steps, key=lambda path: int(path.name))
  return len(json.loads((newest / 'state' / '_METADATA').read_text())['tree_metadata'])


def judge(samples: list[Sample], outcome: Outcome) -> None:
  """What grew in the samples of a run, as figures and as what was lost."""
  outcome.happened['samples'] = len(samples)
  kept = samples[int(_WARM_UP * len(samples)) :]
  hours = np.array([s.processor for s in kept]) / 3600
  value, error = slope(hours, np.array([s.memory for s in kept]))
  mean = float(np.mean([s.memory for s in kept]))
  steps = kept[-1].step - kept[0].step
  outcome.notes |= {
    'steps': kept[-1].step,
    'processor minutes': round(samples[-1].processor / 60, 1),
    'resident memory, MB': round(mean / 1e6),
    'slope of it, MB an hour of processor time': f'{value / 1e6:.2f} ± {error / 1e6:.2f}',
    'bytes a step': round(value * (hours[-1] - hours[0]) / max(steps, 1)),
  }
  if value > max(3 * error, _SHARE * mean):
    outcome.lost['memory that grows'] += 1
  for name, of in (('open files', 'files'), ('threads', 'threads'), ('compilations', 'compiled')):
    counts = [getattr(s, of) for s in kept]
    outcome.notes[name] = f'{min(counts)} to {max(counts)}, {counts[0]} then {counts[-1]}'
    grown, error = slope(hours, np.array(counts, float))
    if counts[-1] > counts[0] and grown > 3 * error:
      outcome.lost[f'{name} that grow'] += 1
