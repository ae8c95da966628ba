"""Cityscapes panoptic segmentation: street scenes from a car; 8 classes of things, 11 of stuff.

2,975 train, 500 val and 1,525 test images of 2048 x 1024. Raw files are those of
`cityscapes_instances`:
  leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png
  gtFine/SPLIT/CITY/STEM_gtFine_instanceIds.png     16-bit: 1000 class + k = the k-th of a class,
                                                    class alone = stuff, or a group of things
The features are those of `segjax.data.formats.panoptic`, and the segments those that upstream's conversion
(cityscapesscripts, createPanopticImgs) makes: `id` is the value in upstream's file, `category_id`
upstream's class id, a group of things has `iscrowd`, and the classes that upstream does not
evaluate are void. Classes are in the order of upstream's train ids. `file_name` is STEM, which is
upstream's image id for results; image ids count the images of a split, city by city, from 1. Images
are handed on as they are, byte for byte. `test`, which is there if its images are, is all void:
upstream keeps its labels.

Cite Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Free
for non-commercial use, after registration.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images
from segjax.data.builders.cityscapes_instances.builder import LAST_CLASS, find_images
from segjax.data.formats import coco, common, panoptic
from segjax.types import SegjaxError

# Class index: name, upstream's class id, whether it is a thing, colour.
CLASSES = (
  ('road', 7, 0, (128, 64, 128)),
  ('sidewalk', 8, 0, (244, 35, 232)),
  ('building', 11, 0, (70, 70, 70)),
  ('wall', 12, 0, (102, 102, 156)),
  ('fence', 13, 0, (190, 153, 153)),
  ('pole', 17, 0, (153, 153, 153)),
  ('traffic light', 19, 0, (250, 170, 30)),
  ('traffic sign', 20, 0, (220, 220, 0)),
  ('vegetation', 21, 0, (107, 142, 35)),
  ('terrain', 22, 0, (152, 251, 152)),
  ('sky', 23, 0, (70, 130, 180)),
  ('person', 24, 1, (220, 20, 60)),
  ('rider', 25, 1, (255, 0, 0)),
  ('car', 26, 1, (0, 0, 142)),
  ('truck', 27, 1, (0, 0, 70)),
  ('bus', 28, 1, (0, 60, 100)),
  ('train', 31, 1, (0, 80, 100)),
  ('motorcycle', 32, 1, (0, 0, 230)),
  ('bicycle', 33, 1, (119, 11, 32)),
)

_INDEX = {class_id: index for index, (_, class_id, _, _) in enumerate(CLASSES)}
_CONTENT = 'leftImg8bit/ and gtFine/'
_IMAGE, _LABEL = '_leftImg8bit.png', '_gtFine_instanceIds.png'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares the segments of Cityscapes' fine annotations."""

  name = 'cityscapes_panoptic'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'A folder that holds {_CONTENT}.'

  def _info(self) -> tfds.core.DatasetInfo:
    info = panoptic.panoptic_info(
      self,
      description='Street scenes from a car with a segment for each pixel; 19 classes.',
    )
    panoptic.set_categories(
      info, [coco.Category(number, name, thing, color) for name, number, thing, color in CLASSES]
    )
    return info

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
      ids, segments = np.zeros(image.shape[:2], np.int32), []
      if split != 'test':
        label_path = source / 'gtFine' / split / f'{name}{_LABEL}'
        label = images.decode_label(coco.read_encoded(label_path), str(label_path))
        common.check_same_size(image, path, label, label_path)
        ids, segments = _segments(label, label_path)
      stem = path.name.removesuffix(_IMAGE)
      picture = panoptic.encode_ids(ids)
      yield stem, panoptic.panoptic_example(stem, image_id, encoded, picture, segments)


def _segments(label: np.ndarray, path: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """The ids i32[H, W] and the entries of `segments` in a map of instance ids u16[H, W]."""
  ids, segments = label.astype(np.int32), []
  for value in np.unique(label).tolist():
    class_id = value if value < 1000 else value // 1000
    if class_id > LAST_CLASS:
      raise SegjaxError(
        f'{path} has the value {value}, which is out of range: classes are 0 to {LAST_CLASS}, '
        'instances 1000 times the class and more'
      )
    mask = label == value
    if class_id not in _INDEX:
      ids[mask] = 0
      continue
    index = _INDEX[class_id]
    segments.append(
      panoptic.segment_entry(
        id=value,
        label=index,
        category_id=class_id,
        iscrowd=value < 1000 and bool(CLASSES[index][2]),
        area=int(mask.sum()),
        bbox=cv2.boundingRect(mask.astype(np.uint8)),
      )
    )
  return ids, segments
