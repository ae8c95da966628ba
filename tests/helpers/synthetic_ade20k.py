"""A tiny ADE20K: upstream's directories, and the JSON files of Mask2Former's two scripts.

The scripts' rules, from their description: an image's id is its file's name; stuff is listed with
its pixels in the label map, and drawn; then the objects are drawn over it, each with its own.
"""

import json

import cv2
import numpy as np
from pycocotools import mask as mask_lib

from segjax.data.builders import ade20k_files
from segjax.data.formats import panoptic

HEIGHT, WIDTH = 8, 12
# Raw values of the label map, which are class indices plus 1.
WALL, SKY, FLOOR, BED, PERSON = 1, 3, 4, 8, 13
STEMS = {
  'train': ['ADE_train_00000007', 'ADE_train_00000002'],
  'val': ['ADE_val_00000012'],
}
# The number, the category and the place of each object. The second one lies over all of the floor.
OBJECTS = [(1, 7, np.s_[4:7, 0:4]), (2, 12, np.s_[2:8, 6:9]), (5, 7, np.s_[0:2, 10:12])]


def label_map():
  """u8[H, W]: other in the first row, then wall, a sky, and floor, bed and person below."""
  label = np.full((HEIGHT, WIDTH), WALL, np.uint8)
  label[0] = 0
  label[1:3, 3:6] = SKY
  label[4:7, 0:4] = BED
  label[2:8, 6:9] = PERSON
  label[7, 7] = FLOOR
  return label


def write(source):
  """Writes all files of `STEMS` below the directory `source`."""
  rng = np.random.default_rng(0)
  for split, stems in STEMS.items():
    name = ade20k_files.DIRECTORIES[split]
    for stem in stems:
      for directory, suffix, pixels in (
        ('images', 'jpg', rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)),
        ('annotations', 'png', label_map()),
      ):
        path = source / directory / name / f'{stem}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
    _write_panoptic(source, split, stems)
    _write_instances(source, split, stems)


def segment_ids():
  """(i[H, W], segments): the PNG's ids, and what the script lists."""
  label, ids, segments = label_map(), np.zeros((HEIGHT, WIDTH), np.int64), []
  for value in (WALL, SKY, FLOOR):
    mask = label == value
    ids[mask] = 100_000 + value
    segments.append(_segment(100_000 + value, value - 1, mask))
  for number, category, place in OBJECTS:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[place] = True
    ids[mask] = 200_000 + number
    segments.append(_segment(200_000 + number, category, mask))
  return ids, segments


def _segment(id, category, mask):
  box = cv2.boundingRect(mask.astype(np.uint8))
  entry = {'id': id, 'category_id': category, 'area': int(mask.sum()), 'bbox': list(box)}
  return {**entry, 'iscrowd': 0}


def _images(stems):
  size = {'width': WIDTH, 'height': HEIGHT}
  return [{'id': stem, 'file_name': f'{stem}.jpg', **size} for stem in stems]


def _write_panoptic(source, split, stems):
  ids, segments = segment_ids()
  directory = source / f'ade20k_panoptic_{split}'
  directory.mkdir(parents=True)
  for stem in stems:
    (directory / f'{stem}.png').write_bytes(panoptic.encode_ids(ids))
  content = {
    'images': _images(stems),
    'annotations': [
      {'image_id': stem, 'file_name': f'{stem}.png', 'segments_info': segments} for stem in stems
    ],
    # One of the script's names ends in a space.
    'categories': [
      {'id': c.id, 'name': f'{c.name} ', 'isthing': c.isthing, 'color': c.color}
      for c in ade20k_files.CATEGORIES
    ],
  }
  directory.with_suffix('.json').write_text(json.dumps(content))


def _write_instances(source, split, stems):
  annotations = []
  for stem in stems:
    for _, category, place in OBJECTS:
      mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
      mask[place] = 1
      counts = mask_lib.encode(mask)['counts'].decode()
      annotations.append(
        {
          **_segment(len(annotations) + 1, category, mask),
          'image_id': stem,
          'segmentation': {'size': [HEIGHT, WIDTH], 'counts': counts},
        }
      )
  categories = [{'id': c.id, 'name': f'thing {c.id}'} for c in ade20k_files.THINGS]
  content = {'images': _images(stems), 'categories': categories, 'annotations': annotations}
  (source / f'ade20k_instance_{split}.json').write_text(json.dumps(content))
