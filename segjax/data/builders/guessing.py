"""What the formats' guesses share: directories, splits, and classes."""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segjax.data import guess
from segjax.data.builders import files

# Names of a split's directory.
SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
ALL_THINGS = (
  'the files do not say which classes are stuff: all are taken as things, until '
  'config.data.files.stuff lists the others'
)
FRACTIONS = {'train': 0.8, 'val': 0.2}


def common_directory(*places: Path | None) -> Path:
  """The lowest directory that has all of these files and directories, absolute."""
  found = [Path(os.path.abspath(place)) for place in places if place is not None]
  return Path(os.path.commonpath([place.parent if place.is_file() else place for place in found]))


def relative(source: Path, place: Path) -> str:
  """A path below a directory, with slashes."""
  return Path(os.path.relpath(place, source)).as_posix()


def find_splits(names: Iterable[str]) -> Mapping[str, str | float]:
  """Splits by the first directories of images, if these are named so; else by fractions.

  Args:
    names: paths below the directory of images.
  """
  tops = {name.partition('/')[0] for name in names if '/' in name}
  alone = any('/' not in name for name in names)
  found = {
    split: top
    for split, tops_of_split in SPLITS.items()
    for top in sorted(tops)
    if top.lower() in tops_of_split
  }
  if alone or set(found.values()) != tops or not {'train', 'val'} <= found.keys():
    return FRACTIONS
  return found


def with_background(task: guess.Task, names: Sequence[str]) -> tuple[str, ...]:
  """The classes of a task on objects: in semantic tasks `background` is the first of them."""
  others = [name for name in names if name != files.BACKGROUND]
  return (files.BACKGROUND, *others) if task == 'semantic' else tuple(names)


def count(number: int, what: str) -> str:
  """'1 image', '2 images'."""
  return f'{number:,} {what}{"" if number == 1 else "s"}'


def counts(names: Iterable[str]) -> str:
  """'cat (12), dog (3)', in the order of the alphabet."""
  found = collections.Counter(names)
  return ', '.join(f'{name} ({found[name]:,})' for name in sorted(found)) or 'none'


def left_out(error: Exception) -> str:
  """The line of a problem for which `unpaired='skip'` was chosen, without the error's advice."""
  problem, _, _ = str(error).rpartition(': ')
  return f"{problem} (left out by config.data.files.unpaired='skip')"
