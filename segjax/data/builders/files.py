"""Users' own data: the base of the builders of annotation formats, and what they share.

A format lists the images of each split as `Item`s, whose annotations are read one by one. From
these the data set is prepared for the task that asks: label maps for semantic tasks, objects for
instance tasks, segments for panoptic ones.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data import images, records
from segjax.data.builders import raw
from segjax.data.formats import coco, common, panoptic
from segjax.types import IGNORE_LABEL, NonNegativeInt, Range, SegjaxError

Size = tuple[int, int]
Byte = Annotated[int, Range(0, 255)]
# The class of pixels without an annotation, where `Options.classes` lists it.
BACKGROUND = 'background'
# What a directory or a file of a split is called, in lower case -> the split.
SPLIT_NAMES = {
  **dict.fromkeys(('train', 'training', 'train_set', 'tr'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'val_set', 'dev', 'eval'), 'val'),
  **dict.fromkeys(('test', 'testing', 'test_set', 'ts'), 'test'),
}
# The splits of data that has none.
FRACTIONS = {'train': 0.8, 'val': 0.2}
# How many images a warning names.
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Keys of `config.data.files` that all formats share.

  Attributes:
    classes: the names of the class indices, in their order. In semantic tasks pixels without an
      annotation are of the class `background` if it is one of them, else void.
    colors: the RGB color of each class, to draw it; None for PASCAL VOC's.
    stuff: in panoptic tasks, the classes that are stuff; the others are things.
    splits: split -> its directory below those of images and of annotations, a text file that lists
      its images, or its fraction of all images; None for 80% train and 20% val.
    split_seed: of the fractions, which do not depend on the machine.
    unpaired: an image without its annotation, or the reverse, is an error or is left out.
    channels: of the images as they are read: 1 for gray, 3 for RGB.
  """

  classes: tuple[str, ...]
  colors: tuple[tuple[Byte, Byte, Byte], ...] | None = None
  stuff: tuple[str, ...] = ()
  splits: Mapping[str, Any] | None = None
  split_seed: NonNegativeInt = 0
  unpaired: Literal['error', 'skip'] = 'error'
  channels: Literal[1, 3] = 3

  def __post_init__(self):
    where = 'config.data.files'
    if not self.classes or len(set(self.classes)) < len(self.classes):
      raise SegjaxError(f'{where}.classes={self.classes} must be one or more different names')
    if self.colors is not None and len(self.colors) != len(self.classes):
      raise SegjaxError(
        f'{where}.colors has {len(self.colors)} colors for {len(self.classes)} classes: give one '
        'for each'
      )
    if wrong := [name for name in self.stuff if name not in self.classes]:
      raise SegjaxError(f'{where}.stuff names {wrong[0]}, which is not in {where}.classes')

  @property
  def categories(self) -> list[coco.Category]:
    """The classes as COCO has them, with ids from 1."""
    colors = self.colors or common.voc_palette(len(self.classes) + 1)[1:].tolist()
    return [
      coco.Category(i, name, name not in self.stuff, color)
      for i, (name, color) in enumerate(zip(self.classes, colors, strict=True), 1)
    ]


class Object(NamedTuple):
  """An object of an image.

  Attributes:
    label: class index.
    counts: its mask, COCO's compressed run lengths; None for a box without a mask.
    box: x, y, width, height in pixels.
    crowd: whether it is a crowd.
  """

  label: int
  counts: str | None
  box: tuple[float, float, float, float]
  crowd: bool = False


class Content(NamedTuple):
  """What is annotated on an image, each None where the format does not have it.

  Attributes:
    label: u16[H, W], class index or IGNORE_LABEL.
    objects: in the order of the file; where they overlap, the later one is in front. One with the
      label IGNORE_LABEL is no object but an area of no class.
    problems: what was left out or corrected of the annotations, a phrase for each of them; they are
      counted and reported.
  """

  label: np.ndarray | None = None
  objects: Sequence[Object] | None = None
  problems: Sequence[str] = ()


class Readable(Protocol):
  """A `Path`, or what is read like one: an image in another file. Errors have its `str`."""

  def read_bytes(self) -> bytes: ...


class Item(NamedTuple):
  """An image and how to read its annotations.

  Attributes:
    name: unique in its split: its path below the images' directory, without the suffix.
    image: the file, what is read like one, or its content.
    read: from the (H, W) of the upright image to its annotations; errors name the file.
  """

  name: str
  image: Readable | bytes
  read: Callable[[Size], Content]


