"""Which masks belong to which image: by their names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax.data.builders.folder import patterns
from segjax.data.builders.folder.patterns import File
from segjax.types import SegjaxError

# What the name of a mask may have after that of its image, where its key is a directory.
SUFFIXES = tuple(
  separator + word
  for word in (
    *('mask', 'masks', 'label', 'labels', 'gt', 'seg', 'segmentation', 'annotation', 'instance'),
    *('instances', 'target', 'truth', 'groundtruth', 'trainids', 'labelids', 'L', 'P', 'lbl'),
  )
  for separator in ('_', '-', '.')
)
_WHERE = 'config.data.files'


class Pair(NamedTuple):
  """An image and its masks.

  Attributes:
    name: of the image.
    image: its file.
    labels, instances: the files of the masks, in the order of `classes` and of objects' numbers;
      empty where the task does not read them.
  """

  name: str
  image: Path
  labels: Sequence[File] = ()
  instances: Sequence[File] = ()


def pair(source: Path, options: Any, kinds: Sequence[str]) -> list[Pair]:
  """The images with their masks, in the order of their names.

  Args:
    source: directory of the raw files.
    options: see `builder.Options`.
    kinds: which masks the task reads: 'labels', 'instances' or both.

  Raises:
    SegjaxError: two images or masks have one name; an image has no mask or the reverse, and
      `options.unpaired` is 'error'; or none has.
  """
  pairs, alone = match(source, options, kinds)
  if alone and options.unpaired == 'error':
    raise SegjaxError(
      f"{alone[0]}: add what is missing, or set {_WHERE}.unpaired='skip' to leave such files out"
    )
  return pairs


def match(source: Path, options: Any, kinds: Sequence[str]) -> tuple[list[Pair], list[str]]:
  """The images that have all their masks, and what has no partner, whatever `options.unpaired` is.

  Args:
    source, options, kinds: as in `pair`.

  Returns:
    The pairs, in the order of their names.
    Up to two sentences for each kind: on images without a mask, and on masks without an image.

  Raises:
    SegjaxError: two images or masks have one name, or no image has its masks.
  """
  masks = {
    kind: patterns.find(source, getattr(options, kind), options.classes, f'{_WHERE}.{kind}')
    for kind in kinds
  }
  images = _images(source, options, masks)
  found = {kind: _masks_of(images, files, options, kind) for kind, files in masks.items()}
  pairs = [
    Pair(name, file.path, *(found.get(kind, {}).get(name, ()) for kind in ('labels', 'instances')))
    for name, file in images.items()
    if all(name in by_name for by_name in found.values())
  ]
  if not pairs:
    raise _no_pairs(source, options, images, found)
  alone = []
  for kind, by_name in found.items():
    below = source / patterns.base(getattr(options, kind))
    without = [file.path for name, file in images.items() if name not in by_name]
    alone += _missing(without, f'no mask in {below}')
    without = [files[0].path for name, files in by_name.items() if name not in images]
    alone += _missing(without, 'no image')
  return pairs, alone


def _images(source: Path, options: Any, masks: Mapping[str, Sequence[File]]) -> dict[str, File]:
  """Name -> image; a mask that the images' pattern finds too is none."""
  are_masks = {file.path for files in masks.values() for file in files}
  # Those that the task does not read are no images either.
  for kind in ('labels', 'instances'):
    pattern = getattr(options, kind)
    if kind not in masks and pattern and (source / patterns.base(pattern)).is_dir():
      are_masks |= {file.path for file in patterns.find(source, pattern, options.classes)}
  found = patterns.find(source, options.images, where=f'{_WHERE}.images')
  images = unique((file for file in found if file.path not in are_masks), lambda file: file.name)
  if not images:
    raise SegjaxError(
      f'{source / patterns.base(options.images)} has no image as {_WHERE}.images={options.images} '
      'says: correct it, or config.data.source'
    )
  return images


def unique(files: Iterable[File], key: Callable[[File], Any]) -> dict[Any, File]:
  """Files by a key, in its order.

  Raises:
    SegjaxError: two have the same.
  """
  found: dict[Any, File] = {}
  for file in files:
    if file.path != found.setdefault(key(file), file).path:
      raise SegjaxError(
        f'{found[key(file)].path} and {file.path} have the same name: rename or delete one'
      )
  return dict(sorted(found.items(), key=lambda item: natural(str(item[0]))))


def natural(text: str) -> list[tuple[int, str]]:
  """A key that sorts numbers in text by their value: `im2` before `im10`."""
  parts = re.split('([0-9]+)', text)
  return [(int(part), '') if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _masks_of(
  images: Mapping[str, File], files: Sequence[File], options: Any, kind: str
) -> dict[str, list[File]]:
  """Name of the image -> its masks; a name without an image keeps its own."""
  if patterns.is_directory(getattr(options, kind)):
    files = [file._replace(name=strip_suffix(file.name, images)) for file in files]
  ordered = unique(files, lambda file: (file.name, file.label or '', file.object or '')).values()
  position = {name: i for i, name in enumerate(options.classes)}
  by_name: dict[str, list[File]] = {}
  for file in sorted(ordered, key=lambda file: position.get(file.label, 0)):
    by_name.setdefault(file.name, []).append(file)
  return by_name


def strip_suffix(name: str, images: Iterable[str]) -> str:
  """The name of a mask's image: its own, or what it is without one of `SUFFIXES`."""
  if name in images:
    return name
  for suffix in SUFFIXES:
    short = name[: -len(suffix)]
    if name.lower().endswith(suffix.lower()) and short in images:
      return short
  return name


# --- what has no partner --------------------------------------------------------------------------


def _missing(paths: Sequence[Path], what: str) -> list[str]:
  """A sentence on files without a partner, where there are some."""
  if not paths:
    return []
  others = f' and {len(paths) - 1} more have' if len(paths) > 1 else ' has'
  return [f'{paths[0]}{others} {what}']


def _no_pairs(
  source: Path, options: Any, images: Mapping[str, File], found: Mapping[str, Mapping[str, Any]]
) -> SegjaxError:
  """The error of the kind of masks that fewest images have."""
  kind = min(found, key=lambda kind: len(found[kind].keys() & images.keys()))
  below = patterns.base(getattr(options, kind))
  first = next(file.path.name for name, file in images.items() if name not in found[kind])
  return SegjaxError(
    f'no image has a mask of its name in {source / below} ({first} has none): set '
    f"{_WHERE}.{kind} to a pattern such as '{below}/{{name}}_mask'"
  )
