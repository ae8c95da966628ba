"""Annotation files in COCO's format: JSON with `images`, `categories` and `annotations`."""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from segjax.data import images
from segjax.data.builders import raw
from segjax.data.formats import coco
from segjax.types import SegjaxError


class CocoImage(NamedTuple):
  """One entry of `images`; height and width in pixels."""

  id: int
  file_name: str
  height: int
  width: int


class CocoFile(NamedTuple):
  """The content of a JSON file.

  Attributes:
    path: the file.
    categories: by rising id.
    images: in the file's order.
    annotations: of each image by its id, in the file's order and as they are.
  """

  path: Path
  categories: tuple[coco.Category, ...]
  images: tuple[CocoImage, ...]
  annotations: Mapping[int, Sequence[Mapping[str, Any]]]


# What the value of a key must be, in words, and whether it is.
Rule = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


INTEGER: Rule = ('an integer', lambda value: type(value) is int and abs(value) < 2**63)
_SIZE: Rule = ('a positive integer', lambda value: INTEGER[1](value) and value > 0)
_LINE: Rule = (
  'a line of text',
  lambda value: isinstance(value, str) and bool(value.strip()) and len(value.splitlines()) == 1,
)
FILE_NAME: Rule = ('a file name', lambda value: isinstance(value, str) and bool(value))
NUMBERS: Mapping[str, Rule] = {
  'bbox': (
    'four numbers',
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)),
  ),
  'area': ('a number of pixels', lambda value: _is_number(value) and value >= 0),
  'iscrowd': ('0 or 1', lambda value: value in (None, 0, 1)),
}


