"""A tiny Cityscapes in upstream's layout."""

import cv2
import numpy as np


def write(source, stems, label):
  """Noise as images, and the instance ids u16[H, W] `label` for each.

  Args:
    source: directory to write to.
    stems: split -> 'city/city_000000_000019', …
    label: of all images.
  """
  rng = np.random.default_rng(0)
  for split, names in stems.items():
    for stem in names:
      image = source / 'leftImg8bit' / split / f'{stem}_leftImg8bit.png'
      ids = source / 'gtFine' / split / f'{stem}_gtFine_instanceIds.png'
      for path in (image, ids):
        path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(image), rng.integers(0, 256, (*label.shape, 3), np.uint8))
      cv2.imwrite(str(ids), label)
