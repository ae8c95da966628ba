"""Finds which files of a directory are images, which are their masks, and how both are named."""

import collections
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from segjax.data.builders import files
from segjax.data.builders.folder import pairing, patterns
from segjax.types import SegjaxError

# Names of directories, in lower case, without digits, `_` and `-`, in the order of preference.
IMAGES = (
  *('images', 'image', 'imgs', 'img', 'imgdir', 'jpegimages', 'pngimages', 'imagestr', 'photos'),
  'raw',
)
CLASSES = (
  *('masks', 'mask', 'labels', 'label', 'segmentationclass', 'annotations', 'annotation', 'gt'),
  *('groundtruth', 'segmentations', 'segmentation', 'semantic', 'semseg', 'classes', 'labelstr'),
  *('targets', 'target', 'annot', 'anndir', 'pedmasks'),
)
OBJECTS = ('instances', 'instance', 'segmentationobject', 'instancemasks', 'objects', 'ids')
# What the names of images may end in, or begin with, where their masks do not.
_IMAGE_ENDS = (
  '',
  '_image',
  '_img',
  '_sat',
  '_leftImg8bit',
  '_rgb',
  '_RGB',
  '_raw',
  '_0000',
  '.img',
)
_STARTS = ('image', 'img', 'im', 'mask', 'label', 'gt', 'seg', 'lbl')
# What the directory of masks of a split's images is called: `trainannot`.
_MASKS_OF_SPLIT = (
  'annot',
  '_annot',
  '_labels',
  '_masks',
  '_label',
  '_mask',
  '_gt',
  'labels',
  'masks',
)
# A naming is one if this fraction of the images has a mask by it.
_ENOUGH = 0.5


class Layout(NamedTuple):
  """Where images and masks are: `source` and the patterns of `builder.Options`.

  Attributes:
    source: the directory that the patterns are relative to.
    images, labels, instances: see `builder.Options`.
  """

  source: Path
  images: str
  labels: str | None = None
  instances: str | None = None


def find(task: str, images: Path, labels: Path | None) -> Layout | None:
  """The layout of a data set; None where there is none.

  Args:
    task: 'semantic', 'instance' or 'panoptic'.
    images: directory of images, or of everything.
    labels: directory of masks, or None.
  """
  if labels is None or _same(images, labels):
    return _of_root(task, images)
  if not images.is_dir() or not labels.is_dir():
    return None
  source = Path(os.path.commonpath([images, labels]) or '.')
  if images.is_absolute() != labels.is_absolute():  # which commonpath refuses
    source = Path(os.path.commonpath([images.absolute(), labels.absolute()]))
  return _of_directories(source, images, *_kinds_of(task, labels))


def _same(a: Path, b: Path) -> bool:
  return a.exists() and b.exists() and a.samefile(b)


def _kinds_of(task: str, labels: Path) -> tuple[Path | None, Path | None]:
  """The directories of classes and of objects, at or beside the one that was named."""
  if task == 'semantic':
    return labels, None
  classes, objects = (_named(labels, words) for words in (CLASSES, OBJECTS))
  if objects:
    return classes, objects
  if _plain(labels.name) in OBJECTS:
    return (_named(labels.parent, CLASSES) if task == 'panoptic' else None), labels
  beside = _named(labels.parent, OBJECTS)
  return (labels, beside) if beside else (None, labels)


def _named(directory: Path, words: Sequence[str]) -> Path | None:
  """The subdirectory whose name is one of `words`, the first of them that there is."""
  found = {_plain(path.name): path for path in sorted(directory.iterdir()) if path.is_dir()}
  return next((found[word] for word in words if word in found), None)


def _plain(name: str) -> str:
  return re.sub(r'[\d_\- ]', '', name.lower())


def _of_directories(
  source: Path, images: Path, classes: Path | None, objects: Path | None
) -> Layout | None:
  """The layout of images in one directory and masks in others."""
  image_pattern, found = None, {}
  for kind, directory in (('labels', classes), ('instances', objects)):
    if directory is None:
      continue
    # One file for each object is one for objects.
    named = name_patterns(_stems(images), _stems(directory), objects=kind == 'instances')
    if named is None or image_pattern not in (None, named[0]):
      return None
    image_pattern, mask_pattern = named
    found[kind] = _below(source, directory, mask_pattern)
  return found and Layout(source, _below(source, images, image_pattern), **found) or None


