"""COCO's compressed run lengths of a mask that covers a part of the image."""

import numpy as np
from pycocotools import mask as mask_lib

from segjax.ops.paste_masks import Region


def encode_region(region: Region, values: np.ndarray, size: tuple[int, int]) -> str:
  """Encodes the mask that is `values` in a region of the image and 0 elsewhere.

  Equal to pycocotools' `encode` of the complete mask, in time proportional to the region.

  Args:
    region: (rows, columns) of the image, see `segjax.ops.paste_masks.paste_regions`.
    values: bool[rows, columns].
    size: (H, W) of the image.

  Returns:
    The `counts` of the encoded mask, whose `size` is [H, W].
  """
  runs = region_runs(region, values, size).tolist()
  return mask_lib.frPyObjects({'size': list(size), 'counts': runs}, *size)['counts'].decode()


def region_runs(region: Region, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """i64[n], the lengths of the runs of 0, 1, 0, … along the columns; see `encode_region`."""
  (rows, columns), (height, width) = region, size
  extent, across = values.shape
  # A 0 after each column ends its run, except where the next column follows without a gap.
  period = extent + (extent < height)
  pixels = np.zeros(across * period + 2, bool)
  pixels[1:-1].reshape(across, period)[:, :extent] = values.T
  column, row = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), max(period, 1))
  changes = ((columns.start or 0) + column) * height + (rows.start or 0) + row
  ends = np.concatenate([[0], changes, [height * width]])
  runs = ends[1:] - ends[:-1]
  return runs[:-1] if runs[-1] == 0 and len(runs) > 1 else runs
