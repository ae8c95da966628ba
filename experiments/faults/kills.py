"""Runs that are killed again and again: whether they end as one that nothing disturbed."""

import signal
import time
from pathlib import Path

import numpy as np

from faults import place as place_lib
from faults.place import Command, Ended, Place, Recipe
from faults.row import Options, Outcome

# Of a kill that is to fall into the training: seconds after the line of a step, at most.
_DELAY = 0.2
# Seconds that a checkpoint of `_LARGE` takes to be written, at most.
_WRITING = 0.15
# Seconds between two signals, at most.
_BETWEEN = 0.3
# Every so many kills one falls at any time from the start of the process on.
_EVERY = 3


def targets(rng: np.random.Generator, recipe: Recipe, tries: int) -> list[int]:
  """The steps after which a run is disturbed, in order."""
  return sorted(rng.choice(np.arange(1, recipe.steps), tries, replace=False).tolist())


class _Lives:
  """The processes of one run, each of which goes on where the one before was ended.

  Attributes:
    workdir: of the run.
    again: steps that were done a second time.
  """

  def __init__(self, place: Place, recipe: Recipe):
    self.workdir, self.again = place.new('killed'), 0
    self._place, self._recipe = place, recipe
    self._reached = 0

  def start(self) -> Command:
    return self._place.train(self._recipe, self.workdir)

  def note(self, command: Command) -> None:
    """Counts the steps of a process that has ended."""
    start = command.first_step()
    if start is not None:
      self.again += max(0, self._reached - start)
      self._reached = max(self._reached, command.last_step() or 0)

  def kill(self, command: Command, outcome: Outcome) -> bool:
    """Kills a process; whether that ended it, and not something before."""
    ended = command.kill()
    self.note(command)
    if ended.code != -signal.SIGKILL:
      outcome.happened[f'ended before the kill ({ended.describe()})'] += 1
      return False
    outcome.tries += 1
    return True

  def finish(self, outcome: Outcome) -> None:
    """The last process, to the end; what the run has lost."""
    command = self.start()
    ended = command.end()
    self.note(command)
    if ended.code:
      outcome.lost[f'the run ({ended.describe()}: {ended.text.strip()[-200:]})'] += 1
      return
    outcome.lost.update(place_lib.differences(self.workdir, self._place.undisturbed(self._recipe)))
    outcome.notes['steps done again'] = f'{self.again} of {self._recipe.steps}'
    if left := half_written(self.workdir):
      outcome.lost[f'half-written files that stay, such as {left[0]}'] += len(left)


def half_written(workdir: Path) -> list[str]:
  """Temporary files and directories of a run, relative to its directory."""
  found = (path.relative_to(workdir).as_posix() for path in workdir.rglob('*'))
  return sorted(name for name in found if 'tmp' in name.rpartition('/')[2])


def training(recipe: Recipe):
  """SIGKILL at random moments: after a step, and every third time while the process starts."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, startup = options.rng(), Outcome(), None
    place.undisturbed(recipe)  # compiles
    lives = _Lives(place, recipe)
    for count, target in enumerate(targets(rng, recipe, options.tries)):
      begun = time.monotonic()
      command = lives.start()
      if startup and count % _EVERY == 0:
        time.sleep(rng.uniform(0, startup))
      else:
        command.wait(lambda command=command: command.last_step() is not None)
        startup = time.monotonic() - begun
        command.wait_for_step(target)
        time.sleep(rng.uniform(0, _DELAY))
      if not lives.kill(command, outcome):
        continue
      outcome.happened['killed at a step' if command.last_step() else 'killed at the start'] += 1
    lives.finish(outcome)
    return outcome

  return run


def checkpoint_writing(recipe: Recipe):
  """SIGKILL while a checkpoint is being written, and the state of the newest one after each."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome = options.rng(), Outcome()
    place.undisturbed(recipe)
    lives, newest = _Lives(place, recipe), -1
    checkpoints = lives.workdir / 'checkpoints'
    for target in targets(rng, recipe, options.tries):
      command = lives.start()
      command.wait_for_step(target)
      place_lib.until(lambda: any('tmp' in p.name for p in checkpoints.iterdir()), 5, 0.0005)
      time.sleep(rng.uniform(0, _WRITING))
      if not lives.kill(command, outcome):
        continue
      inside = any('tmp' in path.name for path in checkpoints.iterdir())
      outcome.happened['killed while writing' if inside else 'killed just after'] += 1
      ended, out = place_lib.here('info', f'--workdir={lives.workdir}')
      step = int(out.split()[1]) if ended.code == 0 else -1
      if 'corrupt' in ended.text or step < newest:
        outcome.lost['a checkpoint'] += 1
      newest = step
    lives.finish(outcome)
    return outcome

  return run


def sigterm_twice(recipe: Recipe):
  """SIGTERM at a random step, and a second one while the state is being saved."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome = options.rng(), Outcome()
    place.undisturbed(recipe)
    lives = _Lives(place, recipe)
    for target in targets(rng, recipe, options.tries):
      command = lives.start()
      command.wait_for_step(target)
      command.signal(signal.SIGTERM)
      time.sleep(rng.uniform(0, _BETWEEN))
      command.signal(signal.SIGTERM)
      ended = command.end()
      lives.note(command)
      outcome.tries += 1
      outcome.happened[_spell(ended)] += 1
    lives.finish(outcome)
    return outcome

  return run


def _spell(ended: Ended) -> str:
  if ended.code == 128 + signal.SIGTERM and 'the state is saved' in ended.text:
    return 'saved before the second'
  if ended.code == -signal.SIGTERM:
    return 'ended by the second'
  return ended.describe()


def preparing(name: str):
  """SIGKILL at random moments of `segjax data prepare`, from the start of the process on."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome = options.rng(), Outcome()
    whole, data = place.new('prepared'), place.new('prepared')
    prepare = lambda directory: place.start('data', 'prepare', name, f'--data_dir={directory}')
    begun = time.monotonic()
    if prepare(whole).end().code:
      raise RuntimeError(f'segjax data prepare {name} failed')
    seconds = time.monotonic() - begun
    for _ in range(options.tries):
      command = prepare(data)
      time.sleep(rng.uniform(0, seconds))
      ended = command.kill()
      if ended.code != -signal.SIGKILL:
        outcome.happened[f'ended before the kill ({ended.describe()})'] += 1
        continue
      outcome.tries += 1
      left = _files(data) if data.exists() else {}
      outcome.happened['killed, something written' if left else 'killed, nothing written'] += 1
    ended = prepare(data).end()
    if ended.code:
      outcome.lost[f'the data ({ended.describe()})'] += 1
      return outcome
    found, wanted = _files(data), _files(whole)
    records = lambda files: {k: v for k, v in files.items() if '.array_record' in k}
    if records(found) != records(wanted):
      outcome.lost['equal records'] += 1
    if more := sorted(set(found) - set(wanted)):
      outcome.lost[f'files of killed processes that stay, such as {more[0]}'] += len(more)
    outcome.notes['goes on from whole files'] = 'which are kept' in ended.text
    return outcome

  return run


def _files(directory: Path) -> dict[str, bytes]:
  found = (path for path in directory.rglob('*') if path.is_file())
  return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}
