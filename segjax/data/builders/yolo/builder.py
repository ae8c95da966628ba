"""Data of your own as YOLO has it (ultralytics): a text file for each image, and a data.yaml.

`data.source` holds data.yaml (`data.files.yaml`). Its `train`, `val` and `test` are directories of
images, text files that list images, or lists of these, and are found as ultralytics finds them:
relative to its `path` or to its own directory, and where '../train/images' is not there,
'train/images' is (Roboflow). All must be below `data.source`; a `test` without images is left out.
Without a data.yaml (`data.files.yaml=None`), images are in `data.files.images`, and the names are
`data.files.names`, or else `data.files.classes` without `background`.

The text file of images/train/a.jpg is labels/train/a.txt: the last directory `images` of its path
becomes `labels`; without such a directory it is beside the image. An image without one has no
objects, as in ultralytics. Each row is an object, in fractions of the image's width and height:
  CLASS X Y X Y X Y …     a polygon of three points or more
  CLASS X Y W H           a box around a center, without a mask; in semantic tasks it is filled
In a file that has a polygon, all rows are polygons, as in ultralytics: there four numbers are two
points. Polygons of fewer than three points are left out, counted and reported.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from segjax.data import images as images_lib
from segjax.data.builders import files, polygons, raw
from segjax.types import IGNORE_LABEL, SegjaxError

# Phrases after a number of annotations, see `files.Content.problems`.
FILLED_BOX = 'boxes have no mask and were filled'
REPEATED = 'rows were the same as another one of their file and were left out'
VOID_OBJECTS = 'objects of a class of config.data.files.void were left out'

# A split of segjax: the keys that data.yaml may have for it.
_SPLITS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
# Fractions of the image by which coordinates may leave it, as in ultralytics.
_TOLERANCE = 0.01
# The numbers of a polygon of three points.
_POLYGON = 6
# A text file among labels that is of no image.
_NO_LABELS = ('classes.txt',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(files.Options):
  """Keys of `config.data.files`, besides those of `files.Options`.

  Attributes:
    classes: the names in data.yaml, in any order, and others such as `background`; without a
      data.yaml, and without `names`, in the order of their numbers.
    splits: None for the splits of data.yaml.
    yaml: path of data.yaml below `config.data.source`; None without one.
    images: directory of the images; only read without a data.yaml.
    names: without a data.yaml, the names in the order of their numbers; None for `classes` without
      `background`, which has no number then.
    void: names by number whose pixels have no class, and whose objects are left out.
    outside: whether data.yaml and list files may name images that are not below
      `config.data.source`.
    unpaired: 'empty' takes an image without a text file as one without objects, and leaves out a
      text file without an image.
  """

  yaml: str | None = 'data.yaml'
  images: str = 'images'
  names: tuple[str, ...] | None = None
  void: tuple[str, ...] = ()
  outside: bool = False
  unpaired: Literal['error', 'skip', 'empty'] = 'empty'


class Row(NamedTuple):
  """A row of a text file.

  Attributes:
    label: its class.
    values: f64[4] of a box, f64[2 N] of a polygon.
    is_box: which of them it is.
  """

  label: int
  values: np.ndarray
  is_box: bool


class Builder(files.FilesBuilder):
  """Prepares images with YOLO's text files."""

  Options = Options
  content = "YOLO's data.yaml, images and text files"

  @classmethod
  def find(
    cls, source: Path, options: Options, annotations: Sequence[str]
  ) -> dict[str, list[files.Item]]:
    names, splits = find_images(source, options)
    every = list(dict.fromkeys(path for paths in splits.values() for path in paths))
    labels = pair(source, every, options)
    if odd := list(without_image(labels)):
      warnings.warn(
        f'{len(odd)} text files have no image, such as {odd[0]}: not used', stacklevel=2
      )
    read = functools.partial(
      read_content, names=names, options=options, semantic=annotations[-1] == 'label'
    )
    items: dict[str, files.Item] = {}
    for image, path in labels.items():
      name = name_below(source, image)
      if name in items:
        raise SegjaxError(
          f'{items[name].image} and {image} have the same name and one text file: rename or delete '
          'one'
        )
      items[name] = files.Item(name, image, functools.partial(read, path))
    found = {
      s: [name_below(source, p) for p in paths if p in labels] for s, paths in splits.items()
    }
    if options.yaml is None or options.splits is not None:
      found = files.splits_of(sorted(items), options, source)
    return {split: [items[name] for name in listed] for split, listed in found.items()}


