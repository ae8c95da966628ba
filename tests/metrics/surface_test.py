"""Distances between surfaces: all pairs of pixels, by hand, and what is left out."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from shifted_blobs import example

from segjax.metrics.base import add
from segjax.metrics.surface import MEASURES, surface_distances, surface_metrics
from segjax.report.values import better
from segjax.tasks import semantic
from segjax.types import IGNORE_LABEL

NAMES = ['background', 'liver', 'tumor']


def state_of(prediction, label, valid=None, size=None):
  batch = {
    'label': label,
    'valid': np.ones(len(label), bool) if valid is None else np.asarray(valid),
    'size': np.tile(size or label.shape[1:], (len(label), 1)),
  }
  return surface_metrics(NAMES).from_batch({'label': prediction}, batch)


def scores(*args, **kwargs):
  return surface_metrics(NAMES).compute(state_of(*args, **kwargs))


def brute_force(prediction, truth):
  """By all pairs of surface pixels."""

  def pixels(mask):
    h, w = mask.shape
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    inside = lambda i, j: 0 <= i < h and 0 <= j < w and mask[i, j]
    return [(i, j) for i, j in np.argwhere(mask) if not all(inside(i + p, j + q) for p, q in steps)]

  def nearest(of, to):
    return [min(np.hypot(i - p, j - q) for p, q in to) for i, j in of]

  s, t = pixels(prediction), pixels(truth)
  there, back = nearest(s, t), nearest(t, s)
  return np.percentile(there + back, 95), np.mean(there + back)


def test_equals_all_pairs():
  prediction, label = example(images=3)
  expected = []
  for p, t in zip(prediction, label, strict=True):
    known = t != IGNORE_LABEL
    expected.append([brute_force(known & (p == k), t == k) for k in range(3)])
  means = np.mean(expected, 0)
  result = scores(prediction, label)
  for k, name in enumerate(NAMES):
    row = result['surface_per_class'][name]
    np.testing.assert_allclose([row[m] for m in MEASURES], means[k], rtol=1e-12)
    assert (row['images'], row['one_sided']) == (3, 0)
  np.testing.assert_allclose([result[m] for m in MEASURES], means.mean(0), rtol=1e-12)
  assert result['hd95'] > result['assd'] > 0.1


def test_equals_medpy():
  binary = pytest.importorskip('medpy.metric.binary')
  rng = np.random.default_rng(0)
  compared = 0
  for _ in range(100):
    shape = rng.integers(3, 40, 2)
    noise = (ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 3)) for _ in range(2))
    one, other = (x > rng.uniform(-0.1, 0.1) for x in noise)
    if one.any() and other.any():
      expected = binary.hd95(one, other), binary.assd(one, other)
      np.testing.assert_allclose(surface_distances(one, other), expected, rtol=1e-12, atol=1e-12)
      compared += 1
  assert compared > 50


def square(top, left, side=3, size=(12, 15)):
  mask = np.zeros(size, bool)
  mask[top : top + side, left : left + side] = True
  return mask


def test_by_hand():
  """Squares of 8 surface pixels around a center, 4 columns apart.

  To the other square, three columns of the surface are 4, 3 and 2 pixels away; the middle one has
  two pixels.
  """
  hd95, assd = surface_distances(square(4, 2), square(4, 6))
  assert hd95 == pytest.approx(4)
  assert assd == pytest.approx((3 * 4 + 2 * 3 + 3 * 2) / 8)
  assert surface_distances(square(4, 2), square(4, 2)) == (0, 0)


def test_a_few_far_pixels_do_not_count_in_hd95():
  large = square(1, 1, side=10, size=(12, 40))
  outlier = large.copy()
  outlier[6, 39] = True
  hd95, assd = surface_distances(outlier, large)
  assert (hd95, assd) == (0, pytest.approx(29 / (37 + 36)))


def test_the_image_border_is_a_surface():
  """As in MedPy: a mask that fills the image has the border as its surface."""
  full = np.ones((5, 7), bool)
  inner = np.zeros_like(full)
  inner[1:-1, 1:-1] = True
  hd95, assd = surface_distances(inner, full)
  corner = np.sqrt(2)
  assert hd95 == pytest.approx(corner)
  assert assd == pytest.approx((12 + 4 * corner + 16) / (12 + 20))


def test_a_class_in_one_of_both_has_no_distance():
  label = np.zeros((2, 6, 6), int)
  label[0, 2:4, 2:4] = 1
  result = scores(np.zeros_like(label), label)
  row = result['surface_per_class']['liver']
  assert (row['images'], row['one_sided']) == (0, 1)
  assert np.isnan(row['hd95']) and np.isnan(row['assd'])
  assert result['surface_per_class']['tumor']['one_sided'] == 0
  assert result['hd95'] == 0.5 * (scores(np.zeros((1, 6, 6), int), label[:1])['hd95'])
  nothing = np.full((1, 6, 6), IGNORE_LABEL)
  assert np.isnan(scores(np.zeros((1, 6, 6), int), nothing)['hd95'])


def test_padding_and_empty_slots_do_not_count():
  prediction, label = example(images=3)
  pads = [(0, 0), (0, 3), (0, 5)]
  wide = [np.pad(x, pads, constant_values=value) for x, value in ((prediction, 1), (label, 2))]
  whole = scores(prediction[:2], label[:2])
  found = scores(*wide, valid=[True, True, False], size=label.shape[1:])
  assert found == whole


def test_states_of_batches_add_up():
  prediction, label = example(images=3)
  parts = [state_of(prediction[i : i + 1], label[i : i + 1]) for i in range(3)]
  together = surface_metrics(NAMES).compute(add(*parts))
  expected = scores(prediction, label)
  for name in MEASURES:
    assert together[name] == pytest.approx(expected[name], rel=1e-12)


def test_its_numbers_are_known_to_be_better_the_lower():
  assert semantic.MEASURES['surface'] == MEASURES
  assert all(better(name) is min for name in MEASURES)


@pytest.mark.parametrize('shift', [*itertools.product((0, 3), (0, 4))])
def test_distances_do_not_depend_on_where_the_masks_are(shift):
  there = surface_distances(square(0, 0), square(2, 3))
  moved = surface_distances(square(*shift), square(2 + shift[0], 3 + shift[1]))
  assert moved == pytest.approx(there)
