"""Instance annotations as COCO keeps them: JSON files, masks as run lengths, examples for TFDS.

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
    iscrowd       a region of many objects that are not told apart
    segmentation  the mask: COCO's compressed run lengths (`counts`) over its columns
`bbox` and `area` are stored bit by bit (TFDS keeps floats in 32 bits), so that an evaluation sees
the very numbers of the annotation file.

Of what can be wrong in a file, most is an error that names the file and the annotation. Only this
is put up with, counted, and told in one warning a file:
  left out    a box without area; polygons none of which has three points (pycocotools, given the
              file itself, would count the one as an object and fail at the other)
  mended      one of several polygons has fewer than three points: that polygon is left out
  kept        a mask that covers no pixel (a sliver, or all of it outside the image): COCO's own
              evaluation counts such an object, so it stays
"""

import collections
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data import images
from segjax.types import SegjaxError

# A polygon that reaches further, in pixels, is a mistake and would take gigabytes to rasterise.
_FARTHEST = 1e6
# How many annotations a warning names.
_NAMED = 5

_PROBLEMS = {
  'empty box': 'left out, as their box has no area',
  'no polygon': 'left out, as they have no polygon of three points or more',
  'short polygon': 'kept without those of their polygons that have fewer than three points',
  'no pixel': 'kept although their mask covers no pixel',
}


class Category(NamedTuple):
  """One entry of `categories`; panoptic files say of it what the others leave out.

  Attributes:
    id, name: checked when the file is read.
    isthing: as the file has it, 1 for things and 0 for stuff.
    color: as the file has it, [R, G, B].
  """

  id: int
  name: str
  isthing: Any = None
  color: Any = None


class CocoImage(NamedTuple):
  """One entry of `images`; height and width in pixels."""

  id: int
  file_name: str
  height: int
  width: int


class CocoFile(NamedTuple):
  """What a JSON file holds.

  Attributes:
    path: the file.
    categories: by rising id.
    images: in the file's order.
    annotations: of each image by its id, in the file's order and as they are.
  """

  path: Path
  categories: tuple[Category, ...]
  images: tuple[CocoImage, ...]
  annotations: Mapping[int, Sequence[Mapping[str, Any]]]


# The number of annotations with each of `_PROBLEMS`, as their ids.
Problems = dict[str, list[int]]


def read_file(path: Path) -> CocoFile:
  """Reads `images`, `categories` and `annotations` of a JSON file of any of COCO's kinds.

  Raises:
    SegjaxError: the file is missing, cut short or without one of the three; an image or a category
      lacks what it must have or comes twice; an annotation is of an image that is not listed.
  """
  try:
    content = json.loads(path.read_bytes())
  except FileNotFoundError as e:
    raise SegjaxError(f'{path} is missing: add it, or mend data.source') from e
  except ValueError as e:  # no JSON, or no UTF-8
    raise SegjaxError(f'{path} is cut short or is no JSON ({e}): fetch the file again') from e
  tables = []
  for key in ('categories', 'images', 'annotations'):
    table = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
      raise SegjaxError(f'{path} has no list {key}: name a file in the format of COCO')
    tables.append(table)
  categories = sorted((_category(path, entry) for entry in tables[0]), key=lambda c: c.id)
  listed = tuple(_image(path, entry) for entry in tables[1])
  if not categories or not listed:
    empty = 'images' if categories else 'categories'
    raise SegjaxError(f'{path} lists no {empty}: fetch the file again')
  _check_once(path, 'the category id', [category.id for category in categories])
  _check_once(path, 'the category name', [category.name for category in categories])
  _check_once(path, 'the image id', [image.id for image in listed])
  annotations: dict[int, list[dict[str, Any]]] = {image.id: [] for image in listed}
  for entry in tables[2]:
    of_image = annotations.get(_number(path, 'annotation', entry, 'image_id'))
    if of_image is None:
      raise SegjaxError(
        f'{path}: annotation {entry.get("id")} is of image {entry["image_id"]}, which is not among '
        'its images: fetch the file again'
      )
    of_image.append(entry)
  return CocoFile(path, tuple(categories), listed, annotations)


def read_instances(path: Path) -> CocoFile:
  """`read_file` for annotations that are instances: each with an id and a category.

  Raises:
    SegjaxError: as `read_file`; an id is missing or comes twice; a category is unknown.
  """
  content = read_file(path)
  known = {category.id for category in content.categories}
  ids = []
  for annotations in content.annotations.values():
    for annotation in annotations:
      ids.append(_number(path, 'annotation', annotation, 'id'))
      if _number(path, 'annotation', annotation, 'category_id') not in known:
        raise SegjaxError(
          f'{path}: annotation {ids[-1]} has the category {annotation["category_id"]}, which is '
          'not among its categories: mend the file'
        )
  _check_once(path, 'the annotation id', ids)
  return content


