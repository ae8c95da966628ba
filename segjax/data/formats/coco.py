"""Annotations in COCO's format: JSON files, run-length masks, and the features of instances.

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

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib

from segjax.data import images
from segjax.data.formats import common
from segjax.types import SegjaxError

# A polygon that reaches further, in pixels, is a mistake and would take gigabytes to rasterize.
_FARTHEST = 1e6


class Category(NamedTuple):
  """One entry of `categories`; only panoptic files have the last two."""

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
  """The content of a JSON file.

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


# What the value of a key must be, in words, and whether it is.
Rule = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


INTEGER: Rule = ('an integer', lambda value: type(value) is int and abs(value) < 2**63)
_SIZE: Rule = ('a positive integer', lambda value: INTEGER[1](value) and value > 0)
_LINE: Rule = (
  'a line of text',
  lambda value: isinstance(value, str) and bool(value.strip()) and len(value.splitlines()) == 1,
)
FILE_NAME: Rule = ('a file name', lambda value: isinstance(value, str) and bool(value))
NUMBERS: Mapping[str, Rule] = {
  'bbox': (
    'four numbers',
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)),
  ),
  'area': ('a number of pixels', lambda value: _is_number(value) and value >= 0),
  'iscrowd': ('0 or 1', lambda value: value in (None, 0, 1)),
}


