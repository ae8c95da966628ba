"""NYUDv2: indoor scenes from a Kinect, in the 40 classes of Gupta et al.; the RGB images only.

381 train, 414 val and 654 test images. Papers that speak of 795 training images, FCN among them,
train on both of the first: `train_split='train+val'`. Raw files, as FCN's data layer reads them
(nyud_layers.py in github.com/shelhamer/fcn.berkeleyvision.org; its archive is nyud.tar.gz):
  train.txt, val.txt, test.txt      the numbers of a split's images, 5001-6449, one per line
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

from pathlib import Path

import numpy as np

from segjax.data.builders import matlab, raw

# In the order of the raw values 1, 2, ...
_NAMES = (
  'wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, '
  'blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, '
  'refrigerator, television, paper, towel, shower curtain, box, whiteboard, person, night '
  'stand, toilet, sink, lamp, bathtub, bag, other structure, other furniture, other prop'
)


class Builder(raw.SemanticBuilder):
  """Prepares NYUDv2 from the layout of FCN's data layer."""

  description = 'Indoor scenes, RGB, 40 classes: 381 train, 414 val, 654 test.'
  content = 'train.txt, val.txt, test.txt, data/images/ and segmentation/'
  classes = _NAMES.split(', ')
  first, void = 1, 0

  def find_files(self, source: Path) -> dict[str, list[raw.Files]]:
    return {
      split: raw.files_of(
        (f'img_{number}' for number in raw.read_list(source / f'{split}.txt', self.content)),
        source,
        'data/images/{}.png',
        'segmentation/{}.mat',
      )
      for split in ('train', 'val', 'test')
    }

  def read_label(self, path: Path) -> np.ndarray:
    return matlab.read_mat(path, 'segmentation')