@dataclasses.dataclass(eq=False)
class FilesConfig(tfds.core.BuilderConfig):
  """What a data set of one's own is prepared from, and for which task.

  Attributes:
    options: the format's `Options`.
    annotations: of the task.
  """

  options: Any = None
  annotations: tuple[str, ...] = ('label',)


class FilesBuilder(raw.Builder, skip_registration=True):
  """A data set of one's own in a certain format.

  Attributes:
    Options: the dataclass of the format's keys of `config.data.files`.
    content: what the directory of raw files holds, for error messages.
  """

  Options: type = Options
  content: str

  @classmethod
  def find(cls, source: Path, options: Any, annotations: Sequence[str]) -> dict[str, list[Item]]:
    """The images of each split; it lists files, and decodes none.

    Args:
      source: the directory of raw files.
      options: see `Options`.
      annotations: of the task.

    Raises:
      SegjaxError: files are missing or ambiguous.
    """
    raise NotImplementedError

  @classmethod
  def own_config(cls, config: str, options: Any, annotations: Sequence[str]) -> FilesConfig | None:
    if config:
      raise SegjaxError(f'config.data.name={cls.name}/{config}: leave {config} out')
    return FilesConfig(name='own', options=options, annotations=tuple(annotations))

  @property
  def options(self) -> Any:
    return self.builder_config.options

  def _info(self) -> tfds.core.DatasetInfo:
    return INFOS[self.builder_config.annotations[-1]](self)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, self.content)
    found = self.find(source, self.options, self.builder_config.annotations)
    if not found:
      raise raw.missing_content(source, self.content)
    for split, items in found.items():
      _check_split(split, items)
    make = functools.partial(_make, self.options, self.builder_config.annotations[-1])
    return {
      split: records.Split(
        [(item.name, (number, item)) for number, item in enumerate(items, 1)],
        make,
        functools.partial(self._finish, split, len(items)),
      )
      for split, items in found.items()
    }

  def _finish(self, split: str, count: int, notes: Sequence[Any]) -> None:
    problems: dict[str, list[str]] = collections.defaultdict(list)
    for name, found in notes:
      for problem in found['problems']:
        problems[problem].append(name)
    if not any(found['annotated'] for _, found in notes):
      _report_empty(split, count)
    _warn(problems)
    coco.note_maskless(self.info, sum(found['maskless'] for _, found in notes))


def _make(options: Any, kept: str, numbered: tuple[int, Item]) -> records.Noted:
  """The example of an item for a task, whose last annotation is `kept`."""
  number, item = numbered
  image, what = _read_image(item)
  size = images.decode_image(image, options.channels, what).shape[:2]
  content = item.read(size)
  if kept == 'objects' and content.objects:
    content = content._replace(objects=list(_without_void(content.objects)))
  note = {
    'problems': list(content.problems),
    'annotated': _is_annotated(content, options),
    'maskless': sum(entry.counts is None for entry in content.objects or () if kept == 'objects'),
  }
  example = EXAMPLES[kept](options, item.name, number, image, size, content)
  return records.Noted(example, [(item.name, note)])


def _report_empty(split: str, count: int) -> None:
  """A split without annotations is an error, but for test, whose labels are often kept back."""
  problem = f'nothing is annotated on the {count} images of the split {split}, but for background'
  if split != 'test':
    raise SegjaxError(f'{problem}: correct config.data.files, or choose other images for {split}')
  warnings.warn(problem, stacklevel=2)


def _without_void(objects: Iterable[Object]) -> Iterator[Object]:
  return (entry for entry in objects if entry.label != IGNORE_LABEL)


def _is_annotated(content: Content, options: Any) -> bool:
  """Whether an image has an object, or a pixel of a class other than the background."""
  if any(_without_void(content.objects or ())):
    return True
  if content.label is None:
    return False
  empty = empty_label(options)
  return bool(((content.label != empty) & (content.label != IGNORE_LABEL)).any())


def _read_image(item: Item) -> tuple[bytes, str]:
  """The content of an item's image, and what errors call it."""
  if isinstance(item.image, bytes):
    return item.image, item.name
  return raw.read_bytes(item.image), str(item.image)


