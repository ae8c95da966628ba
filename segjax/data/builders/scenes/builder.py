"""Scenes: the embedded data set of synthetic images, made from a seed while it is prepared.

Landscapes (sky, hill, grass, water: stuff) with toys in them (ball, box, tree, ring, star: things)
that overlap, cast shadows and are cut off by the border; `drawing` renders them. Splits: train
(1,000 images) and val (200), 128 x 128. An image depends on (seed, split, index) alone. Nothing is
downloaded. License: as segjax itself.

Every image is annotated for three tasks, and the annotations agree pixel by pixel:
  label     semantic class index; there is no void
  instance  0 = no thing, k = k-th thing, counted from the farthest; visible pixels only
  objects   one entry for each k: `id` = k, `label` = semantic class index (as in `label`, stuff
            included in the numbering), `bbox` = tight around the visible pixels, `area` = their
            number
  panoptic  256 * class index + k, with k = 0 for stuff
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import records
from segjax.data.builders.scenes import drawing
from segjax.data.formats import common


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
  """How many images of which size, and from which seed."""

  num_train: int = 1000
  num_val: int = 200
  size: int = 128
  seed: int = 0


class Builder(records.Builder):
  """Renders the scenes data set; `scenes/tiny` is a small one for tests and first trials."""

  name = 'scenes'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  BUILDER_CONFIGS = [
    ScenesConfig(name='default', description='1,000 + 200 images of 128 x 128.'),
    ScenesConfig(
      name='tiny', description='16 + 8 images of 64 x 64.', num_train=16, num_val=8, size=64
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    names = [scene_class.name for scene_class in drawing.CLASSES]
    size = self.builder_config.size
    features = {
      'instance': tfds.features.Image(shape=(size, size, 1), encoding_format='png'),
      'panoptic': tfds.features.Image(
        shape=(size, size, 1), dtype=np.uint16, encoding_format='png'
      ),
      'objects': tfds.features.Sequence(
        {
          'id': np.int32,
          'label': tfds.features.ClassLabel(names=names),
          'bbox': tfds.features.BBoxFeature(),
          'area': np.int32,
        }
      ),
    }
    return common.semantic_info(
      self,
      description='Synthetic landscapes with toys: semantic, instance and panoptic labels.',
      class_names=names,
      palette=[scene_class.color for scene_class in drawing.CLASSES],
      image=tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
      features=features,
      metadata={
        'class_names': names,
        'isthing': [scene_class.isthing for scene_class in drawing.CLASSES],
      },
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # nothing to find
    config = self.builder_config
    return {
      'train': _split('train', config.size, (config.seed, 0), config.num_train),
      'val': _split('val', config.size, (config.seed, 1), config.num_val),
    }


def _split(split: str, size: int, seed: tuple[int, int], number: int) -> records.Split:
  names = [f'scene_{split}_{index:06d}' for index in range(number)]
  items = [(name, (name, (*seed, index))) for index, name in enumerate(names)]
  return records.Split(items, functools.partial(_make, size))


def _make(size: int, item: tuple[str, tuple[int, ...]]) -> dict[str, Any]:
  file_name, seed = item
  scene = drawing.draw_scene(np.random.default_rng(seed), size)
  panoptic = scene.label.astype(np.uint16) * 256 + scene.instance
  objects = [
    _describe(number, class_index, scene.instance == number)
    for number, class_index in enumerate(scene.classes, start=1)
  ]
  maps = {'label': scene.label, 'instance': scene.instance, 'panoptic': panoptic}
  encoded = common.encode_example(file_name, image=scene.image, **maps)
  return {**encoded, 'objects': objects}


def _describe(number: int, class_index: int, mask: np.ndarray) -> dict[str, Any]:
  """The entry of `objects` for one thing, from its visible pixels bool[H, W]."""
  height, width = mask.shape
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  return {
    'id': number,
    'label': class_index,
    'bbox': tfds.features.BBox(
      ymin=float(rows[0] / height),
      xmin=float(columns[0] / width),
      ymax=float((rows[-1] + 1) / height),
      xmax=float((columns[-1] + 1) / width),
    ),
    'area': int(mask.sum()),
  }
