import math

import numpy as np
import pytest

from segjax.ops.paste_masks import paste_masks, paste_regions

NAN, INF = math.nan, math.inf


def smooth_masks(count, size=14):
  """Probabilities with soft borders, like a mask head's."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:size, :size] / size - 0.5
  radius, tilt = rng.uniform(0.2, 0.6, (count, 1, 1)), rng.uniform(-1, 1, (2, count, 1, 1))
  distance = np.hypot(y + tilt[0] * x, x + tilt[1] * y * 0.3)
  return (1 / (1 + np.exp(20 * (distance - radius)))).astype('f4')


def random_boxes(count, height, width):
  """Within the image, from a hundredth of it to all of it, some with whole coordinates."""
  rng = np.random.default_rng(1)
  size = np.array([width, height])
  extent = np.exp(rng.uniform(np.log(0.01), 0, (count, 2))) * size
  corner = rng.uniform(0, 1, (count, 2)) * (size - extent)
  boxes = np.concatenate([corner, corner + extent], -1)
  boxes[::4] = np.round(boxes[::4])
  return boxes.astype('f4')


def lookup(mask, y, x):
  """Bilinear interpolation in float64; outside the mask there are zeros."""
  total, rows, cols = 0.0, math.floor(y), math.floor(x)
  for row in (rows, rows + 1):
    for col in (cols, cols + 1):
      if 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1]:
        total += (1 - abs(y - row)) * (1 - abs(x - col)) * mask[row, col]
  return total


def torchvision_definition(mask, box, size):
  """Pixel by pixel: the padded mask, resized to the grown and cut box."""
  cells, values = len(mask), np.zeros(size)
  grown = []
  for start, end in ((box[1], box[3]), (box[0], box[2])):
    start, end = float(start), float(end)
    half = (end - start) / 2 * (cells + 2) / cells
    first, last = int((start + end) / 2 - half), int((start + end) / 2 + half)
    grown.append((first, last, (cells + 2) / max(last - first + 1, 1)))
  (top, bottom, tall), (left, right, wide) = grown
  for i in range(max(top, 0), min(bottom + 1, size[0])):
    for j in range(max(left, 0), min(right + 1, size[1])):
      y, x = max((i - top + 0.5) * tall - 0.5, 0), max((j - left + 0.5) * wide - 0.5, 0)
      values[i, j] = lookup(mask, y - 1, x - 1)
  return values


def detectron2_definition(mask, box, size):
  """Pixel by pixel: the mask at the pixel's center."""
  values, (x0, y0, x1, y1) = np.zeros(size), (float(x) for x in box)
  if x1 <= x0 or y1 <= y0:
    return values
  for i, j in np.ndindex(*size):
    y = (i + 0.5 - y0) / (y1 - y0) * len(mask) - 0.5
    x = (j + 0.5 - x0) / (x1 - x0) * len(mask) - 0.5
    values[i, j] = lookup(mask, y, x)
  return values


DEFINITIONS = {
  'torchvision': (torchvision_definition, np.greater),
  'detectron2': (detectron2_definition, np.greater_equal),
}
# Of an image of 20 x 30: inside, tiny, over each border, over all of it, outside, without an area.
BOXES = [
  [4.3, 5.2, 20.7, 15.1], [10, 10, 10.2, 10.3], [-6.4, -3.3, 8.2, 9.1], [21, 11, 37.5, 28.2],
  [-20, -20, 50, 40], [-30, -30, -20, -20], [40, 2, 50, 9], [5, 25, 9, 29], [7, 6, 7, 6],
  [7, 6, 7, 12], [12, 12, 6, 6], [0, 0, 30, 20], [-0.4, -0.4, 3.2, 3.1],
]  # fmt: skip


@pytest.mark.parametrize('threshold', [0.5, 0.2])
@pytest.mark.parametrize('rule', DEFINITIONS)
def test_equals_the_definition(rule, threshold):
  define, exceeds = DEFINITIONS[rule]
  masks = smooth_masks(len(BOXES), size=6)
  pasted = paste_masks(masks, np.array(BOXES), (20, 30), rule=rule, threshold=threshold)
  assert pasted.dtype == bool
  for mask, box, image in zip(masks, BOXES, pasted, strict=True):
    values = define(mask, np.array(box, 'f4'), (20, 30))
    near = np.abs(values - threshold) < 1e-5
    np.testing.assert_array_equal(image[~near], exceeds(values, threshold)[~near])
  assert pasted[[0, 2, 4, 11]].any((1, 2)).all()
  assert not pasted[5:8].any()


