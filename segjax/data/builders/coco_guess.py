"""Whether users' files are in COCO format, and what `config.data` says of them."""

import functools
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from segjax.data import guess
from segjax.data import images as images_lib
from segjax.data.builders import coco_files, coco_layout, files, guessing

# In which splits are listed.
_ORDER = ('train', 'val', 'test')
# Files that are in COCO format, by their names.
_NAMED_PLACES = ('annotations/instances_*.json', '*/_annotations.coco*.json')


class _File(NamedTuple):
  """An annotation file, and where its images are."""

  part: coco_layout.Part
  content: coco_files.CocoFile
  images: coco_layout.Located


def make_guess(
  kind: str,
  read_file: Callable[[Path], coco_files.CocoFile],
  task: guess.Task,
  images: Path | None,
  labels: Path | None,
  *,
  outside: bool,
) -> guess.Guess | None:
  """See `segjax.data.guess.Guesser`.

  Args:
    kind: 'instances' or 'panoptic'.
    read_file: reads a file of that kind, strictly.
    task, images, labels: of the user.
    outside: whether images may be outside their directory, see `coco_layout.Options`.

  Raises:
    SegjaxError: the files are in this format, and something is wrong with them.
  """
  images, labels = (path and Path(os.path.abspath(path)) for path in (images, labels))
  parts = _find(kind, images, labels)
  if not parts:
    return None
  source = guessing.common_directory(images, labels)
  found = [_locate(source, images, part, read_file(part.path), outside) for part in parts]
  contents = [file.content for file in found]
  names = [c.name for c in coco_files.choose_categories(contents, None)]
  if task == 'semantic' and kind == 'instances' and files.BACKGROUND not in names:
    names = [files.BACKGROUND, *names]
  relative = functools.partial(guessing.relative, source)
  annotations = {file.part.split: relative(file.part.path) for file in found}
  directories = {file.part.split: relative(file.images.directory) for file in found}
  options: dict[str, Any] = {'classes': tuple(names), 'annotations': annotations}
  options['images'] = directories
  options |= {'outside': True} if outside else {}
  if None in annotations:
    options |= {'annotations': annotations[None], 'images': directories[None]}
    options['splits'] = files.FRACTIONS
  listed = {path for file in found for path in file.images.paths}
  return guess.Guess(
    f'coco_{kind}/custom',
    source,
    options,
    [_describe(file, relative) for file in found],
    [problem for file in found for problem in _problems(file, listed, relative)],
  )


def _find(kind: str, images: Path | None, labels: Path | None) -> list[coco_layout.Part]:
  """The annotation files, none if they are not of that kind."""
  if labels is not None and labels.is_file():
    part = coco_layout.named_part(labels.parent, None, labels.name)
    return [part] if coco_layout.is_kind(labels, kind) else []
  source = images if labels is None else labels
  paths = coco_layout.find_files(source, kind) if source is not None and source.is_dir() else []
  if not any(coco_layout.is_kind(path, kind) for path in paths):
    return []
  parts = coco_layout.find_parts(source, coco_layout.Options(), kind, 'annotations')
  if len(parts) == 1:  # whatever split it is called, there is no other to evaluate on
    return [parts[0]._replace(split=None)]
  order = {split: place for place, split in enumerate(_ORDER)}
  return sorted(parts, key=lambda part: order.get(part.split, len(order)))


def check_looks(images: Path | None, labels: Path | None) -> None:
  """Looks at a JSON file that the user named, or that is called as one in COCO format.

  Raises:
    SegjaxError: it is another one; the sentence says what it looks like.
  """
  path = labels
  if images is not None and labels is None:
    path = next((p for place in _NAMED_PLACES for p in sorted(images.glob(place))), None)
  if path is not None and path.suffix.lower() == '.json':
    coco_files.read_file(path, 'instances', own=True)


def _locate(
  source: Path,
  images: Path | None,
  part: coco_layout.Part,
  content: coco_files.CocoFile,
  outside: bool,
) -> _File:
  """Where the images of an annotation file are: below `images` or, as names say, beside it."""
  places = coco_layout.image_directories(source, part, coco_layout.Options())
  if images is not None:
    own = coco_layout.image_directories(images, part, coco_layout.Options())
    # A name may start with the directory of images itself.
    above = [images.parent] if images != source else []
    places = list(dict.fromkeys([images, *own, *above, *places]))
  names = [image.file_name for image in content.images]
  return _File(part, content, coco_layout.locate(places, names, part.path, outside=outside))


def _describe(file: _File, relative: Callable[[Path], str]) -> str:
  entries = [e for of_image in file.content.annotations.values() for e in of_image]
  count = sum(len(entry.get('segments_info', (entry,))) for entry in entries)
  what = 'segments' if any('segments_info' in entry for entry in entries) else 'objects'
  split = f'split {file.part.split}: ' if file.part.split else ''
  return (
    f'{split}{len(file.content.images)} images in {relative(file.images.directory)}/ with {count} '
    f'{what} in {relative(file.part.path)} (COCO format)'
  )


def _problems(file: _File, listed: Collection[Path], relative: Callable[[Path], str]) -> list[str]:
  """What looks wrong; `listed` is in one of the annotation files."""
  where, content = relative(file.part.path), file.content
  missing = [path for path in file.images.paths if not path.is_file()]
  there = files.find_files(file.images.directory, images_lib.SUFFIXES)
  unlisted = [path for path in there if path not in listed]
  empty = [image for image in content.images if not content.annotations[image.id]]
  entries = [e for of_image in content.annotations.values() for e in of_image]
  maskless = [
    entry for entry in entries if 'segments_info' not in entry and not entry.get('segmentation')
  ]
  found = [
    (missing, f'{len(missing)} of {len(content.images)} images of {where} are missing, such as'),
    (unlisted, f'{len(unlisted)} images are not in {where} and are not used, such as'),
  ]
  sentences = [f'{text} {relative(paths[0])}' for paths, text in found if paths]
  if empty:
    sentences.append(f'{len(empty)} images of {where} have no annotation, such as {empty[0][1]}')
  if maskless:
    sentences.append(
      f'{len(maskless)} of {len(entries)} objects of {where} are boxes without a mask: for '
      'config.model.masks=False'
    )
  there = [path for path in file.images.paths if path.is_file()]
  return [*sentences, *guessing.narrow(there)]
