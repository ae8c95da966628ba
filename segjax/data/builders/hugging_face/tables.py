"""Rows of arrow and parquet files, read one at a time with pyarrow.

arrow files are mapped into memory; of parquet files the row groups of the last rows are kept.
"""

import bisect
import collections
import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from segjax.data.builders import files, raw
from segjax.data.formats import common
from segjax.types import SegjaxError

# All rows, where nothing tells a split.
ALL = 'all'

# Row groups are kept in memory up to this many bytes: rows are read in any order.
_KEPT_BYTES = 2**28
_STATE, _DICT = 'state.json', 'dataset_dict.json'


class _Part(NamedTuple):
  """A file or, of a parquet file, one of its row groups."""

  path: Path
  group: int | None
  rows: int


def arrow() -> Any:
  """The library pyarrow.

  Raises:
    SegjaxError: it is not installed.
  """
  try:
    import pyarrow.compute  # all that takes a moment
    import pyarrow.parquet
  except ImportError as e:
    raise SegjaxError(
      "config.data.name='hugging_face' needs pyarrow: install it with pip install 'segjax[hf]'"
    ) from e
  return pyarrow


class Table:
  """The rows of files with the same columns.

  Args:
    paths: arrow or parquet files, in order.

  Raises:
    SegjaxError: a file cannot be read, or has other columns than the first.
  """

  def __init__(self, paths: Sequence[Path]):
    self.path = paths[0]
    self.schema = _schema(paths[0])
    for path in paths[1:]:
      if (other := _schema(path)).names != self.schema.names:
        raise SegjaxError(
          f'{path} has the columns {", ".join(other.names)} but {self.path} has '
          f'{", ".join(self.schema.names)}: leave one of them out'
        )
    self._parts = [part for path in paths for part in _parts(path)]
    self._ends = list(itertools.accumulate(part.rows for part in self._parts))
    self._kept: collections.OrderedDict[tuple[int, tuple[str, ...]], Any] = (
      collections.OrderedDict()
    )

  def __getstate__(self) -> dict[str, Any]:
    return {**vars(self), '_kept': collections.OrderedDict()}

  def __len__(self) -> int:
    return self._ends[-1]

  def check_column(self, name: str, key: str) -> None:
    """Raises a SegjaxError if there is no such column; `key` of `config.data.files` names it."""
    if name not in self.schema.names:
      raise SegjaxError(
        f'config.data.files.{key}={name}: {self.path} has no such column, but '
        f'{", ".join(self.schema.names)}: choose one'
      )

  def read(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """The values of a row in some columns."""
    number = bisect.bisect_right(self._ends, row)
    found = self._kept.pop((number, columns), None)
    if found is None:
      found = _load(self._parts[number], columns)
      while self._kept and found.nbytes + sum(t.nbytes for t in self._kept.values()) > _KEPT_BYTES:
        self._kept.popitem(last=False)
    self._kept[number, columns] = found
    first = self._ends[number] - self._parts[number].rows
    return found.slice(row - first, 1).to_pylist()[0]

  def values(self, column: str) -> list[Any]:
    """A whole column."""
    return [v for part in self._parts for v in _load(part, (column,)).column(column).to_pylist()]

  def is_empty(self, column: str) -> bool:
    """Whether all cells of a column are null."""
    return all(_load(p, (column,)).column(column).null_count == p.rows for p in self._parts)

  def file_names(self, column: str) -> list[str | None]:
    """The `path` of each image of a column, without reading the images."""
    kind = self.schema.field(column).type
    if not arrow().types.is_struct(kind) or kind.get_field_index('path') < 0:
      return [None] * len(self)
    return [path for part in self._parts for path in _load_paths(part, column)]


def _load(part: _Part, columns: tuple[str, ...]) -> Any:
  if part.group is None:
    return _open_arrow(part.path).select(list(columns))
  with _reading(part.path):
    return arrow().parquet.ParquetFile(part.path).read_row_group(part.group, list(columns))


def _load_paths(part: _Part, column: str) -> list[str | None]:
  if part.group is None:
    structs = _open_arrow(part.path).column(column)
    return arrow().compute.struct_field(structs, 'path').to_pylist()
  with _reading(part.path):
    file = arrow().parquet.ParquetFile(part.path)
    rows = file.read_row_group(part.group, [f'{column}.path']).column(column).to_pylist()
  return [row and row['path'] for row in rows]


def _parts(path: Path) -> Iterator[_Part]:
  if path.suffix == '.arrow':
    yield _Part(path, None, _open_arrow(path).num_rows)
    return
  with _reading(path):
    metadata = arrow().parquet.read_metadata(path)
  for group in range(metadata.num_row_groups):
    yield _Part(path, group, metadata.row_group(group).num_rows)


def _schema(path: Path) -> Any:
  if path.suffix == '.arrow':
    return _open_arrow(path).schema
  with _reading(path):
    return arrow().parquet.read_schema(path)


@functools.lru_cache(maxsize=16)
def _open_arrow(path: Path) -> Any:
  """The table of an arrow file, in the stream format that `datasets` writes or the file format."""
  library = arrow()
  with _reading(path):
    memory = library.memory_map(str(path))
    try:
      return library.ipc.open_stream(memory).read_all()
    except library.ArrowInvalid:
      memory.seek(0)
      return library.ipc.open_file(memory).read_all()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Turns pyarrow's errors into one that names the file."""
  try:
    yield
  except (OSError, ValueError, arrow().ArrowException) as e:
    raise SegjaxError(
      f'{path} cannot be read by pyarrow, as it is missing, truncated or of another format: save '
      'or download it again'
    ) from e


# --- files ----------------------------------------------------------------------------------------


def find_tables(source: Path) -> dict[str, list[Path]]:
  """The files of each split, as they are named: of `save_to_disk`, else all below a directory.

  Raises:
    SegjaxError: what `save_to_disk` wrote is not complete.
  """
  if (source / _DICT).is_file():
    names = _read_json(source / _DICT).get('splits')
    if not isinstance(names, list) or not names:
      raise SegjaxError(f'{source / _DICT} names no splits: save the data set again')
    listed_in = source / _DICT
    return {str(name): _saved(raw.inside(source, str(name), listed_in)) for name in names}
  if (source / _STATE).is_file():
    return {ALL: _saved(source)}
  found: dict[str, list[Path]] = {}
  for path in files.find_files(source, {'.parquet'}) or files.find_files(source, {'.arrow'}):
    found.setdefault(_split_of(path.relative_to(source)), []).append(path)
  return found


def _saved(directory: Path) -> list[Path]:
  """The files of a data set that `save_to_disk` wrote."""
  state = _read_json(directory / _STATE)
  if state.get('_indices_data_files'):
    raise SegjaxError(
      f'{directory} was saved with a selection of rows by an old version of datasets: save it '
      'again after flatten_indices()'
    )
  listed = state.get('_data_files')
  names = [entry.get('filename') for entry in listed or () if isinstance(entry, dict)]
  if not names or not all(isinstance(name, str) for name in names):
    raise SegjaxError(f'{directory / _STATE} names no data files: save the data set again')
  return [raw.inside(directory, name, directory / _STATE) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(raw.read_bytes(path))
  except ValueError as e:
    raise SegjaxError(f'{path} is not valid JSON: save the data set again') from e
  return content if isinstance(content, dict) else {}


def _split_of(path: Path) -> str:
  """The split of a file: a word of its name, else of its directories, the lowest one first."""
  for part in (path.stem, *reversed(path.parts[:-1])):
    for word in re.split(r'[^a-z]+', part.lower()):
      if word in files.SPLIT_NAMES:
        return word
  return ALL


# --- cells ----------------------------------------------------------------------------------------


class Cell:
  """An image or a mask in a table, with what `folder.masks` reads of the path of a file.

  Args:
    table, row, column: where it is.
    columns: all columns that are read of a row.
    source: where the file is that a cell without content names.
  """

  def __init__(self, table: Table, row: int, column: str, columns: tuple[str, ...], source: Path):
    self._table, self._row, self._column = table, row, column
    self._columns, self._source = columns, source

  def __str__(self) -> str:
    return f'{self._table.path}: row {self._row}, column {self._column},'

  @property
  def suffix(self) -> str:
    value = self._table.read(self._row, self._columns)[self._column]
    path = value.get('path') if isinstance(value, dict) else None
    return PureWindowsPath(path or '').suffix

  def read_bytes(self) -> bytes:
    """The image file: the content of a cell, or the file that it names, or a PNG of its numbers.

    Raises:
      SegjaxError: it is empty, or is none of these.
    """
    value = self._table.read(self._row, self._columns)[self._column]
    path = None
    if isinstance(value, dict):
      value, path = value.get('bytes'), value.get('path')
    if isinstance(value, bytes) and value:
      return value
    if isinstance(path, str) and path:
      return raw.read_bytes(raw.inside(self._source, path, self._table.path))
    if isinstance(value, list):
      return self._encode(value)
    raise SegjaxError(
      f'{self} has no image: give it one, leave the row out, or leave its split out of '
      'config.data.files.splits'
    )

  def _encode(self, value: list[Any]) -> bytes:
    try:
      pixels = np.array(value)
    except ValueError:
      pixels = np.empty(0)
    if (
      pixels.ndim == 2 and pixels.dtype.kind in 'iub' and 0 <= pixels.min() <= pixels.max() < 2**16
    ):
      return common.encode_png(pixels.astype(np.uint16))
    raise SegjaxError(f'{self} is not rows of numbers from 0 to 65,535: save it as an image')
