"""COCO panoptic segmentation, and any data set whose annotations are in COCO's panoptic format.

Config `coco_panoptic/2017` (which `coco_panoptic` alone means too) is COCO 2017: 118,287 train and
5,000 val images, 80 classes of things and 53 of stuff. Raw files, as upstream's archives unpack,
those inside panoptic_annotations_trainval2017.zip too:
  train2017/, val2017/                      the images
  annotations/panoptic_train2017.json       their annotations; likewise panoptic_val2017.json
  annotations/panoptic_train2017/           their PNGs of segment ids, or in panoptic_train2017/
A split is there if its JSON file is.

Config `coco_panoptic/custom` is a data set of your own; `data.source` holds
  annotations/panoptic_NAME.json            the annotations of split NAME; a file for each split
  annotations/panoptic_NAME/, panoptic_NAME/   its PNGs: the first of these that there is
  NAME/, images/NAME/ or images/            its images, likewise
All files must have the same categories. Prepared data is kept under the name of the config, so give
each custom data set a `data.dir` of its own.

Classes are the categories in the order of their ids; their colors are those of the file, or PASCAL
VOC's where it has none (COCO's has none). The features are those of `segjax.data.formats.panoptic`;
what is an error is in `annotations`. Images and PNGs are stored byte for byte.

Cite Kirillov et al., "Panoptic segmentation", CVPR 2019, and Lin et al., "Microsoft COCO: Common
objects in context", ECCV 2014. The annotations are under CC BY 4.0; the images are from Flickr,
whose terms of use apply.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import coco_files, raw
from segjax.data.builders.coco_panoptic import annotations
from segjax.data.formats import panoptic


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
  read_file = staticmethod(annotations.read_panoptic)
  set_categories = staticmethod(panoptic.set_categories)

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them beside the data.
    return panoptic.panoptic_info(
      self,
      description='Images with a segment of a thing or of stuff for each pixel.',
      optional_splits={
        split: f'put {self.pattern.format(name)}, its PNGs and its images into config.data.source'
        for split, name in (self.builder_config.splits or {}).items()
      },
    )

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
    return annotations.generate_examples(file, directory, png_directory)
