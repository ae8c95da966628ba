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
    segmentation  the mask: COCO's compressed run lengths (`counts`) over its columns; empty for an
                  object that has a box and no mask
`bbox` and `area` are stored bit by bit (TFDS keeps floats in 32 bits), so that an evaluation sees
the very numbers of the annotation file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data.formats import common
from segjax.data.masks import EMPTY, Masks, Window

# TFDS keeps floats in 32 bits but for these.
EXACT = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}

# The metadata that says how many objects, over all splits, have no mask; it is absent for none.
MASKLESS = 'objects_without_mask'
# A polygon that reaches further, in pixels, is a mistake and would take gigabytes to rasterize.
_FARTHEST = 1e6
# Characters of a run length: more than those of 64 bits are corrupt.
_MOST_GROUPS = 12


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


def set_categories(
  info: tfds.core.DatasetInfo,
  categories: Sequence[Category],
  colors: Sequence[Sequence[int]] | None = None,
) -> None:
  """Names the classes of an `instance_info` that was made before the raw files were known.

  Args:
    info: to change.
    categories: in the order of class indices.
    colors: of each; None for PASCAL VOC's.
  """
  info.features['objects']['label'].names = [category.name for category in categories]
  info.metadata['category_ids'] = [category.id for category in categories]
  if colors is not None:
    info.metadata['palette'] = [list(color) for color in colors]


def note_maskless(info: tfds.core.DatasetInfo, count: int) -> None:
  """Adds objects without a mask to those in the metadata, `MASKLESS`, which a reader looks at."""
  if count:
    info.metadata[MASKLESS] = info.metadata.get(MASKLESS, 0) + count


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


def box_counts(box: Sequence[float], size: tuple[int, int]) -> str:
  """The compressed run lengths of the pixels in a box, x, y, width, height in pixels."""
  x, y, width, height = (float(value) for value in box)
  corners = [x, y, x + width, y, x + width, y + height, x, y + height]
  return segmentation_counts([corners], size)


def decode_mask(counts: bytes | str, size: tuple[int, int]) -> np.ndarray:
  """The mask u8[H, W], 0 or 1, of compressed run lengths; `size` is (H, W)."""
  return next(iter(Masks(size, [decode_window(counts, size)])))


def decode_window(counts: bytes | str, size: tuple[int, int]) -> Window:
  """The same mask's part around its pixels.

  Raises:
    ValueError: the run lengths are corrupt, or not of as many pixels.
  """
  height, width = size
  runs = _runs(counts)
  ends = np.cumsum(runs)
  if not len(ends) or runs.min() < 0 or ends[-1] != height * width:
    raise ValueError('corrupt run lengths')
  first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run of ones, column by column
  some = last >= first
  first, last = first[some], last[some]
  if not len(first):
    return EMPTY
  (left, top), (right, bottom) = np.divmod(first, height), np.divmod(last, height)
  x0, x1 = int(left[0]), int(right[-1]) + 1
  within = (left == right).all()
  y0, y1 = (int(top.min()), int(bottom.max()) + 1) if within else (0, height)
  columns = np.zeros((x1 - x0) * height + 1, np.int8)
  columns[first - x0 * height] += 1
  columns[last + 1 - x0 * height] -= 1
  pixels = np.cumsum(columns[:-1], dtype=np.int8).view(np.uint8).reshape(-1, height)
  return Window(y0, x0, cv2.transpose(pixels[:, y0:y1]))


def segmentation_counts(segmentation: Any, size: tuple[int, int]) -> str:
  """The compressed run lengths of an annotation's mask, exactly as pycocotools has them.

  Args:
    segmentation: polygons, each [x, y, x, y, …] of three corners or more in pixels, whose union is
      the mask; or {'size': [H, W], 'counts': …} with run lengths, as a list or compressed.
    size: (H, W) of the image.

  Raises:
    ValueError: it is neither, a corner is not finite, or the run lengths do not fill the image.
  """
  height, width = size
  if isinstance(segmentation, list):
    if not all(_is_polygon(polygon) for polygon in segmentation):
      raise ValueError('a polygon that is not pairs of finite coordinates')
    return mask_lib.merge(mask_lib.frPyObjects(segmentation, height, width))['counts'].decode()
  if not isinstance(segmentation, Mapping) or not {'size', 'counts'} <= segmentation.keys():
    raise ValueError('neither polygons nor run lengths as its mask')
  counts = segmentation['counts']
  if segmentation['size'] != [height, width]:
    raise ValueError(
      f'a mask of the size {segmentation["size"]}, not {[height, width]} as its image'
    )
  runs = run_lengths(counts) if isinstance(counts, bytes | str) else counts
  if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
    raise ValueError('corrupt run lengths')
  if sum(runs) != height * width:
    raise ValueError(f'run lengths of {sum(runs)} pixels for {height}x{width}')
  return mask_lib.frPyObjects({'size': size, 'counts': runs}, height, width)['counts'].decode()


def _is_polygon(polygon: Any) -> bool:
  """Whether it is a row of x, y, x, y, … within `_FARTHEST`."""
  try:
    corners = np.array(polygon, np.float64)
  except (TypeError, ValueError):
    return False
  return corners.ndim == 1 and len(corners) % 2 == 0 and bool((abs(corners) < _FARTHEST).all())


def run_lengths(counts: bytes | str) -> list[int]:
  """The numbers in COCO's compressed run lengths (rleFrString in its maskApi.c).

  Each is a little-endian row of 5-bit groups, one a character from '0' on, with a flag (32) that
  another follows; the last group's top bit (16) is the sign. From the fourth on, a number is the
  difference to the one two before. pycocotools, given a truncated string, reads past its end.

  Raises:
    ValueError: the string is truncated or has other characters.
  """
  return _runs(counts).tolist()


def _runs(counts: bytes | str) -> np.ndarray:
  """i64[n], see `run_lengths`."""
  encoded = counts.encode() if isinstance(counts, str) else counts
  groups = np.frombuffer(encoded, np.uint8).astype(np.int64) - ord('0')
  if not len(groups):
    return groups
  last = groups & 32 == 0
  ends = np.flatnonzero(last)
  if groups.min() < 0 or groups.max() > 63 or not last[-1]:
    raise ValueError('corrupt run lengths')
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > _MOST_GROUPS:
    raise ValueError('corrupt run lengths')
  shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
  values = np.add.reduceat((groups & 31) << shifts, starts)
  values -= (groups[ends] >> 4 & 1) << 5 * lengths
  # Differences to the number two before, but for the first three.
  values[1::2] = np.cumsum(values[1::2])
  values[2::2] = np.cumsum(values[2::2])
  return values
