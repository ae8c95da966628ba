"""Cityscapes instance segmentation: street scenes from a car, with masks of road users.

2,975 train, 500 val and 1,525 test images of 2048 x 1024; 8 classes. Raw files, as the archives
leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack:
  leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png
  gtFine/SPLIT/CITY/STEM_gtFine_instanceIds.png     16-bit: 1000 class + k = the k-th of a class,
                                                    class alone = stuff, or a group of things
The features are those of `segjax.data.formats.coco`: `category_id` is upstream's class id, boxes and areas
are those of the masks, the groups of a class in an image are one object with `iscrowd`, and image
ids count the images of a split, city by city, from 1. An object's id is 100,000 times that plus the
value of its pixels. Caravans and trailers, which upstream does not evaluate, are left out. Images
are handed on as they are, byte for byte. `test`, which is there if its images are, has no objects:
upstream keeps its labels.

COCO's AP on this data is not the AP of the Cityscapes benchmark, which has no size classes, ignores
what is smaller than 100 pixels and forgives detections on ignored regions.

Cite Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Free
for non-commercial use, after registration.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images
from segjax.data.formats import coco, common
from segjax.types import SegjaxError

# Class index: name, upstream's class id and colour.
CLASSES = (
  ('person', 24, (220, 20, 60)),
  ('rider', 25, (255, 0, 0)),
  ('car', 26, (0, 0, 142)),
  ('truck', 27, (0, 0, 70)),
  ('bus', 28, (0, 60, 100)),
  ('train', 31, (0, 80, 100)),
  ('motorcycle', 32, (0, 0, 230)),
  ('bicycle', 33, (119, 11, 32)),
)
LAST_CLASS = 33

_INDEX = {class_id: index for index, (_, class_id, _) in enumerate(CLASSES)}
_CONTENT = 'leftImg8bit/ and gtFine/'
_IMAGE, _LABEL = '_leftImg8bit.png', '_gtFine_instanceIds.png'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares the instances of Cityscapes' fine annotations."""

  name = 'cityscapes_instances'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'A folder that holds {_CONTENT}.'

  def _info(self) -> tfds.core.DatasetInfo:
    names, ids, palette = zip(*CLASSES, strict=True)
    return coco.instance_info(
      self,
      description='Street scenes from a car with a mask for each road user; 8 classes.',
      class_names=names,
      category_ids=ids,
      palette=palette,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = common.raw_folder(dl_manager, _CONTENT)
    splits = ['train', 'val']
    if (source / 'leftImg8bit' / 'test').is_dir():
      splits.append('test')
    found = {split: find_images(source, split) for split in splits}
    return {split: self._generate_examples(source, split, found[split]) for split in splits}

  def _generate_examples(
    self, source: Path, split: str, names: list[str]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for image_id, name in enumerate(names, start=1):
      path = source / 'leftImg8bit' / split / f'{name}{_IMAGE}'
      encoded = coco.read_encoded(path)
      image = images.decode_image(encoded, 3, str(path))
      objects = []
      if split != 'test':
        label_path = source / 'gtFine' / split / f'{name}{_LABEL}'
        label = images.decode_label(coco.read_encoded(label_path), str(label_path))
        common.check_same_size(image, path, label, label_path)
        objects = _objects(label, label_path, image_id)
      stem = path.name.removesuffix(_IMAGE)
      yield stem, coco.instance_example(stem, image_id, encoded, image.shape[:2], objects)


def find_images(source: Path, split: str) -> list[str]:
  """CITY/STEM of each image of a split, in order; each but those of test has a label."""

  def stems(folder: Path, suffix: str) -> set[str]:
    return {
      path.relative_to(folder).as_posix().removesuffix(suffix)
      for path in folder.glob(f'*/*{suffix}')
    }

  folder, label_folder = source / 'leftImg8bit' / split, source / 'gtFine' / split
  found = stems(folder, _IMAGE)
  if not found:
    raise SegjaxError(
      f'{folder} has no images: set data.source to the folder that holds {_CONTENT}'
    )
  labelled = stems(label_folder, _LABEL)
  if split != 'test' and found != labelled:
    odd = min(found ^ labelled)
    path = folder / f'{odd}{_IMAGE}' if odd in labelled else label_folder / f'{odd}{_LABEL}'
    raise SegjaxError(
      f'{len(found ^ labelled)} images of {split} lack their image or their label, such as {path}: '
      'unpack both archives again'
    )
  return sorted(found)


def _objects(label: np.ndarray, path: Path, image_id: int) -> list[dict[str, Any]]:
  """The entries of `objects` in a map of instance ids u16[H, W]."""
  objects = []
  for value in np.unique(label).tolist():
    crowd = value < 1000
    class_id = value if crowd else value // 1000
    if class_id > LAST_CLASS:
      raise SegjaxError(
        f'{path} has the value {value}, which is out of range: classes are 0 to {LAST_CLASS}, '
        'instances 1000 times the class and more'
      )
    if class_id in _INDEX:
      objects.append(
        coco.mask_object(
          label == value,
          id=100_000 * image_id + value,
          label=_INDEX[class_id],
          category_id=class_id,
          iscrowd=crowd,
        )
      )
  return objects
