"""NYUDv2: indoor scenes from a Kinect, in the 40 classes of Gupta et al.; the RGB images only.

381 train, 414 val and 654 test images. Papers that speak of 795 training images, FCN among them,
train on both of the first: `train_split='train+val'`. Raw files, as FCN's data layer reads them
(nyud_layers.py in github.com/shelhamer/fcn.berkeleyvision.org; its archive is nyud.tar.gz):
  train.txt, val.txt, test.txt      the numbers of a split's images, 5001-6449, one a line
  data/images/img_NUMBER.png        the RGB image
  segmentation/img_NUMBER.mat       `segmentation`: 0 = void, 1-40 = class
The lists are in data/nyud of that repository. Class indices are one less than raw values, and void
255. Images are stored byte for byte. Depth and HHA
(data/depth, data/hha) are left out, and so is upstream's own nyu_depth_v2_labeled.mat, whose
labels are not those of the 40 classes.

Cite Silberman, Hoiem, Kohli, Fergus, "Indoor segmentation and support inference from RGBD images",
ECCV 2012; classes: Gupta, Arbelaez, Malik, "Perceptual organization and recognition of indoor
scenes from RGB-D images", CVPR 2013. See upstream for the terms of use.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import matlab, raw
from segjax.data.formats import common

# In the order of the raw values 1, 2, ...
_NAMES = (
  'wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, '
  'blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, '
  'refrigerator, television, paper, towel, shower curtain, box, whiteboard, person, night '
  'stand, toilet, sink, lamp, bathtub, bag, other structure, other furniture, other prop'
)
CLASSES = tuple(_NAMES.split(', '))
SPLITS = ('train', 'val', 'test')

_CONTENT = 'train.txt, val.txt, test.txt, data/images/ and segmentation/'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares NYUDv2 from the layout of FCN's data layer."""

  name = 'nyud'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'A directory that holds {_CONTENT}.'

  def _info(self) -> tfds.core.DatasetInfo:
    return common.semantic_info(
      self,
      description='Indoor scenes, RGB, 40 classes: 381 train, 414 val, 654 test.',
      class_names=CLASSES,
      # VOC's colors of the raw values: black is left to void.
      palette=common.voc_palette(len(CLASSES) + 1)[1:],
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, _CONTENT)
    return {
      split: self._generate_examples(source, raw.read_list(source / f'{split}.txt', _CONTENT))
      for split in SPLITS
    }

  def _generate_examples(
    self, source: Path, numbers: Sequence[str]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    image_directory, label_directory = source / 'data' / 'images', source / 'segmentation'
    files = (
      (name, image_directory / f'{name}.png', label_directory / f'{name}.mat')
      for name in (f'img_{number}' for number in numbers)
    )
    read = functools.partial(matlab.read_mat, variable='segmentation')
    return raw.semantic_examples(files, read, len(CLASSES), first=1, void=0)
