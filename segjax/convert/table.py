"""What a converter is: a table from the names of a weights file to ours, complete on both sides."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from segjax.types import SegjaxError


class Row(NamedTuple):
  """One array.

  Attributes:
    key: its name in the weights file.
    path: ours, `collection/layer/…/name`, such as params/conv1_1/kernel.
    transform: brings the file's array into our layout.
  """

  key: str
  path: str
  transform: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """The weights of one network of another program.

  Attributes:
    rows: every array that is taken.
    left_out: patterns of the file's names that are meant not to be taken.
    new: patterns of our paths that a network may have beyond those in `rows`.
    spare: patterns of our paths in `rows` that a network may lack.
    input: what the network expects of an image, and of the config.
    constants: (one of our paths in `rows`, test of its array): a network may lack this array too if
      the test holds, because it has it built in.
    renamed: (pattern, replacement) for `re.sub`: names in older files, and those in `rows`.
  """

  rows: tuple[Row, ...]
  left_out: tuple[str, ...]
  new: tuple[str, ...]
  spare: tuple[str, ...]
  input: str
  constants: tuple[tuple[str, Callable[[np.ndarray], bool]], ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()

  def current(self, name: str) -> str:
    """What `rows` calls the array that a file calls `name`."""
    for pattern, replacement in self.renamed:
      name = re.sub(pattern, replacement, name)
    return name

  def without(self, paths: str) -> 'Source':
    """The same without the rows in whose path the pattern is found."""
    dropped = [re.escape(row.key) for row in self.rows if re.search(paths, row.path)]
    return dataclasses.replace(
      self,
      rows=tuple(row for row in self.rows if not re.search(paths, row.path)),
      left_out=(*self.left_out, *(f'^{key}$' for key in dropped)),
      new=(*self.new, paths),
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
  """Whether one of the regular expressions is found in `name`."""
  return any(re.search(pattern, name) for pattern in patterns)


def leftovers(names: Iterable[str], source: Source) -> tuple[list[str], list[str]]:
  """(names that `source` wants and that are missing, those that are there and nothing takes)."""
  names, wanted = {source.current(name) for name in names}, {row.key for row in source.rows}
  extra = {name for name in names - wanted if not matches(name, source.left_out)}
  return sorted(wanted - names), sorted(extra)


def convert(
  arrays: Mapping[str, np.ndarray], sources: Mapping[str, Source], name: str, where: str
) -> dict[str, np.ndarray]:
  """The arrays of a weights file by our paths, float32, in our layout.

  Args:
    arrays: by the file's names.
    sources: those that there are.
    name: the one to convert by.
    where: the file, for the error.

  Raises:
    SegjaxError: an array that the source has is missing, unexpected, or has a wrong shape.
  """
  source = sources[name]
  missing, extra = leftovers(arrays, source)
  if missing or extra:
    differences = [
      f'{verb} {first(names)}' for verb, names in (('has no', missing), ('has', extra)) if names
    ]
    remedy = 'take the file of that network'
    if others := fitting(arrays, sources):
      remedy = f'take the source {" or ".join(others)}'
    raise SegjaxError(f'{where} is not {name}, it {" and ".join(differences)}: {remedy}')
  arrays = {source.current(key): array for key, array in arrays.items()}
  converted = {}
  for row in source.rows:
    array = arrays[row.key]
    try:
      converted[row.path] = np.ascontiguousarray(row.transform(array), np.float32)
    except ValueError as e:
      shape = 'x'.join(map(str, array.shape))
      remedy = 'take the file of that network'
      if others := [other for other in fitting(arrays, sources) if other != name]:
        remedy = f'{remedy}, or the source {" or ".join(others)}'
      raise SegjaxError(f'{where} is not {name}, its {row.key} is {shape}: {remedy}') from e
  return converted


def fitting(names: Iterable[str], sources: Mapping[str, Source]) -> list[str]:
  """The sources whose arrays have these names."""
  return [other for other, source in sources.items() if leftovers(names, source) == ([], [])]


def first(names: Iterable[str]) -> str:
  """`'a'`, `'a and 3 more'`."""
  name, *rest = names
  return f'{name} and {len(rest)} more' if rest else name
