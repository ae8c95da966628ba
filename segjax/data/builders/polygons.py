"""Polygons as people draw them: the object that some make, and what is wrong with them."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_lib

from segjax.data.builders import files

# Phrases after the number of annotations, see `files.Content.problems`.
SHORT = 'polygons of fewer than three points were left out'
CROSSING = 'polygons cross themselves, so that they may not cover what they should'
BEYOND = 'annotations reach beyond the edge of their image and were cut off there'
EMPTY = 'annotations cover no pixel of their image and were left out'

# Longer polygons come from programs, which do not draw them by hand, and are not checked.
_LONGEST_CHECKED = 2000
# Pixels: tools round coordinates, and let people click on the edge.
_TOLERANCE = 1.0

# f64[N, 2], the x and y of each corner, in pixels: 0 is the edge of the first pixel.
Polygon = np.ndarray


def to_object(
  polygons: Sequence[Polygon],
  label: int,
  size: files.Size,
  problems: list[str],
  counts: Sequence[str] = (),
) -> files.Object | None:
  """The object that is the union of polygons and of masks.

  Args:
    polygons: with any number of corners each.
    label: class index.
    size: (H, W) of the image.
    problems: what is wrong is appended to it, a phrase each.
    counts: compressed run lengths of masks.

  Returns:
    The object; None if it has no pixel.

  Raises:
    ValueError: a coordinate is not finite or is absurdly far away.
  """
  long = [polygon for polygon in polygons if len(polygon) >= 3]
  problems += [SHORT] * (len(polygons) - len(long))
  problems += [CROSSING for polygon in long if crosses_itself(polygon)]
  parts = list(counts)
  if long:
    parts.append(files.polygons_object([p.ravel() for p in long], label, size).counts)
  if not parts:
    return None
  encoded = [{'size': list(size), 'counts': part} for part in parts]
  merged = mask_lib.merge(encoded)['counts'].decode()
  found = files.counts_object(merged, label, size)
  if not found.box[2]:
    problems.append(EMPTY)
    return None
  problems += [BEYOND] * any(reaches_beyond(polygon, size) for polygon in long)
  return found


def crosses_itself(polygon: Polygon) -> bool:
  """Whether two sides of a polygon cross; sides that only touch do not."""
  if not 4 <= len(polygon) <= _LONGEST_CHECKED:
    return False
  x, y = polygon.T
  step_x, step_y = np.roll(x, -1) - x, np.roll(y, -1) - y
  # [i, j]: on which side of side i, prolonged, corner j is; 0 on it.
  side = np.sign(step_x[:, None] * (y - y[:, None]) - step_y[:, None] * (x - x[:, None]))
  parted = side * np.roll(side, -1, axis=1) < 0  # by side i: the ends of side j
  return bool((parted & parted.T).any())


def reaches_beyond(polygon: Polygon, size: files.Size) -> bool:
  """Whether a corner is more than a pixel outside the image (H, W)."""
  height, width = size
  return bool(
    (polygon < -_TOLERANCE).any() or (polygon > np.add([width, height], _TOLERANCE)).any()
  )
