"""SBD, the Semantic Boundaries Dataset: PASCAL VOC's classes on 11,355 images of VOC 2011.

8,498 train and 2,857 val images, split otherwise than VOC's: some of VOC's val are in SBD's train.
FCN trains on this train split. Raw files, as the archive benchmark.tgz unpacks:
  benchmark_RELEASE/dataset/
    train.txt, val.txt    the images of a split, one a line
    img/NAME.jpg
    cls/NAME.mat          GTcls.Segmentation: 0 = background, 1-20 = VOC's classes
`data.source` is the directory that holds benchmark_RELEASE, benchmark_RELEASE itself, or dataset.
Unlike VOC's labels, these have no void along the outlines; a value of 255 would be read as void.
Images are stored byte for byte. Boundaries and instances (inst/) are left out.

Cite Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic contours from inverse detectors", ICCV
2011. The images are from PASCAL VOC, and so from Flickr, whose terms of use apply.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import matlab, raw
from segjax.data.builders.voc.builder import CLASSES
from segjax.data.formats import common

SPLITS = ('train', 'val')

_CONTENT = 'benchmark_RELEASE/dataset'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares SBD."""

  name = 'sbd'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'The directory that holds benchmark_RELEASE.'

  def _info(self) -> tfds.core.DatasetInfo:
    return common.semantic_info(
      self,
      description="PASCAL VOC's classes on images of VOC 2011: 8,498 train, 2,857 val.",
      class_names=CLASSES,
      palette=common.voc_palette(len(CLASSES)),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, _CONTENT)
    root = raw.find_directory(source, (_CONTENT, 'dataset', ''), 'cls', _CONTENT)
    return {
      split: self._generate_examples(root, raw.read_list(root / f'{split}.txt', _CONTENT))
      for split in SPLITS
    }

  def _generate_examples(
    self, root: Path, names: Sequence[str]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    files = ((name, root / 'img' / f'{name}.jpg', root / 'cls' / f'{name}.mat') for name in names)
    read = functools.partial(matlab.read_mat, variable='GTcls', fields=('Segmentation',))
    return raw.semantic_examples(files, read, len(CLASSES), first=0, void=255)
