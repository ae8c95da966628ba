"""PASCAL VOC segmentation, 2011 and 2012: images with objects of 20 classes and background.

Config `voc/2011` (which `voc` alone means too) has 1,112 train and 1,111 val images, `voc/2012`
1,464 and 1,449. The labels of the challenge's test images are not public. Raw files, as the
archives VOCtrainval_25-May-2011.tar and VOCtrainval_11-May-2012.tar unpack:
  VOCdevkit/VOC2012/                        2011: TrainVal/VOCdevkit/VOC2011/
    ImageSets/Segmentation/train.txt        images of a split, one per line; the same for val.txt
    JPEGImages/NAME.jpg
    SegmentationClass/NAME.png              palette indices: 0 = background, 1-20, 255 = void
`data.source` is the directory that holds VOCdevkit, VOCdevkit itself, or the year's directory. Void
is the outline of the objects. Images are stored byte for byte. Instances (SegmentationObject) are
left out.

A third split, `seg11valid`, is that of the FCN paper: the 736 images of VOC 2011 val that are not
in SBD's train list. It is there if the raw files hold one of
  ImageSets/Segmentation/seg11valid.txt     the authors' list, for either year
  benchmark_RELEASE/dataset/train.txt       SBD's train list, in `data.source` or next to VOCdevkit;
                                            2011 only, as later val lists have other images

Cite Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", International
Journal of Computer Vision 111(1), 2015. The images are from Flickr, whose terms of use apply.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from segjax.data.builders import raw

# In the order of their index.
_NAMES = (
  'background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, '
  'dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor'
)
CLASSES = tuple(_NAMES.split(', '))
SEG11VALID = (
  'add the list ImageSets/Segmentation/seg11valid.txt to the raw files (the FCN authors have it as '
  'data/pascal/seg11valid.txt in github.com/shelhamer/fcn.berkeleyvision.org), or for voc/2011 '
  "unpack SBD's benchmark_RELEASE next to VOCdevkit"
)

_LISTS = Path('ImageSets', 'Segmentation')
_SBD_TRAIN = Path('benchmark_RELEASE', 'dataset', 'train.txt')


@dataclasses.dataclass(eq=False)
class VocConfig(tfds.core.BuilderConfig):
  """Which year's images, lists and labels."""

  year: int = 2012

  @property
  def directory(self) -> str:
    return f'VOC{self.year}'

  @property
  def content(self) -> str:
    return f'VOCdevkit/{self.directory}'


# Not registered: tensorflow-datasets has another `voc`.
class Builder(raw.SemanticBuilder, skip_registration=True):
  """Prepares PASCAL VOC segmentation: `voc/2011` or `voc/2012`."""

  BUILDER_CONFIGS = [
    VocConfig(name='2011', description='1,112 train and 1,111 val images.', year=2011),
    VocConfig(name='2012', description='1,464 train and 1,449 val images.', year=2012),
  ]
  description = 'Images from Flickr with objects of 20 classes, and background.'
  classes = CLASSES
  void = 255
  metadata = {'optional_splits': {'seg11valid': SEG11VALID}}

  @property
  def content(self) -> str:
    return self.builder_config.content

  def find_files(self, source: Path) -> dict[str, list[raw.Files]]:
    directory = self.builder_config.directory
    others = [c.directory for c in self.BUILDER_CONFIGS if c.directory != directory]
    places = directory, self.content, f'TrainVal/{self.content}', ''
    root = raw.find_directory(source, places, str(_LISTS), self.content, others=others)
    lists = {s: raw.read_list(root / _LISTS / f'{s}.txt', self.content) for s in ('train', 'val')}
    if seg11valid := _seg11valid(source, root, self.builder_config, lists['val']):
      lists['seg11valid'] = seg11valid
    files = 'JPEGImages/{}.jpg', 'SegmentationClass/{}.png'
    return {split: raw.files_of(names, root, *files) for split, names in lists.items()}


def _seg11valid(source: Path, root: Path, config: VocConfig, val: Sequence[str]) -> list[str]:
  """The images of the split `seg11valid`; empty if the raw files do not say."""
  path = root / _LISTS / 'seg11valid.txt'
  if path.exists():
    return raw.read_list(path, config.content)
  for directory in (source, root.absolute().parent.parent):
    if config.year == 2011 and (directory / _SBD_TRAIN).exists():
      trained = set(raw.read_list(directory / _SBD_TRAIN, 'benchmark_RELEASE'))
      return [name for name in val if name not in trained]
  return []