def check(path: Path, who: str, entry: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
  """Raises a SegjaxError for the first key of an entry of a JSON file that breaks its rule."""
  for key, (wanted, holds) in rules.items():
    if not holds(value := entry.get(key)):
      raise SegjaxError(
        f'{path}: {who} has {key} {value!r}, which is not {wanted}: correct the file'
      )


def check_unique(path: Path, kind: str, values: Sequence[Any]) -> None:
  """Raises a SegjaxError that names a value that comes more than once."""
  value, count = collections.Counter(values).most_common(1)[0] if values else (None, 0)
  if count > 1:
    raise SegjaxError(f'{path} has {kind} {value} twice: correct the file')


def one_of(values: Iterable[Any], kind: str) -> Rule:
  """The rule of an integer that refers to something."""
  known = set(values)
  return f'one of its {kind}', lambda value: type(value) is int and value in known


def read_file(path: Path) -> CocoFile:
  """Reads `images`, `categories` and `annotations` of a JSON file of any of COCO's kinds.

  Raises:
    SegjaxError: the file is missing, truncated or without one of the three; an image or a category
      lacks what it must have or comes twice; an annotation is of an image that is not listed.
  """
  try:
    content = json.loads(common.read_bytes(path))
  except ValueError as e:  # no JSON, or no UTF-8
    raise SegjaxError(
      f'{path} is truncated or is not valid JSON ({e}): download the file again'
    ) from e
  tables = {}
  for key in ('categories', 'images', 'annotations'):
    table = tables[key] = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
      raise SegjaxError(f"{path} has no list {key}: name a file in COCO's format")
    if not table and key != 'annotations':
      raise SegjaxError(f'{path} lists no {key}: download the file again')
  for entry in tables['categories']:
    check(path, f'category {entry.get("id")}', entry, {'name': _LINE, 'id': INTEGER})
  for entry in tables['images']:
    rules = {'id': INTEGER, 'height': _SIZE, 'width': _SIZE, 'file_name': FILE_NAME}
    check(path, f'image {entry.get("id")}', entry, rules)
  for key, kind in (('id', 'the category id'), ('name', 'the category name')):
    check_unique(path, kind, [entry[key] for entry in tables['categories']])
  check_unique(path, 'the image id', [entry['id'] for entry in tables['images']])
  annotations: dict[int, list[dict[str, Any]]] = {entry['id']: [] for entry in tables['images']}
  rules = {'image_id': one_of(annotations, 'images')}
  for entry in tables['annotations']:
    check(path, f'annotation {entry.get("id")}', entry, rules)
    annotations[entry['image_id']].append(entry)
  categories = [
    Category(*(entry.get(key) for key in Category._fields)) for entry in tables['categories']
  ]
  return CocoFile(
    path,
    tuple(sorted(categories, key=lambda category: category.id)),
    tuple(CocoImage(*(entry[key] for key in CocoImage._fields)) for entry in tables['images']),
    annotations,
  )


@dataclasses.dataclass(eq=False)
class CocoConfig(tfds.core.BuilderConfig):
  """Which splits a data set in COCO's format has.

  Attributes:
    splits: split to the name that its files have upstream; None for all that there are.
    content: what the directory of raw files should hold, for messages.
  """

  splits: dict[str, str] | None = None
  content: str = ''

  def find_splits(self, source: Path, pattern: str) -> dict[str, str]:
    """`splits`, else those of the annotation files in `source`, by their names.

    Args:
      source: the directory of raw files.
      pattern: path of an annotation file below it, with {} for the name.

    Raises:
      SegjaxError: there is no such file, or the name of one cannot be that of a split.
    """
    if self.splits is not None:
      return self.splits
    start, end = Path(pattern).name.split('{}')
    names = {}
    for path in sorted(source.glob(pattern.format('*'))):
      name = path.name.removeprefix(start).removesuffix(end)
      if not re.fullmatch(r'\w+', name) or name == 'all':
        raise SegjaxError(f'{path} cannot name a split: rename it, with letters and digits alone')
      names[name] = name
    if not names:
      raise common.missing_content(source, self.content)
    return names


def image_directory(source: Path, name: str) -> Path:
  """Where the images of a split are; the last place of all if they are nowhere."""
  return first_directory(source / name, source / 'images' / name, source / 'images')


def first_directory(*places: Path) -> Path:
  """The first of `places` that is a directory, else the first of all."""
  return next((place for place in places if place.is_dir()), places[0])


def check_same_categories(files: Iterable[CocoFile]) -> None:
  """Raises a SegjaxError that names two of the files whose categories differ."""
  first, *others = files
  for other in others:
    if other.categories != first.categories:
      raise SegjaxError(
        f'{other.path} and {first.path} have different categories: give both the same list'
      )


def check_exist(path: Path, kind: str, listed: Mapping[Path, int]) -> None:
  """Raises a SegjaxError that says how many of the files that `path` lists are missing, and one.

  Args:
    path: the JSON file.
    kind: of the files, in the plural.
    listed: each file, and the id of its image.
  """
  missing = [file for file in listed if not file.is_file()]
  if missing:
    raise SegjaxError(
      f'{len(missing)} of {len(listed)} {kind} of {path} are missing, such as {missing[0]} (image '
      f'{listed[missing[0]]}): add them, or correct config.data.source'
    )


def check_images_exist(content: CocoFile, directory: Path) -> None:
  """`check_exist` of a file's images."""
  listed = {directory / image.file_name: image.id for image in content.images}
  check_exist(content.path, 'images', listed)


def read_image(directory: Path, image: CocoImage, listed_in: Path) -> bytes:
  """The encoded image; an error if it cannot be decoded or has another size than is listed."""
  path = directory / image.file_name
  encoded = common.read_bytes(path)
  height, width = images.decode_image(encoded, 3, str(path)).shape[:2]
  if (height, width) != (image.height, image.width):
    raise SegjaxError(
      f'{path} is {width}x{height} pixels but image {image.id} of {listed_in} is '
      f'{image.width}x{image.height}: download both files again'
    )
  return encoded


def image_features() -> dict[str, Any]:
  """The features that instance and panoptic data sets share."""
  return {
    'file_name': tfds.features.Text(),
    'image_id': np.int64,
    'image': tfds.features.Image(shape=(None, None, 3)),
  }


def instance_info(
  builder: tfds.core.DatasetBuilder, *, description: str, categories: Sequence[Category] = ()
) -> tfds.core.DatasetInfo:
  """The info of an instance data set, with the features that the module describes.

  Args:
    builder: whose info it is.
    description: one sentence.
    categories: with colors, in the order of class indices; none where only the raw files tell, see
      `set_categories`.
  """
  exact = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}
  objects = {
    'id': np.int64,
    'label': tfds.features.ClassLabel(names=[category.name for category in categories] or None),
    'category_id': np.int64,
    'bbox': tfds.features.Tensor(shape=(4,), **exact),
    'area': tfds.features.Tensor(shape=(), **exact),
    'iscrowd': np.bool_,
    'segmentation': tfds.features.Text(),
  }
  metadata = {'category_ids': [category.id for category in categories]}
  if categories:
    metadata['palette'] = [list(category.color) for category in categories]
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(
      {
        **image_features(),
        'height': np.int64,
        'width': np.int64,
        'objects': tfds.features.Sequence(objects),
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
    raise ValueError('corrupt run lengths')
  if sum(runs) != height * width:
    raise ValueError(f'run lengths of {sum(runs)} pixels for {height}x{width}')
  return mask_lib.frPyObjects({'size': size, 'counts': runs}, height, width)['counts'].decode()


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


def _is_polygon(polygon: Any) -> bool:
  """Whether it is a row of x, y, x, y, … within `_FARTHEST`."""
  try:
    corners = np.array(polygon, np.float64)
  except (TypeError, ValueError):
    return False
  return corners.ndim == 1 and len(corners) % 2 == 0 and bool((abs(corners) < _FARTHEST).all())
