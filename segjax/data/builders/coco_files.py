"""Annotation files in COCO's format: JSON with `images`, `categories` and `annotations`."""

import collections
import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from segjax.data import images, records
from segjax.data.builders import coco_layout, coco_looks, files, raw
from segjax.data.formats import coco
from segjax.types import SegjaxError, nearest


class CocoImage(NamedTuple):
  """One entry of `images`; height and width in pixels, None where a file of one's own has none."""

  id: int
  file_name: str
  height: int | None
  width: int | None


class CocoFile(NamedTuple):
  """The content of a JSON file.

  Attributes:
    path: the file.
    categories: by rising id.
    supercategories: of each category, by its id.
    images: in the file's order.
    annotations: of each image by its id, in the file's order and as they are.
  """

  path: Path
  categories: tuple[coco.Category, ...]
  supercategories: Mapping[int, Any]
  images: tuple[CocoImage, ...]
  annotations: Mapping[int, Sequence[Mapping[str, Any]]]


# The lists `images`, `categories` and `annotations` of a JSON file.
Tables = dict[str, list[dict[str, Any]]]
Correct = Callable[[Tables], None]

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


def optional(rules: Mapping[str, Rule]) -> dict[str, Rule]:
  """The same rules, of keys that may be missing."""

  def relax(rule: Rule) -> Rule:
    wanted, holds = rule
    return wanted, lambda value: value is None or holds(value)

  return {key: relax(rule) for key, rule in rules.items()}


def read_file(
  path: Path, kind: str, *, own: bool = False, correct: Correct | None = None
) -> CocoFile:
  """Reads `images`, `categories` and `annotations` of a JSON file of any of COCO's kinds.

  Args:
    path: of the file.
    kind: that it should be, 'instances' or 'panoptic', for error messages.
    own: whether it is of a data set of one's own, in which sizes of images may be missing, and two
      categories may have one name if only one of them is used.
    correct: changes the three lists where a tool is known to write them otherwise.

  Raises:
    SegjaxError: the file is missing, truncated or without one of the three; an image or a category
      lacks what it must have or comes twice; an annotation is of an image that is not listed.
  """
  tables = _read_tables(path, kind)
  if correct is not None:
    correct(tables)
  for entry in tables['categories']:
    check(path, f'category {entry.get("id")}', entry, {'name': _LINE, 'id': INTEGER})
    for key in ('name', 'supercategory'):  # as TFDS strips the names that it stores
      if isinstance(entry.get(key), str):
        entry[key] = entry[key].strip()
  size = {'height': _SIZE, 'width': _SIZE}
  rules = {'id': INTEGER, **(optional(size) if own else size), 'file_name': FILE_NAME}
  for entry in tables['images']:
    if own and 'file_name' not in entry and FILE_NAME[1](entry.get('coco_url')):  # LVIS
      entry['file_name'] = '/'.join(entry['coco_url'].split('/')[-2:])
    check(path, f'image {entry.get("id")}', entry, rules)
  check_unique(path, 'the category id', [entry['id'] for entry in tables['categories']])
  if not own:
    check_unique(path, 'the category name', [entry['name'] for entry in tables['categories']])
  for key in ('id', 'file_name'):
    check_unique(path, f'the image {key}', [entry[key] for entry in tables['images']])
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
    {entry['id']: entry.get('supercategory') for entry in tables['categories']},
    tuple(CocoImage(*map(entry.get, CocoImage._fields)) for entry in tables['images']),
    annotations,
  )


def _read_tables(path: Path, kind: str) -> Tables:
  try:
    content = json.loads(raw.read_bytes(path))
  except ValueError as e:  # no JSON, or no UTF-8
    raise SegjaxError(
      f'{path} is truncated or is not valid JSON ({e}): download the file again'
    ) from e
  if look := coco_looks.looks_like(content, kind):
    raise SegjaxError(f'{path} is {look.what}, not a file of {kind} in COCO format: {look.remedy}')
  tables = {}
  for key in ('categories', 'images', 'annotations'):
    table = tables[key] = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
      raise SegjaxError(f"{path} has no list {key}: name a file in COCO's format")
    if not table and key != 'annotations':
      raise SegjaxError(f'{path} lists no {key}: download the file again')
  return tables


# --- classes --------------------------------------------------------------------------------------

# Names with which converters fill up the list of categories.
_FILLERS = ('_background_', '__ignore__')


