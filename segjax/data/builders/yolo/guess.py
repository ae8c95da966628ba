"""Whether users' files are YOLO's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segjax.data import guess as types
from segjax.data import images as images_lib
from segjax.data.builders import files, guessing
from segjax.data.builders.yolo import builder
from segjax.types import SegjaxError

_YAML = ('data.yaml', 'dataset.yaml', 'data.yml')


def guess(
  task: types.Task, images: Path | None, labels: Path | None, *, outside: bool = False
) -> types.Guess | None:
  """See `segjax.data.guess.Guesser`: a data.yaml, a directory with one, or images and text files.

  Text files without a data.yaml are of the classes in `classes.txt` beside them. `outside` is that
  of the options.
  """
  if found := _find_yaml(images, labels):
    return _guess_yaml(task, found, images, labels, outside)
  if images is not None and labels is None:
    images, labels = images / 'images', images / 'labels'
  if images is None or labels is None or not (images.is_dir() and labels.is_dir()):
    return None
  listed = labels / 'classes.txt'
  if not listed.is_file():
    listed = labels.parent / 'classes.txt'
  if not listed.is_file() or not any(path != listed for path in files.find_files(labels, {'.txt'})):
    return None
  source, names = guessing.common_directory(images, labels), files.read_names(listed)
  place = guessing.relative(source, images.absolute())
  options = {'classes': tuple(names), 'yaml': None, 'images': place}
  # As a class of a number, which the background of a semantic task is not otherwise.
  options |= {'names': tuple(names)} if files.BACKGROUND in names else {}
  paths = files.find_files(images, images_lib.SUFFIXES)
  pictures = [builder.name_below(source, path) for path in paths]
  below = '' if place == '.' else place
  options['splits'], problems = guessing.find_splits(source, pictures, below)
  options |= {'outside': True} if outside else {}
  return _complete(task, source, options, listed, problems)


def _find_yaml(images: Path | None, labels: Path | None) -> Path | None:
  if labels is not None and labels.suffix.lower() in ('.yaml', '.yml'):
    return labels if _is_yolo(labels) else None
  places = [place for place in (labels, images) if place is not None]
  for place in (*places, *(place.parent for place in places)):
    for name in _YAML:
      if (place / name).is_file() and _is_yolo(place / name):
        return place / name
  for place in places:  # of another name, such as coco8-seg.yaml
    found = [path for name in ('*.yaml', '*.yml') for path in place.glob(name) if _is_yolo(path)]
    if len(found) == 1:
      return found[0]
  return None


def _is_yolo(path: Path) -> bool:
  try:
    content = builder.read_yaml(path)
  except SegjaxError:
    return False
  return 'names' in content and any(key in content for key in ('train', 'val', 'path'))


def _guess_yaml(
  task: types.Task, path: Path, images: Path | None, labels: Path | None, outside: bool
) -> types.Guess:
  source = guessing.common_directory(path, *(p for p in (images, labels) if p is not None))
  names = builder.class_names(path, builder.read_yaml(path))
  options = {'classes': names, 'yaml': guessing.relative(source, path.absolute())}
  options |= {'outside': True} if outside else {}
  _, splits = builder.find_images(source, builder.Options(**options))
  if not {'train', 'val'} <= splits.keys():
    options['splits'] = dict(files.FRACTIONS)
  return _complete(task, source, options, path, [])


def _complete(
  task: types.Task, source: Path, options: dict[str, Any], named_in: Path, problems: list[str]
) -> types.Guess:
  """The guess, with what reading all text files, of classes named in a file, tells."""
  names, splits = builder.find_images(source, builder.Options(**options))
  every = [image for images in splits.values() for image in images]
  labels = builder.pair(source, every, builder.Options(**options))
  if odd := list(builder.without_image(labels)):
    count = guessing.count(len(odd), 'text file')
    problems.append(f'{count} without an image, such as {odd[0]}: not used')
  rows, empty = [], []
  for image, path in labels.items():
    of_image = builder.read_rows(path, len(names), named_in)[0] if path.is_file() else []
    rows += of_image
    empty += [] if of_image else [image]
  problems += [*_problems(task, source, names, rows, empty), *guessing.narrow(every)]
  found = [
    f'YOLO {split}: {guessing.count(len(images), "image")}' for split, images in splits.items()
  ]
  found.append(f'objects: {guessing.counts(names[row.label] for row in rows)}')
  options['classes'] = guessing.with_background(task, options['classes'])
  if task == 'panoptic':
    options['stuff'] = ()
    problems.append(guessing.ALL_THINGS)
  return types.Guess('yolo', source, options, found, problems)


_BOXES = {
  'semantic': 'they are filled',
  'instance': 'for config.model.masks=False',
  'panoptic': 'which panoptic tasks cannot use',
}


def _problems(
  task: types.Task,
  source: Path,
  names: Sequence[str],
  rows: Sequence[builder.Row],
  empty: Sequence[Path],
) -> list[str]:
  """What looks wrong with all rows, and images without one."""
  problems = []
  if empty:
    count = guessing.count(len(empty), 'image')
    problems.append(f'{count} without an object, such as {guessing.relative(source, empty[0])}')
  if boxes := sum(row.is_box for row in rows):
    count = guessing.count(len(rows), 'object')
    problems.append(f'{boxes:,} of {count} are boxes without a mask: {_BOXES[task]}')
  used = {row.label for row in rows}
  if unused := [name for index, name in enumerate(names) if index not in used]:
    problems.append(f'no object of the classes {", ".join(unused)}')
  return problems