def find_splits(source: Path, pattern: str, content: str) -> dict[str, str]:
  """The splits of a custom data set, by the names of its annotation files.

  Args:
    source: the folder of raw files.
    pattern: path of an annotation file below it, with {} for the name.
    content: what `source` should hold, for the error message.

  Raises:
    SegjaxError: there is no such file, or the name of one cannot be that of a split.
  """
  paths = sorted(source.glob(pattern.format('*')))
  start, end = Path(pattern).name.split('{}')
  names = [path.name.removeprefix(start).removesuffix(end) for path in paths]
  if not names:
    raise SegjaxError(f'{source} does not hold {content}: set data.source to the folder that does')
  for name, path in zip(names, paths, strict=True):
    if not re.fullmatch(r'\w+', name) or name == 'all':
      raise SegjaxError(f'{path} cannot name a split: rename it, with letters and digits alone')
  return {name: name for name in names}


def image_folder(source: Path, name: str) -> Path:
  """Where the images of a split are; the last place of all if they are nowhere."""
  places = (source / name, source / 'images' / name, source / 'images')
  return next((place for place in places if place.is_dir()), places[0])


def check_same_categories(files: Iterable[CocoFile]) -> None:
  """Raises a SegjaxError that names two of the files whose categories differ."""
  first, *others = files
  for other in others:
    if other.categories != first.categories:
      raise SegjaxError(
        f'{other.path} and {first.path} have different categories: give both the same list'
      )


def check_images_exist(content: CocoFile, folder: Path) -> None:
  """Raises a SegjaxError that says how many of a file's images are not in `folder`, and one."""
  missing = [image for image in content.images if not (folder / image.file_name).is_file()]
  if missing:
    raise SegjaxError(
      f'{len(missing)} of {len(content.images)} images of {content.path} are missing, such as '
      f'{folder / missing[0].file_name} (image {missing[0].id}): add them, or mend data.source'
    )


