"""Hugging Face data sets on disk: arrow files of `save_to_disk`, or parquet files.

`data.source` is the directory that `datasets` saved to, or one with the files of a repository
(`data/train-00000-of-00001.parquet`). A row has an image and a mask (`data.files.images`,
`data.files.labels`), each {bytes, path} as the feature `Image` is stored; a mask may be rows of
numbers too. What masks mean is told by the keys of the format `folder`, whose directories are
columns here.

Splits are those of `dataset_dict.json` or of the files' names; validation becomes val. A data set
with one split alone is divided by fractions. The library `datasets` is not needed, but pyarrow
(`pip install 'segjax[hf]'`) is.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from segjax.data import images
from segjax.data.builders import files, raw
from segjax.data.builders.folder import builder as folder
from segjax.data.builders.folder import masks
from segjax.data.builders.folder.patterns import File
from segjax.data.builders.hugging_face import tables
from segjax.types import SegjaxError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(folder.Options):
  """Keys of `config.data.files`, besides those of `folder.builder.Options`.

  Attributes:
    images: column of the images.
    labels: column of the masks of classes; None without one.
    instances: column of the masks of objects; None without one.
    names: column of the examples' names; None for the names of image files, or the rows' numbers.
    splits: split -> its name in the data set, a text file that lists examples, or a fraction; None
      for those of the data set.
  """

  images: str = 'image'
  labels: str | None = 'label'
  instances: str | None = None
  names: str | None = None

  def _check_patterns(self) -> None:
    if self.labels is None and self.instances is None:
      raise SegjaxError(
        'config.data.files.labels or config.data.files.instances must name a column of masks'
      )


class _Row(NamedTuple):
  table: tables.Table
  number: int


class Builder(files.FilesBuilder):
  """Prepares arrow and parquet files."""

  Options = Options
  content = 'arrow or parquet files of a Hugging Face data set'

  @classmethod
  def find(
    cls, source: Path, options: Options, annotations: Sequence[str]
  ) -> dict[str, list[files.Item]]:
    found = {split: tables.Table(paths) for split, paths in tables.find_tables(source).items()}
    if not found:
      raise raw.missing_content(source, cls.content)
    for table in found.values():
      for key in ('images', 'labels', 'instances', 'names'):
        if (column := getattr(options, key)) is not None:
          table.check_column(column, key)
    rows = {
      (name if split == tables.ALL else f'{split}/{name}'): _Row(table, number)
      for split, table in found.items()
      for number, name in enumerate(example_names(table, options))
    }
    make = functools.partial(_item, options=options, annotations=tuple(annotations), source=source)
    return {
      split: [make(name, rows[name]) for name in names]
      for split, names in _splits(found, list(rows), options, source).items()
    }


def example_names(table: tables.Table, options: Options) -> list[str]:
  """The name of each row: of its column, else of its image's file, else its number."""
  if options.names is not None:
    values = table.values(options.names)
  else:
    values = table.file_names(options.images)
  names = [_stem(value) for value in values]
  if all(names) and len(set(names)) == len(names):
    return names
  if options.names is not None:
    raise SegjaxError(
      f'config.data.files.names={options.names}: a name of {table.path} is empty or comes twice: '
      'choose another column, or none'
    )
  return [f'{number:06}' for number in range(len(table))]


def _stem(value: Any) -> str:
  """The last part of a path, without the suffix of an image."""
  path = PureWindowsPath('' if value is None else str(value))
  return path.stem if path.suffix.lower() in images.SUFFIXES else path.name


def _splits(
  found: dict[str, tables.Table], names: Sequence[str], options: Options, source: Path
) -> dict[str, list[str]]:
  """The examples of each split."""
  if options.splits is not None or len(found) == 1:
    return files.splits_of(names, options, source)
  splits: dict[str, list[str]] = {}
  for name in names:
    top = name.partition('/')[0]
    splits.setdefault(files.SPLIT_NAMES.get(top.lower(), top), []).append(name)
  return splits


def _item(
  name: str, row: _Row, *, options: Options, annotations: tuple[str, ...], source: Path
) -> files.Item:
  kinds = folder.kinds_read(options, annotations)
  columns = (options.images, *(getattr(options, kind) for kind in kinds))
  cell = lambda column: tables.Cell(row.table, row.number, column, columns, source)
  listed = {
    kind: [File(cell(getattr(options, kind)), name)] if kind in kinds else []
    for kind in ('labels', 'instances')
  }
  read = functools.partial(
    masks.read, listed['labels'], listed['instances'], options, 'objects' in annotations
  )
  return files.Item(name, cell(options.images), read)
