"""Examples of two small data sets, one of objects and one of segments."""

from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data.formats import coco, panoptic

# Upright, lying and square; the number of objects is the example's index.
OBJECT_SIZES = [(40, 20), (20, 40), (30, 18), (16, 36), (24, 24), (44, 22), (20, 38), (28, 28)]
# Id, class, crowd and (y0, x0, y1, x1) of rectangles on void, each on top of those before.
SEGMENTS = [
  (70000, 0, False, (0, 0, 10, 18)),
  (5, 1, False, (10, 2, 18, 9)),
  (300, 3, True, (10, 10, 18, 16)),
  (6, 1, False, (2, 3, 7, 8)),  # on top of the sky
]
SEGMENT_SIZES = [(40, 20), (20, 40), (24, 30)]
# Index 1 and 3 are things.
SEGMENT_CLASSES, ISTHING = ['sky', 'cat', 'sea', 'dog'], [False, True, False, True]

_EXACT = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}
_IMAGE = {
  'file_name': tfds.features.Text(),
  'image_id': np.int64,
  'image': tfds.features.Image(shape=(None, None, 3)),
}
SEGMENT_FEATURES = {
  **_IMAGE,
  'panoptic': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
  'segments': tfds.features.Sequence(
    {
      'id': np.int64,
      'label': tfds.features.ClassLabel(names=SEGMENT_CLASSES),
      'category_id': np.int64,
      'iscrowd': np.bool_,
      'area': np.int64,
      'bbox': tfds.features.Tensor(shape=(4,), **_EXACT),
    }
  ),
}
OBJECT_FEATURES = {
  **_IMAGE,
  'height': np.int64,
  'width': np.int64,
  'objects': tfds.features.Sequence(
    {
      'id': np.int64,
      'label': tfds.features.ClassLabel(names=['a', 'b']),
      'category_id': np.int64,
      'bbox': tfds.features.Tensor(shape=(4,), **_EXACT),
      'area': tfds.features.Tensor(shape=(), **_EXACT),
      'iscrowd': np.bool_,
      'segmentation': tfds.features.Text(),
    }
  ),
}


def encode_png(image: np.ndarray) -> bytes:
  """PNG bytes of u8[H, W, 3] in RGB."""
  return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


def object_example(i: int) -> dict[str, Any]:
  """Example i is named 'e<i>', has the id 100 + i, and i rectangles for objects."""
  rng = np.random.default_rng(i)
  height, width = OBJECT_SIZES[i]
  objects = []
  for k in range(i):
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, (height - 6, width - 6))
    mask[y : y + 3 + k % 4, x : x + 5] = True
    objects.append(
      coco.mask_object(mask, id=10 * i + k, label=k % 2, category_id=k % 2, iscrowd=k == 3)
    )
  image = rng.integers(0, 256, (height, width, 3), np.uint8)
  return {
    'file_name': f'e{i}',
    'image_id': 100 + i,
    'image': encode_png(image),
    'height': height,
    'width': width,
    'objects': objects,
  }


def segment_example(i: int) -> dict[str, Any]:
  """Example i is named 'e<i>', has the id 7 + i, and the first i + 2 of `SEGMENTS`."""
  height, width = SEGMENT_SIZES[i]
  ids = np.zeros((height, width), np.int32)
  listed = SEGMENTS[: i + 2]
  for number, _, _, (y0, x0, y1, x1) in listed:
    ids[y0:y1, x0:x1] = number
  image = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
  segments = [
    {
      'id': number,
      'label': label,
      'category_id': 10 * label,
      'iscrowd': crowd,
      'area': 1,
      'bbox': np.float64([0, 0, 1, 1]),
    }
    for number, label, crowd, _ in listed
  ]
  return {
    'file_name': f'e{i}',
    'image_id': 7 + i,
    'image': encode_png(image),
    'panoptic': panoptic.encode_ids(ids),
    'segments': segments,
  }
