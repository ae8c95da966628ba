"""What the formats' guesses share: directories, splits, and classes."""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segjax.data import guess
from segjax.data import images as images_lib
from segjax.data.builders import files, raw
from segjax.types import SegjaxError

T = TypeVar('T')

ALL_THINGS = (
  'the files do not say which classes are stuff: all are taken as things, until '
  'config.data.files.stuff lists the others'
)
# Images that are looked into; of more, so many that are spread over all.
IMAGES_LOOKED_AT = 50
# Where lists of the images of splits may be.
_LISTS = ('{}.txt', 'splits/{}.txt', 'ImageSets/Segmentation/{}.txt', 'ImageSets/{}.txt')
_SPLITS = ('train', 'val', 'test')
_AT_RANDOM = 'images are divided at random, until config.data.files.splits says how'
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
  """Split -> its directory, where first directories of images are called like train and another.

  Args:
    names: paths below the directory of images.
  """
  first = sorted({name.split('/')[0] for name in names if '/' in name}, reverse=True)
  of = {files.SPLIT_NAMES.get(name.lower()): name for name in first}
  found = {split: of[split] for split in _SPLITS if split in of}
  return found if 'train' in found and len(found) > 1 else None


def find_splits(
  source: Path, names: Sequence[str], below: str = ''
) -> tuple[dict[str, Any], list[str]]:
  """Splits by directories or lists that are called like them, else by fractions.

  Args:
    source: that lists are relative to.
    names: of all images, see `files.splits_of`.
    below: the directory that all names begin with.

  Returns:
    `config.data.files.splits`.
    Sentences on lists, directories and images that are not used, as in `Guess`.
  """
  start = below and f'{below}/'
  short = [name.removeprefix(start) for name in names]
  splits: dict[str, Any] = {
    split: f'{start}{name}' for split, name in (directory_splits(short) or {}).items()
  }
  problems = []
  if not splits:
    splits, problems = _list_splits(source, names)
  if splits:
    used = set().union(*_divide(source, names, splits).values())
    if rest := [name for name in names if name not in used]:
      problems.append(f'{count(len(rest), "image")} in no split, such as {rest[0]}: not used')
    return splits, problems
  problems += _other_directories(short)
  if len(names) < 3:
    return ({'train': 0.5, 'val': 0.5} if len(names) == 2 else {'train': 1.0}), problems
  return dict(files.FRACTIONS), problems


def _divide(source: Path, names: Sequence[str], splits: Mapping[str, Any]) -> dict[str, list[str]]:
  return files.splits_of(names, files.Options(classes=('any',), splits=splits), source)


def _list_splits(source: Path, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """Split -> its list, none where there are none that fit; and sentences on those not used."""
  problems = []
  for place in _LISTS:
    lists = {split: place.format(split) for split in _SPLITS}
    lists = {split: path for split, path in lists.items() if (source / path).is_file()}
    if not lists:
      continue
    try:
      if 'train' not in lists or len(lists) == 1:
        raise SegjaxError('one of train and one of another split are needed: add them')
      known = {split: path for split, path in lists.items() if _lists_any(source / path, names)}
      chosen = known if 'train' in known and len(known) > 1 else lists
      _divide(source, names, chosen)
    except SegjaxError as e:
      reason, _, _ = str(e).rpartition(': ')
      listed = ', '.join(lists.values())
      problems.append(f'no splits by the lists {listed}, as {reason}: {_AT_RANDOM}')
      continue
    left = [path for path in lists.values() if path not in chosen.values()]
    return chosen, [f'no image of {path} is annotated: not used' for path in left]
  return {}, problems


def _lists_any(path: Path, names: Sequence[str]) -> bool:
  """Whether a list has one of these images, with or without the suffix of its file."""
  listed = files.read_names(path)
  return not {*listed, *(os.path.splitext(line)[0] for line in listed)}.isdisjoint(names)


def _other_directories(names: Iterable[str]) -> list[str]:
  """A sentence on directories of images that are called like splits, where they tell them apart."""
  parts = [name.split('/')[:-1] for name in names]
  called = sorted({part for of in parts for part in of if part.lower() in files.SPLIT_NAMES})
  if not called or all(called == [p for p in of if p in called] for of in parts):
    return []
  reason = 'the first directories of images have to be train and another'
  return [f'no splits by the directories {", ".join(called)}, as {reason}: {_AT_RANDOM}']


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