def _below(source: Path, directory: Path, pattern: str) -> str:
  """A pattern in a directory, as one relative to `source`."""
  relative = Path(os.path.relpath(directory, source)).as_posix()
  if pattern == '{name}':
    return relative
  return pattern if relative == '.' else f'{relative}/{pattern}'


def _stems(directory: Path) -> list[str]:
  return [os.path.splitext(relative)[0] for _, relative in patterns.walk(directory)]


# --- how masks are named --------------------------------------------------------------------------


def name_patterns(
  images: Sequence[str], masks: Sequence[str], *, objects: bool
) -> tuple[str, str] | None:
  """The patterns of images' and of their masks' names.

  Args:
    images, masks: paths below their directories, without suffixes.
    objects: whether there may be a mask for each object, rather than for each class.

  Returns:
    Such as `('{name}', '{name}_mask')` or `('{name}', '{class}/{name}')`; None where most images
    have no mask by their name.

  Raises:
    SegjaxError: images are the channels of others (nnU-Net: NAME_0000, NAME_0001).
  """
  known, count = set(masks), len(images)
  _check_channels(set(images), known)
  if not count or not masks:
    return None
  if sum(name in known for name in images) >= _ENOUGH * count:
    return '{name}', '{name}'
  best = max(_namings(images, masks, objects), key=lambda entry: entry[0], default=None)
  return best[1:] if best and best[0] >= _ENOUGH * count else None


def _check_channels(images: Set[str], masks: Set[str]) -> None:
  for name in sorted(images):
    case = name.removesuffix('_0000')
    if case != name and f'{case}_0001' in images and case in masks and name not in masks:
      raise SegjaxError(
        f'{name} and {case}_0001 are channels of one image, whose mask is {case}, and segjax reads '
        'one file for an image: merge them into an RGB file, or move all but one of them away'
      )


def _namings(
  images: Sequence[str], masks: Sequence[str], objects: bool
) -> Iterator[tuple[int, str, str]]:
  """The number of images that have a mask by each possible naming, and its two patterns."""
  for end in _IMAGE_ENDS:
    short = {name[: len(name) - len(end)] for name in images if name.endswith(end)}
    if short:
      for count, pattern in _endings(short, masks, objects):
        yield count, f'{{name}}{end}', pattern
  yield from _class_directories(set(images), masks)
  for a in _STARTS:
    short = {name[len(a) :] for name in images if name.lower().startswith(a)}
    for b in _STARTS:
      rest = {name[len(b) :] for name in masks if name.startswith(b)}
      if a != b and short & rest:
        yield len(short & rest), f'{a}{{name}}', f'{b}{{name}}'


def _endings(names: set[str], masks: Sequence[str], objects: bool) -> Iterator[tuple[int, str]]:
  """Patterns of masks that begin with the name of their image."""
  images_of = collections.defaultdict(set)
  for mask in masks:
    for end in range(1, len(mask) + 1):
      if mask[:end] in names and (end == len(mask) or not mask[end].isalnum()):
        images_of[mask[end:]].add(mask[:end])
  counts = {rest: len(found) for rest, found in images_of.items()}
  if not counts:
    return
  common = max(counts, key=lambda rest: (rest.lower() in _KNOWN, counts[rest]))
  several = sum(counts.values()) > len(set().union(*images_of.values()))
  if not several or common.lower() in _KNOWN or common == '':
    yield counts[common], f'{{name}}{common}'
    return
  # Each image has several masks: what is before their last part is the same.
  before = collections.Counter(re.match(r'(.*?)[^/_.\- ]*$', rest)[1] for rest in counts)
  separator, _ = before.most_common(1)[0]
  if separator:
    covered = set().union(*(f for r, f in images_of.items() if r.startswith(separator)))
    yield len(covered), f'{{name}}{separator}{{{"object" if objects else "class"}}}'


_KNOWN = {suffix.lower() for suffix in pairing.SUFFIXES}


def _class_directories(names: set[str], masks: Sequence[str]) -> Iterator[tuple[int, str, str]]:
  """Masks in a directory for each class."""
  found = {rest for mask in masks if (rest := mask.partition('/')[2]) in names}
  if found:
    yield len(found), '{name}', '{class}/{name}'


# --- everything in one directory ------------------------------------------------------------------


def _of_root(task: str, root: Path) -> Layout | None:
  """The layout of a directory that has images and masks, by the names of its directories."""
  if not root.is_dir():
    return None
  for candidate in (_by_directories, _by_split, _by_split_name, _by_image, _in_one, _by_suffix):
    if layout := candidate(task, root):
      return layout
  return None