def choose_categories(
  found: Sequence[CocoFile], names: Sequence[str] | None, *, background: bool = False
) -> tuple[coco.Category, ...]:
  """The categories that are classes of a data set of one's own, in the order of class indices.

  An unused category is none if it is a filler or, as in Roboflow's files, the others'
  supercategory.

  Args:
    found: the annotation files, of the same categories.
    names: of the classes; None for all categories by rising id.
    background: whether `names` may have the background, which is no category.

  Raises:
    SegjaxError: two have one name; a name is not listed; a category is used that is not named.
  """
  first = found[0]
  counts = collections.Counter(used for file in found for used in _used(file))
  listed = [c for c in first.categories if counts[c.id] or not _is_filler(c, first)]
  check_unique(first.path, 'the category name', [category.name for category in listed])
  if names is None:
    if not listed:
      raise SegjaxError(f'{first.path} has no annotations: add some, or name another file')
    return tuple(listed)
  for category in listed:
    if counts[category.id] and category.name not in names:
      raise SegjaxError(
        f'config.data.files.classes lacks {category.name}, of which there are '
        f'{counts[category.id]} annotations in {first.path} and the files of other splits: add it'
      )
  by_name = {category.name: category for category in (*first.categories, *listed)}
  if background:
    by_name = {files.BACKGROUND: coco.Category(-1, files.BACKGROUND)} | by_name
  for name in names:
    if name not in by_name:
      raise SegjaxError(
        f'config.data.files.classes has {name}, which is not a category of {first.path}'
        f'{nearest(name, by_name)}'
      )
  return tuple(by_name[name] for name in names)


def _is_filler(category: coco.Category, file: CocoFile) -> bool:
  """Whether a category that is not used is one of those that tools add to the user's own."""
  supers = dict(file.supercategories)
  own = supers.pop(category.id)
  of_all = bool(supers) and set(supers.values()) == {category.name}
  return category.name in _FILLERS or (of_all and own in (None, '', 'none'))


def _used(file: CocoFile) -> Iterator[int]:
  """The category of each annotation, or of each segment of a panoptic file."""
  for entries in file.annotations.values():
    for entry in entries:
      for part in entry.get('segments_info', [entry]):
        yield part['category_id']


# --- builders -------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class CocoConfig(tfds.core.BuilderConfig):
  """Which splits a data set in COCO's format has.

  Attributes:
    splits: split to the name that its files have upstream; None for a data set of one's own.
    content: what the directory of raw files should hold, for messages.
    file: the annotation file of a split, with {kind} and, for its name upstream, {name}.
    options: of a data set of one's own; of another, where its images are.
    annotations: that it has; () for those of the files.
  """

  splits: dict[str, str] | None = None
  content: str = ''
  file: str = 'annotations/{kind}_{name}.json'
  options: coco_layout.Options = coco_layout.Options()
  annotations: tuple[str, ...] = ()


def make_configs(description: str, content: str, own_content: str) -> list[CocoConfig]:
  """The configs `2017`, which is COCO's own, and `custom`, with the content of their raw files."""
  splits = {'train': 'train2017', 'val': 'val2017'}
  own = "A data set of one's own in COCO's format."
  return [
    CocoConfig(name='2017', description=description, splits=splits, content=content),
    CocoConfig(name='custom', description=own, content=own_content),
  ]


