"""Panoptic annotations as COCO keeps them: a PNG of segment ids, and a list of what each id is.

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
    iscrowd       a region of many objects that are not told apart
    area          in pixels
    bbox          f64[4], x, y, width, height in pixels, as the annotation has it
The metadata has `class_names`, `isthing`, `category_ids` and `palette`, one entry a class index.

`read_example` turns an example into `Segments`: one of these, one of TFDS's `coco/2017_panoptic`
(other keys), or one of scenes (class and number in one 16-bit value, no list).

A PNG has one segment a pixel by construction, but the list may say otherwise. That a segment is
listed twice, or not at all, or has no pixels, or another area than in the PNG (so that it overlaps
others), is an error that names the file and the segment.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images
from segjax.data.formats import coco, common
from segjax.types import SegjaxError, Segments

Size = tuple[int, int]

# The ids that three bytes hold end here.
_END = 256**3


def rgb_to_ids(picture: np.ndarray) -> np.ndarray:
  """i32[H, W], the ids that u8[H, W, 3] is coded from."""
  red, green, blue = np.moveaxis(picture.astype(np.int32), -1, 0)
  return red | green << 8 | blue << 16


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
  """The inverse of `rgb_to_ids`: i[H, W] -> u8[H, W, 3]."""
  return (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)


def segment_map(
  ids: np.ndarray, listed: Sequence[int], what: str, size: Size | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the segments of a picture from 1 on.

  Args:
    ids: i[H, W], 0 for void.
    listed: the ids of its n segments.
    what: the picture's name, for errors.
    size: (H, W) that it must have; None for any.

  Returns:
    i32[H, W], for each pixel the place of its id in `listed`, from 1; 0 for void.
    i64[n], the pixels of each segment, 1 or more.

  Raises:
    SegjaxError: the picture has another size or an id that is not listed; one that is listed is not
      in the picture, comes twice, or is 0.
  """
  if size is not None and ids.shape != tuple(size):
    raise SegjaxError(
      f'{what} is {ids.shape[1]}x{ids.shape[0]} pixels but its image is {size[1]}x{size[0]}: make '
      'both of one size'
    )
  known, counts = np.unique(np.array(listed, np.int64), return_counts=True)
  if (counts > 1).any():
    raise SegjaxError(f'{what} has segment {known[counts > 1][0]} twice in its list: mend the list')
  if 0 in known:
    raise SegjaxError(f'{what} has a segment of the id 0 in its list, which is void: mend the list')
  # Void is the first of the known ids, and so the place where an unknown one is looked for exists.
  known = np.concatenate([[0], known])
  place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
  unknown = known[place] != ids
  if unknown.any():
    raise SegjaxError(
      f'{what} has pixels of segment {ids[unknown][0]}, which is not in its list: fetch the '
      'picture and the list again'
    )
  order = np.concatenate([[0], 1 + np.argsort(listed, kind='stable')]).astype(np.int32)
  numbered = order[place]
  areas = np.bincount(numbered.ravel(), minlength=len(known))[1:]
  if not areas.all():
    raise SegjaxError(
      f'{what} has no pixel of segment {listed[np.argmin(areas)]}, which is in its list: fetch the '
      'picture and the list again'
    )
  return numbered, areas


