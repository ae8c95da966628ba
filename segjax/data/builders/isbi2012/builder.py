"""ISBI 2012 EM segmentation challenge: neuron membranes in the fly's ventral nerve cord.

30 neighboring slices of one volume, 512 x 512, gray. Raw files, in either layout:
  image/N.png and label/N.png, N = 0 ... 29
  train-volume.tif and train-labels.tif (or .tiff), of 30 pages: upstream's own
Raw labels are 0 on membranes and 255 inside cells, as in the images, where membranes are dark.
Class indices keep that order: 0 = membrane, 1 = cell.

Splits. The labels of the challenge's test volume are not public, so some of the 30 slices are held
out. Neighbouring slices are almost alike, so a held-out block is contiguous: were it scattered,
nearly every val slice would have its twin in train.
  isbi2012 (config 'default')     train = slices 0-24, val = 25-29
  isbi2012/fold0 ... /fold4       val of fold k = slices 6k ... 6k + 5, train = the other 24

Cite Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", 2015, and Cardona et al., PLoS Biology 8(10), 2010. The challenge asks for
non-commercial use.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builders import raw
from segjax.data.formats import common
from segjax.types import SegjaxError

SLICES = 30

_CONTENT = 'image/ and label/, or train-volume.tif and train-labels.tif'


class _Page(NamedTuple):
  """One slice: a page of a file."""

  path: Path
  number: int


class Builder(raw.SemanticBuilder):
  """Prepares ISBI 2012: `isbi2012` (25 / 5 slices) or `isbi2012/fold0` ... `fold4` (24 / 6)."""

  BUILDER_CONFIGS = raw.fold_configs(
    range(25, 30),
    'Train on slices 0-24, val on 25-29.',
    6,
    'Fold {fold} of 5: val on slices {first}-{last}.',
  )

  description = 'Neuron membranes in 30 slices of electron microscopy, 512 x 512.'
  content = _CONTENT
  classes = 'membrane', 'cell'
  palette = (213, 94, 0), (86, 180, 233)
  image = tfds.features.Image(shape=(None, None, 1), encoding_format='png')

  def find_files(self, source: Path) -> dict[str, list[tuple[int, _Page, _Page]]]:
    images = _pages(source, 'image', 'train-volume')
    slices = zip(range(SLICES), images, _pages(source, 'label', 'train-labels'), strict=True)
    found = {'train': [], 'val': []}
    for page in slices:
      found['val' if page[0] in self.builder_config.held_out else 'train'].append(page)
    return found

  def make(self, files: tuple[int, _Page, _Page]) -> dict[str, Any]:
    index, *pages = files
    image, label = (raw.read_image(page.path, 'L', page.number) for page in pages)
    image_path, label_path = (page.path for page in pages)
    raw.check_same_size(image, image_path, label, label_path)
    if not np.isin(label, (0, 255)).all():
      raise SegjaxError(
        f'{label_path} has label values other than 0 (membrane) and 255 (cell): '
        'download the file again'
      )
    label = (label == 255).astype(np.uint8)
    return common.encode_example(str(index), image=image, label=label)


def _pages(source: Path, directory: str, volume: str) -> list[_Page]:
  """Where the 30 slices of one kind are: files of a directory, or the pages of a TIFF volume."""
  if (source / directory).is_dir():
    return [_Page(source / directory / f'{index}.png', 0) for index in range(SLICES)]
  for path in (source / f'{volume}.tif', source / f'{volume}.tiff'):
    if path.is_file():
      return [_Page(path, index) for index in range(SLICES)]
  raise raw.wrong_source(f'{source} holds neither {directory}/ nor {volume}.tif', _CONTENT)
