"""Cityscapes' fine annotations: images, and maps of class or instance ids.

leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png
gtFine/SPLIT/CITY/STEM_gtFine_instanceIds.png     16-bit: 1000 class + k = the k-th of a class,
                                                  class alone = stuff, or a group of things
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images
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

_LAST_CLASS = 33
_IMAGE, _LABEL = '_leftImg8bit.png', '_gtFine_instanceIds.png'


class Example(NamedTuple):
  """An image and its map of ids.

  Attributes:
    stem: name of the image without its suffixes.
    image_id: counts the images of a split, city by city, from 1.
    image: encoded PNG.
    label: u16[H, W]; None in test, whose labels upstream keeps.
    size: (H, W).
    path: of the label.
  """

  stem: str
  image_id: int
  image: bytes
  label: np.ndarray | None
  size: tuple[int, int]
  path: Path


def find_splits(dl_manager: tfds.download.DownloadManager) -> dict[str, tuple[Path, list[str]]]:
  """The source and the images, CITY/STEM, of train, val and, if it is there, test.

  Raises:
    SegjaxError: a split has no images, or one of train and val an image or a label without the
      other.
  """
  source = raw.source_directory(dl_manager, CONTENT)
  has_test = (source / 'leftImg8bit' / 'test').is_dir()
  splits = ('train', 'val', 'test') if has_test else ('train', 'val')
  return {split: (source, _find_images(source, split)) for split in splits}


def _find_images(source: Path, split: str) -> list[str]:
  def stems(directory: Path, suffix: str) -> set[str]:
    return {
      path.relative_to(directory).as_posix().removesuffix(suffix)
      for path in directory.glob(f'*/*{suffix}')
    }

  image_directory, label_directory = source / 'leftImg8bit' / split, source / 'gtFine' / split
  found = stems(image_directory, _IMAGE)
  if not found:
    raise raw.wrong_source(f'{image_directory} has no images', CONTENT)
  labeled = stems(label_directory, _LABEL)
  if split != 'test' and found != labeled:
    odd = min(found ^ labeled)
    missing = image_directory / f'{odd}{_IMAGE}'
    if odd in found:
      missing = label_directory / f'{odd}{_LABEL}'
    raise SegjaxError(
      f'{len(found ^ labeled)} images of {split} lack their image or their label, such as '
      f'{missing}: unpack both archives again'
    )
  return sorted(found)


def read_examples(source: Path, split: str, names: list[str]) -> Iterator[Example]:
  """The examples of a split, from `find_splits`.

  Raises:
    SegjaxError: a file cannot be decoded, or a label has another size than its image.
  """
  for image_id, name in enumerate(names, start=1):
    path = source / 'leftImg8bit' / split / f'{name}{_IMAGE}'
    label_path = source / 'gtFine' / split / f'{name}{_LABEL}'
    encoded, label = raw.read_bytes(path), None
    image = images.decode_image(encoded, 3, str(path))
    if split != 'test':
      label = images.decode_label(raw.read_bytes(label_path), str(label_path))
      raw.check_same_size(image, path, label, label_path)
    stem = path.name.removesuffix(_IMAGE)
    yield Example(stem, image_id, encoded, label, image.shape[:2], label_path)


def segments(example: Example) -> Iterator[tuple[int, int, bool, np.ndarray]]:
  """Each value of the label that is there: itself, its class id, whether it is no instance, mask.

  Raises:
    SegjaxError: a class id above 33.
  """
  for value in [] if example.label is None else np.unique(example.label).tolist():
    class_id = value if value < 1000 else value // 1000
    if class_id > _LAST_CLASS:
      raise SegjaxError(
        f'{example.path} has the value {value}, which is out of range: classes are 0 to '
        f'{_LAST_CLASS}, instances 1000 times the class and more'
      )
    yield value, class_id, value < 1000, example.label == value
