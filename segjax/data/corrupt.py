"""Records of prepared data that are corrupt: what to say of one, and which of a split they are.

Every record has a checksum of the file format's, which is compared whenever it is read.
"""

import concurrent.futures
import contextlib
import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax import storage
from segjax.types import SegjaxError

# Threads that read a split, and how many records one takes at a time.
_THREADS, _CHUNK = 8, 256
# Corrupt records that are named.
_NAMED = 3

# What was found, by the file that says so: where that cannot be written, the pass is made once.
_found: dict[Path, dict[str, Any]] = {}


class Place(NamedTuple):
  """A part of a split: the records `start` to `start + count` of a file."""

  path: Path
  start: int
  count: int


class Split(NamedTuple):
  """The records of a split, and where they are.

  Attributes:
    name: of the split.
    dataset: name of the data set.
    directory: of the prepared data set.
    places: in the order of the records.
    records: random access to their bytes.
  """

  name: str
  dataset: str
  directory: Path
  places: Sequence[Place]
  records: Any

  def read(self, number: int, remedy: str) -> bytes:
    """A record.

    Raises:
      SegjaxError: it is corrupt or missing; the sentence names the file and the record, and ends
        with the remedy.
    """
    try:
      return self.records[number]
    except (RuntimeError, ValueError, OSError) as e:
      place, within = self._find(number)
      problem = 'is corrupt' if place.path.exists() else 'is missing, as is the file'
      raise SegjaxError(
        f'{place.path}: record {within} (example {number} of the split {self.name} of '
        f'{self.dataset}) {problem}: {remedy}'
      ) from e

  def _find(self, number: int) -> tuple[Place, int]:
    for place in self.places:
      if number < place.count:
        return place, place.start + number
      number -= place.count
    raise IndexError(number)


def remedy(split: Split) -> str:
  """What to do about a corrupt record."""
  return (
    f'delete {split.directory} and prepare the data set again, or set config.data.bad_examples=skip'
  )


def find(split: Split) -> list[int]:
  """The corrupt records of a split, in order.

  That takes a pass over the split, whose result is kept next to it, where that can be written to,
  for as long as the files have their sizes and times.

  Raises:
    SegjaxError: every record is corrupt.
  """
  path = _path(split)
  files = [[p.path.name, p.path.stat().st_size, p.path.stat().st_mtime_ns] for p in split.places]
  known = _found.get(path)
  with contextlib.suppress(OSError, ValueError):
    known = known or json.loads(path.read_text())
  if isinstance(known, dict) and known.get('files') == files:
    return known['corrupt']
  found = {'files': files, 'corrupt': _look(split)}
  if len(found['corrupt']) == len(split.records):
    raise SegjaxError(
      f'all {len(split.records)} records of the split {split.name} in {split.directory} are '
      'corrupt: delete the directory and prepare the data set again'
    )
  _found[path] = found
  with contextlib.suppress(OSError, SegjaxError):
    storage.write_text(path, json.dumps(found))
  return found['corrupt']


def forget(split: Split) -> None:
  """Lets the next `find` look at every record again."""
  _found.pop(_path(split), None)
  with contextlib.suppress(OSError):
    _path(split).unlink()


def describe(split: Split, corrupt: Sequence[int]) -> str:
  """A sentence on the records that are left out."""
  named = ', '.join(map(str, corrupt[:_NAMED])) + (', …' if len(corrupt) > _NAMED else '')
  return (
    f'{len(corrupt)} of the {len(split.records)} examples of {split.name} in {split.directory} are '
    f'left out, as their records are corrupt (examples {named}; config.data.bad_examples=skip)'
  )


def _path(split: Split) -> Path:
  return split.directory / f'corrupt-{urllib.parse.quote(split.name, safe="")}.json'


def _look(split: Split) -> list[int]:
  def bad(start: int) -> list[int]:
    numbers = range(start, min(start + _CHUNK, len(split.records)))
    return [number for number in numbers if not _is_whole(split, number)]

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    chunks = pool.map(bad, range(0, len(split.records), _CHUNK))
    return [number for chunk in chunks for number in chunk]


def _is_whole(split: Split, number: int) -> bool:
  try:
    split.read(number, '')
  except SegjaxError:
    return False
  return True
