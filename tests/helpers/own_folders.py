"""Synthetic images of one's own, and the masks that tools would make of them.

An image shows up to three squares: two cats (one may hide a part of the other) and a dog on grass.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES = ('background', 'cat', 'dog')
COLORS = np.array([(0, 0, 0), (200, 60, 0), (0, 60, 200)], np.uint8)
SIDE = 32


class Scene(NamedTuple):
  """An image, its class indices and its object ids, of cats 1 and 2 and the dog 3."""

  image: np.ndarray
  label: np.ndarray
  ids: np.ndarray


def scene(index: int, shape: tuple[int, int] = (SIDE, SIDE)) -> Scene:
  """The image of an index."""
  rng = np.random.default_rng(index)
  label, ids = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
  for id, kind in ((1, 1), (2, 1), (3, 2)):
    # Each in a column of its own: no object hides another altogether.
    y, x = rng.integers(2, shape[0] - 12), 2 + (id - 1) * 9 + rng.integers(0, 3)
    label[y : y + 10, x : x + 9], ids[y : y + 10, x : x + 9] = kind, id
  image = np.where(label[..., None], COLORS[label], [40, 90, 40]) + rng.integers(0, 8, (*shape, 3))
  return Scene(image.astype(np.uint8), label, ids)


def save(path: Path, pixels: np.ndarray, **kwargs) -> None:
  """Writes an image file, with its directories."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **kwargs)


def write_images(
  root: Path, count: int, name: str = 'images/im{}.png', start: int = 0
) -> list[Scene]:
  """Writes some images; `name` has {} for the number."""
  scenes = [scene(i) for i in range(start, start + count)]
  for i, found in enumerate(scenes, start):
    save(root / name.format(i), found.image)
  return scenes


def write_folder(root: Path, count: int = 6, convert=lambda label: label, suffix='') -> list[Scene]:
  """images/im0.png … and masks/im0.png …, of class indices or what `convert` makes of them."""
  scenes = write_images(root, count)
  for i, found in enumerate(scenes):
    save(root / f'masks/im{i}{suffix}.png', convert(found.label))
  return scenes