def _warn(problems: Mapping[str, Sequence[str]]) -> None:
  """Warns of what was left out or corrected, with the first images of each kind."""
  for problem, names in problems.items():
    first = list(dict.fromkeys(names))
    named = ', '.join(first[:_NAMED]) + (', …' if len(first) > _NAMED else '')
    warnings.warn(f'{len(names)} {problem} (in {named})', stacklevel=2)


def _check_split(split: str, items: Sequence[Item]) -> None:
  if not items:
    raise SegjaxError(
      f'the split {split} has no image: correct config.data.files.splits, or add images'
    )
  names = sorted(item.name for item in items)
  if twice := [a for a, b in zip(names, names[1:], strict=False) if a == b]:
    raise SegjaxError(
      f'the split {split} has two images named {twice[0]}, of which only the suffix or the '
      'directory differs: rename one'
    )


# --- splits ---------------------------------------------------------------------------------------


def sort_by_hash(names: Sequence[str], seed: int = 0) -> list[str]:
  """The names in an order as by chance that is the same on every machine."""
  digest = lambda name: hashlib.sha256(f'{seed}:{name}'.encode()).digest()
  return sorted(names, key=digest)


def fraction_splits(
  names: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
  """Divides names among splits, each of which keeps the names' order.

  Args:
    names: all of them.
    fractions: of each split, above 0 and at most 1 in all.
    seed: of the order in which they are dealt.

  Raises:
    SegjaxError: there are not enough names, or the fractions are not such.
  """
  where = 'config.data.files.splits'
  if not all(0 < part <= 1 for part in fractions.values()) or sum(fractions.values()) > 1 + 1e-9:
    raise SegjaxError(f'{where}={dict(fractions)} must be fractions above 0, at most 1 in all')
  order, total, done, found = sort_by_hash(names, seed), 0.0, 0, {}
  for split, part in fractions.items():
    total += part
    end = round(total * len(order))
    chosen = set(order[done:end])
    if not chosen:
      raise SegjaxError(
        f'{where}={dict(fractions)} leaves no image of {len(names)} for {split}: add images, or '
        f"use one split for both, with {where}={{'train': 1.0}} and config.data.eval_split='train'"
      )
    found[split] = [name for name in names if name in chosen]
    done = end
  return found


# --- what a task reads ----------------------------------------------------------------------------


def label_of(content: Content, size: Size, options: Any) -> np.ndarray:
  """u16[H, W]: the label map, or else the objects, the later ones in front."""
  if content.label is not None:
    return content.label
  label = np.full(size, empty_label(options), np.uint16)
  for entry in content.objects:
    label[_area(entry, size)] = entry.label
  return label


def empty_label(options: Any) -> int:
  """The class index of pixels without an annotation, or IGNORE_LABEL."""
  classes = options.classes
  return classes.index(BACKGROUND) if BACKGROUND in classes else IGNORE_LABEL


def _area(entry: Object, size: Size) -> Any:
  """An index of [H, W], the pixels of an object: of its mask, or of its box without one."""
  if entry.counts is not None:
    return coco.decode_mask(entry.counts, size) > 0
  x, y, width, height = entry.box
  return _pixels(y, y + height, size[0]), _pixels(x, x + width, size[1])


def _pixels(start: float, stop: float, length: int) -> slice:
  """The pixels whose centers are from `start` to `stop`."""
  return slice(*(min(max(round(value), 0), length) for value in (start, stop)))


def segments_of(content: Content, size: Size, options: Any) -> tuple[np.ndarray, list[Object]]:
  """The segments of an image: each object of a thing, and each class of stuff.

  Stuff is that of the label map, or else of objects, the later ones in front.

  Returns:
    i32[H, W], the number of each pixel's segment in the list, from 1; 0 for void.
    The segments, with their label and whether they are crowds.
  """
  listed = [Object(options.classes.index(name), None, (0, 0, 0, 0)) for name in options.stuff]
  # The number of a label that is not of things; void has no segment.
  number_of = {entry.label: number for number, entry in enumerate(listed, 1)} | {IGNORE_LABEL: 0}
  below, ids = label_of(content._replace(objects=()), size, options), np.zeros(size, np.int32)
  for index, number in number_of.items():
    ids[below == index] = number
  for entry in content.objects or ():
    if entry.label not in number_of:
      listed.append(entry)
    ids[_area(entry, size)] = number_of.get(entry.label, len(listed))
  # What later objects cover altogether is no segment.
  seen = np.unique(ids[ids > 0])
  numbers = np.zeros(len(listed) + 1, np.int32)
  numbers[seen] = np.arange(1, len(seen) + 1)
  return numbers[ids], [listed[i - 1] for i in seen]


def _need_objects(name: str, content: Content, *, masks: bool) -> None:
  if content.objects is None:
    raise SegjaxError(
      f'{name} has classes of pixels but no objects: choose the semantic task, or name annotations '
      'with objects in config.data.files'
    )
  if masks and any(entry.counts is None for entry in _without_void(content.objects)):
    raise SegjaxError(
      f'{name} has a box without a mask, which is no segment: choose the instance task'
    )


def _semantic_info(builder: FilesBuilder) -> tfds.core.DatasetInfo:
  options = builder.options
  return common.semantic_info(
    builder,
    description='Images with a class for each pixel.',
    class_names=options.classes,
    palette=options.colors or common.voc_palette(len(options.classes)),
    image=tfds.features.Image(shape=(None, None, options.channels)),
  )


def _instance_info(builder: FilesBuilder) -> tfds.core.DatasetInfo:
  return coco.instance_info(
    builder,
    description='Images with objects.',
    categories=builder.options.categories,
    channels=builder.options.channels,
  )


def _panoptic_info(builder: FilesBuilder) -> tfds.core.DatasetInfo:
  info = panoptic.panoptic_info(
    builder, description='Images with segments.', channels=builder.options.channels
  )
  panoptic.set_categories(info, builder.options.categories)
  return info


def _semantic_example(
  options: Any, name: str, number: int, image: bytes, size: Size, content: Content
) -> dict[str, Any]:
  del number
  label, classes = label_of(content, size, options), len(options.classes)
  stored = np.where(label == IGNORE_LABEL, common.stored_void(classes), label)
  encoded = common.encode_png(stored.astype(common.label_dtype(classes)))
  return {'file_name': name, 'image': image, 'label': encoded}


def _instance_example(
  options: Any, name: str, number: int, image: bytes, size: Size, content: Content
) -> dict[str, Any]:
  del options
  _need_objects(name, content, masks=False)
  objects = [_describe(entry, id) for id, entry in enumerate(content.objects, 1)]
  return coco.instance_example(name, number, image, size, objects)


def _describe(entry: Object, id: int) -> dict[str, Any]:
  area = entry.box[2] * entry.box[3]
  if entry.counts is not None:
    area = sum(coco.run_lengths(entry.counts)[1::2])
  return {
    'id': id,
    'label': entry.label,
    'category_id': entry.label + 1,
    'bbox': np.array(entry.box, np.float64),
    'area': float(area),
    'iscrowd': entry.crowd,
    'segmentation': entry.counts or '',
  }


def _panoptic_example(
  options: Any, name: str, number: int, image: bytes, size: Size, content: Content
) -> dict[str, Any]:
  _need_objects(name, content, masks=True)
  ids, listed = segments_of(content, size, options)
  segments = [
    {
      'id': id,
      'label': entry.label,
      'category_id': entry.label + 1,
      'iscrowd': entry.crowd,
      'area': int((ids == id).sum()),
      'bbox': np.array(_box_of(ids == id), np.float64),
    }
    for id, entry in enumerate(listed, 1)
  ]
  return panoptic.panoptic_example(name, number, image, panoptic.encode_ids(ids), segments)


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
  """x, y, width, height around the pixels of bool[H, W], of which there are some."""
  (top, bottom), (left, right) = (
    np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (1, 0)
  )
  return left, top, right - left + 1, bottom - top + 1


# By the last of the annotations that a task reads.
INFOS = {'label': _semantic_info, 'objects': _instance_info, 'segments': _panoptic_info}
EXAMPLES = {
  'label': _semantic_example,
  'objects': _instance_example,
  'segments': _panoptic_example,
}


def polygons_object(
  polygons: Sequence[Sequence[float]], label: int, size: Size, *, crowd: bool = False
) -> Object:
  """The object that is the union of polygons, each x, y, x, y, … of three corners or more.

  Raises:
    ValueError: a polygon is not such.
  """
  counts = coco.segmentation_counts([list(polygon) for polygon in polygons], size)
  return counts_object(counts, label, size, crowd)


def mask_object(mask: np.ndarray, label: int, *, crowd: bool = False) -> Object:
  """The object that is bool[H, W]."""
  found = coco.mask_object(mask, id=0, label=label, category_id=0)
  return Object(label, found['segmentation'], tuple(found['bbox'].tolist()), crowd)


def counts_object(counts: str, label: int, size: Size, crowd: bool = False) -> Object:
  """The object of compressed run lengths, with the box around its pixels."""
  box = mask_lib.toBbox({'size': list(size), 'counts': counts}).tolist()
  return Object(label, counts, tuple(box), crowd)


def splits_of(names: Sequence[str], options: Options, source: Path) -> dict[str, list[str]]:
  """The names of each split, see `Options.splits`.

  Args:
    names: of all images: paths below the images' directory, without suffixes.
    options: of the format.
    source: that list files are relative to.

  Raises:
    SegjaxError: a directory has no image, a list names one that is missing or that another split
      has, fractions are mixed with others.
  """
  where = 'config.data.files.splits'
  splits = dict(options.splits or FRACTIONS)
  fractions = {k: float(v) for k, v in splits.items() if isinstance(v, int | float)}
  if len(fractions) == len(splits):
    return fraction_splits(names, fractions, options.split_seed)
  if fractions:
    raise SegjaxError(f'{where}={splits} must be all fractions, or none')
  find = functools.partial(_split_names, names, source)
  found = {split: find(split, str(value)) for split, value in splits.items()}
  _check_disjoint(found)
  return found


def _check_disjoint(splits: Mapping[str, Sequence[str]]) -> None:
  """Raises a SegjaxError if an image is listed twice, in one split or in two."""
  of: dict[str, str] = {}
  for split, names in splits.items():
    for name in names:
      if name in of:
        raise SegjaxError(
          f'config.data.files.splits has {name} in {of[name]} and in {split}: list it once'
        )
      of[name] = split


def _split_names(names: Sequence[str], source: Path, split: str, value: str) -> list[str]:
  if not value.endswith('.txt'):
    prefix = value.strip('/') + '/'
    return [name for name in names if name.startswith(prefix)]
  path, known = source / value, set(names)
  return [_listed_name(name, known, path, split) for name in read_names(path)]


def _listed_name(listed: str, known: Collection[str], path: Path, split: str) -> str:
  """The image of a line of a list: its name, with or without the suffix of its file."""
  for name in (listed, os.path.splitext(listed)[0]):
    if name in known:
      return name
  raise SegjaxError(f'{path} lists {listed} for {split}, of which there is no image: correct it')


def class_index(who: str, name: str, options: Any) -> int:
  """The index of a class, or IGNORE_LABEL of a name that is void.

  Args:
    who: has the name, for the error.
    name: of the class.
    options: with `classes`, and `void`, names without a class.

  Raises:
    SegjaxError: it is neither.
  """
  if name in options.classes:
    return options.classes.index(name)
  if name in options.void:
    return IGNORE_LABEL
  shown = ', '.join(options.classes[:_NAMED]) + (', …' if len(options.classes) > _NAMED else '')
  raise SegjaxError(
    f'{who} has the label {name!r}, which is not in config.data.files.classes ({shown}): add it '
    'there, or to config.data.files.void'
  )


# --- files of a directory -------------------------------------------------------------------------


def find_files(directory: Path, suffixes: Collection[str]) -> list[Path]:
  """The files below a directory with one of these suffixes (lower case), see `images.walk`."""
  return sorted(images.walk(directory, suffixes))


def name_below(directory: Path, path: Path) -> str:
  """The path of a file below a directory, with slashes and without its suffix."""
  return path.relative_to(directory).with_suffix('').as_posix()


def sub_directory(source: Path, name: str, key: str) -> Path:
  """The directory `name` below `source`, as the user gives it in `config.data.files`.

  Raises:
    SegjaxError: there is none; the sentence names the key.
  """
  directory = source / name
  if not directory.is_dir():
    raise SegjaxError(
      f'config.data.files.{key}={name}: {directory} is not a directory: correct it, or '
      'config.data.source'
    )
  return directory


def read_names(path: Path) -> list[str]:
  """The lines of a text file that are not blank: names may have spaces.

  Raises:
    SegjaxError: the file is missing, is not text, or has no such line.
  """
  if lines := raw.read_lines(path):
    return lines
  raise SegjaxError(f'{path} names no image: add a line for each')