def name_below(source: Path, image: Path) -> str:
  """The name of an image: its path below `source`, or as it leads there, without the suffix."""
  return Path(os.path.relpath(image, source)).with_suffix('').as_posix()


def find_images(source: Path, options: Options) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
  """The names of the classes in text files, and the images of each split of data.yaml.

  Raises:
    SegjaxError: data.yaml is missing or wrong, or what it names is missing or elsewhere; or a name
      is neither a class nor void.
  """
  if options.yaml is None:
    directory = files.sub_directory(source, options.images, 'images')
    names = options.names
    if names is None:
      names = tuple(name for name in options.classes if name != files.BACKGROUND)
    for name in names:
      files.class_index('config.data.files.names', name, options)
    return names, {'all': files.find_files(directory, images_lib.SUFFIXES)}
  path = source / options.yaml
  content = read_yaml(path)
  names = class_names(path, content)
  for name in names:
    files.class_index(str(path), name, options)
  find = functools.partial(_find_place, source, path, content, outside=options.outside)
  splits: dict[str, list[Path]] = {}
  for split, keys in _SPLITS.items():
    if value := next((content[key] for key in keys if content.get(key)), None):
      places = value if isinstance(value, list) else [value]
      splits[split] = [image for place in places for image in find(split, place)]
  if not splits.get('test', True):
    del splits['test']
  if not splits:
    raise SegjaxError(f'{path} names no train and no val: add the directories of their images')
  return names, splits


def read_yaml(path: Path) -> dict[str, Any]:
  """The content of data.yaml.

  Raises:
    SegjaxError: it is missing, is not YAML, is not a mapping, or is of another task.
  """
  try:
    content = yaml.safe_load(raw.read_bytes(path))
  except (yaml.YAMLError, ValueError) as e:
    first_line = str(e).splitlines()[0]
    raise SegjaxError(f'{path} is not valid YAML ({first_line}): correct it') from e
  if not isinstance(content, dict):
    raise SegjaxError(f'{path} has no keys such as names and train: name the data.yaml of YOLO')
  if 'kpt_shape' in content:
    raise SegjaxError(f'{path} is of keypoints (kpt_shape): export polygons, for segmentation')
  return content


