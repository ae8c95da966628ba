"""An image and what is annotated on it.

Sizes are (height, width) in pixels. Boxes are [x0, y0, x1, y1] in pixels, continuous coordinates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from segjax.data.masks import Masks
from segjax.types import Segments

Size = tuple[int, int]


class Objects(NamedTuple):
  """The n objects of one image.

  Attributes:
    boxes: f32[n, 4].
    classes: i32[n], index among the things.
    masks: u8[n, H, W], 0 or 1, an array or `Masks`. Transforms of the user get an array.
    crowd: bool[n].
  """

  boxes: np.ndarray
  classes: np.ndarray
  masks: np.ndarray | Masks
  crowd: np.ndarray

  def take(self, index: np.ndarray) -> 'Objects':
    """Those at `index`, in its order."""
    return Objects(*(field.take(index, 0) for field in self))


class Sample(NamedTuple):
  """An image and its annotations, each None where nothing asks for it; they move together.

  Attributes:
    image: u8[H, W, C]; of a warp with a margin, larger by the margin on each side.
    label: u16[H, W], class index or IGNORE_LABEL.
    weight: f32[H, W], loss weight of each pixel, which `config.data.weight_map` computes; None of
      an example as it is read, from a source outside the package too.
    objects: `Objects` of H and W.
    segments: without the batch axis, at the image's own size whatever that of the sample.
  """

  image: np.ndarray
  label: np.ndarray | None = None
  weight: np.ndarray | None = None
  objects: Objects | None = None
  segments: Segments | None = None

  def change(self, **functions: Callable[[Any], Any]) -> 'Sample':
    """The sample with each of the named fields, where it is not None, changed by its function."""
    there = {key: f for key, f in functions.items() if getattr(self, key) is not None}
    return self._replace(**{key: f(getattr(self, key)) for key, f in there.items()})

  @property
  def size(self) -> Size:
    """(H, W) of the image."""
    return self.image.shape[:2]
