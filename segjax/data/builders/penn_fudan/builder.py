"""Penn-Fudan pedestrians: images of streets and campuses, with a mask for each pedestrian.

170 images with 423 pedestrians, one class. Raw files, as upstream's archive unpacks:
  PNGImages/STEM.png            the image (.jpg and .jpeg are read too)
  PedMasks/STEM_mask.png        0 = background, k = k-th pedestrian
The features are those of `segjax.data.formats.coco`: boxes and areas are those of the masks, there
are no crowds, image ids count the stems in alphabetical order from 1, and the k-th pedestrian of
image i has the id 1000 i + k. Images are stored byte for byte.

Splits. Upstream has none. Ours order the images by the SHA-256 of their stem, so that neighbors,
which often show one place, are distributed as by chance, and the same on every machine:
  penn_fudan (config 'default')     train = the first 120, val = the last 50 (the sizes, though not
                                    the images, of PyTorch's tutorial)
  penn_fudan/fold0 ... /fold4       val of fold k = those from 34 k to 34 k + 33, train = the others

Cite Wang, Shi, Song, Shen, "Object detection combining recognition and segmentation", ACCV 2007.
See upstream for the terms of use.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images, records
from segjax.data.builders import raw
from segjax.data.formats import coco

IMAGES = 170

_CONTENT = 'PNGImages/ and PedMasks/'
_SUFFIXES = ('.png', '.jpg', '.jpeg')


class Builder(raw.Builder):
  """Prepares Penn-Fudan: `penn_fudan` (120 / 50) or `penn_fudan/fold0` ... `fold4` (136 / 34)."""

  BUILDER_CONFIGS = raw.fold_configs(
    range(IMAGES - 50, IMAGES),
    '120 train and 50 val images.',
    34,
    'Fold {fold} of 5: 136 train and 34 val images.',
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return coco.instance_info(
      self,
      description='Images with a mask for each pedestrian.',
      categories=[coco.Category(1, 'person', color=(220, 20, 60))],
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, _CONTENT)
    numbered = list(enumerate(_image_paths(source / 'PNGImages'), start=1))
    by_hash = lambda entry: hashlib.sha256(entry[1].stem.encode()).digest()
    order = [number for number, _ in sorted(numbered, key=by_hash)]
    held_out = {order[position] for position in self.builder_config.held_out}
    make = functools.partial(_make, source / 'PedMasks')
    return {
      split: records.Split([(e[1].stem, e) for e in numbered if (e[0] in held_out) == is_val], make)
      for split, is_val in (('train', False), ('val', True))
    }


def _make(masks: Path, item: tuple[int, Path]) -> dict[str, Any]:
  number, path = item
  mask_path = masks / f'{path.stem}_mask.png'
  encoded = raw.read_bytes(path)
  image = images.decode_image(encoded, 3, str(path))
  people = images.decode_label(raw.read_bytes(mask_path), str(mask_path))
  raw.check_same_size(image, path, people, mask_path)
  objects = [
    coco.mask_object(people == k, id=1000 * number + k, label=0, category_id=1)
    for k in np.unique(people[people > 0]).tolist()
  ]
  return coco.instance_example(path.stem, number, encoded, people.shape, objects)


def _image_paths(directory: Path) -> list[Path]:
  """The images in the order of their stems."""
  # Not '.*': a Mac leaves a file ._STEM.png beside each.
  paths = sorted(path for path in directory.glob('[!.]*') if path.suffix.lower() in _SUFFIXES)
  if len(paths) != IMAGES:
    problem = f'{directory} holds {len(paths)} images, not {IMAGES}'
    raise raw.wrong_source(problem, f'{_CONTENT}, or download the archive again')
  return paths