class CocoBuilder(raw.Builder, skip_registration=True):
  """A data set in COCO's format: JSON files, and directories of images.

  Attributes:
    kind: of the files, 'instances' or 'panoptic'.
    correct: see the function `read_file`.
  """

  Options = coco_layout.Options
  kind: str
  correct: Correct | None = None

  def read_file(self, path: Path) -> CocoFile:
    """A file of that kind; what is wrong is an error that names it."""
    raise NotImplementedError

  def set_categories(
    self, info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]
  ) -> None:
    """Names the classes of an info that does not know them yet."""
    raise NotImplementedError

  @classmethod
  def own_config(cls, config: str, options: Any, annotations: Sequence[str]) -> CocoConfig | None:
    if config == 'custom':
      wanted = cls.prepared_for(options, tuple(annotations))
      own = cls.builder_configs[config]
      return dataclasses.replace(own, options=options, annotations=wanted)
    if options != cls.Options():
      raise SegjaxError(
        f'config.data.files is for data of your own, {cls.name}/custom: leave it out, or set '
        f'config.data.name={cls.name}/custom'
      )
    return None

  @classmethod
  def prepared_for(cls, options: Any, annotations: tuple[str, ...]) -> tuple[str, ...]:
    """The annotations of what is prepared for a task, given those that it reads."""
    raise NotImplementedError

  @classmethod
  def watched(cls, source: Path, options: Any) -> list[Path]:
    try:
      parts = coco_layout.find_parts(source, options, cls.kind, '')
      return coco_layout.watched(source, parts, options, cls.kind)
    except SegjaxError:  # which preparing says too
      return [source]

  @property
  def options(self) -> coco_layout.Options:
    return self.builder_config.options

  @property
  def is_own(self) -> bool:
    """Whether it is a data set of one's own."""
    return self.builder_config.splits is None

  def find_parts(self, source: Path) -> list[coco_layout.Part]:
    """The annotation files: those that the config names, else those in `source`."""
    if self.is_own:
      content = self.builder_config.content
      return coco_layout.find_parts(source, self.options, self.kind, content)
    file = functools.partial(self.builder_config.file.format, kind=self.kind)
    return [
      coco_layout.Part(source / file(name=name), name, split)
      for split, name in self.builder_config.splits.items()
    ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, self.builder_config.content)
    parts = self.find_parts(source)
    found = [self.read_file(part.path) for part in parts]
    first, *others = found
    for other in others:
      if other.categories != first.categories:
        raise SegjaxError(
          f'{other.path} and {first.path} have different categories: give both the same list'
        )
    categories = first.categories
    if self.is_own:
      background = 'label' in self.builder_config.annotations[-1:]
      categories = choose_categories(found, self.options.classes, background=background)
    self.set_categories(self.info, categories)
    labels = {category.id: label for label, category in enumerate(categories)}
    found_splits = {}
    for part, file in zip(parts, found, strict=True):
      listed = self._find_images(source, part, file)
      names = [image.file_name for image, _ in listed]
      for split, chosen in coco_layout.divide(names, part, self.options, source):
        entries = [listed[i] for i in chosen]
        found_splits[split] = self._split(file, entries, labels, source, part)
    return found_splits

  def _split(
    self,
    file: CocoFile,
    listed: Sequence[tuple[CocoImage, Path]],
    labels: Mapping[int, int],
    source: Path,
    part: coco_layout.Part,
  ) -> records.Split:
    """The split of some images of an annotation file, with the class index of each category id."""
    raise NotImplementedError

  def _find_images(
    self, source: Path, part: coco_layout.Part, file: CocoFile
  ) -> list[tuple[CocoImage, Path]]:
    """The images of an annotation file, and where they are."""
    directories = coco_layout.image_directories(source, part, self.options)
    names = [image.file_name for image in file.images]
    outside = self.options.outside
    found = coco_layout.locate(directories, names, file.path, outside=outside)
    listed = list(zip(file.images, found.paths, strict=True))
    there = [(image, path) for image, path in listed if path.is_file()]
    if self.options.unpaired == 'error' or not there:
      remedy = "config.data.source, or set config.data.files.unpaired='skip'"
      remedy = remedy if self.is_own and there else 'config.data.source'
      check_exist(file.path, 'images', {path: image.id for image, path in listed}, remedy)
    if len(there) < len(listed):
      warnings.warn(
        f'{file.path}: {len(listed) - len(there)} of {len(listed)} images are left out, as they '
        'are missing (config.data.files.unpaired=skip)',
        stacklevel=2,
      )
    return there


def first_directory(*places: Path) -> Path:
  """The first of `places` that is a directory, else the first of all."""
  return next((place for place in places if place.is_dir()), places[0])


def check_exist(
  path: Path, kind: str, listed: Mapping[Path, int], remedy: str = 'config.data.source'
) -> None:
  """Raises a SegjaxError that says how many of the files that `path` lists are missing, and one.

  Args:
    path: the JSON file.
    kind: of the files, in the plural.
    listed: each file, and the id of its image.
    remedy: what to correct, if the files are not missing.
  """
  missing = [file for file in listed if not file.is_file()]
  if missing:
    raise SegjaxError(
      f'{len(missing)} of {len(listed)} {kind} of {path} are missing, such as {missing[0]} (image '
      f'{listed[missing[0]]}): add them, or correct {remedy}'
    )


def read_image(
  path: Path, image: CocoImage, listed_in: Path, channels: int = 3
) -> tuple[bytes, tuple[int, int]]:
  """The encoded image, and its (height, width).

  Raises:
    SegjaxError: it cannot be decoded, or has another size than is listed.
  """
  encoded = raw.read_bytes(path)
  height, width = images.decode_image(encoded, channels, str(path)).shape[:2]
  listed = image.height or height, image.width or width
  if listed != (height, width):
    raise images.size_error(
      encoded, str(path), f'image {image.id} of {listed_in}', listed, 'download both files again'
    )
  return encoded, (height, width)
