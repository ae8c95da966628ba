"""Labels and predictions of blobs, to compare their contours."""

import numpy as np
from scipy import ndimage

from segjax.types import IGNORE_LABEL


def example(images=2, size=(19, 26)):
  """Blobs of three classes with an ignored patch, and a slightly shifted prediction."""
  rng = np.random.default_rng(0)
  noise = ndimage.gaussian_filter(rng.normal(size=(images, *size, 3)), (0, 3, 3, 0))
  label = noise.argmax(-1)
  prediction = (noise + 0.5 * np.roll(noise, 2, axis=2)).argmax(-1)
  label[:, 4:8, 10:17] = IGNORE_LABEL
  return prediction, label
