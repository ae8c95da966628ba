"""Run lengths of a region against pycocotools' encoding of the complete mask."""

import numpy as np
import pytest
from pycocotools import mask as mask_lib

from segjax.ops.run_lengths import encode_region, region_runs


def encode(region, values, size):
  mask = np.zeros(size, np.uint8, order='F')
  mask[region] = values
  return mask_lib.encode(mask)['counts'].decode()


def test_by_hand():
  values = np.array([[1, 0], [1, 1]], bool)
  # Of 4 x 5 pixels, column by column: 4 + 1 zeros, 2 ones, 3 zeros, 1 one, 9 zeros.
  assert region_runs((slice(1, 3), slice(1, 3)), values, (4, 5)).tolist() == [5, 2, 3, 1, 9]
  # Without a gap between the columns, and from the first to the last pixel.
  assert region_runs((slice(0, 2), slice(0, 2)), values, (2, 2)).tolist() == [0, 2, 1, 1]
  assert region_runs((slice(0), slice(0)), np.zeros((0, 0), bool), (4, 5)).tolist() == [20]


@pytest.mark.parametrize('density', [0, 0.3, 0.7, 1])
def test_equals_pycocotools_for_all_regions_of_an_image(density):
  rng, size = np.random.default_rng(0), (4, 3)
  for top, bottom in np.ndindex(size[0] + 1, size[0] + 1):
    for left, right in np.ndindex(size[1] + 1, size[1] + 1):
      region = (slice(top, max(top, bottom)), slice(left, max(left, right)))
      values = rng.random([side.stop - side.start for side in region]) < density
      assert encode_region(region, values, size) == encode(region, values, size)


def test_equals_pycocotools_for_large_masks():
  rng, size = np.random.default_rng(0), (300, 400)
  for region in (
    (slice(20, 290), slice(3, 390)),
    (slice(0, 300), slice(0, 400)),
    (slice(None),) * 2,
  ):
    y, x = np.indices(size)
    values = (np.hypot(y - 140, x - 200) < rng.uniform(50, 250, 1))[region]
    assert encode_region(region, values, size) == encode(region, values, size)
