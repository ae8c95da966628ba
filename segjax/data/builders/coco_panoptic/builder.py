"""COCO panoptic segmentation, and any data set whose annotations are in COCO's panoptic format.

Config `coco_panoptic/2017` (which `coco_panoptic` alone means too) is COCO 2017: 118,287 train and
5,000 val images, 80 classes of things and 53 of stuff. Raw files, as upstream's archives unpack,
those inside panoptic_annotations_trainval2017.zip too:
  train2017/, val2017/                      the images
  annotations/panoptic_train2017.json       their annotations; the same for panoptic_val2017.json
  annotations/panoptic_train2017/           their PNGs of segment ids, or in panoptic_train2017/
A split is there if its JSON file is.

Config `coco_panoptic/custom` is a data set of your own, whose files are laid out as
`segjax.data.builders.coco_layout` says, such as
  annotations/panoptic_NAME.json            the annotations of split NAME; a file for each split
  annotations/panoptic_NAME/, panoptic_NAME/   its PNGs: the first of these that there is
  NAME/, images/NAME/ or images/            its images
or as the keys of `config.data.files` say (`coco_layout.Options`). All files must have the same
categories. In its files `area`, `bbox` and `iscrowd` of a segment may be missing.

Classes are the categories in the order of their ids; their colors are those of the file, or PASCAL
VOC's where it has none (COCO's has none). The features are those of `segjax.data.formats.panoptic`.
Images and PNGs are stored byte for byte. What is wrong in a file is an error, and so is a PNG that
does not agree with the list of its segments, in their areas too.

Cite Kirillov et al., "Panoptic segmentation", CVPR 2019, and Lin et al., "Microsoft COCO: Common
objects in context", ECCV 2014. The annotations are under CC BY 4.0; the images are from Flickr,
whose terms of use apply.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images, records
from segjax.data.builders import coco_files, coco_layout, raw
from segjax.data.formats import coco, panoptic
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
_ID: coco_files.Rule = (
  f'an integer from 1 to {panoptic.END - 1}',
  lambda value: type(value) is int and 0 < value < panoptic.END,
)
_NUMBERS: dict[str, coco_files.Rule] = {
  **coco_files.NUMBERS,
  'area': ('a positive number', lambda value: coco_files.NUMBERS['area'][1](value) and value > 0),
}


class Builder(coco_files.CocoBuilder):
  """Prepares COCO panoptic 2017 or, as `coco_panoptic/custom`, a data set in its format.

  Attributes:
    coverable: the ids of categories whose segments were listed before others were drawn over them:
      their area and box are those of the PNG, and one that is covered completely is left out.
  """

  BUILDER_CONFIGS = coco_files.make_configs(
    '118,287 train and 5,000 val images, 80 classes of things and 53 of stuff.',
    'annotations/panoptic_{train,val}2017.json, annotations/panoptic_{train,val}2017/, train2017/ '
    'and val2017/',
    'annotations/panoptic_NAME.json and, for each, PNGs in annotations/panoptic_NAME/ and images '
    'in NAME/ or images/',
  )
  kind = 'panoptic'
  coverable: frozenset[int] = frozenset()

  @classmethod
  def own_config(
    cls, config: str, options: Any, annotations: Sequence[str]
  ) -> coco_files.CocoConfig | None:
    if options.stuff:
      raise SegjaxError(
        'config.data.files.stuff: panoptic files say themselves which categories are things '
        '(isthing): leave it out'
      )
    return super().own_config(config, options, annotations)

  @classmethod
  def prepared_for(
    cls, options: coco_layout.Options, annotations: tuple[str, ...]
  ) -> tuple[str, ...]:
    del options, annotations
    return ()

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them next to the data.
    return panoptic.panoptic_info(
      self,
      description='Images with a segment of a thing or of stuff for each pixel.',
      channels=self.options.channels,
      optional_splits={
        split: f'put {self.builder_config.file.format(kind=self.kind, name=name)}, its PNGs and '
        'its images into config.data.source'
        for split, name in (self.builder_config.splits or {}).items()
      },
    )

  def set_categories(
    self, info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]
  ) -> None:
    if colors := self.options.colors:
      categories = [c._replace(color=color) for c, color in zip(categories, colors, strict=True)]
    panoptic.set_categories(info, categories)

  def read_file(self, path: Path) -> coco_files.CocoFile:
    return read_file(path, own=self.is_own, correct=self.correct)

  def find_parts(self, source: Path) -> list[coco_layout.Part]:
    found = [part for part in super().find_parts(source) if self.is_own or part.path.is_file()]
    if not found:
      raise raw.missing_content(source, self.builder_config.content)
    return found

  def _split(
    self,
    file: coco_files.CocoFile,
    listed: Sequence[tuple[coco_files.CocoImage, Path]],
    labels: Mapping[int, int],
    source: Path,
    part: coco_layout.Part,
  ) -> records.Split:
    directory = coco_files.first_directory(*coco_layout.png_directories(source, part))
    names = {image.id: file.annotations[image.id][0]['file_name'] for image, _ in listed}
    outside = self.options.outside
    pngs = {i: raw.inside(directory, n, file.path, outside=outside) for i, n in names.items()}
    coco_files.check_exist(file.path, 'PNGs', {path: i for i, path in pngs.items()})
    items = [
      (str(image.id), _Item(image, path, pngs[image.id], file.annotations[image.id][0]))
      for image, path in listed
    ]
    make = functools.partial(_make, file.path, labels, self.options.channels, self.coverable)
    return records.Split(items, make)


class _Item(NamedTuple):
  image: coco_files.CocoImage
  path: Path
  png: Path
  annotation: Mapping[str, Any]


def read_file(
  path: Path, *, own: bool, correct: coco_files.Correct | None = None
) -> coco_files.CocoFile:
  """A file with one annotation for each image; what is wrong is an error that names it.

  Args:
    path: of the JSON file.
    own: whether it is of a data set of one's own.
    correct: see `coco_files.read_file`.
  """
  content = coco_files.read_file(path, 'panoptic', own=own, correct=correct)
  for category in content.categories:
    coco_files.check(path, f'category {category.id}', category._asdict(), _CATEGORY)
  categories = coco_files.one_of((category.id for category in content.categories), 'categories')
  numbers = coco_files.optional(_NUMBERS) if own else _NUMBERS
  rules = {'id': _ID, **numbers, 'category_id': categories}
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
      coco_files.check(path, who, segment, rules)
    ids = [segment['id'] for segment in segments]
    coco_files.check_unique(path, f'in image {image.id} the segment', ids)
  return content


def _make(
  listed_in: Path,
  labels: Mapping[int, int],
  channels: int,
  coverable: Collection[int],
  item: _Item,
) -> dict[str, Any]:
  image, image_path, path, annotation = item
  encoded, size = coco_files.read_image(image_path, image, listed_in, channels)
  png = raw.read_bytes(path)
  ids = panoptic.rgb_to_ids(images.decode_image(png, 3, str(path)))
  entries = annotation['segments_info']
  if coverable:
    entries = _visible(entries, ids, coverable)
  numbers = [entry['id'] for entry in entries]
  numbered, areas = panoptic.segment_map(ids, numbers, str(path), size)
  segments = [
    _describe(path, listed_in, entry, numbered == place, pixels, labels)
    for place, (entry, pixels) in enumerate(zip(entries, areas.tolist(), strict=True), 1)
  ]
  return panoptic.panoptic_example(image.file_name, image.id, encoded, png, segments)


def _visible(
  entries: Sequence[Mapping[str, Any]], ids: np.ndarray, coverable: Collection[int]
) -> list[Mapping[str, Any]]:
  """The entries of segments; of `coverable` categories those in i[H, W], without numbers."""
  there, found = set(np.unique(ids).tolist()), []
  for entry in entries:
    if entry['category_id'] not in coverable:
      found.append(entry)
    elif entry['id'] in there:
      found.append({**entry, 'area': None, 'bbox': None})
  return found


def _describe(
  png: Path,
  listed_in: Path,
  entry: Mapping[str, Any],
  mask: np.ndarray,
  pixels: int,
  labels: Mapping[int, int],
) -> dict[str, Any]:
  """The entry of `segments`; an error if its area is not the number of its pixels."""
  if entry.get('area') not in (None, pixels):
    raise SegjaxError(
      f'{png} has {pixels} pixels of segment {entry["id"]} but {listed_in} says {entry["area"]}: '
      'segments may not overlap, and both must belong together'
    )
  box = entry.get('bbox')
  return {
    'id': entry['id'],
    'label': labels[entry['category_id']],
    'category_id': entry['category_id'],
    'iscrowd': bool(entry.get('iscrowd')),
    'area': pixels,
    'bbox': np.array(cv2.boundingRect(mask.view(np.uint8)) if box is None else box, np.float64),
  }
