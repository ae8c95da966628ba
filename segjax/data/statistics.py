"""What a split of a prepared data set contains: sizes, classes, colors, and what looks wrong.

`collect` is one pass over the images and their annotations, `count_classes` one over the
annotations alone. Both read through `read.Reader`, so they see what a network is trained on.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from pycocotools import mask as mask_lib

from segjax.data.read import Annotations, Example, Reader
from segjax.data.sample import Size
from segjax.types import IGNORE_LABEL

# Of an image whose pixels have a lower mean, 0..255, nothing can be seen.
DARK = 8.0
# Objects of fewer pixels (4 x 4) cover one cell of the finest feature map of an FPN.
TINY = 16
# Of an image with a larger fraction of ignored pixels, little is learned.
MOSTLY_IGNORED = 0.5
# Coordinates are rounded by annotation tools: by how many pixels a box may leave its image.
_ROUNDING = 1.0
# Names that are shown of a long list.
_SHOWN = 5
_THREADS = min(8, os.cpu_count() or 1)

T = TypeVar('T')


class ExampleStatistics(NamedTuple):
  """One example at its own size.

  Attributes:
    name: of the example.
    size: (height, width) of the image.
    objects: number of objects, crowds included; 0 in semantic tasks.
    smallest: pixels of the smallest object that has any; 0 where there is none.
    pixels: i64[C], pixels of each class. In instance tasks, whose objects may overlap, the pixels
      of the objects of each class.
    ignored: number of pixels that have no class and are not counted; 0 in instance tasks.
    digest: of the decoded pixels and their size, in hexadecimal digits.
    brightness: mean of the pixels and channels, 0..255.
    outside: number of objects whose box leaves the image, or whose mask is empty.
    boxes: f64[objects, 2], width and height of each object's box.
    without_mask: number of stored objects that are boxes alone. Where the task needs masks they are
      left out of everything else, see `config.InputConfig.masks`.
  """

  name: str
  size: Size
  objects: int
  smallest: int
  pixels: np.ndarray
  ignored: int
  digest: str
  brightness: float
  outside: int
  boxes: np.ndarray = np.zeros((0, 2))
  without_mask: int = 0


class Statistics(NamedTuple):
  """A split.

  Attributes:
    examples: in the order of the split; of a sample, only those.
    mean, std: f64[channels], over all pixels, 0..255.
    object_counts: i64[C], objects of each class, crowds included.
  """

  examples: list[ExampleStatistics]
  mean: np.ndarray
  std: np.ndarray
  object_counts: np.ndarray

  @property
  def pixels(self) -> np.ndarray:
    """i64[C], pixels of each class over all examples."""
    return np.sum([example.pixels for example in self.examples], axis=0)

  @property
  def ignored(self) -> int:
    """Number of ignored pixels over all examples."""
    return sum(example.ignored for example in self.examples)


class ClassCounts(NamedTuple):
  """The annotations of a split.

  Attributes:
    pixels: i64[C], as in `ExampleStatistics`.
    ignored: number of pixels without a class.
    objects: i64[C], objects of each class.
    examples: number of examples that were read.
    total: number of examples of the split.
  """

  pixels: np.ndarray
  ignored: int
  objects: np.ndarray
  examples: int
  total: int

  @property
  def ignored_fraction(self) -> float:
    """Of all pixels with a class or without; 0 in instance tasks."""
    return self.ignored / max(int(self.pixels.sum()) + self.ignored, 1)


def collect(reader: Reader, limit: int | None = None) -> Statistics:
  """Statistics of a split, in one pass.

  Args:
    reader: of the split.
    limit: maximum number of examples to read, evenly spaced over the split; None for all.

  Raises:
    SegjaxError: what is wrong with an example, by its name.
  """
  found = _map(lambda index: _describe(reader[index]), len(reader), limit)
  count = sum(moments.count for _, moments, _ in found)
  mean = sum(moments.count * moments.mean for _, moments, _ in found) / count
  square = sum(moments.count * moments.square for _, moments, _ in found) / count
  return Statistics(
    examples=[example for example, _, _ in found],
    mean=mean,
    std=np.sqrt(np.maximum(square - mean**2, 0)),
    object_counts=np.sum([objects for _, _, objects in found], axis=0),
  )


def count_classes(reader: Reader, limit: int | None = None) -> ClassCounts:
  """Pixels and objects of each class of a split, without its images' pixels in semantic tasks.

  Args:
    reader, limit: as for `collect`.

  Raises:
    SegjaxError: what is wrong with an example, by its name.
  """
  found = _map(lambda index: _count(reader[index]), len(reader), limit)
  return ClassCounts(
    pixels=np.sum([counts.pixels for counts in found], axis=0),
    ignored=sum(counts.ignored for counts in found),
    objects=np.sum([counts.objects for counts in found], axis=0),
    examples=len(found),
    total=len(reader),
  )


def describe_missing(counts: ClassCounts, class_names: Sequence[str], split: str) -> str:
  """A sentence on what a metric of a split cannot measure; '' where it measures everything."""
  present = counts.pixels + counts.objects > 0
  unseen = [name for name, there in zip(class_names, present, strict=True) if not there]
  parts = []
  if unseen:
    shown = ', '.join(unseen[:_SHOWN]) + ', …' * (len(unseen) > _SHOWN)
    parts.append(f'{len(unseen)} of {len(class_names)} classes never occur ({shown})')
  if counts.ignored:
    parts.append(f'{counts.ignored_fraction:.1%} of the pixels are ignored')
  if not parts:
    return ''
  sampled = counts.examples < counts.total
  where = f'{counts.examples:,} of the {counts.total:,} images of {split}' if sampled else split
  return f'in {where}, {" and ".join(parts)}'


def suspicious(statistics: Statistics) -> dict[str, list[str]]:
  """Examples to look at before training.

  Returns:
    Reason -> names of the examples, worst first; reasons without an example are left out.
  """
  examples = statistics.examples
  # In semantic tasks, masks of only background are the empty ones.
  semantic = not any(example.objects for example in examples)
  several = sum(example.pixels for example in examples)
  several = np.count_nonzero(several) > 1
  area = lambda example: example.size[0] * example.size[1]
  # Reason, whether it holds, and a key that is small for the worst.
  rules: tuple[tuple[str, Callable, Callable], ...] = (
    ('no annotation', lambda e: not e.objects and not e.pixels.any(), area),
    (
      'a single class',
      lambda e: semantic and several and np.count_nonzero(e.pixels) == 1,
      lambda e: -e.pixels.max(),
    ),
    ('label outside the image, or empty', lambda e: e.outside > 0, lambda e: -e.outside),
    (
      f'objects below {TINY} pixels',
      lambda e: 0 < e.smallest < TINY,
      lambda e: e.smallest,
    ),
    (
      f'more than {MOSTLY_IGNORED:.0%} of the pixels ignored',
      lambda e: e.pixels.any() and e.ignored > MOSTLY_IGNORED * area(e),
      lambda e: -e.ignored / area(e),
    ),
    ('nearly black', lambda e: e.brightness < DARK, lambda e: e.brightness),
  )
  found = {
    reason: [example.name for example in sorted(filter(holds, examples), key=badness)]
    for reason, holds, badness in rules
  }
  found['duplicate images'] = [name for group in duplicates(statistics) for name in group]
  return {reason: names for reason, names in found.items() if names}


def duplicates(statistics: Statistics) -> list[list[str]]:
  """Names of the examples with the same image, for each such image, the largest groups first."""
  groups: dict[str, list[str]] = {}
  for example in statistics.examples:
    groups.setdefault(example.digest, []).append(example.name)
  return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def spread(count: int, limit: int | None) -> Sequence[int]:
  """The indices below `count`, or `limit` evenly spaced ones of them."""
  if limit is None or limit >= count:
    return range(count)
  return [i * count // limit for i in range(limit)]


class _Moments(NamedTuple):
  """Number of pixels, and the mean and mean square of each channel, f64[channels]."""

  count: int
  mean: np.ndarray
  square: np.ndarray


class _Counts(NamedTuple):
  """What is annotated on one example; see `ExampleStatistics` and `ClassCounts`."""

  pixels: np.ndarray
  ignored: int
  objects: np.ndarray
  smallest: int
  outside: int
  boxes: np.ndarray = np.zeros((0, 2))
  without_mask: int = 0


def _map(function: Callable[[int], T], count: int, limit: int | None) -> list[T]:
  """`function` of the indices below `count`, or of `limit` evenly spaced ones, by threads."""
  indices = spread(count, limit)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    futures = [pool.submit(function, index) for index in indices]
    try:
      return [future.result() for future in futures]
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _describe(example: Example) -> tuple[ExampleStatistics, _Moments, np.ndarray]:
  image, counts = np.ascontiguousarray(example.image), _count(example)
  mean, std = (values[:, 0] for values in cv2.meanStdDev(image))
  height, width = image.shape[:2]
  digest = hashlib.blake2b(image.tobytes(), digest_size=16, person=f'{height}x{width}'.encode())
  described = ExampleStatistics(
    name=example.name,
    size=(height, width),
    objects=int(counts.objects.sum()),
    smallest=counts.smallest,
    pixels=counts.pixels,
    ignored=counts.ignored,
    digest=digest.hexdigest(),
    brightness=float(mean.mean()),
    outside=counts.outside,
    boxes=counts.boxes,
    without_mask=counts.without_mask,
  )
  return described, _Moments(height * width, mean, std**2 + mean**2), counts.objects


def _count(example: Example) -> _Counts:
  """Reads the annotations of the task, the cheapest of those that say the same."""
  wanted = example.reader.config.annotations
  if 'segments' in wanted:
    return _count_segments(example)
  if 'objects' in wanted:
    return _count_objects(example, example.annotations)
  classes, label = example.reader.spec.num_classes, example.label
  pixels = np.bincount(label[label != IGNORE_LABEL], minlength=classes)
  return _Counts(pixels, int(label.size - pixels.sum()), np.zeros(classes, np.int64), 0, 0)


def _count_segments(example: Example) -> _Counts:
  from scipy import ndimage  # takes a tenth of a second, which only such data needs

  ids, labels, _, _ = example.segments
  classes, things = example.reader.spec.num_classes, set(example.reader.spec.things)
  ignored, *areas = np.bincount(ids.ravel(), minlength=len(labels) + 1).tolist()
  is_thing = [int(label) in things for label in labels]
  of_things = [area for area, thing in zip(areas, is_thing, strict=True) if thing]
  slices = ndimage.find_objects(ids, max_label=len(labels))
  rectangles = [s and (s[1].stop - s[1].start, s[0].stop - s[0].start) for s in slices]
  boxes = [box or (0, 0) for box, thing in zip(rectangles, is_thing, strict=True) if thing]
  return _Counts(
    pixels=_add_up(labels, areas, classes),
    ignored=ignored,
    objects=_add_up(labels, is_thing, classes),
    smallest=min(filter(None, of_things), default=0),
    outside=areas.count(0),
    boxes=np.reshape(np.array(boxes, np.float64), (-1, 2)),
  )


def _count_objects(example: Example, entries: Annotations) -> _Counts:
  height, width = example.image.shape[:2]
  areas, outside = [], 0
  for entry in entries:
    x, y, w, h = entry['bbox']
    areas.append(int(mask_lib.area(entry['rle'])))
    leaves = min(x, y) < -_ROUNDING or x + w > width + _ROUNDING or y + h > height + _ROUNDING
    outside += leaves or not areas[-1]
  classes, labels = example.reader.spec.num_classes, [entry['category'] for entry in entries]
  return _Counts(
    pixels=_add_up(labels, areas, classes),
    ignored=0,
    objects=_add_up(labels, np.ones(len(labels)), classes),
    smallest=min(filter(None, areas), default=0),
    outside=outside,
    boxes=np.array([entry['bbox'][2:] for entry in entries], np.float64).reshape(-1, 2),
    without_mask=_count_maskless(example),
  )


def _count_maskless(example: Example) -> int:
  """Objects that are stored without a mask; readers take their box for it, or leave them out."""
  listed = example.record.get(example.reader.config.data.objects_key)
  if not isinstance(listed, Mapping) or 'segmentation' not in listed:
    return 0
  return sum(not counts for counts in listed['segmentation'])


def _add_up(labels: Sequence[int], values: Sequence[int], classes: int) -> np.ndarray:
  """i64[classes], the sum of the values of each label."""
  total = np.zeros(classes, np.int64)
  np.add.at(total, np.asarray(labels, np.int64), np.asarray(values, np.int64))
  return total
