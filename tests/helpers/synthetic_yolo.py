"""Images with YOLO's text files, in the layouts of ultralytics and of Roboflow."""

from pathlib import Path

import numpy as np
from synthetic_labelme import SIZE, draw, encode

NAMES = 'square', 'disk'


def fractions(points) -> str:
  """Points in pixels as a row has them."""
  return ' '.join(f'{value:.6f}' for value in (np.array(points) / SIZE[::-1]).ravel())


def rows(shapes) -> str:
  """The text file of a square and a disk."""
  square, (center, edge) = shapes[0]['points'], shapes[1]['points']
  angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  disk = center + (edge[0] - center[0]) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return f'0 {fractions(square)}\n1 {fractions(disk)}\n'


def write_images(source: Path, places, count: int, rng: np.random.Generator) -> None:
  """Writes images and their text files to directories that have `images` in their path."""
  for place in places:
    labels = source / place.replace('images', 'labels')
    for directory in (source / place, labels):
      directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
      image, shapes = draw(rng)
      (source / place / f'im{number:02}.jpg').write_bytes(encode(image, 'JPEG'))
      (labels / f'im{number:02}.txt').write_text(rows(shapes))


def write_set(source: Path, count: int = 20) -> None:
  """Writes images/{train,val}, labels/{train,val} and data.yaml; a fifth of the images is val."""
  rng = np.random.default_rng(0)
  write_images(source, ['images/train'], count - count // 5, rng)
  write_images(source, ['images/val'], count // 5, rng)
  lines = [
    'path: .',
    'train: images/train',
    'val: images/val',
    'names:',
    '  0: square',
    '  1: disk',
  ]
  (source / 'data.yaml').write_text('\n'.join(lines) + '\n')


def write_roboflow(source: Path, count: int = 4) -> None:
  """Writes {train,valid}/{images,labels} and data.yaml."""
  places = ['train/images', 'valid/images']
  write_images(source, places, count, np.random.default_rng(0))
  lines = ['train: ../train/images', 'val: ../valid/images', 'test: ../test/images', '', 'nc: 2']
  lines += ["names: ['square', 'disk']", '', 'roboflow:', '  workspace: mine', '  license: MIT']
  (source / 'test' / 'images').mkdir(parents=True)
  (source / 'data.yaml').write_text('\n'.join(lines) + '\n')
