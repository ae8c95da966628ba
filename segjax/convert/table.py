"""Conversion tables from the names in a weights file to ours; strict in both directions."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from segjax.types import SegjaxError


class Row(NamedTuple):
  """The conversion of one array.

  Attributes:
    key: name in the weights file.
    path: our path, `collection/layer/…/name`, such as params/conv1_1/kernel.
    transform: converts the array to our layout.
  """

  key: str
  path: str
  transform: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """The weights of one network of another framework.

  Attributes:
    rows: all arrays to convert.
    left_out: patterns of names in the file to ignore.
    new: patterns of our paths that may be missing in `rows`.
    spare: patterns of our paths in `rows` that a network may not have.
    input: documents the expected normalization and config.
    constants: (one of our paths in `rows`, test of its array): a network may not have this array if
      the test passes, because it is a constant of the network.
    renamed: (pattern, replacement) for `re.sub`, from names in older files to those in `rows`.
    prepare: changes the arrays of a file, by their names in `rows`, before they are compared with
      these; of any file.
    resized: (pattern of our paths, function): what makes an array that has another shape than the
      network's fit, `(array, shape) -> array`.
  """

  rows: tuple[Row, ...]
  left_out: tuple[str, ...]
  new: tuple[str, ...]
  spare: tuple[str, ...]
  input: str
  constants: tuple[tuple[str, Callable[[np.ndarray], bool]], ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()
  prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda arrays: arrays
  resized: tuple[tuple[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]], ...] = ()

  def current(self, name: str) -> str:
    """The name in `rows` of the array `name` in a file."""
    for pattern, replacement in self.renamed:
      name = re.sub(pattern, replacement, name)
    return name

  def without(self, paths: str) -> 'Source':
    """A copy without the rows whose path matches the pattern."""
    dropped = [re.escape(row.key) for row in self.rows if re.search(paths, row.path)]
    return dataclasses.replace(
      self,
      rows=tuple(row for row in self.rows if not re.search(paths, row.path)),
      left_out=(*self.left_out, *(f'^{key}$' for key in dropped)),
      new=(*self.new, paths),
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
  """Whether one of the regular expressions matches in `name`."""
  return any(re.search(pattern, name) for pattern in patterns)


def leftovers(names: Iterable[str], source: Source) -> tuple[list[str], list[str]]:
  """(missing names, unexpected names) of a file for `source`."""
  names, wanted = {source.current(name) for name in names}, {row.key for row in source.rows}
  extra = {name for name in names - wanted if not matches(name, source.left_out)}
  return sorted(wanted - names), sorted(extra)


def convert(
  arrays: Mapping[str, np.ndarray], sources: Mapping[str, Source], name: str, where: str
) -> dict[str, np.ndarray]:
  """Converts the arrays of a weights file to our paths and layout, float32.

  Args:
    arrays: by name in the file.
    sources: all sources, for suggestions.
    name: the source to use.
    where: the file, for errors.

  Raises:
    SegjaxError: an array is missing, unexpected, or has a wrong shape.
  """
  source = sources[name]
  file, arrays = arrays, source.prepare({source.current(k): array for k, array in arrays.items()})
  missing, extra = leftovers(arrays, source)
  if missing or extra:
    differences = [
      f'{verb} {first(names)}' for verb, names in (('has no', missing), ('has', extra)) if names
    ]
    remedy = 'use the file of that network'
    if others := fitting(file, sources):
      remedy = f'use the source {" or ".join(others)}'
    raise SegjaxError(f'{where} is not {name}, it {" and ".join(differences)}: {remedy}')
  converted = {}
  for row in source.rows:
    array = arrays[row.key]
    try:
      converted[row.path] = np.ascontiguousarray(row.transform(array), np.float32)
    except ValueError as e:
      shape = 'x'.join(map(str, array.shape))
      remedy = 'use the file of that network'
      if others := [other for other in fitting(file, sources) if other != name]:
        remedy = f'{remedy}, or the source {" or ".join(others)}'
      raise SegjaxError(f'{where} is not {name}, its {row.key} is {shape}: {remedy}') from e
  return converted


def fitting(names: Iterable[str], sources: Mapping[str, Source]) -> list[str]:
  """The sources that match these names."""
  return [other for other, source in sources.items() if leftovers(names, source) == ([], [])]


def first(names: Iterable[str]) -> str:
  """`'a'`, `'a and 3 more'`."""
  name, *rest = names
  return f'{name} and {len(rest)} more' if rest else name