def class_names(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the classes in data.yaml, a list or a mapping from 0, 1, ….

  Raises:
    SegjaxError: there are none, their indices have gaps, or `nc` is another number.
  """
  names = content.get('names')
  if isinstance(names, dict):
    keys = sorted(names, key=str)
    if {str(key) for key in keys} != {str(i) for i in range(len(keys))}:
      raise SegjaxError(f'{path} has names {keys}, which are not 0 to {len(keys) - 1}: correct it')
    names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
  if not isinstance(names, list) or not names:
    raise SegjaxError(f'{path} has no names of classes: add them, one for each number in the rows')
  if content.get('nc') not in (None, len(names)):
    raise SegjaxError(f'{path} has nc: {content["nc"]} but {len(names)} names: correct it')
  return tuple(str(name) for name in names)


def _find_place(
  source: Path, path: Path, content: Mapping[str, Any], split: str, value: Any, *, outside: bool
) -> list[Path]:
  """The images of a directory or a list file that data.yaml names."""
  if not isinstance(value, str):
    raise SegjaxError(f'{path}: {split} is {value!r}, which is not a path: correct it')
  roots = [path.parent]
  if isinstance(content.get('path'), str):
    roots.insert(0, path.parent / content['path'])
  place = _first_below(source, path, value, roots, outside=outside)
  if place is None and split == 'test':  # Roboflow names one in every export
    return []
  if place is None:
    raise SegjaxError(
      f'{path}: {split} is {value}, which is neither below {" nor below ".join(map(str, roots))}: '
      'correct it'
    )
  if place.is_dir():  # also one that is a link, which is its user's doing
    return files.find_files(place, images_lib.SUFFIXES)
  roots.insert(0, place.parent)
  listed = {
    line: _first_below(source, place, line, roots, outside=outside)
    for line in files.read_names(place)
  }
  if missing := [line for line, image in listed.items() if image is None]:
    raise SegjaxError(
      f'{len(missing)} of {len(listed)} images of {place} are missing, such as {missing[0]}: add '
      'them, or correct the list'
    )
  return list(listed.values())


def _first_below(
  source: Path, listed_in: Path, value: str, roots: Sequence[Path], *, outside: bool
) -> Path | None:
  """The first file or directory that a value may mean; one below `source` before others."""
  value = value.replace('\\', '/')
  values = [value, value[3:]] if value.startswith('../') else [value]
  paths = [Path(os.path.normpath(root / name)) for root in roots for name in values]
  there = [path for path in paths if path.exists()]
  below = [path for path in there if not os.path.relpath(path, source).startswith('..')]
  if not there:
    return None
  found = (below or there)[0]
  if below and found.is_dir():
    return found
  return raw.inside(source, os.path.relpath(found, source), listed_in, outside=outside)


# --- text files -----------------------------------------------------------------------------------


def label_path(source: Path, image: Path) -> Path:
  """The text file of an image: the last directory `images` below `source` becomes `labels`."""
  parts = list(Path(os.path.relpath(image, source)).with_suffix('.txt').parts)
  if 'images' in parts[:-1]:
    last = len(parts) - 2 - parts[-2::-1].index('images')
    parts[last] = 'labels'
  return source.joinpath(*parts)


def pair(source: Path, images: Sequence[Path], options: Options) -> dict[Path, Path]:
  """The text file of each image that is used, whether it is there or not.

  Raises:
    SegjaxError: an image or a text file lacks the other, unless `options.unpaired` says otherwise.
  """
  labels = {image: label_path(source, image) for image in images}
  there = {image: path for image, path in labels.items() if path.is_file()}
  if labels and not there:
    image, path = next(iter(labels.items()))
    raise SegjaxError(
      f'none of {len(labels)} images has a text file; that of {image} would be {path}: correct '
      'config.data.source, or add them'
    )
  left = [image for image in images if image not in there]
  if left and options.unpaired == 'error':
    raise SegjaxError(
      f'{len(left)} of {len(images)} images have no text file, such as {left[0]}: add '
      f"{labels[left[0]]}, or set config.data.files.unpaired to 'empty' or 'skip'"
    )
  if options.unpaired == 'error' and (odd := next(without_image(labels), None)):
    raise SegjaxError(
      f"{odd} has no image: add it, delete the file, or set config.data.files.unpaired='empty'"
    )
  return there if options.unpaired == 'skip' else labels


def without_image(labels: Mapping[Path, Path]) -> Iterator[Path]:
  """The text files that are not of an image, in the directories that have no other text files."""
  directories = {path.parent: image.parent for image, path in labels.items()}
  for directory, image_directory in sorted(directories.items()):
    if directory == image_directory or not directory.is_dir():
      continue
    stems = {path.stem for path in image_directory.iterdir()}
    for path in sorted(directory.glob('*.txt')):
      if not (path.stem in stems or path.name in _NO_LABELS or path.name.startswith('.')):
        yield path


def read_rows(
  path: Path, classes: int, named_in: str | Path = 'data.yaml'
) -> tuple[list[Row], int]:
  """The rows of a text file.

  Args:
    path: of the file.
    classes: how many there are.
    named_in: the file or the key of the config that names them, for errors.

  Returns:
    The rows without those that come again, and how many these are.

  Raises:
    SegjaxError: a row is neither a polygon nor a box, or its class or its coordinates are out of
      range; the sentence has its number, from 1.
  """
  try:
    lines = raw.read_bytes(path).decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise SegjaxError(f'{path} is not text: export it again') from e
  listed = [(f'{path}: row {i}', line.split()) for i, line in enumerate(lines, 1) if line.strip()]
  boxes = all(len(words) < 1 + _POLYGON for _, words in listed)
  read = functools.partial(_read_row, classes=classes, named_in=named_in, boxes=boxes)
  rows = {' '.join(words): read(who, words) for who, words in listed}
  return list(rows.values()), len(listed) - len(rows)


def _read_row(
  who: str, words: Sequence[str], *, classes: int, named_in: str | Path, boxes: bool
) -> Row:
  """A row of a file of boxes alone, or of one of polygons."""
  try:
    label, *values = map(float, words)
  except ValueError as e:
    raise SegjaxError(f'{who} has words that are not numbers: correct it') from e
  if not label.is_integer() or not 0 <= label < classes:
    raise SegjaxError(
      f'{who} has the class {label:g}, but {named_in} names the classes 0 to {classes - 1}: '
      'correct it, or add the name'
    )
  short = (4,) if boxes else (2, 4)  # which a polygon may be that is then left out
  if len(values) not in short and (len(values) < _POLYGON or len(values) % 2):
    raise SegjaxError(
      f'{who} has {len(values)} numbers after its class, not 4 (a box) or the pairs of 3 points or '
      'more (a polygon): correct it'
    )
  found = np.array(values)
  if not ((found >= -_TOLERANCE) & (found <= 1 + _TOLERANCE)).all():
    wrong = found[~((found >= -_TOLERANCE) & (found <= 1 + _TOLERANCE))][0]
    raise SegjaxError(
      f'{who} has the coordinate {wrong:g}, which is not from 0 to 1: divide x by the width and y '
      'by the height of the image'
    )
  return Row(int(label), found, boxes)


def read_content(
  path: Path, size: files.Size, *, names: Sequence[str], options: Options, semantic: bool
) -> files.Content:
  """The objects in a text file; none where there is no file.

  Args:
    path: of the file.
    size: (H, W) of its image.
    names: of the classes in the rows.
    options: of the format.
    semantic: whether the task is; others report void.

  Raises:
    SegjaxError: a row is wrong.
  """
  if not path.is_file():
    return files.Content(objects=[])
  key = 'classes' if options.names is None else 'names'
  rows, repeated = read_rows(path, len(names), options.yaml or f'config.data.files.{key}')
  problems, objects = [REPEATED] * repeated, []
  for row in rows:
    label = files.class_index(str(path), names[row.label], options)
    problems += [VOID_OBJECTS] * (label == IGNORE_LABEL and not semantic)
    if row.is_box:
      found = _box(row, label, size, problems)
      problems += [FILLED_BOX] * (semantic and found is not None)
    else:
      corners = row.values.reshape(-1, 2) * size[::-1]
      found = polygons.to_object([corners], label, size, problems)
    objects += [found] if found else []
  return files.Content(objects=objects, problems=problems)


def _box(row: Row, label: int, size: files.Size, problems: list[str]) -> files.Object | None:
  center, half = row.values[:2] * size[::-1], row.values[2:] / 2 * size[::-1]
  corners = np.stack([center - half, center + half])
  (x0, y0), (x1, y1) = np.clip(corners, 0, size[::-1]).tolist()
  if x0 >= x1 or y0 >= y1:
    problems.append(polygons.EMPTY)
    return None
  problems += [polygons.BEYOND] * polygons.reaches_beyond(corners, size)
  return files.Object(label, None, (x0, y0, x1 - x0, y1 - y0))