def check(path: Path, who: str, entry: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
  """Raises a SegjaxError for the first key of an entry of a JSON file that breaks its rule."""
  for key, (wanted, holds) in rules.items():
    if not holds(value := entry.get(key)):
      raise SegjaxError(
        f'{path}: {who} has {key} {value!r}, which is not {wanted}: correct the file'
      )


def check_unique(path: Path, kind: str, values: Sequence[Any]) -> None:
  """Raises a SegjaxError that names a value that comes more than once."""
  value, count = collections.Counter(values).most_common(1)[0] if values else (None, 0)
  if count > 1:
    raise SegjaxError(f'{path} has {kind} {value} twice: correct the file')


def one_of(values: Iterable[Any], kind: str) -> Rule:
  """The rule of an integer that refers to something."""
  known = set(values)
  return f'one of its {kind}', lambda value: type(value) is int and value in known


def read_file(path: Path) -> CocoFile:
  """Reads `images`, `categories` and `annotations` of a JSON file of any of COCO's kinds.

  Raises:
    SegjaxError: the file is missing, truncated or without one of the three; an image or a category
      lacks what it must have or comes twice; an annotation is of an image that is not listed.
  """
  tables = _read_tables(path)
  for entry in tables['categories']:
    check(path, f'category {entry.get("id")}', entry, {'name': _LINE, 'id': INTEGER})
  for entry in tables['images']:
    rules = {'id': INTEGER, 'height': _SIZE, 'width': _SIZE, 'file_name': FILE_NAME}
    check(path, f'image {entry.get("id")}', entry, rules)
  for key, kind in (('id', 'the category id'), ('name', 'the category name')):
    check_unique(path, kind, [entry[key] for entry in tables['categories']])
  check_unique(path, 'the image id', [entry['id'] for entry in tables['images']])
  annotations: dict[int, list[dict[str, Any]]] = {entry['id']: [] for entry in tables['images']}
  rules = {'image_id': one_of(annotations, 'images')}
  for entry in tables['annotations']:
    check(path, f'annotation {entry.get("id")}', entry, rules)
    annotations[entry['image_id']].append(entry)
  fields = coco.Category._fields
  categories = [coco.Category(*map(entry.get, fields)) for entry in tables['categories']]
  return CocoFile(
    path,
    tuple(sorted(categories, key=lambda category: category.id)),
    tuple(CocoImage(*(entry[key] for key in CocoImage._fields)) for entry in tables['images']),
    annotations,
  )


def _read_tables(path: Path) -> dict[str, list[dict[str, Any]]]:
  try:
    content = json.loads(raw.read_bytes(path))
  except ValueError as e:  # no JSON, or no UTF-8
    raise SegjaxError(
      f'{path} is truncated or is not valid JSON ({e}): download the file again'
    ) from e
  tables = {}
  for key in ('categories', 'images', 'annotations'):
    table = tables[key] = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
      raise SegjaxError(f"{path} has no list {key}: name a file in COCO's format")
    if not table and key != 'annotations':
      raise SegjaxError(f'{path} lists no {key}: download the file again')
  return tables


@dataclasses.dataclass(eq=False)
class CocoConfig(tfds.core.BuilderConfig):
  """Which splits a data set in COCO's format has.

  Attributes:
    splits: split to the name that its files have upstream; None for all that there are.
    content: what the directory of raw files should hold, for messages.
  """

  splits: dict[str, str] | None = None
  content: str = ''


def make_configs(description: str, content: str, own_content: str) -> list[CocoConfig]:
  """The configs `2017`, which is COCO's own, and `custom`, with the content of their raw files."""
  splits = {'train': 'train2017', 'val': 'val2017'}
  own = "A data set of one's own in COCO's format."
  return [
    CocoConfig(name='2017', description=description, splits=splits, content=content),
    CocoConfig(name='custom', description=own, content=own_content),
  ]


class CocoBuilder(raw.Builder, skip_registration=True):
  """A data set in COCO's format, of whose splits each is a JSON file and a directory of images.

  Attributes:
    pattern: path of an annotation file below the directory of raw files, with {} for the name.
    read_file: reads it, strictly.
    set_categories: names the classes of an info.
  """

  pattern: str
  read_file: Callable[[Path], CocoFile]
  set_categories: Callable[[tfds.core.DatasetInfo, Sequence[coco.Category]], None]

  @classmethod
  def own_config(cls, config: str, options: Any, annotations: Sequence[str]) -> CocoConfig | None:
    del options, annotations
    return dataclasses.replace(cls.builder_configs[config]) if config == 'custom' else None

  def find_splits(self, source: Path) -> dict[str, str]:
    """The config's splits, else those of the annotation files in `source`, by their names.

    Raises:
      SegjaxError: there is no such file, or the name of one cannot be that of a split.
    """
    if self.builder_config.splits is not None:
      return self.builder_config.splits
    start, end = Path(self.pattern).name.split('{}')
    names = {}
    for path in sorted(source.glob(self.pattern.format('*'))):
      name = path.name.removeprefix(start).removesuffix(end)
      if not re.fullmatch(r'\w+', name) or name == 'all':
        raise SegjaxError(f'{path} cannot name a split: rename it, with letters and digits alone')
      names[name] = name
    if not names:
      raise raw.missing_content(source, self.builder_config.content)
    return names

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, self.builder_config.content)
    splits = self.find_splits(source)
    files = {s: self.read_file(source / self.pattern.format(name)) for s, name in splits.items()}
    first, *others = files.values()
    for other in others:
      if other.categories != first.categories:
        raise SegjaxError(
          f'{other.path} and {first.path} have different categories: give both the same list'
        )
    found = {}
    for split, file in files.items():
      name = splits[split]
      directory = first_directory(source / name, source / 'images' / name, source / 'images')
      listed = {directory / image.file_name: image.id for image in file.images}
      check_exist(file.path, 'images', listed)
      found[split] = self._generate_examples(file, directory, source, name)
    self.set_categories(self.info, first.categories)
    return found


def first_directory(*places: Path) -> Path:
  """The first of `places` that is a directory, else the first of all."""
  return next((place for place in places if place.is_dir()), places[0])


def check_exist(path: Path, kind: str, listed: Mapping[Path, int]) -> None:
  """Raises a SegjaxError that says how many of the files that `path` lists are missing, and one.

  Args:
    path: the JSON file.
    kind: of the files, in the plural.
    listed: each file, and the id of its image.
  """
  missing = [file for file in listed if not file.is_file()]
  if missing:
    raise SegjaxError(
      f'{len(missing)} of {len(listed)} {kind} of {path} are missing, such as {missing[0]} (image '
      f'{listed[missing[0]]}): add them, or correct config.data.source'
    )


def read_image(directory: Path, image: CocoImage, listed_in: Path) -> bytes:
  """The encoded image; an error if it cannot be decoded or has another size than is listed."""
  path = directory / image.file_name
  encoded = raw.read_bytes(path)
  height, width = images.decode_image(encoded, 3, str(path)).shape[:2]
  if (height, width) != (image.height, image.width):
    raise SegjaxError(
      f'{path} is {width}x{height} pixels but image {image.id} of {listed_in} is '
      f'{image.width}x{image.height}: download both files again'
    )
  return encoded
