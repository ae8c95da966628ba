"""Instance annotations as COCO has them: features, and masks as run lengths.

The builders of instance data sets yield the features of `instance_info`:
  file_name   name of the image
  image_id    number of the image, unique in its split
  image       encoded PNG or JPEG
  height, width   of the image and of every mask in it, in pixels
  objects     one entry for each object:
    id            number of the annotation, unique in its split
    label         class index: categories in the order of their ids, from 0
    category_id   the category's own id
    bbox          f64[4], x, y, width, height in pixels, as the annotation has it
    area          f64, in pixels, as the annotation has it
    iscrowd       whether it is a crowd
    segmentation  the mask: COCO's compressed run lengths (`counts`) over its columns
`bbox` and `area` are stored bit by bit (TFDS keeps floats in 32 bits), so that an evaluation sees
the very numbers of the annotation file.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data.formats import common

# TFDS keeps floats in 32 bits but for these.
EXACT = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}


class Category(NamedTuple):
  """An entry of `categories` in a JSON file; only panoptic files have the last two."""

  id: int
  name: str
  isthing: Any = None
  color: Any = None


def image_features(channels: int = 3) -> dict[str, Any]:
  """The features that instance and panoptic data sets share."""
  return {
    'file_name': tfds.features.Text(),
    'image_id': np.int64,
    'image': tfds.features.Image(shape=(None, None, channels)),
  }


def instance_info(
  builder: tfds.core.DatasetBuilder,
  *,
  description: str,
  categories: Sequence[Category] = (),
  channels: int = 3,
) -> tfds.core.DatasetInfo:
  """The info of an instance data set, with the features that the module describes.

  Args:
    builder: whose info it is.
    description: one sentence.
    categories: with colors, in the order of class indices; none where only the raw files say, see
      `set_categories`.
    channels: of the images.
  """
  objects = {
    'id': np.int64,
    'label': tfds.features.ClassLabel(names=[category.name for category in categories] or None),
    'category_id': np.int64,
    'bbox': tfds.features.Tensor(shape=(4,), **EXACT),
    'area': tfds.features.Tensor(shape=(), **EXACT),
    'iscrowd': np.bool_,
    'segmentation': tfds.features.Text(),
  }
  metadata = {'category_ids': [category.id for category in categories]}
  if categories:
    metadata['palette'] = [list(category.color) for category in categories]
  features = image_features(channels)
  features |= {'height': np.int64, 'width': np.int64, 'objects': tfds.features.Sequence(objects)}
  return common.dataset_info(builder, description, features, metadata)


def set_categories(info: tfds.core.DatasetInfo, categories: Sequence[Category]) -> None:
  """Names the classes of an `instance_info` that was made before the raw files were known."""
  info.features['objects']['label'].names = [category.name for category in categories]
  info.metadata['category_ids'] = [category.id for category in categories]


def instance_example(
  file_name: str, image_id: int, image: bytes, size: tuple[int, int], objects: list[dict[str, Any]]
) -> dict[str, Any]:
  """An example of `instance_info`; `size` is (height, width)."""
  return {
    'file_name': file_name,
    'image_id': image_id,
    'image': image,
    'height': size[0],
    'width': size[1],
    'objects': objects,
  }


def mask_object(
  mask: np.ndarray, *, id: int, label: int, category_id: int, iscrowd: bool = False
) -> dict[str, Any]:
  """An entry of `objects` for bool[H, W]: the box around its pixels, and their number."""
  encoded = mask_lib.encode(np.asfortranarray(mask, np.uint8))
  return {
    'id': id,
    'label': label,
    'category_id': category_id,
    'bbox': mask_lib.toBbox(encoded),
    'area': float(mask_lib.area(encoded)),
    'iscrowd': iscrowd,
    'segmentation': encoded['counts'].decode(),
  }


def decode_mask(counts: bytes | str, size: tuple[int, int]) -> np.ndarray:
  """The mask u8[H, W], 0 or 1, of compressed run lengths; `size` is (H, W)."""
  runs = run_lengths(counts)
  pixels = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
  return np.ascontiguousarray(pixels.reshape(size[::-1]).T)


def run_lengths(counts: bytes | str) -> list[int]:
  """The numbers in COCO's compressed run lengths (rleFrString in its maskApi.c).

  Each is a little-endian row of 5-bit groups, one a character from '0' on, with a flag (32) that
  another follows; the last group's top bit (16) is the sign. From the fourth on, a number is the
  difference to the one two before. pycocotools, given a truncated string, reads past its end.

  Raises:
    ValueError: the string is truncated or has other characters.
  """
  runs: list[int] = []
  value = shift = 0
  for character in counts.encode() if isinstance(counts, str) else counts:
    group = character - ord('0')
    if not 0 <= group < 64:
      raise ValueError('corrupt run lengths')
    value |= (group & 31) << shift
    shift += 5
    if group & 32:
      continue
    if group & 16:
      value -= 1 << shift
    runs.append(value + runs[-2] if len(runs) > 2 else value)
    value = shift = 0
  if shift:
    raise ValueError('corrupt run lengths')
  return runs
