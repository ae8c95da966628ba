"""Panoptic annotations in COCO's format: a PNG of segment ids, and a list of what each id is.

A pixel of the PNG is RGB; its id is R + 256 G + 65536 B, and 0 is void. The builders of panoptic
data sets yield the features of `panoptic_info`:
  file_name   name of the image
  image_id    number of the image, unique in its split
  image       encoded PNG or JPEG
  panoptic    the encoded PNG
  segments    one entry for each segment, in the order of the file:
    id            as in the PNG, unique in the image
    label         class index: categories in the order of their ids, from 0
    category_id   the category's own id
    iscrowd       whether it is a crowd
    area          in pixels
    bbox          f64[4], x, y, width, height in pixels, as the annotation has it
The metadata has `class_names`, `isthing`, `category_ids` and `palette`, one entry a class index.

`read_example` turns an example into `Segments`: one of these, one of TFDS's `coco/2017_panoptic`
(other keys), or one of scenes (class and number in one 16-bit value, no list).

A PNG has one segment a pixel by construction, but the list may say otherwise. That a segment is
listed twice, or not at all, or has no pixels, or another area than in the PNG (so that it overlaps
others), is an error that names the file and the segment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images
from segjax.data.formats import coco, common
from segjax.types import SegjaxError, Segments

Size = tuple[int, int]

# The ids that three bytes hold end here.
END = 256**3


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
  """i32[H, W], the ids that u8[H, W, 3] is coded from."""
  red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
  return red | green << 8 | blue << 16


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
  """The inverse of `rgb_to_ids`: i[H, W] -> u8[H, W, 3]."""
  return (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)


def encode_ids(ids: np.ndarray) -> bytes:
  """The PNG of i[H, W]."""
  return common.encode_png(ids_to_rgb(ids))


def segment_map(
  ids: np.ndarray, listed: Sequence[int], what: str, size: Size | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the segments of a PNG from 1 on.

  Args:
    ids: i[H, W], 0 for void.
    listed: the ids of its n segments.
    what: the PNG's name, for errors.
    size: (H, W) that it must have; None for any.

  Returns:
    i32[H, W], for each pixel the place of its id in `listed`, from 1; 0 for void.
    i64[n], the pixels of each segment, 1 or more.

  Raises:
    SegjaxError: the PNG has another size or an id that is not listed; one that is listed is not in
      the PNG, comes twice, or is 0.
  """
  again = 'download the PNG and the list again'
  if size is not None and ids.shape != tuple(size):
    raise SegjaxError(
      f'{what} is {ids.shape[1]}x{ids.shape[0]} pixels but its image is {size[1]}x{size[0]}: make '
      'both of one size'
    )
  known, counts = np.unique(np.array(listed, np.int64), return_counts=True)
  if (counts > 1).any():
    twice = known[counts > 1][0]
    raise SegjaxError(f'{what} has segment {twice} twice in its list: correct the list')
  if 0 in known:
    raise SegjaxError(
      f'{what} has a segment of the id 0 in its list, which is void: correct the list'
    )
  # Void is the first of the known ids, and so the place where an unknown one is looked for exists.
  known = np.concatenate([[0], known])
  place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
  unknown = known[place] != ids
  if unknown.any():
    raise SegjaxError(
      f'{what} has pixels of segment {ids[unknown][0]}, which is not in its list: {again}'
    )
  order = np.concatenate([[0], 1 + np.argsort(listed, kind='stable')]).astype(np.int32)
  numbered = order[place]
  areas = np.bincount(numbered.ravel(), minlength=len(known))[1:]
  if not areas.all():
    absent = listed[np.argmin(areas)]
    raise SegjaxError(f'{what} has no pixel of segment {absent}, which is in its list: {again}')
  return numbered, areas


def read_example(
  example: Mapping[str, Any],
  what: str,
  *,
  panoptic_key: str = 'panoptic',
  segments_key: str | None = 'segments',
  crowd_key: str = 'iscrowd',
  size: Size | None = None,
) -> Segments:
  """The segments of an example.

  Args:
    example: as TFDS reads it; the PNG may be encoded still.
    what: the example's name, for errors.
    panoptic_key: the feature with the image of ids.
    segments_key: the feature with the list, a dict of lists: `id`, `label` and `crowd_key`; None if
      a pixel's value is 256 * class index + number, as in scenes, and there are no crowds; the
      class 255 is void.
    crowd_key: 'is_crowd' in TFDS's COCO.
    size: (H, W) of the image; None for any.

  Returns:
    `Segments` without the batch axis: ids i32[H, W], and S fields that are all valid.

  Raises:
    SegjaxError: the PNG cannot be decoded or is not RGB, or it and the list disagree; see
      `segment_map`.
  """
  coded = example[panoptic_key]
  if segments_key is None:
    values = images.decode_label(coded, what) if isinstance(coded, bytes) else coded
    values = values.reshape(values.shape[:2]).astype(np.int64)
    # From 1 on, as 0 is a segment here: the first of class 0.
    ids = np.where(values // 256 == common.VOID, 0, values + 1)
    listed = np.setdiff1d(ids, [0])
    classes, crowd = (listed - 1) // 256, np.zeros(len(listed), bool)
  else:
    rgb = images.decode_image(coded, 3, what) if isinstance(coded, bytes) else coded
    if rgb.shape[2:] != (3,):
      raise SegjaxError(
        f'{what}: {panoptic_key} has pixels of {list(rgb.shape[2:])} values, not of 3: name the '
        'feature with the ids in RGB, or no list if one value holds class and number'
      )
    ids, segments = rgb_to_ids(rgb), example[segments_key]
    listed, classes, crowd = segments['id'], segments['label'], segments[crowd_key]
  numbered, _ = segment_map(ids, listed, what, size)
  return Segments(
    ids=numbered,
    classes=np.array(classes, np.int32),
    crowd=np.array(crowd, bool),
    valid=np.ones(len(listed), bool),
  )


def panoptic_info(
  builder: tfds.core.DatasetBuilder, *, description: str, channels: int = 3, **metadata: Any
) -> tfds.core.DatasetInfo:
  """The info of a panoptic data set, with the features that the module describes.

  Args:
    builder: whose info it is.
    description: one sentence.
    channels: of the images.
    metadata: besides what `set_categories` sets.
  """
  segments = {
    'id': np.int64,
    'label': tfds.features.ClassLabel(),
    'category_id': np.int64,
    'iscrowd': np.bool_,
    'area': np.int64,
    'bbox': tfds.features.Tensor(shape=(4,), **coco.EXACT),
  }
  features = {
    **coco.image_features(channels),
    'panoptic': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
    'segments': tfds.features.Sequence(segments),
  }
  return common.dataset_info(builder, description, features, metadata)


def panoptic_example(
  file_name: str, image_id: int, image: bytes, png: bytes, segments: list[dict[str, Any]]
) -> dict[str, Any]:
  """An example of `panoptic_info`."""
  return {
    'file_name': file_name,
    'image_id': image_id,
    'image': image,
    'panoptic': png,
    'segments': segments,
  }


def set_categories(info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]) -> None:
  """Names the classes of a `panoptic_info`; where no colors are given they are PASCAL VOC's."""
  names = [category.name for category in categories]
  info.features['segments']['label'].names = names
  # Without VOC's first one, black, which is for void.
  colors = common.voc_palette(len(names) + 1)[1:].tolist()
  info.metadata.update(
    class_names=names,
    isthing=[bool(category.isthing) for category in categories],
    category_ids=[category.id for category in categories],
    palette=[
      list(category.color or color) for category, color in zip(categories, colors, strict=True)
    ],
  )
