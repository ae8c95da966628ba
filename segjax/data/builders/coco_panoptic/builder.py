"""COCO panoptic segmentation, and any data set whose annotations are in COCO's panoptic format.

Config `coco_panoptic/2017` (which `coco_panoptic` alone means too) is COCO 2017: 118,287 train and
5,000 val images, 80 classes of things and 53 of stuff. Raw files, as upstream's archives unpack,
those inside panoptic_annotations_trainval2017.zip too:
  train2017/, val2017/                      the images
  annotations/panoptic_train2017.json       their annotations; the same for panoptic_val2017.json
  annotations/panoptic_train2017/           their PNGs of segment ids, or in panoptic_train2017/
A split is there if its JSON file is.

Config `coco_panoptic/custom` is a data set of your own; `data.source` holds
  annotations/panoptic_NAME.json            the annotations of split NAME; a file for each split
  annotations/panoptic_NAME/, panoptic_NAME/   its PNGs: the first of these that there is
  NAME/, images/NAME/ or images/            its images, as above
All files must have the same categories. Prepared data is kept under the name of the config, so give
each custom data set a `data.dir` of its own.

Classes are the categories in the order of their ids; their colors are those of the file, or PASCAL
VOC's where it has none (COCO's has none). The features are those of `segjax.data.formats.panoptic`.
Images and PNGs are stored byte for byte. What is wrong in a file is an error, and so is a PNG that
does not agree with the list of its segments, in their areas too.

Cite Kirillov et al., "Panoptic segmentation", CVPR 2019, and Lin et al., "Microsoft COCO: Common
objects in context", ECCV 2014. The annotations are under CC BY 4.0; the images are from Flickr,
whose terms of use apply.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

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


class Builder(coco_files.CocoBuilder):
  """Prepares COCO panoptic 2017 or, as `coco_panoptic/custom`, a data set in its format."""

  BUILDER_CONFIGS = coco_files.make_configs(
    '118,287 train and 5,000 val images, 80 classes of things and 53 of stuff.',
    'annotations/panoptic_{train,val}2017.json, annotations/panoptic_{train,val}2017/, train2017/ '
    'and val2017/',
    'annotations/panoptic_NAME.json and, for each, PNGs in annotations/panoptic_NAME/ and images '
    'in NAME/ or images/',
  )
  pattern = 'annotations/panoptic_{}.json'
  set_categories = staticmethod(panoptic.set_categories)

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them next to the data.
    return panoptic.panoptic_info(
      self,
      description='Images with a segment of a thing or of stuff for each pixel.',
      optional_splits={
        split: f'put {self.pattern.format(name)}, its PNGs and its images into config.data.source'
        for split, name in (self.builder_config.splits or {}).items()
      },
    )

  def read_file(self, path: Path) -> coco_files.CocoFile:
    """A file with one annotation for each image; what is wrong is an error that names it."""
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

  def find_splits(self, source: Path) -> dict[str, str]:
    splits = super().find_splits(source).items()
    found = {s: name for s, name in splits if (source / self.pattern.format(name)).is_file()}
    if not found:
      raise raw.missing_content(source, self.builder_config.content)
    return found

  def _generate_examples(
    self, file: coco_files.CocoFile, directory: Path, source: Path, name: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    png_directory = coco_files.first_directory(
      source / 'annotations' / f'panoptic_{name}', source / f'panoptic_{name}'
    )
    pngs = {png_directory / a['file_name']: i for i, (a,) in file.annotations.items()}
    coco_files.check_exist(file.path, 'PNGs', pngs)
    return _generate_examples(file, directory, png_directory)


def _generate_examples(
  content: coco_files.CocoFile, image_directory: Path, png_directory: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
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
