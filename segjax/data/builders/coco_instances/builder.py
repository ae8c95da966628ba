"""COCO instance segmentation, and any data set whose annotations are in COCO's format.

Config `coco_instances/2017` (which `coco_instances` alone means too) is COCO 2017: 118,287 train
and 5,000 val images, 80 classes. Raw files, as upstream's archives unpack:
  train2017/, val2017/                      the images
  annotations/instances_train2017.json      their annotations; the same for instances_val2017.json

Config `coco_instances/custom` is a data set of your own, whose files are laid out as
`segjax.data.builders.coco_layout` says: as COCO, CVAT, Roboflow, Label Studio and labelme2coco do,
or as the keys of `config.data.files` say (`coco_layout.Options`). Classes are the categories in the
order of their ids, or `config.data.files.classes`; all files must have the same categories. In its
files these may be missing: `id`, `area` and `iscrowd` of an annotation, `bbox` of one with a mask,
and an image's size. Besides instance tasks it serves semantic ones (later annotations in front) and
panoptic ones (`config.data.files.stuff`).

The features are those of `segjax.data.formats.coco`. Images are stored byte for byte; an image
without annotations is an example without objects. An annotation without a mask (`segmentation` is
empty or, in `custom`, missing) is a box, for networks without a mask head.

Of what can be wrong in a file, most is an error that names the file and the annotation. Only this
is tolerated, counted, and reported in one warning a file:
  left out    a box without area; polygons none of which has three points (pycocotools, given the
              file itself, would count the one as an object and fail at the other); in `custom`, a
              mask that covers no pixel of the image
  corrected   one of several polygons has fewer than three points: that polygon is left out; in
              `custom`, what reaches beyond the image is cut off at its border, boxes too (by more
              than a pixel, it is counted)
  kept        a mask that covers no pixel (a sliver, or all of it outside the image): COCO's own
              evaluation counts such an object, so it stays in `2017`; in `custom`, a polygon that
              crosses itself

Cite Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. The annotations are under
CC BY 4.0; the images are from Flickr, whose terms of use apply.
"""

import collections
import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data import records
from segjax.data.builders import coco_files, coco_layout, files
from segjax.data.builders import polygons as polygons_lib
from segjax.data.formats import coco
from segjax.types import SegjaxError

Size = tuple[int, int]

# How many annotations a warning names.
_NAMED = 5

_PROBLEMS = {
  'empty box': 'left out, as their box has no area',
  'no polygon': 'left out, as they have no polygon of three points or more',
  'outside': 'left out, as their mask or box covers no pixel of the image',
  'short polygon': 'kept without those of their polygons that have fewer than three points',
  'no pixel': 'kept although their mask covers no pixel',
  'no mask': 'kept as boxes without a mask',
  'beyond': 'cut at the border of the image, beyond which they reach',
  'crossing': 'kept although a polygon of theirs crosses itself',
}

# The number of annotations with each of `_PROBLEMS`, as their ids.
Problems = dict[str, list[int]]


class Builder(coco_files.CocoBuilder):
  """Prepares COCO 2017 or, as `coco_instances/custom`, a data set in its format."""

  BUILDER_CONFIGS = coco_files.make_configs(
    '118,287 train and 5,000 val images, 80 classes.',
    'train2017/, val2017/ and annotations/instances_{train,val}2017.json',
    "annotations/instances_NAME.json and, for each, the images in NAME/ or images/, Roboflow's "
    'NAME/_annotations.coco.json, or one JSON file and images/',
  )
  kind = 'instances'

  @classmethod
  def prepared_for(
    cls, options: coco_layout.Options, annotations: tuple[str, ...]
  ) -> tuple[str, ...]:
    # Labels and segments need to know the classes before the files are read.
    return () if options.classes is None or annotations == ('objects',) else annotations

  @property
  def kept(self) -> str:
    """What examples are annotated with: the last of the annotations of a task."""
    return (self.builder_config.annotations or ('objects',))[-1]

  def _info(self) -> tfds.core.DatasetInfo:
    if self.kept != 'objects':
      return files.INFOS[self.kept](self)
    # Classes are known when the annotations are read; TFDS writes them next to the data.
    description = 'Images with a mask for each object.'
    info = coco.instance_info(self, description=description, channels=self.options.channels)
    if self.is_own:
      classes = 'set config.data.files.classes to the names of the classes'
      info.metadata['optional_features'] = {'label': classes, 'segments': classes}
    return info

  def set_categories(
    self, info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]
  ) -> None:
    if self.kept == 'objects':
      coco.set_categories(info, categories, self.options.colors)

  def read_file(self, path: Path) -> coco_files.CocoFile:
    return read_file(path, own=self.is_own, correct=self.correct)

  def _split(
    self,
    file: coco_files.CocoFile,
    listed: Sequence[tuple[coco_files.CocoImage, Path]],
    labels: Mapping[int, int],
    source: Path,
    part: coco_layout.Part,
  ) -> records.Split:
    del source, part
    items = [
      (str(image.id), _Item(image, path, file.annotations[image.id])) for image, path in listed
    ]
    make = _Maker(file.path, labels, self.options, self.is_own, self.kept)
    return records.Split(items, make, functools.partial(self._finish, file.path))

  def _finish(self, path: Path, notes: Sequence[Any]) -> None:
    problems: Problems = collections.defaultdict(list)
    maskless = 0
    for found, count in notes:
      maskless += count
      for problem, numbers in found.items():
        problems[problem] += numbers
    _warn(path, problems)
    if self.kept == 'objects':
      coco.note_maskless(self.info, maskless)


