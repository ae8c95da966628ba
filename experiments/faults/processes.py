"""Faults in and around the processes of a training."""

import contextlib
import json
import os
import signal
from pathlib import Path

import numpy as np

from faults import place as place_lib
from faults.kills import targets
from faults.place import Place, Recipe
from faults.row import Options, Outcome


def two_runs(recipe: Recipe):
  """Other processes start in the workdir of a running one, and two at once in a new one."""

  def run(place: Place, options: Options) -> Outcome:
    outcome, workdir = Outcome(), place.new('shared')
    whole = place.undisturbed(recipe)
    first = place.train(recipe, workdir)
    first.wait_for_step(1)
    others = [place.train(recipe, workdir) for _ in range(options.tries - 1)]
    for other in others:
      ended = other.end()
      outcome.tries += 1
      refused = 'another process' in (ended.sentence() or '')
      outcome.happened['refused, in one sentence' if refused else ended.describe()] += 1
      if not refused:
        outcome.lost['the sentence'] += 1
    ended = first.end()
    if ended.code:
      outcome.lost['the first run'] += 1
    outcome.lost.update(place_lib.differences(workdir, whole))
    workdir = place.new('shared')
    both = [place.train(recipe, workdir) for _ in range(2)]
    codes = sorted(command.end().code for command in both)
    outcome.tries += 1
    outcome.happened[f'at once: exit codes {codes}'] += 1
    if codes != [0, 2]:
      outcome.lost['the lock'] += 1
    outcome.lost.update(place_lib.differences(workdir, whole))
    return outcome

  return run


def worker(recipe: Recipe):
  """SIGKILL to one of two processes that prepare batches; then the run is started again."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, workdir = options.rng(), Outcome(), place.new('worker')
    whole = place.undisturbed(recipe)
    recipe_with = recipe.but(batch__workers=2)
    for target in targets(rng, recipe, options.tries):
      command = place.train(recipe_with, workdir)
      if not command.wait_for_step(target):
        outcome.happened[f'ended before the kill ({command.end().describe()})'] += 1
        continue
      os.kill(rng.choice(_workers(command.process.pid)), signal.SIGKILL)
      outcome.tries += 1
      ended = command.end()
      outcome.happened[ended.describe()] += 1
      if ended.code is None or not (ended.code == 0 or ended.sentence()):
        outcome.lost[ended.describe()] += 1
    ended = place.train(recipe_with, workdir).end()
    if ended.code:
      outcome.lost[f'the run ({ended.describe()})'] += 1
    outcome.lost.update(place_lib.differences(workdir, whole))
    return outcome

  return run


def _workers(parent: int) -> list[int]:
  """The processes that Grain has started."""
  found = []
  for child in Path(f'/proc/{parent}/task').glob('*/children'):
    for pid in child.read_text().split():
      with contextlib.suppress(OSError):
        if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes():
          found.append(int(pid))
  return found


def nan(recipe: Recipe):
  """A loss that is NaN at step k: the run stops, or skips the update; then without the fault."""

  def run(place: Place, options: Options) -> Outcome:
    outcome, whole = Outcome(), place.undisturbed(recipe)
    for step in targets(options.rng(), recipe, options.tries):
      outcome.tries += 1
      workdir = place.new('nan')
      ended = place.train(recipe, workdir, fault=[f'nan={step}']).end()
      named = f'training stopped at step {step} ' in (ended.sentence() or '')
      outcome.happened['stopped, the sentence names the step' if named else ended.describe()] += 1
      if place.train(recipe, workdir).end().code:
        outcome.lost['the run'] += 1
      outcome.lost.update(place_lib.differences(workdir, whole))
    workdir = place.new('nan')
    skipping = recipe.but(train__nonfinite='skip')
    ended = place.train(skipping, workdir, fault=[f'nan={recipe.steps // 2}']).end()
    outcome.tries += 1
    outcome.happened['skipped' if ended.code == 0 else ended.describe()] += 1
    log = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = [entry for entry in log if entry['split'] == 'train']
    if steps[-1].get('skipped') != 1:
      outcome.lost['the count of skipped updates'] += 1
    if not all(np.isfinite(e.get('loss', 0)) for e in log if e['step'] > recipe.steps // 2):
      outcome.lost['finite losses after the step'] += 1
    return outcome

  return run


def clock(recipe: Recipe):
  """The clock that Python reads jumps by up to a day, back and forth, again and again."""

  def run(place: Place, options: Options) -> Outcome:
    outcome, whole = Outcome(), place.undisturbed(recipe)
    for count in range(options.tries):
      workdir = place.new('clock')
      ended = place.train(recipe, workdir, fault=[f'clock={options.seed + count}']).end()
      outcome.tries += 1
      outcome.happened[ended.describe()] += 1
      if ended.code:
        outcome.lost[f'the run ({ended.text.strip()[-200:]})'] += 1
        continue
      outcome.lost.update(place_lib.differences(workdir, whole))
      lines = (workdir / 'metrics.jsonl').read_text().splitlines()
      speeds = [json.loads(line).get('images_per_second', 1) for line in lines]
      if not all(0 < speed < 1e6 for speed in speeds):
        outcome.lost['the speed in the log'] += 1
    return outcome

  return run
