"""COCO instance segmentation, and any data set whose annotations are in COCO's format.

Config `coco_instances/2017` (which `coco_instances` alone means too) is COCO 2017: 118,287 train
and 5,000 val images, 80 classes. Raw files, as upstream's archives unpack:
  train2017/, val2017/                      the images
  annotations/instances_train2017.json      their annotations; likewise instances_val2017.json

Config `coco_instances/custom` is a data set of your own; `data.source` holds
  annotations/instances_NAME.json           the annotations of split NAME; a file for each split
  NAME/, images/NAME/ or images/            its images: the first of these directories that there is
All files must have the same categories. Prepared data is kept under the name of the config, so give
each custom data set a `data.dir` of its own.

Classes are the categories in the order of their ids. The features are those of
`segjax.data.formats.coco`; what of a corrupt file is an error and what is tolerated is in
`annotations`. Images are stored byte for byte; an image without annotations is an example without
objects.

Cite Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. The annotations are under
CC BY 4.0; the images are from Flickr, whose terms of use apply.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import coco_files
from segjax.data.builders.coco_instances import annotations
from segjax.data.formats import coco


class Builder(coco_files.CocoBuilder):
  """Prepares COCO 2017 or, as `coco_instances/custom`, a data set in its format."""

  BUILDER_CONFIGS = coco_files.make_configs(
    '118,287 train and 5,000 val images, 80 classes.',
    'train2017/, val2017/ and annotations/instances_{train,val}2017.json',
    'annotations/instances_NAME.json and, for each, the images in NAME/ or images/',
  )
  pattern = 'annotations/instances_{}.json'
  read_file = staticmethod(annotations.read_instances)
  set_categories = staticmethod(coco.set_categories)

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them beside the data.
    return coco.instance_info(self, description='Images with a mask for each object.')

  def _generate_examples(
    self, file: coco_files.CocoFile, directory: Path, source: Path, name: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    return annotations.generate_examples(file, directory)
