"""Disks that are full or cannot be written."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults import place as place_lib
from faults.place import Place, Recipe
from faults.row import Options, Outcome

# Bytes of the small disk.
_SIZE = 64 * 2**20
# Bytes that are left free where only large writes are to fail.
_LITTLE = 64 * 2**10


def mounts() -> str | None:
  """What is missing to mount a small disk."""
  if os.geteuid() or not shutil.which('mount'):
    return 'a small disk is mounted by root only'
  return None


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
  path.mkdir()
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={_SIZE}', 'tmpfs', path], check=True)
  try:
    yield path
  finally:
    subprocess.run(['umount', '--lazy', path], check=False)


def _fill(directory: Path, leave: int) -> Path:
  """Fills the disk of a directory but for `leave` bytes; the file that does so."""
  free = shutil.disk_usage(directory).free
  filler = directory / 'filler'
  # The run writes at the same time, so that the disk may be full sooner.
  with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
    file.write(bytes(max(0, free - leave)))
  return filler


def full(recipe: Recipe, leave: int = _LITTLE):
  """The disk fills up at a random step; then it is freed, and the run started again."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, whole = options.rng(), Outcome(), place.undisturbed(recipe)
    for _ in range(options.tries):
      with _small_disk(place.new('disk')) as disk:
        workdir = disk / 'run'
        command = place.train(recipe, workdir)
        command.wait_for_step(int(rng.integers(recipe.steps // 4, recipe.steps // 2)))
        filler = _fill(disk, leave)
        ended = command.end()
        outcome.tries += 1
        sentence = ended.sentence()
        named = sentence and str(workdir) in sentence
        outcome.happened['stopped, the sentence names the path' if named else ended.describe()] += 1
        if not named:
          outcome.lost['the sentence'] += 1
        filler.unlink(missing_ok=True)
        outcome.lost.update(_started_again(place, recipe, workdir, whole))
    return outcome

  return run


def _started_again(place: Place, recipe: Recipe, workdir: Path, whole: Path) -> Iterator[str]:
  command = place.train(recipe, workdir)
  ended = command.end()
  if ended.code:
    yield f'the run ({ended.describe()})'
    return
  if not command.first_step():
    yield 'the checkpoint before'
  yield from place_lib.differences(workdir, whole)


@contextlib.contextmanager
def _read_only(path: Path) -> Iterator[Path]:
  """Makes a directory read-only, also for root."""
  if os.geteuid():
    path.chmod(0o555)
    yield path
    path.chmod(0o755)
    return
  subprocess.run(['mount', '--bind', path, path], check=True)
  try:
    subprocess.run(['mount', '-o', 'remount,bind,ro', path], check=True)
    yield path
  finally:
    subprocess.run(['umount', '--lazy', path], check=False)


def read_only(recipe: Recipe):
  """`train` in a new workdir and in that of a run, `evaluate` and `info`, all read-only."""

  def run(place: Place, options: Options) -> Outcome:
    del options
    outcome, whole = Outcome(), place.copy(place.undisturbed(recipe))
    longer = recipe.but(steps=recipe.steps + 10)
    empty = place.new('empty')
    empty.mkdir()
    with _read_only(empty), _read_only(whole):
      writes = {
        'train, new': place.train(recipe, empty / 'run'),
        'train, empty': place.train(recipe, empty),
        'train, resumed': place.train(longer, whole),
        'evaluate': place.start('evaluate', f'--workdir={whole}'),
      }
      for name, command in writes.items():
        ended = command.end()
        outcome.tries += 1
        said = ended.sentence()
        outcome.happened['refused, in one sentence' if said else f'{name}: {ended.describe()}'] += 1
        if not said and ended.code:
          outcome.lost[f'the sentence ({name})'] += 1
      ended = place.start('info', f'--workdir={whole}').end()
      outcome.tries += 1
      outcome.happened[f'info: {ended.describe()}'] += 1
      if ended.code:
        outcome.lost['reading a run'] += 1
    outcome.lost.update(place_lib.differences(whole, place.undisturbed(recipe)))
    return outcome

  return run
