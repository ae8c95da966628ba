"""Runs segjax with a fault inside the process: `inject.py FAULT ARGUMENT -- segjax's arguments`.

  python experiments/faults/inject.py nan=7 train --config=unet/scenes --workdir=runs/scenes

`nan=K`: the loss of step K is NaN, and so is its gradient.
`clock=SEED`: `time.time` jumps by up to a day, every 0.2 seconds. (libfaketime, which would move
the clock of libraries in C++ too, breaks their monotonic waits.)
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
  sys.path[:1] = [str(Path(__file__).resolve().parent.parent.parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402

from segjax import main as program  # noqa: E402
from segjax import run as run_lib  # noqa: E402

# Key of a batch: f32[B], what each loss is multiplied by, less 1.
_KEY = 'fault'
# Seconds.
_DAY = 86_400
_BETWEEN_JUMPS = 0.2


def nan(step: int) -> None:
  """Makes the loss of a step NaN, in each task: the batches carry the fault, the losses read it."""
  assemble, train_batches = run_lib.assemble, run_lib.train_batches

  def with_fault(*args: Any, **kwargs: Any) -> Any:
    run, builder = assemble(*args, **kwargs)
    spec = {**run.task.batch_spec, _KEY: jax.sharding.PartitionSpec('data')}
    task = dataclasses.replace(run.task, batch_spec=spec, losses=_faulty(run.task.losses))
    return dataclasses.replace(run, task=task), builder

  def marked(*args: Any, start_step: int = 0, **kwargs: Any) -> Iterator[Any]:
    batches = train_batches(*args, start_step=start_step, **kwargs)
    try:
      for count, (batch, names) in enumerate(batches, start_step + 1):
        fault = np.full(len(names), np.nan if count == step else 0, np.float32)
        yield {**batch, _KEY: fault}, names
    finally:
      batches.close()

  run_lib.assemble, run_lib.train_batches = with_fault, marked


def _faulty(losses: Callable[..., Any]) -> Callable[..., Any]:
  def call(outputs: Any, batch: Any) -> Any:
    found = losses(outputs, batch)
    if _KEY not in batch:  # in evaluation
      return found
    factor = 1 + batch[_KEY].sum()
    return {name: part._replace(sum=part.sum * factor) for name, part in found.items()}

  return call


def clock(seed: int) -> None:
  """Makes the clock jump: `time.time` and `time.time_ns`."""
  now_ns, rng, state = time.time_ns, np.random.default_rng(seed), {'until': 0.0, 'offset': 0}

  def jumping() -> int:
    if time.monotonic() > state['until']:
      seconds = int(rng.integers(-_DAY, _DAY))
      state.update(until=time.monotonic() + _BETWEEN_JUMPS, offset=seconds * 10**9)
    return now_ns() + state['offset']

  time.time_ns = jumping
  time.time = lambda: jumping() / 1e9


FAULTS = {'nan': lambda value: nan(int(value)), 'clock': lambda value: clock(int(value))}


if __name__ == '__main__':
  name, _, value = sys.argv[1].partition('=')
  FAULTS[name](value)
  code = program.main(sys.argv[2:])
  sys.stdout.flush()
  sys.exit(code)
