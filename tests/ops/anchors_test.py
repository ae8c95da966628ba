import math

import numpy as np
import pytest

from segjax.ops import anchors

RATIOS = (0.5, 1.0, 2.0)


def test_base_anchors_of_size_16_are_known():
  # 16 / sqrt(0.5) = 22.6 wide and 11.3 high; half of that, rounded: 11 and 6.
  expected = [[-11, -6, 11, 6], [-8, -8, 8, 8], [-6, -11, 6, 11]]
  base = anchors.base_anchors([16], RATIOS)
  np.testing.assert_array_equal(base, expected)
  assert base.dtype == np.float32


@pytest.mark.parametrize('sizes_first', [False, True])
def test_base_anchors_have_the_area_and_the_ratio_in_the_stated_order(sizes_first):
  sizes = (32, 64)
  base = anchors.base_anchors(sizes, RATIOS, rounded=False, sizes_first=sizes_first)
  width, height = (base[:, 2:] - base[:, :2]).T
  np.testing.assert_allclose(base[:, :2], -base[:, 2:])
  order = [(s, r) for s in sizes for r in RATIOS]
  if not sizes_first:
    order = [(s, r) for r in RATIOS for s in sizes]
  np.testing.assert_allclose(np.sqrt(width * height), [s for s, _ in order], rtol=1e-6)
  np.testing.assert_allclose(height / width, [r for _, r in order], rtol=1e-6)
  rounded = anchors.base_anchors(sizes, RATIOS, sizes_first=sizes_first)
  np.testing.assert_array_equal(rounded, np.round(base))
  assert not np.array_equal(rounded, base)


def test_unrounded_base_anchors_equal_detectron2s_formula():
  """Width sqrt(size² / ratio), height ratio * width, for each size and then each ratio."""
  expected = []
  for size in (32, 64, 128):
    for ratio in RATIOS:
      width = math.sqrt(size**2 / ratio)
      expected.append(np.array([-width, -ratio * width, width, ratio * width]) / 2)
  base = anchors.base_anchors((32, 64, 128), RATIOS, rounded=False, sizes_first=True)
  np.testing.assert_allclose(base, expected, rtol=1e-6)


def test_grid_anchors_go_by_row_then_column_then_anchor():
  base = np.array([[-1, -2, 1, 2], [-3, -3, 3, 3]], np.float32)
  grid = anchors.grid_anchors(base, (2, 3), (16, 8))
  assert grid.shape == (12, 4)
  assert grid.dtype == np.float32
  for i, (row, col, a) in enumerate(np.ndindex(2, 3, 2)):
    np.testing.assert_array_equal(grid[i], base[a] + [8 * col, 16 * row, 8 * col, 16 * row])


def test_strides_of_an_odd_grid_are_torchvisions():
  grids = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
  strides = anchors.grid_strides((800, 1344), grids)
  assert strides == [(4, 4), (8, 8), (16, 16), (32, 32), (61, 64)]


def test_pyramid_anchors_are_those_of_each_level():
  bases = [anchors.base_anchors([s], RATIOS) for s in (32, 64)]
  levels = anchors.pyramid_anchors(bases, [(4, 5), (2, 3)], [(8, 8), (16, 16)])
  assert [level.shape for level in levels] == [(60, 4), (18, 4)]
  np.testing.assert_array_equal(levels[1], anchors.grid_anchors(bases[1], (2, 3), (16, 16)))
  with pytest.raises(ValueError, match='zip'):
    anchors.pyramid_anchors(bases, [(4, 5)], [(8, 8)])


@pytest.mark.parametrize(
  'sizes', [((32,), (64,), (128,), (256,), (512,)), ((32, 64, 128, 256, 512),)]
)
def test_equals_torchvision(sizes):
  torch = pytest.importorskip('torch')
  utils = pytest.importorskip('torchvision.models.detection.anchor_utils')
  images = pytest.importorskip('torchvision.models.detection.image_list')
  size = (100, 132)
  grids = [(25, 33), (13, 17), (7, 9), (4, 5), (2, 3)][: len(sizes)]
  generator = utils.AnchorGenerator(sizes, (RATIOS,) * len(sizes))
  theirs = generator(
    images.ImageList(torch.zeros(1, 3, *size), [size]), [torch.zeros(1, 1, *g) for g in grids]
  )
  ours = anchors.pyramid_anchors(
    [anchors.base_anchors(s, RATIOS) for s in sizes], grids, anchors.grid_strides(size, grids)
  )
  np.testing.assert_array_equal(np.concatenate(ours), theirs[0].numpy())
