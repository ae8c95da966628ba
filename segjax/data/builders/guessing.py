"""What the formats' guesses share: directories, splits, and classes."""

import collections
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from segjax.data import guess
from segjax.data import images as images_lib
from segjax.data.builders import files, raw

T = TypeVar('T')

ALL_THINGS = (
  'the files do not say which classes are stuff: all are taken as things, until '
  'config.data.files.stuff lists the others'
)
# Images that are looked into; of more, so many that are spread over all.
IMAGES_LOOKED_AT = 50
# Images of 16 bits with lower values alone keep fewer than 6 bits of them.
_NARROW = 2**14


def sample(items: Sequence[T], most: int) -> list[T]:
  """At most so many items, spread over all."""
  chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
  return [items[i] for i in chosen]


def narrow(images: Sequence[files.Readable]) -> list[str]:
  """A sentence on images of 16 bits whose values, as of a camera of 12 bits, use few of them."""
  highest = 0
  for image in sample(images, IMAGES_LOOKED_AT):
    mode, pixels = images_lib.decode_stored(raw.read_bytes(image), str(image))
    if not mode.startswith('I;16'):
      return []
    highest = max(highest, int(pixels.max()))
  if not images or highest >= _NARROW:
    return []
  return [
    f'images have 16 bits and no value above {highest}, and are read as their upper 8 bits, which '
    'are almost black: multiply their values, so that they reach 65,535'
  ]


def common_directory(*places: Path | None) -> Path:
  """The lowest directory that has all of these files and directories, absolute."""
  found = [Path(os.path.abspath(place)) for place in places if place is not None]
  return Path(os.path.commonpath([place.parent if place.is_file() else place for place in found]))


def relative(source: Path, place: Path) -> str:
  """A path below a directory, with slashes."""
  return Path(os.path.relpath(place, source)).as_posix()


def directory_splits(names: Iterable[str]) -> dict[str, str] | None:
  """Split -> its directory, where the first directories of all images are called like splits.

  Args:
    names: paths below the directory of images.
  """
  first = {name.split('/')[0] if '/' in name else '' for name in names}
  of = {files.SPLIT_NAMES.get(name.lower()): name for name in sorted(first)}
  found = {split: of[split] for split in ('train', 'val', 'test') if split in of}
  return found if 'train' in found and len(found) == len(first) > 1 else None


def find_splits(names: Iterable[str]) -> dict[str, str] | dict[str, float]:
  """Splits by directory, else by fractions."""
  return directory_splits(names) or dict(files.FRACTIONS)


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
