"""Cityscapes instance segmentation: street scenes from a car, with masks of road users.

2,975 train, 500 val and 1,525 test images of 2048 x 1024; 8 classes. Raw files, as the archives
leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack, are those of
`segjax.data.builders.cityscapes_files`.

The features are those of `segjax.data.formats.coco`: `category_id` is upstream's class id, boxes
and areas are those of the masks, the groups of a class in an image are one object with `iscrowd`,
and image ids count the images of a split, city by city, from 1. An object's id is 100,000 times
that plus the value of its pixels. Caravans and trailers, which upstream does not evaluate, are left
out. Images are stored byte for byte. `test`, which is there if its images are, has no objects:
upstream keeps its labels.

COCO's AP on this data is not the AP of the Cityscapes benchmark, which has no size classes, ignores
what is smaller than 100 pixels and forgives detections on ignored regions.

Cite Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Free
for non-commercial use, after registration.
"""

from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import cityscapes_files
from segjax.data.formats import coco

CATEGORIES = tuple(category for category in cityscapes_files.CATEGORIES if category.isthing)

_INDEX = {category.id: index for index, category in enumerate(CATEGORIES)}


class Builder(cityscapes_files.CityscapesBuilder):
  """Prepares the instances of Cityscapes' fine annotations."""

  def _info(self) -> tfds.core.DatasetInfo:
    return coco.instance_info(
      self,
      description='Street scenes from a car with a mask for each road user; 8 classes.',
      categories=CATEGORIES,
    )

  def describe(self, example: cityscapes_files.Example) -> dict[str, Any]:
    stem, image_id, image, size, segments = example
    objects = [
      coco.mask_object(
        segment.mask,
        id=100_000 * image_id + segment.value,
        label=_INDEX[segment.class_id],
        category_id=segment.class_id,
        iscrowd=segment.alone,
      )
      for segment in segments
      if segment.class_id in _INDEX
    ]
    return coco.instance_example(stem, image_id, image, size, objects)
