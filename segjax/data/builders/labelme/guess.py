"""Whether users' files are LabelMe's."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.data import guess as types
from segjax.data import images as images_lib
from segjax.data.builders import files, guessing
from segjax.data.builders.labelme import builder
from segjax.types import SegjaxError


def guess(task: types.Task, images: Path | None, labels: Path | None) -> types.Guess | None:
  """See `segjax.data.guess.Guesser`: directories of images and of JSON files, or one of both.

  Raises:
    SegjaxError: some JSON files are LabelMe's, and others are not.
  """
  image_root, label_root = images or labels, labels or images
  if image_root is None or not (image_root.is_dir() and label_root.is_dir()):
    return None
  paths = files.find_files(label_root, {'.json'})
  if not any(map(_is_labelme, paths)):
    return None
  contents = {path: builder.load(path) for path in paths}
  entries = [_summary(entry) for content in contents.values() for entry in content['shapes']]
  source = guessing.common_directory(image_root, label_root)
  void = builder.Options.void
  names = sorted({label for label, _ in entries if label not in void})
  options: dict[str, Any] = {
    'classes': guessing.with_background(task, names),
    'images': guessing.relative(source, image_root.absolute()),
    'labels': guessing.relative(source, label_root.absolute()),
  }
  if used := tuple(name for name in void if any(label == name for label, _ in entries)):
    options['void'] = used
  problems = _problems(contents, entries)
  if task == 'panoptic':
    options['stuff'] = ()
    problems.append(guessing.ALL_THINGS)
  if odd := _unpaired(source, options):
    problems.append(odd)
    options['unpaired'] = 'skip'
  kinds = guessing.counts(kind for _, kind in entries)
  pictures = files.find_files(image_root, images_lib.SUFFIXES)
  items = builder.find_items(source, builder.Options(**options), semantic=True)
  options['splits'], unused = guessing.find_splits(source, list(items))
  problems += unused
  problems += guessing.narrow([item.image for item in items.values()])
  found = [
    f'{guessing.count(len(pictures), "image")} in {options["images"]}/',
    f'{guessing.count(len(paths), "JSON file")} of LabelMe in {options["labels"]}/: {kinds}',
    f'labels: {guessing.counts(label for label, _ in entries)}',
  ]
  return types.Guess('labelme', source, options, found, problems)


def _is_labelme(path: Path) -> bool:
  try:
    return bool(builder.load(path))
  except SegjaxError:
    return False


def _summary(entry: Any) -> tuple[str, str]:
  """The label and the type of a shape, wrong as it may be."""
  entry = entry if isinstance(entry, dict) else {}
  return str(entry.get('label')), str(entry.get('shape_type') or 'polygon')


def _problems(
  contents: Mapping[Path, Mapping[str, Any]], entries: Sequence[tuple[str, str]]
) -> list[str]:
  problems = []
  if empty := [path for path, content in contents.items() if not content['shapes']]:
    count = guessing.count(len(empty), 'JSON file')
    problems.append(f'{count} without a shape, such as {empty[0].name}')
  if lines := sum(kind in builder.LINES for _, kind in entries):
    problems.append(f'{guessing.count(lines, "shape")} without area (points and lines), left out')
  kinds = collections.Counter(kind for _, kind in entries if kind not in builder.KINDS)
  if kinds:
    problems.append(f'shapes of an unknown type: {guessing.counts(kinds.elements())}')
  return problems


def _unpaired(source: Path, options: Mapping[str, Any]) -> str | None:
  """What the builder says of images and JSON files that lack each other, if there are such."""
  try:
    builder.find_items(source, builder.Options(**options), semantic=True)
  except SegjaxError as e:
    return guessing.left_out(e)
  return None