class _Item(NamedTuple):
  image: coco_files.CocoImage
  path: Path
  annotations: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Maker:
  """Makes the example of an image.

  Attributes:
    path: the JSON file.
    labels: class index of each category id.
    options: of the format.
    is_own: whether the file is of a data set of one's own.
    kept: see `Builder.kept`.
  """

  path: Path
  labels: Mapping[int, int]
  options: coco_layout.Options
  is_own: bool
  kept: str

  def __call__(self, item: _Item) -> records.Noted:
    encoded, size = coco_files.read_image(item.path, item.image, self.path, self.options.channels)
    problems: Problems = collections.defaultdict(list)
    reader = _Annotations(self.path, size, self.labels, problems, self.is_own)
    objects = [found for a in item.annotations if (found := reader.describe(a))]
    maskless = sum(not entry['segmentation'] for entry in objects)
    noted = [(problems, maskless)] if problems or maskless else []
    return records.Noted(self._example(item.image, encoded, size, objects), noted)

  def _example(
    self, image: coco_files.CocoImage, encoded: bytes, size: Size, objects: list[dict[str, Any]]
  ) -> dict[str, Any]:
    if self.kept == 'objects':
      return coco.instance_example(image.file_name, image.id, encoded, size, objects)
    content = files.Content(
      objects=[
        files.Object(o['label'], o['segmentation'] or None, tuple(o['bbox']), o['iscrowd'])
        for o in objects
      ]
    )
    make = files.EXAMPLES[self.kept]
    return make(self.options, image.file_name, image.id, encoded, size, content)


def read_file(
  path: Path, *, own: bool, correct: coco_files.Correct | None = None
) -> coco_files.CocoFile:
  """A file whose annotations are instances; what is wrong is an error that names it.

  Args:
    path: of the JSON file.
    own: whether it is of a data set of one's own.
    correct: see `coco_files.read_file`.
  """
  content = coco_files.read_file(path, 'instances', own=own, correct=correct)
  categories = (category.id for category in content.categories)
  entries = [entry for of_image in content.annotations.values() for entry in of_image]
  if own:
    _add_ids(entries)
  numbers = coco_files.NUMBERS
  rules = {
    'id': coco_files.INTEGER,
    'category_id': coco_files.one_of(categories, 'categories'),
    **(coco_files.optional(numbers) if own else numbers),
  }
  for entry in entries:
    coco_files.check(path, f'annotation {entry.get("id")}', entry, rules)
  coco_files.check_unique(path, 'the annotation id', [entry['id'] for entry in entries])
  return content


def _add_ids(entries: Sequence[dict[str, Any]]) -> None:
  """Numbers the annotations that have no id, after those that have one."""
  known = [entry['id'] for entry in entries if type(entry.get('id')) is int]
  number = max(known, default=0)
  for entry in entries:
    if entry.get('id') is None:
      number += 1
      entry['id'] = number


