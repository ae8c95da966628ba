"""COCO instance segmentation, and any data set whose annotations are in COCO's format.

Config `coco_instances/2017` (which `coco_instances` alone means too) is COCO 2017: 118,287 train
and 5,000 val images, 80 classes. Raw files, as upstream's archives unpack:
  train2017/, val2017/                      the images
  annotations/instances_train2017.json      their annotations; the same for instances_val2017.json

Config `coco_instances/custom` is a data set of your own; `data.source` holds
  annotations/instances_NAME.json           the annotations of split NAME; a file for each split
  NAME/, images/NAME/ or images/            its images: the first of these directories that there is
All files must have the same categories. Prepared data is kept under the name of the config, so give
each custom data set a `data.dir` of its own.

Classes are the categories in the order of their ids. The features are those of
`segjax.data.formats.coco`. Images are stored byte for byte; an image without annotations is an
example without objects.

Of what can be wrong in a file, most is an error that names the file and the annotation. Only this
is tolerated, counted, and reported in one warning a file:
  left out    a box without area; polygons none of which has three points (pycocotools, given the
              file itself, would count the one as an object and fail at the other)
  corrected   one of several polygons has fewer than three points: that polygon is left out
  kept        a mask that covers no pixel (a sliver, or all of it outside the image): COCO's own
              evaluation counts such an object, so it stays

Cite Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. The annotations are under
CC BY 4.0; the images are from Flickr, whose terms of use apply.
"""

import collections
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data.builders import coco_files
from segjax.data.formats import coco
from segjax.types import SegjaxError

# A polygon that reaches further, in pixels, is a mistake and would take gigabytes to rasterize.
_FARTHEST = 1e6
# How many annotations a warning names.
_NAMED = 5

_PROBLEMS = {
  'empty box': 'left out, as their box has no area',
  'no polygon': 'left out, as they have no polygon of three points or more',
  'short polygon': 'kept without those of their polygons that have fewer than three points',
  'no pixel': 'kept although their mask covers no pixel',
}

# The number of annotations with each of `_PROBLEMS`, as their ids.
Problems = dict[str, list[int]]


class Builder(coco_files.CocoBuilder):
  """Prepares COCO 2017 or, as `coco_instances/custom`, a data set in its format."""

  BUILDER_CONFIGS = coco_files.make_configs(
    '118,287 train and 5,000 val images, 80 classes.',
    'train2017/, val2017/ and annotations/instances_{train,val}2017.json',
    'annotations/instances_NAME.json and, for each, the images in NAME/ or images/',
  )
  pattern = 'annotations/instances_{}.json'
  set_categories = staticmethod(coco.set_categories)

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them next to the data.
    return coco.instance_info(self, description='Images with a mask for each object.')

  def read_file(self, path: Path) -> coco_files.CocoFile:
    """A file whose annotations are instances; what is wrong is an error that names it."""
    content = coco_files.read_file(path)
    categories = (category.id for category in content.categories)
    rules = {
      'id': coco_files.INTEGER,
      'category_id': coco_files.one_of(categories, 'categories'),
      **coco_files.NUMBERS,
    }
    entries = [entry for of_image in content.annotations.values() for entry in of_image]
    for entry in entries:
      coco_files.check(path, f'annotation {entry.get("id")}', entry, rules)
    coco_files.check_unique(path, 'the annotation id', [entry['id'] for entry in entries])
    return content

  def _generate_examples(
    self, file: coco_files.CocoFile, directory: Path, source: Path, name: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    labels = {category.id: label for label, category in enumerate(file.categories)}
    problems: Problems = collections.defaultdict(list)
    for image in file.images:
      encoded = coco_files.read_image(directory, image, file.path)
      size = image.height, image.width
      objects = (
        _describe(file.path, annotation, size, labels, problems)
        for annotation in file.annotations[image.id]
      )
      yield (
        str(image.id),
        coco.instance_example(image.file_name, image.id, encoded, size, [o for o in objects if o]),
      )
    _warn(file.path, problems)


def _describe(
  path: Path,
  annotation: Mapping[str, Any],
  size: tuple[int, int],
  labels: Mapping[int, int],
  problems: Problems,
) -> dict[str, Any] | None:
  """The entry of `objects` for an annotation; None, and an entry in `problems`, to leave it out."""
  number, segmentation = annotation['id'], annotation.get('segmentation')
  if min(annotation['bbox'][2:]) <= 0:
    problems['empty box'].append(number)
    return None
  if isinstance(segmentation, list):
    long = [part for part in segmentation if not isinstance(part, list) or len(part) >= 6]
    if not long:
      problems['no polygon'].append(number)
      return None
    if len(long) < len(segmentation):
      problems['short polygon'].append(number)
    segmentation = long
  try:
    counts = segmentation_counts(segmentation, size)
  except ValueError as e:
    raise SegjaxError(f'{path}: annotation {number} has {e}: correct the file') from e
  if not mask_lib.area({'size': list(size), 'counts': counts}):
    problems['no pixel'].append(number)
  return {
    'id': number,
    'label': labels[annotation['category_id']],
    'category_id': annotation['category_id'],
    'bbox': np.array(annotation['bbox'], np.float64),
    'area': float(annotation['area']),
    'iscrowd': bool(annotation.get('iscrowd')),
    'segmentation': counts,
  }


def _warn(path: Path, problems: Problems) -> None:
  parts = []
  for key, text in _PROBLEMS.items():
    if ids := problems.get(key):
      named = ', '.join(str(i) for i in ids[:_NAMED]) + (', …' if len(ids) > _NAMED else '')
      parts.append(f'{len(ids)} annotations are {text} ({named})')
  if parts:
    warnings.warn(f'{path}: {"; ".join(parts)}', stacklevel=2)


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
  runs = coco.run_lengths(counts) if isinstance(counts, bytes | str) else counts
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
