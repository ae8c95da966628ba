"""Users' own data in every format, synthetic: 20 images of cats and dogs, see `own_folders`.

A format is a function that writes a data set, and what `segjax new` is told of it. Add one to
`FORMATS` for `tests/cli/own_data_test.py` to train on it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import coco_export
import numpy as np
import synthetic_hf
import synthetic_labelme
import synthetic_yolo
from own_folders import CLASSES, COLORS, Scene, save, write_images

COUNT = 20
PANOPTIC_CLASSES = ('background', 'class_1', 'class_2')


class Format(NamedTuple):
  """A data set in a certain format.

  Attributes:
    name: `config.data.name` that `segjax new` should write.
    task: 'semantic', 'instance' or 'panoptic'.
    write: writes the files below a directory.
    images, labels: the arguments of `segjax new`, below that directory; None for none.
    classes: the names of the classes that the network learns.
  """

  name: str
  task: str
  write: Callable[[Path], None]
  images: str | None
  labels: str | None
  classes: tuple[str, ...]


def masks(convert: Callable[[Scene], np.ndarray], where: str = 'masks/im{}.png'):
  """Writes images, and of each the mask that `convert` makes."""

  def write(root: Path) -> None:
    for i, scene in enumerate(write_images(root, COUNT)):
      save(root / where.format(i), convert(scene))

  return write


def files_of_classes(root: Path) -> None:
  for i, scene in enumerate(write_images(root, COUNT)):
    for index, kind in enumerate(CLASSES[1:], 1):
      save(root / f'masks/{kind}/im{i}.png', (scene.label == index) * np.uint8(255))


def labels_and_instances(root: Path) -> None:
  for i, scene in enumerate(write_images(root, COUNT)):
    save(root / f'labels/im{i}.png', scene.label)
    save(root / f'instances/im{i}.png', scene.ids)


_INDICES = masks(lambda scene: scene.label)
_CLASS_AND_NUMBER = masks(
  lambda scene: np.where(scene.ids, scene.label.astype(np.uint16) * 1000 + scene.ids, 0)
)
# Of the same number of classes in each task, so that networks have the same compiled programs.
FORMATS = {
  'class indices': Format(
    'folder', 'semantic', _INDICES, 'images', 'masks', ('background', 'class_1', 'class_2')
  ),
  'colors': Format(
    'folder',
    'semantic',
    masks(lambda scene: COLORS[scene.label]),
    'images',
    'masks',
    ('background', 'color_003cc8', 'color_c83c00'),
  ),
  'a file for each class': Format(
    'folder', 'semantic', files_of_classes, 'images', 'masks', CLASSES
  ),
  'class and number': Format(
    'folder', 'instance', _CLASS_AND_NUMBER, 'images', 'masks', ('class_1', 'class_2')
  ),
  'labels and instances': Format(
    'folder', 'panoptic', labels_and_instances, 'images', 'labels', PANOPTIC_CLASSES
  ),
  'LabelMe': Format(
    'labelme',
    'semantic',
    synthetic_labelme.write_set,
    'images',
    'labels',
    ('background', 'disk', 'square'),
  ),
  'LabelMe, objects': Format(
    'labelme', 'instance', synthetic_labelme.write_set, 'images', 'labels', ('disk', 'square')
  ),
  'YOLO': Format(
    'yolo', 'semantic', synthetic_yolo.write_set, '.', None, ('background', 'square', 'disk')
  ),
  'YOLO, objects': Format(
    'yolo', 'instance', synthetic_yolo.write_set, None, 'data.yaml', ('square', 'disk')
  ),
  'Hugging Face': Format(
    'hugging_face', 'semantic', synthetic_hf.write_set, '.', None, PANOPTIC_CLASSES
  ),
  'Hugging Face, panoptic': Format(
    'hugging_face', 'panoptic', synthetic_hf.write_set, '.', None, PANOPTIC_CLASSES
  ),
  **{
    f'COCO of {tool}': Format(
      'coco_instances/custom', 'instance', coco_export.LAYOUTS[tool], '.', None, coco_export.CLASSES
    )
    for tool in ('Roboflow', 'CVAT')
  },
}