@dataclasses.dataclass(frozen=True)
class _Annotations:
  """Reads the annotations of an image.

  Attributes:
    path: the JSON file.
    size: (height, width) of the image.
    labels: class index of each category id.
    problems: gets an entry for each problem.
    is_own: whether the file is of a data set of one's own.
  """

  path: Path
  size: Size
  labels: Mapping[int, int]
  problems: Problems
  is_own: bool

  def describe(self, annotation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of `objects` of an annotation; None, and a problem, to leave it out."""
    number, box = annotation['id'], annotation.get('bbox')
    if box is not None and min(box[2:]) <= 0:
      mask = annotation.get('segmentation')
      if not self.is_own or not (any(mask) if isinstance(mask, list) else mask):
        return self._leave_out('empty box', number)
      box = None  # as some tools write it of any mask, whose own box is taken
    parts, no_mask = self._parts(annotation)
    if no_mask:
      return self._box_object(annotation)
    if parts == []:
      return self._leave_out('no polygon', number)
    try:
      counts = coco.segmentation_counts(parts, self.size)
    except ValueError as e:
      raise SegjaxError(f'{self.path}: annotation {number} has {e}: correct the file') from e
    rle = {'size': list(self.size), 'counts': counts}
    area = float(mask_lib.area(rle))
    if not area and self.is_own:
      return self._leave_out('outside', number)
    if not area:
      self.problems['no pixel'].append(number)
    if self.is_own:
      self._look_at(number, parts)
    if box is None or (self.is_own and self._is_outside(box)):
      box = mask_lib.toBbox(rle)
    return self._entry(annotation, box, area, counts)

  def _parts(self, annotation: Mapping[str, Any]) -> tuple[Any, bool]:
    """The mask, without polygons that are too short; and whether there is only a box."""
    found = annotation.get('segmentation')
    if found is None:
      return found, self.is_own and annotation.get('bbox') is not None
    if not isinstance(found, list):
      return found, False
    if self.is_own and found and all(isinstance(x, int | float) for x in found):
      found = [found]  # one polygon, not in a list
    if not any(found) and annotation.get('bbox') is not None:
      return found, True
    long = [part for part in found if not isinstance(part, list) or len(part) >= 6]
    if long and len(long) < len(found):
      self.problems['short polygon'].append(annotation['id'])
    return long, False

  def _box_object(self, annotation: Mapping[str, Any]) -> dict[str, Any] | None:
    box = annotation['bbox']
    x, y, width, height = box
    if self.is_own:
      if self._is_outside(box):
        return self._leave_out('outside', annotation['id'])
      self._look_at(annotation['id'], [[x, y, x + width, y, x + width, y + height, x, y + height]])
      if (cut := self._cut(box)) != box:  # and so the area is another one
        annotation, (*_, width, height) = {**annotation, 'area': None}, cut
    self.problems['no mask'].append(annotation['id'])
    return self._entry(annotation, box, width * height, '')

  def _is_outside(self, box: Sequence[float]) -> bool:
    x, y, width, height = box
    return x >= self.size[1] or y >= self.size[0] or x + width <= 0 or y + height <= 0

  def _cut(self, box: Sequence[float]) -> list[float]:
    """The part of a box that is in the image: the same numbers where all of it is."""
    starts, lengths = [], []
    for start, length, limit in zip(box[:2], box[2:], self.size[::-1], strict=True):
      before, after = max(0, -start), max(0, start + length - limit)
      starts.append(start + before)
      lengths.append(length - before - after)
    return starts + lengths

  def _entry(
    self, annotation: Mapping[str, Any], box: Any, area: float, counts: str
  ) -> dict[str, Any]:
    given = annotation.get('area')
    if self.is_own and not given:  # 0 where a tool has not measured it
      given = None
    return {
      'id': annotation['id'],
      'label': self.labels[annotation['category_id']],
      'category_id': annotation['category_id'],
      'bbox': np.array(self._cut(box) if self.is_own else box, np.float64),
      'area': float(area if given is None else given),
      'iscrowd': bool(annotation.get('iscrowd')),
      'segmentation': counts,
    }

  def _look_at(self, number: int, polygons: Any) -> None:
    """Notes what is suspicious about polygons."""
    if not isinstance(polygons, list):
      return
    corners = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    limit = np.array(self.size[::-1]) + 1
    if any((xy < -1).any() or (xy > limit).any() for xy in corners):
      self.problems['beyond'].append(number)
    if any(polygons_lib.crosses_itself(xy) for xy in corners):
      self.problems['crossing'].append(number)

  def _leave_out(self, problem: str, number: int) -> None:
    self.problems[problem].append(number)


def _warn(path: Path, problems: Problems) -> None:
  parts = []
  for key, text in _PROBLEMS.items():
    if ids := problems.get(key):
      named = ', '.join(str(i) for i in ids[:_NAMED]) + (', …' if len(ids) > _NAMED else '')
      parts.append(f'{len(ids)} annotations are {text} ({named})')
  if parts:
    warnings.warn(f'{path}: {"; ".join(parts)}', stacklevel=2)
