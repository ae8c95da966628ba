"""COCO instance segmentation, and any data set whose annotations are in COCO's format.

Config `coco_instances/2017` (which `coco_instances` alone means too) is COCO 2017: 118,287 train
and 5,000 val images, 80 classes. Raw files, as upstream's archives unpack:
  train2017/, val2017/                      the images
  annotations/instances_train2017.json      their annotations; likewise instances_val2017.json

Config `coco_instances/custom` is a data set of your own; `data.source` holds
  annotations/instances_NAME.json           the annotations of split NAME; a file for each split
  NAME/, images/NAME/ or images/            its images: the first of these folders that there is
All files must have the same categories. Prepared data is kept under the name of the config, so give
each custom data set a `data.dir` of its own.

Classes are the categories in the order of their ids. The features, and what of a damaged file is an
error and what is put up with, are in `segjax.data.formats.coco`. Images are handed on as they are, byte for
byte; an image without annotations is an example without objects.

Cite Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. The annotations are under
CC BY 4.0; the images are from Flickr, whose terms of use apply.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.formats import coco, common

_FILE = 'annotations/instances_{}.json'


@dataclasses.dataclass(eq=False)
class CocoConfig(tfds.core.BuilderConfig):
  """Which splits there are.

  Attributes:
    splits: split to the name that its files have upstream; None for all that there are.
    content: what the folder of raw files should hold, for messages.
  """

  splits: dict[str, str] | None = None
  content: str = 'annotations/instances_NAME.json and, for each, the images in NAME/ or images/'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares COCO 2017 or, as `coco_instances/custom`, a data set in its format."""

  name = 'coco_instances'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder with annotations/ and the images, in COCO's layout."
  BUILDER_CONFIGS = [
    CocoConfig(
      name='2017',
      description='118,287 train and 5,000 val images, 80 classes.',
      splits={'train': 'train2017', 'val': 'val2017'},
      content='train2017/, val2017/ and annotations/instances_{train,val}2017.json',
    ),
    CocoConfig(name='custom', description="A data set of one's own in COCO's format."),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    # Classes are known when the annotations are read; TFDS writes them beside the data.
    return coco.instance_info(self, description='Photographs with a mask for each object.')

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    content = self.builder_config.content
    source = common.raw_folder(dl_manager, content)
    splits = self.builder_config.splits or coco.find_splits(source, _FILE, content)
    files = {split: coco.read_instances(source / _FILE.format(n)) for split, n in splits.items()}
    folders = {split: coco.image_folder(source, name) for split, name in splits.items()}
    coco.check_same_categories(files.values())
    for split, file in files.items():
      coco.check_images_exist(file, folders[split])
    coco.set_categories(self.info, next(iter(files.values())).categories)
    return {split: self._generate_examples(files[split], folders[split]) for split in splits}

  def _generate_examples(self, file: coco.CocoFile, folder: Path):
    return coco.generate_examples(file, folder)
