"""Cityscapes panoptic segmentation: street scenes from a car; 8 classes of things, 11 of stuff.

2,975 train, 500 val and 1,525 test images of 2048 x 1024. Raw files are those of
`segjax.data.builders.cityscapes_files`.

The features are those of `segjax.data.formats.panoptic`, and the segments those that upstream's
conversion (cityscapesscripts, createPanopticImgs) makes: `id` is the value in upstream's file,
`category_id` upstream's class id, a group of things has `iscrowd`, and the classes that upstream
does not evaluate are void. Classes are in the order of upstream's train ids. `file_name` is STEM,
which is upstream's image id for results; image ids count the images of a split, city by city, from
1. Images are stored byte for byte. `test`, which is there if its images are, is all void: upstream
keeps its labels.

Cite Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Free
for non-commercial use, after registration.
"""

from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builders import cityscapes_files
from segjax.data.formats import panoptic

_INDEX = {category.id: index for index, category in enumerate(cityscapes_files.CATEGORIES)}


class Builder(cityscapes_files.CityscapesBuilder):
  """Prepares the segments of Cityscapes' fine annotations."""

  def _info(self) -> tfds.core.DatasetInfo:
    info = panoptic.panoptic_info(
      self, description='Street scenes from a car with a segment for each pixel; 19 classes.'
    )
    panoptic.set_categories(info, cityscapes_files.CATEGORIES)
    return info

  def describe(self, example: cityscapes_files.Example) -> dict[str, Any]:
    stem, image_id, image, size, segments = example
    ids, entries = np.zeros(size, np.int32), []
    for value, class_id, alone, mask in segments:
      if class_id not in _INDEX:
        continue
      ids[mask] = value
      index = _INDEX[class_id]
      entries.append(
        {
          'id': value,
          'label': index,
          'category_id': class_id,
          'iscrowd': alone and bool(cityscapes_files.CATEGORIES[index].isthing),
          'area': int(mask.sum()),
          'bbox': np.array(cv2.boundingRect(mask.astype(np.uint8)), np.float64),
        }
      )
    return panoptic.panoptic_example(stem, image_id, image, panoptic.encode_ids(ids), entries)