def generate_examples(content: CocoFile, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Examples with their keys, for TFDS, and at the end one warning of what was put up with.

  Args:
    content: from `read_instances`.
    folder: where the images are.

  Raises:
    SegjaxError: an image cannot be decoded or has another size than the file says; a box, an area,
      `iscrowd` or a mask is none, see `segmentation_counts`.
  """
  labels = {category.id: label for label, category in enumerate(content.categories)}
  problems: Problems = collections.defaultdict(list)
  for image in content.images:
    path = folder / image.file_name
    encoded = read_encoded(path)
    size = images.decode_image(encoded, 3, str(path)).shape[:2]
    if size != (image.height, image.width):
      raise SegjaxError(
        f'{path} is {size[1]}x{size[0]} pixels but image {image.id} of {content.path} is '
        f'{image.width}x{image.height}: fetch both files again'
      )
    objects = (
      _describe(content.path, annotation, image, labels, problems)
      for annotation in content.annotations[image.id]
    )
    yield (
      str(image.id),
      instance_example(image.file_name, image.id, encoded, size, [o for o in objects if o]),
    )
  _warn(content.path, problems)


def read_encoded(path: Path) -> bytes:
  """The content of an image file."""
  try:
    return path.read_bytes()
  except FileNotFoundError as e:
    raise SegjaxError(f'{path} is missing: add it, or mend data.source') from e


def instance_info(
  builder: tfds.core.DatasetBuilder,
  *,
  description: str,
  class_names: Sequence[str] | None = None,
  category_ids: Iterable[int] | None = None,
  palette: Iterable[Iterable[int]] | None = None,
) -> tfds.core.DatasetInfo:
  """The info of an instance data set, with the features that the module describes.

  Args:
    builder: whose info it is.
    description: one sentence.
    class_names, category_ids: the name and the category's id of each class index; None where only
      the raw files tell, see `set_categories`.
    palette: the RGB colour of each class index; None for none.
  """
  exact = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}
  metadata = {'category_ids': list(category_ids or ())}
  if palette is not None:
    metadata['palette'] = [list(color) for color in palette]
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(
      {
        'file_name': tfds.features.Text(),
        'image_id': np.int64,
        'image': tfds.features.Image(shape=(None, None, 3)),
        'height': np.int64,
        'width': np.int64,
        'objects': tfds.features.Sequence(
          {
            'id': np.int64,
            'label': tfds.features.ClassLabel(names=class_names),
            'category_id': np.int64,
            'bbox': tfds.features.Tensor(shape=(4,), **exact),
            'area': tfds.features.Tensor(shape=(), **exact),
            'iscrowd': np.bool_,
            'segmentation': tfds.features.Text(),
          }
        ),
      }
    ),
    metadata=tfds.core.MetadataDict(metadata),
  )


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
    raise ValueError('damaged run lengths')
  if sum(runs) != height * width:
    raise ValueError(f'run lengths of {sum(runs)} pixels for {height}x{width}')
  return mask_lib.frPyObjects({'size': size, 'counts': runs}, height, width)['counts'].decode()


def run_lengths(counts: bytes | str) -> list[int]:
  """The numbers in COCO's compressed run lengths (rleFrString in its maskApi.c).

  Each is a little-endian row of 5-bit groups, one a character from '0' on, with a flag (32) that
  another follows; the last group's top bit (16) is the sign. From the fourth on, a number is the
  difference to the one two before. pycocotools, given a cut string, reads what is not there.

  Raises:
    ValueError: the string is cut short or has other characters.
  """
  runs: list[int] = []
  value = shift = 0
  for character in counts.encode() if isinstance(counts, str) else counts:
    group = character - ord('0')
    if not 0 <= group < 64:
      raise ValueError('damaged run lengths')
    value |= (group & 31) << shift
    shift += 5
    if group & 32:
      continue
    if group & 16:
      value -= 1 << shift
    runs.append(value + runs[-2] if len(runs) > 2 else value)
    value = shift = 0
  if shift:
    raise ValueError('damaged run lengths')
  return runs


def _describe(
  path: Path,
  annotation: Mapping[str, Any],
  image: CocoImage,
  labels: Mapping[int, int],
  problems: Problems,
) -> dict[str, Any] | None:
  """The entry of `objects` for an annotation; None, and an entry in `problems`, to leave it out."""
  number = annotation['id']
  bbox = annotation.get('bbox')
  if not (isinstance(bbox, list) and len(bbox) == 4 and all_numbers(bbox)):
    raise _broken(path, number, f'the box {bbox}, which is not four numbers')
  if min(bbox[2:]) <= 0:
    problems['empty box'].append(number)
    return None
  segmentation = annotation.get('segmentation')
  if isinstance(segmentation, list):
    long = [part for part in segmentation if not isinstance(part, list) or len(part) >= 6]
    if not long:
      problems['no polygon'].append(number)
      return None
    if len(long) < len(segmentation):
      problems['short polygon'].append(number)
    segmentation = long
  try:
    counts = segmentation_counts(segmentation, (image.height, image.width))
  except ValueError as e:
    raise _broken(path, number, str(e)) from e
  pixels = float(mask_lib.area({'size': [image.height, image.width], 'counts': counts}))
  if not pixels:
    problems['no pixel'].append(number)
  area, iscrowd = annotation.get('area'), annotation.get('iscrowd', 0)
  if not all_numbers([area]) or area < 0:
    raise _broken(path, number, f'the area {area}')
  if iscrowd not in (0, 1):
    raise _broken(path, number, f'iscrowd {iscrowd}')
  return {
    'id': number,
    'label': labels[annotation['category_id']],
    'category_id': annotation['category_id'],
    'bbox': np.array(bbox, np.float64),
    'area': float(area),
    'iscrowd': bool(iscrowd),
    'segmentation': counts,
  }


def _broken(path: Path, number: int, what: str) -> SegjaxError:
  return SegjaxError(f'{path}: annotation {number} has {what}: mend the file')


def _warn(path: Path, problems: Problems) -> None:
  parts = []
  for key, text in _PROBLEMS.items():
    if ids := problems.get(key):
      named = ', '.join(str(i) for i in ids[:_NAMED]) + (', …' if len(ids) > _NAMED else '')
      parts.append(f'{len(ids)} annotations are {text} ({named})')
  if parts:
    warnings.warn(f'{path}: {"; ".join(parts)}', stacklevel=2)


def _category(path: Path, entry: Mapping[str, Any]) -> Category:
  name = entry.get('name')
  if not isinstance(name, str) or not name.strip() or len(name.splitlines()) > 1:
    raise SegjaxError(f'{path}: category {entry.get("id")} has no name: mend the file')
  number = _number(path, 'category', entry, 'id')
  return Category(number, name, entry.get('isthing'), entry.get('color'))


def _image(path: Path, entry: Mapping[str, Any]) -> CocoImage:
  numbers = [_number(path, 'image', entry, key) for key in ('id', 'height', 'width')]
  name = entry.get('file_name')
  if not isinstance(name, str) or not name or min(numbers[1:]) < 1:
    raise SegjaxError(f'{path}: image {numbers[0]} has no file name or no size: mend the file')
  return CocoImage(numbers[0], name, *numbers[1:])


def _number(path: Path, kind: str, entry: Mapping[str, Any], key: str) -> int:
  value = entry.get(key)
  if type(value) is not int or abs(value) >= 2**63:
    raise SegjaxError(
      f'{path}: {kind} {entry.get("id")} has {key} {value!r}, which is no whole number: mend the '
      'file'
    )
  return value


def _check_once(path: Path, kind: str, values: Sequence[Any]) -> None:
  if len(set(values)) < len(values):
    twice = collections.Counter(values).most_common(1)[0][0]
    raise SegjaxError(f'{path} has {kind} {twice} twice: mend the file')


def all_numbers(values: Iterable[Any]) -> bool:
  """Whether all are numbers, and none is nan or infinite."""
  return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _is_polygon(polygon: Any) -> bool:
  """Whether it is a row of x, y, x, y, … within `_FARTHEST`."""
  try:
    corners = np.array(polygon, np.float64)
  except (TypeError, ValueError):
    return False
  return corners.ndim == 1 and len(corners) % 2 == 0 and bool((abs(corners) < _FARTHEST).all())
