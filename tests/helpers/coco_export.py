"""A data set in COCO format as annotation tools write it, in their own layouts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = 24, 32  # height, width
CLASSES = ('cell', 'rod')
# BGR.
COLORS = ((40, 40, 230), (40, 230, 40))


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
  """The polygon."""
  return [x, y, x + width, y, x + width, y + height, x, y + height]


def content(
  names: Sequence[str], first: int = 1, categories: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
  """A file with a cell and a rod on each image, their ids from `first`."""
  if categories is None:
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
  ids = [next(c['id'] for c in reversed(categories) if c['name'] == name) for name in CLASSES]
  images, annotations = [], []
  for number, name in enumerate(names, first):
    images.append({'id': number, 'file_name': name, 'height': SIZE[0], 'width': SIZE[1]})
    for k, box in enumerate(boxes(number)):
      annotations.append(
        {
          'id': 2 * number + k,
          'image_id': number,
          'category_id': ids[k],
          'bbox': list(box),
          'area': box[2] * box[3],
          'iscrowd': 0,
          'segmentation': [rectangle(*box)],
        }
      )
  return {'images': images, 'categories': list(categories), 'annotations': annotations}


def boxes(number: int) -> tuple[tuple[int, int, int, int], ...]:
  """The boxes of the objects on an image, x, y, width, height."""
  return (1 + number % 5, 2, 8, 8), (16 + number % 7, 4 + number % 3, 4, 14)


def write(
  path: Path,
  written: Mapping[str, Any],
  images: Path | None = None,
  change: Callable[[Any], None] | None = None,
) -> None:
  """Writes a JSON file and its images.

  Args:
    path: of the JSON file.
    written: its content.
    images: directory that file names are relative to; None for that of the file.
    change: applied to the content after the images are written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for entry in written['images']:
    image = np.full((*SIZE, 3), 30, np.uint8)
    for (x, y, width, height), color in zip(boxes(entry['id']), COLORS, strict=True):
      image[y : y + height, x : x + width] = color
    file = (images or path.parent) / entry['file_name'].replace('\\', '/')
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), image)
  if change:
    change(written)
  path.write_text(json.dumps(written))


def names(count: int, prefix: str = '', start: int = 1) -> list[str]:
  """File names."""
  return [f'{prefix}{i:03d}.png' for i in range(start, start + count)]


def roboflow(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """train/, valid/ and test/, each with its images and _annotations.coco.json."""
  categories = [
    {'id': 0, 'name': 'cell', 'supercategory': 'none'},
    {'id': 1, 'name': 'cell', 'supercategory': 'cell'},
    {'id': 2, 'name': 'rod', 'supercategory': 'cell'},
  ]
  for split, start, count in (('train', 1, 14), ('valid', 15, 4), ('test', 19, 2)):
    written = content(names(count, start=start), start, categories)
    write(root / split / '_annotations.coco.json', written, change=change)


def cvat(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """annotations/instances_default.json and images/."""
  path = root / 'annotations' / 'instances_default.json'
  write(path, content(names(20)), root / 'images', change)


def cvat_subsets(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """annotations/instances_Train.json and images/Train/, in directories; the same of Validation."""
  for split, start, count in (('Train', 1, 16), ('Validation', 17, 4)):
    path = root / 'annotations' / f'instances_{split}.json'
    written = content(names(count, 'a/b/', start), start)
    write(path, written, root / 'images' / split, change)


def label_studio(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """result.json with category ids from 0, and images/ in the names, as on Windows."""
  categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES)]
  write(root / 'result.json', content(names(20, 'images\\'), 0, categories), change=change)


def labelme2coco(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """annotations.json with a category for the background, and JPEGImages/ in the names."""
  categories = [
    {'id': i, 'name': name, 'supercategory': None}
    for i, name in enumerate(('_background_', *CLASSES))
  ]
  written = content(names(20, 'JPEGImages/'), 0, categories)
  write(root / 'annotations.json', written, change=change)


def elsewhere(root: Path, change: Callable[[Any], None] | None = None) -> None:
  """coco.json with the directories of another machine in the names, and nested images."""

  written = content(names(20))
  for k, entry in enumerate(written['images']):
    entry['file_name'] = f'{k % 3}/{entry["file_name"]}'

  def move(written: Any) -> None:
    for entry in written['images']:
      entry['file_name'] = 'other/machine/' + entry['file_name'].split('/')[-1]
    if change:
      change(written)

  write(root / 'coco.json', written, root / 'pictures', move)


LAYOUTS = {
  'Roboflow': roboflow,
  'CVAT': cvat,
  'CVAT with subsets': cvat_subsets,
  'Label Studio': label_studio,
  'labelme2coco': labelme2coco,
  'elsewhere': elsewhere,
}