def test_equals_torchvision():
  torch = pytest.importorskip('torch')
  heads = pytest.importorskip('torchvision.models.detection.roi_heads')
  size = (120, 200)
  masks, boxes = smooth_masks(300, size=28), random_boxes(300, *size)
  theirs = heads.paste_masks_in_image(torch.tensor(masks[:, None]), torch.tensor(boxes), size)
  theirs = theirs[:, 0].numpy()
  ours = paste_masks(masks, boxes, size)
  # An interpolated 0.5 may be rounded to either side.
  differ = ours != (theirs > 0.5)
  assert differ.sum() < 10
  assert (np.abs(theirs[differ] - 0.5) < 1e-6).all()


def test_equals_detectron2():
  """Whose rule is F.grid_sample at the centers of the pixels."""
  torch = pytest.importorskip('torch')
  height, width = 60, 90
  masks, boxes = smooth_masks(100, size=28), random_boxes(100, height, width)
  x0, y0, x1, y1 = torch.tensor(boxes)[:, :, None].unbind(1)
  y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
  x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
  shape = (100, height, width)
  grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
  sample = torch.nn.functional.grid_sample
  theirs = sample(torch.tensor(masks[:, None]), grid, align_corners=False)[:, 0].numpy()
  differ = paste_masks(masks, boxes, (height, width), rule='detectron2') != (theirs >= 0.5)
  assert differ.sum() < 10
  assert (np.abs(theirs[differ] - 0.5) < 1e-5).all()


@pytest.mark.parametrize('rule', DEFINITIONS)
def test_a_full_mask_fills_its_box(rule):
  pasted = paste_masks(np.ones((1, 28, 28)), np.array([[10, 5, 40, 25]]), (30, 50), rule=rule)
  expected = np.zeros((30, 50), bool)
  expected[5:25, 10:40] = True
  if rule == 'torchvision':
    # Grown by 30 / 28 and cut, the columns are 8 to 41 and the rows 4 to 25. The padded mask is one
    # half where its first cell borders on the padding, at 34 / 30 pixels of 34 and 22 / 30 of 22.
    expected[5:25, 9:41] = True
  np.testing.assert_array_equal(pasted[0], expected)


@pytest.mark.parametrize('rule', DEFINITIONS)
def test_bad_boxes_set_nothing_and_huge_ones_do_not_fail(rule):
  boxes = [[NAN, 1, 5, 5], [1, 1, INF, 5], [-INF, -INF, INF, INF], [1e30, 1e30, 3e38, 3e38]]
  pasted = paste_masks(np.ones((4, 6, 6)), np.array(boxes), (10, 12), rule=rule)
  assert not pasted.any()
  huge = np.array([[-3e38, -3e38, 3e38, 3e38]])
  assert paste_masks(np.ones((1, 6, 6)), huge, (10, 12), rule=rule).all()
  assert paste_masks(np.ones((0, 6, 6)), np.zeros((0, 4)), (10, 12), rule=rule).shape == (0, 10, 12)


@pytest.mark.parametrize('rule', DEFINITIONS)
def test_the_region_is_all_that_is_set(rule, monkeypatch):
  masks, boxes = smooth_masks(20), random_boxes(20, 40, 50)
  whole = paste_masks(masks, boxes, (40, 50), rule=rule)
  # Row by row it is the same.
  monkeypatch.setattr('segjax.ops.paste_masks._BLOCK', 1)
  regions = paste_regions(masks, boxes, (40, 50), rule=rule)
  for ((rows, cols), values), box, expected in zip(regions, boxes, whole, strict=True):
    assert rows.stop - rows.start <= np.ceil((box[3] - box[1]) * 16 / 14) + 2
    assert cols.stop - cols.start <= np.ceil((box[2] - box[0]) * 16 / 14) + 2
    image = np.zeros((40, 50), bool)
    image[rows, cols] = values
    np.testing.assert_array_equal(image, expected)


def test_masks_and_boxes_must_be_as_many():
  with pytest.raises(ValueError):
    paste_masks(np.ones((2, 4, 4)), np.zeros((1, 4)), (5, 5))
