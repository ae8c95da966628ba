"""ADE20K instance segmentation: scenes with a mask for each object of 100 classes.

20,210 train and 2,000 val images of many sizes. Raw files, in the directory ADEChallengeData2016,
are the images and what Mask2Former's script prepare_ade20k_ins_seg.py writes (see
`segjax.data.builders.ade20k_files`):
  images/training/, images/validation/
  ade20k_instance_train.json, ade20k_instance_val.json

Features are those of `segjax.data.formats.coco`. Classes are the things of `ade20k_panoptic`, with
their ids there. An image's id is the number in its name. Images are stored byte for byte.

Cite Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. Images and annotations are for
non-commercial research and education, see https://groups.csail.mit.edu/vision/datasets/ADE20K/.
"""

from collections.abc import Sequence

import tensorflow_datasets as tfds

from segjax.data.builders import ade20k_files
from segjax.data.builders.coco_instances import builder as coco_instances
from segjax.data.formats import coco


class Builder(ade20k_files.Ade20kBuilder, coco_instances.Builder):
  """Prepares the objects of ADE20K."""

  BUILDER_CONFIGS = [
    ade20k_files.make_config(
      'ade20k_instance_{name}.json',
      '20,210 train and 2,000 val images, 100 classes.',
      'ade20k_instance_{train,val}.json and images/{training,validation}/',
    )
  ]
  categories = ade20k_files.THINGS
  script = 'prepare_ade20k_ins_seg.py'

  def set_categories(
    self, info: tfds.core.DatasetInfo, categories: Sequence[coco.Category]
  ) -> None:
    coco.set_categories(info, categories, [category.color for category in categories])
