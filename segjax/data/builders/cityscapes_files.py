"""Cityscapes' fine annotations: images, and maps of class or instance ids.

leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png
gtFine/SPLIT/CITY/STEM_gtFine_instanceIds.png     16-bit: 1000 class + k = the k-th of a class,
                                                  class alone = stuff, or a group of things
gtFine/SPLIT/CITY/STEM_gtFine_labelIds.png        class
gtFine/SPLIT/CITY/STEM_gtFine_labelTrainIds.png   class index, 255 = void; made by upstream's
                                                  scripts, not in the archive
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images, records
from segjax.data.builders import raw
from segjax.data.formats.coco import Category
from segjax.types import SegjaxError

# What upstream evaluates, in the order of its train ids, under its class ids.
CATEGORIES = (
  Category(7, 'road', 0, (128, 64, 128)),
  Category(8, 'sidewalk', 0, (244, 35, 232)),
  Category(11, 'building', 0, (70, 70, 70)),
  Category(12, 'wall', 0, (102, 102, 156)),
  Category(13, 'fence', 0, (190, 153, 153)),
  Category(17, 'pole', 0, (153, 153, 153)),
  Category(19, 'traffic light', 0, (250, 170, 30)),
  Category(20, 'traffic sign', 0, (220, 220, 0)),
  Category(21, 'vegetation', 0, (107, 142, 35)),
  Category(22, 'terrain', 0, (152, 251, 152)),
  Category(23, 'sky', 0, (70, 130, 180)),
  Category(24, 'person', 1, (220, 20, 60)),
  Category(25, 'rider', 1, (255, 0, 0)),
  Category(26, 'car', 1, (0, 0, 142)),
  Category(27, 'truck', 1, (0, 0, 70)),
  Category(28, 'bus', 1, (0, 60, 100)),
  Category(31, 'train', 1, (0, 80, 100)),
  Category(32, 'motorcycle', 1, (0, 0, 230)),
  Category(33, 'bicycle', 1, (119, 11, 32)),
)
CONTENT = 'leftImg8bit/ and gtFine/'

LAST_CLASS = 33
IMAGE = '_leftImg8bit.png'
INSTANCE_IDS = '_gtFine_instanceIds.png'
LABEL_IDS = '_gtFine_labelIds.png'
LABEL_TRAIN_IDS = '_gtFine_labelTrainIds.png'


class Segment(NamedTuple):
  """The pixels of one value of a label map.

  Attributes:
    value: 1000 times the class id plus a number, or the class id alone where it is not an
      instance.
    class_id: upstream's.
    alone: whether it is not an instance.
    mask: bool[H, W].
  """

  value: int
  class_id: int
  alone: bool
  mask: np.ndarray


class Example(NamedTuple):
  """An image and its segments.

  Attributes:
    stem: name of the image without its suffixes.
    image_id: counts the images of a split, city by city, from 1.
    image: encoded PNG.
    size: (H, W).
    segments: none in test, whose labels upstream keeps.
  """

  stem: str
  image_id: int
  image: bytes
  size: tuple[int, int]
  segments: Iterable[Segment]


class CityscapesBuilder(raw.Builder, skip_registration=True):
  """Reads the fine annotations; what is stored of an example is the subclass's `describe`."""

  def describe(self, example: Example) -> dict[str, Any]:
    """An example of the prepared data set."""
    raise NotImplementedError

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, CONTENT)
    return {
      split: records.Split(
        [(PurePosixPath(name).name, (image_id, name)) for image_id, name in enumerate(names, 1)],
        functools.partial(self._make, source, split),
      )
      for split, names in find_splits(source, INSTANCE_IDS).items()
    }

  def _make(self, source: Path, split: str, item: tuple[int, str]) -> dict[str, Any]:
    image_id, name = item
    path = source / 'leftImg8bit' / split / f'{name}{IMAGE}'
    label_path = source / 'gtFine' / split / f'{name}{INSTANCE_IDS}'
    encoded, segments = raw.read_bytes(path), ()
    image = images.decode_image(encoded, 3, str(path))
    if split != 'test':
      label = images.decode_label(raw.read_bytes(label_path), str(label_path))
      raw.check_same_size(image, path, label, label_path)
      segments = _segments(label, label_path)
    stem = path.name.removesuffix(IMAGE)
    return self.describe(Example(stem, image_id, encoded, image.shape[:2], segments))


def find_splits(source: Path, label: str) -> dict[str, list[str]]:
  """The images of each split, CITY/STEM, each of which has its label, but for test.

  Args:
    source: the directory of raw files; it may lack the split test.
    label: how the files of labels end.

  Raises:
    SegjaxError: a split has no image, or an image or a label is missing.
  """
  splits = ['train', 'val']
  if (source / 'leftImg8bit' / 'test').is_dir():
    splits.append('test')
  return {split: _find_images(source, split, label) for split in splits}


def _find_images(source: Path, split: str, label: str) -> list[str]:

  def stems(directory: Path, suffix: str) -> set[str]:
    return {
      path.relative_to(directory).as_posix().removesuffix(suffix)
      for path in directory.glob(f'*/*{suffix}')
    }

  image_directory, label_directory = source / 'leftImg8bit' / split, source / 'gtFine' / split
  found = stems(image_directory, IMAGE)
  if not found:
    raise raw.wrong_source(f'{image_directory} has no images', CONTENT)
  labeled = stems(label_directory, label)
  if split != 'test' and found != labeled:
    odd = min(found ^ labeled)
    missing = image_directory / f'{odd}{IMAGE}'
    if odd in found:
      missing = label_directory / f'{odd}{label}'
    raise SegjaxError(
      f'{len(found ^ labeled)} images of {split} lack their image or their label, such as '
      f'{missing}: unpack both archives again'
    )
  return sorted(found)


def _segments(label: np.ndarray, path: Path) -> Iterator[Segment]:
  for value in np.unique(label).tolist():
    class_id = value if value < 1000 else value // 1000
    if class_id > LAST_CLASS:
      raise SegjaxError(
        f'{path} has the value {value}, which is out of range: classes are 0 to {LAST_CLASS}, '
        'instances 1000 times the class and more'
      )
    yield Segment(value, class_id, value < 1000, label == value)
