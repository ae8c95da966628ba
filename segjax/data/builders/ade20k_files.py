"""ADE20K as its scene parsing challenge publishes it (SceneParse150): classes, and files for COCO.

Upstream's archive ADEChallengeData2016.zip has the images and their classes:
  images/training/ADE_train_00000001.jpg, images/validation/ADE_val_00000001.jpg
  annotations/training/ADE_train_00000001.png    0 = other, else a class from 1 on; likewise val
Segments and objects are those of a second archive, annotations_instance.tar, as the scripts
prepare_ade20k_pan_seg.py and prepare_ade20k_ins_seg.py of Mask2Former combine and convert them:
  ade20k_panoptic_train.json, ade20k_panoptic_train/   COCO's panoptic format, with its PNGs
  ade20k_instance_train.json                           COCO's format; likewise val
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data.builders import coco_files, coco_layout
from segjax.data.formats.coco import Category
from segjax.types import SegjaxError

# In the order of class indices, with the ids of Mask2Former's files, which are the same, and the
# first of upstream's names of each.
CATEGORIES = (
  Category(0, 'wall', 0, (120, 120, 120)),
  Category(1, 'building', 0, (180, 120, 120)),
  Category(2, 'sky', 0, (6, 230, 230)),
  Category(3, 'floor', 0, (80, 50, 50)),
  Category(4, 'tree', 0, (4, 200, 3)),
  Category(5, 'ceiling', 0, (120, 120, 80)),
  Category(6, 'road', 0, (140, 140, 140)),
  Category(7, 'bed', 1, (204, 5, 255)),
  Category(8, 'window', 1, (230, 230, 230)),
  Category(9, 'grass', 0, (4, 250, 7)),
  Category(10, 'cabinet', 1, (224, 5, 255)),
  Category(11, 'sidewalk', 0, (235, 255, 7)),
  Category(12, 'person', 1, (150, 5, 61)),
  Category(13, 'earth', 0, (120, 120, 70)),
  Category(14, 'door', 1, (8, 255, 51)),
  Category(15, 'table', 1, (255, 6, 82)),
  Category(16, 'mountain', 0, (143, 255, 140)),
  Category(17, 'plant', 0, (204, 255, 4)),
  Category(18, 'curtain', 1, (255, 51, 7)),
  Category(19, 'chair', 1, (204, 70, 3)),
  Category(20, 'car', 1, (0, 102, 200)),
  Category(21, 'water', 0, (61, 230, 250)),
  Category(22, 'painting', 1, (255, 6, 51)),
  Category(23, 'sofa', 1, (11, 102, 255)),
  Category(24, 'shelf', 1, (255, 7, 71)),
  Category(25, 'house', 0, (255, 9, 224)),
  Category(26, 'sea', 0, (9, 7, 230)),
  Category(27, 'mirror', 1, (220, 220, 220)),
  Category(28, 'rug', 0, (255, 9, 92)),
  Category(29, 'field', 0, (112, 9, 255)),
  Category(30, 'armchair', 1, (8, 255, 214)),
  Category(31, 'seat', 1, (7, 255, 224)),
  Category(32, 'fence', 1, (255, 184, 6)),
  Category(33, 'desk', 1, (10, 255, 71)),
  Category(34, 'rock', 0, (255, 41, 10)),
  Category(35, 'wardrobe', 1, (7, 255, 255)),
  Category(36, 'lamp', 1, (224, 255, 8)),
  Category(37, 'tub', 1, (102, 8, 255)),
  Category(38, 'rail', 1, (255, 61, 6)),
  Category(39, 'cushion', 1, (255, 194, 7)),
  Category(40, 'base', 0, (255, 122, 8)),
  Category(41, 'box', 1, (0, 255, 20)),
  Category(42, 'column', 1, (255, 8, 41)),
  Category(43, 'signboard', 1, (255, 5, 153)),
  Category(44, 'chest of drawers', 1, (6, 51, 255)),
  Category(45, 'counter', 1, (235, 12, 255)),
  Category(46, 'sand', 0, (160, 150, 20)),
  Category(47, 'sink', 1, (0, 163, 255)),
  Category(48, 'skyscraper', 0, (140, 140, 200)),
  Category(49, 'fireplace', 1, (250, 10, 15)),
  Category(50, 'refrigerator', 1, (20, 255, 0)),
  Category(51, 'grandstand', 0, (31, 255, 0)),
  Category(52, 'path', 0, (255, 31, 0)),
  Category(53, 'stairs', 1, (255, 224, 0)),
  Category(54, 'runway', 0, (153, 255, 0)),
  Category(55, 'case', 1, (0, 0, 255)),
  Category(56, 'pool table', 1, (255, 71, 0)),
  Category(57, 'pillow', 1, (0, 235, 255)),
  Category(58, 'screen door', 1, (0, 173, 255)),
  Category(59, 'stairway', 0, (31, 0, 255)),
  Category(60, 'river', 0, (11, 200, 200)),
  Category(61, 'bridge', 0, (255, 82, 0)),
  Category(62, 'bookcase', 1, (0, 255, 245)),
  Category(63, 'blind', 0, (0, 61, 255)),
  Category(64, 'coffee table', 1, (0, 255, 112)),
  Category(65, 'toilet', 1, (0, 255, 133)),
  Category(66, 'flower', 1, (255, 0, 0)),
  Category(67, 'book', 1, (255, 163, 0)),
  Category(68, 'hill', 0, (255, 102, 0)),
  Category(69, 'bench', 1, (194, 255, 0)),
  Category(70, 'countertop', 1, (0, 143, 255)),
  Category(71, 'stove', 1, (51, 255, 0)),
  Category(72, 'palm', 1, (0, 82, 255)),
  Category(73, 'kitchen island', 1, (0, 255, 41)),
  Category(74, 'computer', 1, (0, 255, 173)),
  Category(75, 'swivel chair', 1, (10, 0, 255)),
  Category(76, 'boat', 1, (173, 255, 0)),
  Category(77, 'bar', 0, (0, 255, 153)),
  Category(78, 'arcade machine', 1, (255, 92, 0)),
  Category(79, 'hovel', 0, (255, 0, 255)),
  Category(80, 'bus', 1, (255, 0, 245)),
  Category(81, 'towel', 1, (255, 0, 102)),
  Category(82, 'light', 1, (255, 173, 0)),
  Category(83, 'truck', 1, (255, 0, 20)),
  Category(84, 'tower', 0, (255, 184, 184)),
  Category(85, 'chandelier', 1, (0, 31, 255)),
  Category(86, 'awning', 1, (0, 255, 61)),
  Category(87, 'street lamp', 1, (0, 71, 255)),
  Category(88, 'booth', 1, (255, 0, 204)),
  Category(89, 'tv', 1, (0, 255, 194)),
  Category(90, 'plane', 1, (0, 255, 82)),
  Category(91, 'dirt track', 0, (0, 10, 255)),
  Category(92, 'clothes', 1, (0, 112, 255)),
  Category(93, 'pole', 1, (51, 0, 255)),
  Category(94, 'land', 0, (0, 194, 255)),
  Category(95, 'bannister', 1, (0, 122, 255)),
  Category(96, 'escalator', 0, (0, 255, 163)),
  Category(97, 'ottoman', 1, (255, 153, 0)),
  Category(98, 'bottle', 1, (0, 255, 10)),
  Category(99, 'buffet', 0, (255, 112, 0)),
  Category(100, 'poster', 0, (143, 255, 0)),
  Category(101, 'stage', 0, (82, 0, 255)),
  Category(102, 'van', 1, (163, 255, 0)),
  Category(103, 'ship', 1, (255, 235, 0)),
  Category(104, 'fountain', 1, (8, 184, 170)),
  Category(105, 'conveyer belt', 0, (133, 0, 255)),
  Category(106, 'canopy', 0, (0, 255, 92)),
  Category(107, 'washer', 1, (184, 0, 255)),
  Category(108, 'plaything', 1, (255, 0, 31)),
  Category(109, 'pool', 0, (0, 184, 255)),
  Category(110, 'stool', 1, (0, 214, 255)),
  Category(111, 'barrel', 1, (255, 0, 112)),
  Category(112, 'basket', 1, (92, 255, 0)),
  Category(113, 'falls', 0, (0, 224, 255)),
  Category(114, 'tent', 0, (112, 224, 255)),
  Category(115, 'bag', 1, (70, 184, 160)),
  Category(116, 'minibike', 1, (163, 0, 255)),
  Category(117, 'cradle', 0, (153, 0, 255)),
  Category(118, 'oven', 1, (71, 255, 0)),
  Category(119, 'ball', 1, (255, 0, 163)),
  Category(120, 'food', 1, (255, 204, 0)),
  Category(121, 'step', 1, (255, 0, 143)),
  Category(122, 'tank', 0, (0, 255, 235)),
  Category(123, 'trade name', 1, (133, 255, 0)),
  Category(124, 'microwave', 1, (255, 0, 235)),
  Category(125, 'pot', 1, (245, 0, 255)),
  Category(126, 'animal', 1, (255, 0, 122)),
  Category(127, 'bicycle', 1, (255, 245, 0)),
  Category(128, 'lake', 0, (10, 190, 212)),
  Category(129, 'dishwasher', 1, (214, 255, 0)),
  Category(130, 'screen', 1, (0, 204, 255)),
  Category(131, 'blanket', 0, (20, 0, 255)),
  Category(132, 'sculpture', 1, (255, 255, 0)),
  Category(133, 'hood', 1, (0, 153, 255)),
  Category(134, 'sconce', 1, (0, 41, 255)),
  Category(135, 'vase', 1, (0, 255, 204)),
  Category(136, 'traffic light', 1, (41, 0, 255)),
  Category(137, 'tray', 1, (41, 255, 0)),
  Category(138, 'trash can', 1, (173, 0, 255)),
  Category(139, 'fan', 1, (0, 245, 255)),
  Category(140, 'pier', 0, (71, 0, 255)),
  Category(141, 'crt screen', 0, (122, 0, 255)),
  Category(142, 'plate', 1, (0, 255, 184)),
  Category(143, 'monitor', 1, (0, 92, 255)),
  Category(144, 'bulletin board', 1, (184, 255, 0)),
  Category(145, 'shower', 0, (0, 133, 255)),
  Category(146, 'radiator', 1, (255, 214, 0)),
  Category(147, 'glass', 1, (25, 194, 194)),
  Category(148, 'clock', 1, (102, 255, 0)),
  Category(149, 'flag', 1, (92, 0, 255)),
)
THINGS = tuple(category for category in CATEGORIES if category.isthing)

# Where images and label maps of a split are.
DIRECTORIES = {'train': 'training', 'val': 'validation'}

_IMAGES = {split: f'images/{name}' for split, name in DIRECTORIES.items()}


def make_config(file: str, description: str, content: str) -> coco_files.CocoConfig:
  """The one config of a data set of JSON files; see `coco_files.CocoConfig`."""
  return coco_files.CocoConfig(
    name='default',
    description=description,
    splits={split: split for split in DIRECTORIES},
    content=content,
    file=file,
    options=coco_layout.Options(images=_IMAGES),
  )


class Ade20kBuilder(coco_files.CocoBuilder, skip_registration=True):
  """What the builders of Mask2Former's JSON files add to those of COCO's, before which it comes.

  Attributes:
    categories: of the files.
    script: of Mask2Former, which writes them.
  """

  Options = None
  categories: Sequence[Category]
  script: str

  @classmethod
  def own_config(cls, config: str, options: Any, annotations: Sequence[str]) -> None:
    return None

  @classmethod
  def watched(cls, source: Path, options: Any) -> list[Path]:
    [config] = cls.BUILDER_CONFIGS
    files = [source / config.file.format(name=name) for name in config.splits.values()]
    return [source / 'images', *files, *(file.with_suffix('') for file in files)]

  def _info(self) -> tfds.core.DatasetInfo:
    # Unlike the classes of COCO's files these are known before they are read.
    info = super()._info()
    self.set_categories(info, self.categories)
    return info

  @staticmethod
  def correct(tables: coco_files.Tables) -> None:
    """Numbers the images, whose id is their file's name: ADE_val_00000012 is 12."""
    for image in tables['images']:
      image['id'] = _number(image.get('id'))
    for annotation in tables['annotations']:
      annotation['image_id'] = _number(annotation.get('image_id'))

  def read_file(self, path: Path) -> coco_files.CocoFile:
    file = super().read_file(path)
    # Files of instances do not say that all are things.
    found = [(c.id, 1 if c.isthing is None else c.isthing) for c in file.categories]
    if found != [(c.id, c.isthing) for c in self.categories]:
      raise SegjaxError(
        f'{path} has other categories than the {len(self.categories)} of ADE20K: write it with '
        f"Mask2Former's {self.script}"
      )
    return file._replace(categories=tuple(self.categories))


def _number(value: Any) -> Any:
  found = re.fullmatch(r'ADE_[a-z]+_(\d+)', value) if isinstance(value, str) else None
  return int(found[1]) if found else value
