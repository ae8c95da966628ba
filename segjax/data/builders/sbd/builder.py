"""SBD, the Semantic Boundaries Dataset: PASCAL VOC's classes on 11,355 images of VOC 2011.

8,498 train and 2,857 val images, split otherwise than VOC's: some of VOC's val are in SBD's train.
FCN trains on this train split. Raw files, as the archive benchmark.tgz unpacks:
  benchmark_RELEASE/dataset/
    train.txt, val.txt    the images of a split, one per line
    img/NAME.jpg
    cls/NAME.mat          GTcls.Segmentation: 0 = background, 1-20 = VOC's classes
`data.source` is the directory that holds benchmark_RELEASE, benchmark_RELEASE itself, or dataset.
Unlike VOC's labels, these have no void along the outlines; a value of 255 would be read as void.
Images are stored byte for byte. Boundaries and instances (inst/) are left out.

Cite Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic contours from inverse detectors", ICCV
2011. The images are from PASCAL VOC, and so from Flickr, whose terms of use apply.
"""

from pathlib import Path

import numpy as np

from segjax.data.builders import matlab, raw
from segjax.data.builders.voc.builder import CLASSES


class Builder(raw.SemanticBuilder):
  """Prepares SBD."""

  description = "PASCAL VOC's classes on images of VOC 2011: 8,498 train, 2,857 val."
  content = 'benchmark_RELEASE/dataset'
  classes = CLASSES
  void = 255

  def find_files(self, source: Path) -> dict[str, list[raw.Files]]:
    root = raw.find_directory(source, (self.content, 'dataset', ''), 'cls', self.content)
    lists = {s: raw.read_list(root / f'{s}.txt', self.content) for s in ('train', 'val')}
    return {s: raw.files_of(n, root, 'img/{}.jpg', 'cls/{}.mat') for s, n in lists.items()}

  def read_label(self, path: Path) -> np.ndarray:
    return matlab.read_mat(path, 'GTcls', ('Segmentation',))
