"""Reading panoptic annotations in COCO's format, strictly: what is wrong is an error."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import images
from segjax.data.builders import coco_files, raw
from segjax.data.formats import panoptic
from segjax.types import SegjaxError


def _is_list_of_dicts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_color(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 3
    and all(type(part) is int and 0 <= part < 256 for part in value)
  )


_CATEGORY: dict[str, coco_files.Rule] = {
  'isthing': ('0 or 1', lambda value: value in (0, 1)),
  'color': ('three integers from 0 to 255', lambda value: value is None or _is_color(value)),
}
_ANNOTATION: dict[str, coco_files.Rule] = {
  'file_name': coco_files.FILE_NAME,
  'segments_info': ("a list of segments as in COCO's panoptic format", _is_list_of_dicts),
}
_SEGMENT: dict[str, coco_files.Rule] = {
  'id': (
    f'an integer from 1 to {panoptic.END - 1}',
    lambda value: type(value) is int and 0 < value < panoptic.END,
  ),
  **coco_files.NUMBERS,
  'area': ('a positive number', lambda value: coco_files.NUMBERS['area'][1](value) and value > 0),
}


def read_panoptic(path: Path) -> coco_files.CocoFile:
  """`coco_files.read_file` of panoptic annotations: one annotation for each image.

  Raises:
    SegjaxError: as `coco_files.read_file`; a category says neither thing nor stuff, or has a color
      that is none; an image has no annotation, or two; a segment lacks what it must have.
  """
  content = coco_files.read_file(path)
  for category in content.categories:
    coco_files.check(path, f'category {category.id}', category._asdict(), _CATEGORY)
  categories = coco_files.one_of((category.id for category in content.categories), 'categories')
  for image in content.images:
    found = content.annotations[image.id]
    if len(found) != 1:
      raise SegjaxError(
        f'{path}: image {image.id} ({image.file_name}) has {len(found)} annotations, not one: '
        'correct the file'
      )
    coco_files.check(path, f'the annotation of image {image.id}', found[0], _ANNOTATION)
    segments = found[0]['segments_info']
    for segment in segments:
      who = f'segment {segment.get("id")} of image {image.id}'
      coco_files.check(path, who, segment, {**_SEGMENT, 'category_id': categories})
    ids = [segment['id'] for segment in segments]
    coco_files.check_unique(path, f'in image {image.id} the segment', ids)
  return content


def generate_examples(
  content: coco_files.CocoFile, image_directory: Path, png_directory: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Examples with their keys, for TFDS.

  Args:
    content: from `read_panoptic`.
    image_directory: where the images are.
    png_directory: where the PNGs of ids are.

  Raises:
    SegjaxError: an image or a PNG cannot be decoded or has another size than the file says; a PNG
      and the list of its segments disagree, in the areas too.
  """
  labels = {category.id: label for label, category in enumerate(content.categories)}
  for image in content.images:
    encoded = coco_files.read_image(image_directory, image, content.path)
    annotation = content.annotations[image.id][0]
    path = png_directory / annotation['file_name']
    png = raw.read_bytes(path)
    ids = panoptic.rgb_to_ids(images.decode_image(png, 3, str(path)))
    listed = [entry['id'] for entry in annotation['segments_info']]
    _, areas = panoptic.segment_map(ids, listed, str(path), (image.height, image.width))
    segments = [
      _describe(path, content.path, entry, pixels, labels)
      for entry, pixels in zip(annotation['segments_info'], areas.tolist(), strict=True)
    ]
    yield (
      str(image.id),
      panoptic.panoptic_example(image.file_name, image.id, encoded, png, segments),
    )


def _describe(
  png: Path, listed_in: Path, entry: Mapping[str, Any], pixels: int, labels: Mapping[int, int]
) -> dict[str, Any]:
  """The entry of `segments`; an error if its area is not the number of its pixels."""
  if entry['area'] != pixels:
    raise SegjaxError(
      f'{png} has {pixels} pixels of segment {entry["id"]} but {listed_in} says {entry["area"]}: '
      'segments may not overlap, and both must belong together'
    )
  return {
    'id': entry['id'],
    'label': labels[entry['category_id']],
    'category_id': entry['category_id'],
    'iscrowd': bool(entry.get('iscrowd')),
    'area': pixels,
    'bbox': np.array(entry['bbox'], np.float64),
  }