def _masks_in(task: str, root: Path) -> tuple[Path | None, Path | None]:
  """The directories of classes and of objects that a task reads."""
  classes, objects = (_named(root, words) for words in (CLASSES, OBJECTS))
  if task == 'semantic':
    return (classes, None) if classes else (None, objects)
  return (classes, objects) if objects else (None, classes)


def _by_directories(task: str, root: Path) -> Layout | None:
  """`images/` and `masks/`, with or without directories of splits in them."""
  images = _named(root, IMAGES)
  return images and _of_directories(root, images, *_masks_in(task, root))


def _splits_in(root: Path) -> list[Path]:
  named = (path for path in sorted(root.iterdir()) if path.name.lower() in files.SPLIT_NAMES)
  return [path for path in named if path.is_dir()]


def _by_split(task: str, root: Path) -> Layout | None:
  """`train/images/` and `train/masks/`, `val/…`."""
  for split in _splits_in(root):
    if layout := _by_directories(task, split):
      put = lambda pattern: (
        pattern
        and '{split}/' + (f'{pattern}/{{name}}' if patterns.is_directory(pattern) else pattern)
      )
      return Layout(root, put(layout.images), put(layout.labels), put(layout.instances))
  return None


def _by_split_name(task: str, root: Path) -> Layout | None:
  """`train/` and `trainannot/`, `val/` and `valannot/`."""
  for split in _splits_in(root):
    for suffix in _MASKS_OF_SPLIT:
      masks = root / f'{split.name}{suffix}'
      if masks.is_dir() and (named := name_patterns(_stems(split), _stems(masks), objects=False)):
        image, mask = named
        kind = 'labels' if task == 'semantic' else 'instances'
        return Layout(root, f'{{split}}/{image}', **{kind: f'{{split}}{suffix}/{mask}'})
  return None


def _by_image(task: str, root: Path) -> Layout | None:
  """`NAME/images/NAME.png` and `NAME/masks/OBJECT.png`: a directory for each image."""
  directories = [path for path in sorted(root.iterdir()) if path.is_dir()]
  for directory in directories[:1]:
    images, masks = _named(directory, IMAGES), _named(directory, (*OBJECTS, *CLASSES))
    if images and masks and _stems(images) == [directory.name]:
      pattern = f'{{name}}/{masks.name}/{{object}}'
      return Layout(root, f'{{name}}/{images.name}/{{name}}', instances=pattern)
  return None


def _in_one(task: str, root: Path) -> Layout | None:
  """`NAME.jpg` and `NAME_mask.png` in one directory."""
  stems = _stems(root)
  counts = collections.Counter(_suffixes(stems))
  if not counts:
    return None
  (image, mask), count = counts.most_common(1)[0]
  kind = 'labels' if task == 'semantic' else 'instances'
  enough = 2 * count >= _ENOUGH * len(stems)
  return Layout(root, f'{{name}}{image}', **{kind: f'{{name}}{mask}'}) if enough else None


def _by_suffix(task: str, root: Path) -> Layout | None:
  """`NAME.jpg` and `NAME.png` in one directory: a photo and its mask."""
  suffixes = collections.defaultdict(set)
  for _, relative in patterns.walk(root):
    stem, suffix = os.path.splitext(relative)
    suffixes[stem].add(suffix.lower())
  found = set(map(frozenset, suffixes.values()))
  if len(found) != 1 or len(pair := sorted(found.pop(), key=_is_mask_format)) != 2:
    return None
  image, mask = pair
  if _is_mask_format(image) or not _is_mask_format(mask):
    return None
  kind = 'labels' if task == 'semantic' else 'instances'
  return Layout(root, f'{{name}}{image}', **{kind: f'{{name}}{mask}'})


def _is_mask_format(suffix: str) -> bool:
  return suffix not in ('.jpg', '.jpeg', '.webp')


def _suffixes(stems: Iterable[str]) -> Iterator[tuple[str, str]]:
  """What images and masks of one name end in."""
  known = set(stems)
  for stem in known:
    for mask in _mask_endings(stem):
      name = stem[: len(stem) - len(mask)]
      for image in _IMAGE_ENDS:
        if name + image in known:
          yield image, mask


def _mask_endings(stem: str) -> list[str]:
  return [stem[len(stem) - len(s) :] for s in _KNOWN if stem.lower().endswith(s)]
