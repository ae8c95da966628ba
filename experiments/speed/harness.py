"""Measures a row: its programs take turns in this process, round by round."""

import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from speed import machine
from speed.row import Options, Program, Row, Work

# A sample of a short program is the mean of as many runs as fill this time.
SAMPLE_SECONDS = 0.05
# Before each sample: the threads of the program before it stop spinning.
PAUSE_SECONDS = 0.05


class Sample(NamedTuple):
  """A run, or the mean of several.

  Attributes:
    wall, processor, system: seconds; processor time is that of all threads and child processes, of
      which `system` is the kernel's part.
    faults: page faults without input or output.
    result: what the program returned.
  """

  wall: float
  processor: float
  system: float
  faults: float
  result: Any


def sample(run: Program, repeats: int = 1) -> Sample:
  """Runs a program `repeats` times."""
  before, start = _usage(), time.perf_counter()
  for _ in range(repeats):
    result = run()
  wall = time.perf_counter() - start
  user, system, faults = (_usage() - before) / repeats
  return Sample(wall / repeats, user + system, system, faults, result)


def measure(row: Row, options: Options, rounds: int) -> dict[str, Any]:
  """Makes and runs the programs of a row.

  Args:
    row: what to measure.
    options: of its programs.
    rounds: how often each program runs; `row.rounds` may bound it.

  Returns:
    The part of a result that is measured, as plain JSON values: `programs`, `value`, `least` and
    `greatest` of the rounds, `peer` (the name of the fastest, or None), `missing` (the package that
    the peer lacks), `same`, `cost`, `peak` and `notes`.

  Raises:
    AssertionError: the programs do not do the same work.
  """
  work, missing = make(row, options)
  programs = {'ours': work.ours, **work.peers}
  first = {name: [sample(run) for _ in range(row.first)] for name, run in programs.items()}
  same = None
  if work.same and work.peers and row.first:
    results = {name: [s.result for s in samples] for name, samples in first.items()}
    same = work.same(results.pop('ours'), results)
  repeats = {name: _repeats(samples) for name, samples in first.items()}
  del first
  gc.collect()
  peak = machine.peak(options.dtype) if work.cost else None
  rounds = min(rounds, row.rounds or rounds)
  seen = _take_turns(programs, repeats, rounds)
  return {
    **compare(row, seen),
    'missing': missing,
    'same': same,
    'rounds': rounds,
    'programs': {name: summary(samples) for name, samples in seen.items()},
    'cost': work.cost._asdict() if work.cost else None,
    'peak': peak,
    'notes': dict(work.notes),
  }


def make(row: Row, options: Options) -> tuple[Work, str | None]:
  """The programs of a row, without the peers if a package of theirs is not installed: its name."""
  try:
    return row.make(options), None
  except ModuleNotFoundError as error:
    if not options.peers or error.name.partition('.')[0] == 'segjax':
      raise
    return row.make(Options(**{**vars(options), 'peers': False})), error.name


def compare(row: Row, seen: Mapping[str, list[Sample]]) -> dict[str, Any]:
  """The value of a row, of its rounds; `peer` is the best by its median."""
  read = {name: [_read(row, s) for s in samples] for name, samples in seen.items()}
  ours, peer = read.pop('ours'), None
  values = ours
  if row.value != 'own':
    if not read:
      return {'value': None, 'least': None, 'greatest': None, 'peer': None}
    peer = min(read, key=lambda name: statistics.median(read[name]))
    pairs = list(zip(ours, read[peer], strict=True))
    values = [a / b if row.value == 'ratio' else b / a for a, b in pairs]
  return {
    'value': statistics.median(values),
    'least': min(values),
    'greatest': max(values),
    'peer': peer,
  }


def summary(samples: list[Sample]) -> dict[str, Any]:
  """Medians of the samples of a program, and the wall time of each round."""
  middle = lambda field: statistics.median(getattr(s, field) for s in samples)
  numbers = [s.result for s in samples if isinstance(s.result, int | float)]
  return {
    'wall': middle('wall'),
    'processor': middle('processor'),
    'system': middle('system'),
    'faults': round(middle('faults')),
    'rounds': [s.wall for s in samples],
    'result': statistics.median(numbers) if numbers else None,
  }


def close(ours: Any, theirs: Any, tolerance: float, what: str, share: float = 1.0) -> str:
  """Asserts that arrays agree to `tolerance` times the greatest magnitude, and says so.

  Args:
    ours, theirs: an array, or a list of arrays, of which each has to agree.
    tolerance: relative to the greatest magnitude in an array.
    what: plural noun for the sentence.
    share: of the values of each array that have to agree.
  """
  pairs = zip(*(x if isinstance(x, list | tuple) else [x] for x in (ours, theirs)), strict=True)
  worst = 0.0
  for a, b in pairs:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f'{what}: shapes {a.shape} and {b.shape}'
    difference = np.quantile(np.abs(a - b), share)
    error = float(difference / max(np.abs(b).max(), 1e-30))
    assert error <= tolerance, f'{what} differ by {error:.1e}'  # also if it is NaN
    worst = max(worst, error)
  counted = what if share == 1 else f'{share:.0%} of {what}'
  if not worst:
    return f'{counted} equal bit for bit'
  return f'{counted} equal to {10.0 ** math.ceil(math.log10(worst)):.0e}'


def _take_turns(
  programs: Mapping[str, Program], repeats: Mapping[str, int], rounds: int
) -> dict[str, list[Sample]]:
  seen: dict[str, list[Sample]] = {name: [] for name in programs}
  for _ in range(rounds):
    for name, run in programs.items():
      time.sleep(PAUSE_SECONDS)
      seen[name].append(sample(run, repeats[name]))
      if not isinstance(seen[name][-1].result, int | float):
        seen[name][-1] = seen[name][-1]._replace(result=None)  # arrays would fill the memory
  return seen


def _read(row: Row, taken: Sample) -> float:
  return float(getattr(taken, row.reads))


def _repeats(first: list[Sample]) -> int:
  """How many runs a sample has; one, if there was no run before."""
  return max(1, math.ceil(SAMPLE_SECONDS / max(first[-1].wall, 1e-6))) if first else 1


def _usage() -> np.ndarray:
  """User and system seconds and page faults of this process and its finished children."""
  own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return sum(np.array([u.ru_utime, u.ru_stime, u.ru_minflt], float) for u in (own, children))


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0))
