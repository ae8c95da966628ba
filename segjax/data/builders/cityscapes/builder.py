"""Cityscapes semantic segmentation: street scenes from a car in the 19 classes that are evaluated.

2,975 train, 500 val and 1,525 test images of 2048 x 1024. Raw files are those of
`segjax.data.builders.cityscapes_files`: of labels, labelIds as in upstream's archive or, where an
archive has none of these, labelTrainIds. Both give the same: classes in the order of upstream's
train ids, and void for the classes that upstream does not evaluate.

Images are stored byte for byte. `test`, which is there if its images are, is all void: upstream
keeps its labels.

Cite Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Free
for non-commercial use, after registration.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.builders import cityscapes_files, raw
from segjax.data.formats import common
from segjax.types import SegjaxError

_CATEGORIES = cityscapes_files.CATEGORIES


def _train_ids() -> np.ndarray:
  """u8[34], the class index of each of upstream's class ids, or VOID."""
  table = np.full(cityscapes_files.LAST_CLASS + 1, common.VOID, np.uint8)
  table[[category.id for category in _CATEGORIES]] = range(len(_CATEGORIES))
  return table


_TRAIN_IDS = _train_ids()


class Builder(raw.SemanticBuilder):
  """Prepares the classes of Cityscapes' fine annotations."""

  description = 'Street scenes from a car with a class for each pixel; 19 classes.'
  content = cityscapes_files.CONTENT
  classes = [category.name for category in _CATEGORIES]
  palette = [category.color for category in _CATEGORIES]
  void = common.VOID

  def find_files(self, source: Path) -> dict[str, Iterable[Any]]:
    """The name, the image and the label of each example, whose label in test is None."""
    ends = cityscapes_files.LABEL_IDS, cityscapes_files.LABEL_TRAIN_IDS
    label = next((end for end in ends if any(source.glob(f'gtFine/*/*/*{end}'))), ends[0])
    found = {}
    for split, names in cityscapes_files.find_splits(source, label).items():
      images, labels = source / 'leftImg8bit' / split, source / 'gtFine' / split
      found[split] = [
        (
          name.rpartition('/')[-1],
          images / f'{name}{cityscapes_files.IMAGE}',
          None if split == 'test' else labels / f'{name}{label}',
        )
        for name in names
      ]
    return found

  def read_label(self, path: Path) -> np.ndarray:
    values = super().read_label(path)
    if path.name.endswith(cityscapes_files.LABEL_TRAIN_IDS):
      return values
    if (last := int(values.max())) > cityscapes_files.LAST_CLASS:
      raise SegjaxError(
        f'{path} has the value {last}, which is out of range: classes are 0 to '
        f'{cityscapes_files.LAST_CLASS}'
      )
    return _TRAIN_IDS[values]

  def make(self, files: tuple[str, Path, Path | None]) -> dict[str, Any]:
    name, image, label = files
    if label is not None:
      return super().make(files)
    size = raw.read_image(image, 'RGB').shape[:2]
    void = common.encode_png(np.full(size, common.VOID, np.uint8))
    return {'file_name': name, 'image': image, 'label': void}
