"""SUN RGB-D: indoor scenes from four depth cameras, 37 classes; the RGB images only.

5,285 train and 5,050 test images of several sizes. Raw files, in either layout:
  image/train/img-NNNNNN.jpg, label37/train/….png     github.com/chrischoy/SUN_RGBD
  train/img-NNNNNN.jpg, labels/train/img-NNNNNN.png   github.com/ankurhanda/sunrgbd-meta-data:
                                                      SUNRGBD-train_images.tgz unpacked in train,
                                                      the labels as its README has them
and the same for test. Both have re-encoded images in JPEG and labels in PNG, 0 = unlabeled and
1-37 = class. A label belongs to the image of the same number, the last six digits of its name; in
the second layout train labels count on from test's, so that number 5051 belongs to img-000001.

Upstream itself (rgbd.cs.princeton.edu) keeps all labels in one HDF5 file, SUNRGBD2Dseg.mat, which
is not read here. Class indices are one less than raw values, and unlabeled pixels are
void. Images are stored byte for byte. Depth is left out.

Cite Song, Lichtenberg, Xiao, "SUN RGB-D: A RGB-D scene understanding benchmark suite", CVPR 2015;
some of its images are those of NYUDv2, B3DO and SUN3D. See upstream for the terms of use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from segjax.data.builders import raw
from segjax.types import SegjaxError

# In the order of the raw values 1, 2, ...: SUNRGBDtoolbox/Metadata/seg37list.mat.
_NAMES = (
  'wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, '
  'blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, '
  'fridge, tv, paper, towel, shower curtain, box, whiteboard, person, night stand, toilet, '
  'sink, lamp, bathtub, bag'
)
_CONTENT = 'image/ and label37/, or train/, test/ and labels/'
_DIGITS = 6


class _Layout(NamedTuple):
  """Where train/ and test/ are, and how far the numbers of labels are ahead of images'."""

  images: str
  labels: str
  ahead: Mapping[str, int]


_LAYOUTS = (
  _Layout('image', 'label37', {'train': 0, 'test': 0}),
  _Layout('', 'labels', {'train': 5050, 'test': 0}),
)


class Builder(raw.SemanticBuilder):
  """Prepares SUN RGB-D from either layout."""

  description = 'Indoor scenes, RGB, 37 classes: 5,285 train, 5,050 test.'
  content = _CONTENT
  classes = _NAMES.split(', ')
  first, void = 1, 0

  def find_files(self, source: Path) -> dict[str, list[raw.Files]]:
    layout = next((la for la in _LAYOUTS if (source / la.labels).is_dir()), None)
    if layout is None:
      raise raw.wrong_source(f'{source} holds neither label37 nor labels', _CONTENT)
    return {split: _match(source, layout, split) for split in ('train', 'test')}


def _match(source: Path, layout: _Layout, split: str) -> list[raw.Files]:
  """Images and labels of the same number."""
  image_directory, label_directory = (source / f / split for f in (layout.images, layout.labels))
  images = _numbered(image_directory, '.jpg', 0)
  labels = _numbered(label_directory, '.png', layout.ahead[split])
  if unmatched := sorted(images.keys() ^ labels.keys()):
    path, other = (
      (images[unmatched[0]], f'label in {label_directory}')
      if unmatched[0] in images
      else (labels[unmatched[0]], f'image in {image_directory}')
    )
    raise SegjaxError(f'{path} has no {other}: download the files again')
  return [(images[n].stem, images[n], path) for n, path in sorted(labels.items())]


def _numbered(directory: Path, suffix: str, ahead: int) -> dict[int, Path]:
  """The files of a directory by the number in their name, less `ahead`."""
  paths = sorted(directory.glob(f'[!.]*{suffix}'))
  if not paths:
    raise raw.wrong_source(f'{directory} contains no {suffix} file', _CONTENT)
  numbered = {}
  for path in paths:
    digits = path.stem[-_DIGITS:]
    if not (len(digits) == _DIGITS and digits.isdecimal()):
      raise SegjaxError(
        f'{path} has no number of {_DIGITS} digits at the end of its name: move it elsewhere'
      )
    numbered[int(digits) - ahead] = path
  return numbered