def read_example(
  example: Mapping[str, Any],
  what: str,
  *,
  panoptic_key: str = 'panoptic',
  segments_key: str | None = 'segments',
  crowd_key: str = 'iscrowd',
  divisor: int = 256,
  size: Size | None = None,
) -> Segments:
  """The segments of an example.

  Args:
    example: as TFDS reads it; the picture may be encoded still.
    what: the example's name, for errors.
    panoptic_key: the feature with the picture of ids.
    segments_key: the feature with the list, a dict of lists: `id`, `label` and `crowd_key`; None if
      a pixel's value is divisor * class index + number, as in scenes, and there are no crowds; the
      class 255 is void.
    crowd_key: 'is_crowd' in TFDS's COCO.
    divisor: see `segments_key`.
    size: (H, W) of the image; None for any.

  Returns:
    `Segments` without the batch axis: ids i32[H, W], and S fields that are all valid.

  Raises:
    SegjaxError: the picture cannot be decoded or is not RGB, or it and the list disagree; see
      `segment_map`.
  """
  picture = example[panoptic_key]
  if segments_key is None:
    values = images.decode_label(picture, what) if isinstance(picture, bytes) else picture
    values = values.reshape(values.shape[:2]).astype(np.int64)
    # From 1 on, as 0 is a segment here: the first of class 0.
    ids = np.where(values // divisor == common.VOID, 0, values + 1)
    listed = np.setdiff1d(ids, [0])
    classes, crowd = (listed - 1) // divisor, np.zeros(len(listed), bool)
  else:
    picture = images.decode_image(picture, 3, what) if isinstance(picture, bytes) else picture
    if picture.shape[2:] != (3,):
      raise SegjaxError(
        f'{what}: {panoptic_key} has pixels of {list(picture.shape[2:])} values, not of 3: name '
        'the feature with the ids in RGB, or no list if one value holds class and number'
      )
    ids, objects = rgb_to_ids(picture), example[segments_key]
    listed, classes, crowd = objects['id'], objects['label'], objects[crowd_key]
  numbered, _ = segment_map(ids, listed, what, size)
  return Segments(
    ids=numbered,
    classes=np.array(classes, np.int32),
    crowd=np.array(crowd, bool),
    valid=np.ones(len(listed), bool),
  )


def pad(segments: Segments, size: Size, count: int, what: str) -> Segments:
  """Segments of one image in the shape of a batch.

  Args:
    segments: without the batch axis.
    size: (H, W), at least theirs; void is added below and to the right.
    count: S.
    what: the example's name, for the error.

  Returns:
    `Segments` without the batch axis. Those that have no pixel (any more) are not valid.

  Raises:
    SegjaxError: there are more than `count`.
  """
  n = len(segments.classes)
  if n > count:
    raise SegjaxError(
      f'{what} has {n} segments and there is room for {count}: raise config.data.segments'
    )

  def extend(field: np.ndarray) -> np.ndarray:
    return np.concatenate([field, np.zeros(count - n, field.dtype)])

  present = np.bincount(segments.ids.ravel(), minlength=count + 1)[1:] > 0
  return Segments(
    ids=np.pad(segments.ids, [(0, a - b) for a, b in zip(size, segments.ids.shape, strict=True)]),
    classes=extend(segments.classes),
    crowd=extend(segments.crowd),
    valid=extend(segments.valid) & present,
  )


def void(size: Size, count: int) -> Segments:
  """No segments at all: `Segments` of (H, W) and S, without the batch axis."""
  nothing = np.zeros(count, bool)
  return Segments(np.zeros(size, np.int32), np.zeros(count, np.int32), nothing, nothing)


def encode_result(
  segments: Segments, *, file_name: str, image_id: int | str, category_ids: Sequence[int]
) -> tuple[bytes, dict[str, Any]]:
  """A prediction in COCO's format, which the public evaluation reads.

  Args:
    segments: without the batch axis, in the size of the original image.
    file_name: of the image; the PNG's is the same with another suffix.
    image_id: as the data set has it.
    category_ids: the data set's id of each class index.

  Returns:
    The PNG, and its entry of `annotations`: file_name, image_id, segments_info (id, category_id).
  """
  ids, classes, _, valid = (np.asarray(field) for field in segments)
  shown = np.concatenate([[False], valid])[ids]
  ids = np.where(shown, ids, 0)
  numbers = np.setdiff1d(ids, [0]).tolist()
  entry = {
    'file_name': f'{Path(file_name).stem}.png',
    'image_id': image_id,
    'segments_info': [
      {'id': number, 'category_id': int(category_ids[classes[number - 1]])} for number in numbers
    ],
  }
  return encode_ids(ids), entry


def write_results(path: Path, results: Iterable[tuple[bytes, dict[str, Any]]]) -> None:
  """Writes `encode_result` of each image: NAME.json, and beside it the folder NAME of PNGs.

  Args:
    path: ends in .json.
    results: read one by one.
  """
  folder = path.with_suffix('')
  folder.mkdir(parents=True, exist_ok=True)
  entries = []
  for encoded, entry in results:
    (folder / entry['file_name']).write_bytes(encoded)
    entries.append(entry)
  path.write_text(json.dumps({'annotations': entries}))


def encode_ids(ids: np.ndarray) -> bytes:
  """The PNG of i[H, W]."""
  return cv2.imencode('.png', ids_to_rgb(ids)[..., ::-1])[1].tobytes()


def read_panoptic(path: Path) -> coco.CocoFile:
  """`coco.read_file` of panoptic annotations: one annotation for each image.

  Raises:
    SegjaxError: as `coco.read_file`; a category says neither thing nor stuff, or has a colour that
      is none; an image has no annotation, or two; a segment lacks what it must have.
  """
  content = coco.read_file(path)
  for category in content.categories:
    if category.isthing not in (0, 1):
      raise SegjaxError(
        f'{path}: category {category.id} has isthing {category.isthing}, not 0 or 1: name a file '
        "in COCO's panoptic format"
      )
    if category.color is not None and not _is_color(category.color):
      raise SegjaxError(
        f'{path}: category {category.id} has the colour {category.color}, not three numbers from 0 '
        'to 255: mend the file'
      )
  known = {category.id for category in content.categories}
  for image in content.images:
    found = content.annotations[image.id]
    if len(found) != 1:
      raise SegjaxError(
        f'{path}: image {image.id} ({image.file_name}) has {len(found)} annotations, not one: mend '
        'the file'
      )
    _check_annotation(path, found[0], known)
  return content


def check_pictures_exist(content: coco.CocoFile, folder: Path) -> None:
  """Raises a SegjaxError that says how many of a file's PNGs are not in `folder`, and one."""
  names = [annotations[0]['file_name'] for annotations in content.annotations.values()]
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise SegjaxError(
      f'{len(missing)} of {len(names)} pictures of {content.path} are missing, such as '
      f'{folder / missing[0]}: unpack them there, or mend data.source'
    )


def generate_examples(
  content: coco.CocoFile, image_folder: Path, picture_folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Examples with their keys, for TFDS.

  Args:
    content: from `read_panoptic`.
    image_folder: where the images are.
    picture_folder: where the PNGs of ids are.

  Raises:
    SegjaxError: an image or a PNG cannot be decoded or has another size than the file says; a PNG
      and the list of its segments disagree, in the areas too.
  """
  labels = {category.id: label for label, category in enumerate(content.categories)}
  for image in content.images:
    annotation = content.annotations[image.id][0]
    size = (image.height, image.width)
    path, picture_path = image_folder / image.file_name, picture_folder / annotation['file_name']
    encoded, picture = coco.read_encoded(path), coco.read_encoded(picture_path)
    if images.decode_image(encoded, 3, str(path)).shape[:2] != size:
      raise SegjaxError(
        f'{path} is not of {size[1]}x{size[0]} pixels, as image {image.id} of {content.path} is: '
        'fetch both files again'
      )
    entries = annotation['segments_info']
    ids = rgb_to_ids(images.decode_image(picture, 3, str(picture_path)))
    _, areas = segment_map(ids, [entry['id'] for entry in entries], str(picture_path), size)
    for entry, pixels in zip(entries, areas.tolist(), strict=True):
      if entry['area'] != pixels:
        raise SegjaxError(
          f'{picture_path} has {pixels} pixels of segment {entry["id"]} but {content.path} says '
          f'{entry["area"]}: segments may not overlap, and both must belong together'
        )
    segments = [
      segment_entry(
        id=entry['id'],
        label=labels[entry['category_id']],
        category_id=entry['category_id'],
        iscrowd=bool(entry.get('iscrowd', 0)),
        area=pixels,
        bbox=entry['bbox'],
      )
      for entry, pixels in zip(entries, areas.tolist(), strict=True)
    ]
    yield str(image.id), panoptic_example(image.file_name, image.id, encoded, picture, segments)


def panoptic_info(
  builder: tfds.core.DatasetBuilder, *, description: str, **metadata: Any
) -> tfds.core.DatasetInfo:
  """The info of a panoptic data set, with the features that the module describes.

  Args:
    builder: whose info it is.
    description: one sentence.
    metadata: besides what `set_categories` sets.
  """
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(
      {
        'file_name': tfds.features.Text(),
        'image_id': np.int64,
        'image': tfds.features.Image(shape=(None, None, 3)),
        'panoptic': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
        'segments': tfds.features.Sequence(
          {
            'id': np.int64,
            'label': tfds.features.ClassLabel(),
            'category_id': np.int64,
            'iscrowd': np.bool_,
            'area': np.int64,
            # TFDS keeps floats in 32 bits but for these.
            'bbox': tfds.features.Tensor(
              shape=(4,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
            ),
          }
        ),
      }
    ),
    metadata=tfds.core.MetadataDict(metadata),
  )


def set_categories(info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]) -> None:
  """Names the classes of a `panoptic_info`; where no colours are given they are PASCAL VOC's."""
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


def panoptic_example(
  file_name: str, image_id: int, image: bytes, panoptic: bytes, segments: list[dict[str, Any]]
) -> dict[str, Any]:
  """An example of `panoptic_info`."""
  return {
    'file_name': file_name,
    'image_id': image_id,
    'image': image,
    'panoptic': panoptic,
    'segments': segments,
  }


def segment_entry(
  *, id: int, label: int, category_id: int, iscrowd: bool, area: int, bbox: Sequence[float]
) -> dict[str, Any]:
  """An entry of `segments`."""
  return {
    'id': id,
    'label': label,
    'category_id': category_id,
    'iscrowd': iscrowd,
    'area': area,
    'bbox': np.array(bbox, np.float64),
  }


def _check_annotation(path: Path, annotation: Mapping[str, Any], known: set[int]) -> None:
  """What can be said of an annotation without its picture; errors as `read_panoptic`."""
  image_id, entries = annotation['image_id'], annotation.get('segments_info')
  name = annotation.get('file_name')
  if not isinstance(name, str) or not name:
    raise SegjaxError(f'{path}: the annotation of image {image_id} has no file name: mend the file')
  if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
    raise SegjaxError(
      f'{path}: the annotation of image {image_id} has no list segments_info: name a file in '
      "COCO's panoptic format"
    )
  seen = set()
  for entry in entries:
    number, category, bbox = entry.get('id'), entry.get('category_id'), entry.get('bbox')
    area, iscrowd = entry.get('area'), entry.get('iscrowd', 0)
    wrong = {
      f'an id that is not from 1 to {_END - 1}': type(number) is not int or not 0 < number < _END,
      'an id that another one has': type(number) is int and number in seen,
      f'the category {category}, which is not among the categories': (
        type(category) is not int or category not in known
      ),
      f'iscrowd {iscrowd}': iscrowd not in (0, 1),
      f'the area {area}': not coco.all_numbers([area]) or area <= 0,
      f'the box {bbox}, which is not four numbers': (
        not isinstance(bbox, list) or len(bbox) != 4 or not coco.all_numbers(bbox)
      ),
    }
    if what := next((text for text, found in wrong.items() if found), None):
      raise SegjaxError(f'{path}: segment {number} of image {image_id} has {what}: mend the file')
    seen.add(number)


def _is_color(color: Any) -> bool:
  return (
    isinstance(color, list)
    and len(color) == 3
    and all(type(value) is int and 0 <= value < 256 for value in color)
  )
