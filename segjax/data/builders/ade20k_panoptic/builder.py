"""ADE20K panoptic segmentation: scenes with segments of 100 classes of things and 50 of stuff.

20,210 train and 2,000 val images of many sizes. Raw files, in the directory ADEChallengeData2016,
are the images and what Mask2Former's script prepare_ade20k_pan_seg.py writes (see
`segjax.data.builders.ade20k_files`):
  images/training/, images/validation/
  ade20k_panoptic_train.json, ade20k_panoptic_train/    the same for val
A split is there if its JSON file is.

Features are those of `segjax.data.formats.panoptic`, classes those of `ade20k`. The script lists
stuff before it draws things over it: areas and boxes of stuff are those of what is left in the PNG,
and a segment of which nothing is left is left out. An image's id is the number in its name. Images
and PNGs are stored byte for byte.

Cite Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. Images and annotations are for
non-commercial research and education, see https://groups.csail.mit.edu/vision/datasets/ADE20K/.
"""

from segjax.data.builders import ade20k_files
from segjax.data.builders.coco_panoptic import builder as coco_panoptic


class Builder(ade20k_files.Ade20kBuilder, coco_panoptic.Builder):
  """Prepares the segments of ADE20K."""

  BUILDER_CONFIGS = [
    ade20k_files.make_config(
      'ade20k_panoptic_{name}.json',
      '20,210 train and 2,000 val images, 100 classes of things and 50 of stuff.',
      'ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/ and '
      'images/{training,validation}/',
    )
  ]
  categories = ade20k_files.CATEGORIES
  script = 'prepare_ade20k_pan_seg.py'
  coverable = frozenset(c.id for c in ade20k_files.CATEGORIES if not c.isthing)
