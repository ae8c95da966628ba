import cv2
import numpy as np
import pytest
from scipy import ndimage

from segjax.data import weight_map
from segjax.data.weight_map import border_weight_map
from segjax.types import IGNORE_LABEL


def by_definition(label, w0, sigma):
  """U-Net's eq. 2 with w_c = 1, from the distance of every pixel to every border pixel."""
  component, cells = ndimage.label(label == 1)
  inner = ndimage.binary_erosion(component > 0, border_value=1)
  yx = np.stack(np.mgrid[: label.shape[0], : label.shape[1]], -1)
  distances = [np.full(label.shape, np.inf)] * 2
  for cell in range(1, cells + 1):
    border = np.argwhere((component == cell) & ~inner)
    distances.append(np.linalg.norm(yx[:, :, None] - border, axis=-1).min(-1))
  d1, d2 = np.sort(distances, axis=0)[:2]
  return 1 + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


def blobs(size, seed, spread):
  noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), spread)
  return (noise > 0).astype(np.uint8)


def cells(size, count):
  """Voronoi cells with membranes about four pixels wide, like an ISBI label."""
  rng = np.random.default_rng(0)
  seeds = np.full((size, size), 255, np.uint8)
  seeds[tuple(rng.integers(0, size, (2, count)))] = 0
  _, nearest = cv2.distanceTransformWithLabels(
    seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
  )
  edges = ndimage.maximum_filter(nearest, 5) != ndimage.minimum_filter(nearest, 5)
  return (~edges).astype(np.uint8)


@pytest.mark.parametrize('sigma, spread', [(1.0, 2), (5.0, 2), (2.0, 1)])
def test_equals_brute_force(sigma, spread):
  label = blobs((40, 53), seed=1, spread=spread)
  assert ndimage.label(label)[1] > 5
  ours = border_weight_map(label, w0=10, sigma=sigma)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, by_definition(label, 10, sigma), rtol=1e-5)


def test_between_two_cells():
  # Columns: cell, cell, three background columns, cell, cell.
  label = np.array([[1, 1, 0, 0, 0, 1, 1]] * 9, np.uint8)
  weights = border_weight_map(label, w0=10, sigma=5)[4]
  # d1 + d2 is 4 in the gap and at the borders, and a step farther on each side inside the cells.
  gap, inside = 1 + 10 * np.exp(-16 / 50), 1 + 10 * np.exp(-36 / 50)
  np.testing.assert_allclose(weights, [inside, *[gap] * 5, inside], rtol=1e-5)


def test_background_only():
  label = cells(64, 8)
  everywhere = border_weight_map(label)
  outside = border_weight_map(label, background_only=True)
  np.testing.assert_array_equal(outside, np.where(label == 1, 1, everywhere))
  assert everywhere[label == 1].max() > 2


def test_cells_that_touch_at_a_corner_are_two():
  label = np.array([[1, 0], [0, 1]], np.uint8)
  expected = 1 + 10 * np.exp(-np.array([[2, 4], [4, 2]]) / 50)  # sqrt(2)^2, (1 + 1)^2.
  np.testing.assert_allclose(border_weight_map(label), expected, rtol=1e-5)


@pytest.mark.parametrize('cell', [np.s_[:0], np.s_[2:4, 2:4], np.s_[:]])
def test_fewer_than_two_cells(cell):
  label = np.zeros((6, 7), np.uint8)
  label[cell] = 1
  np.testing.assert_array_equal(border_weight_map(label), 1)


def test_class_weights_and_ignored_pixels():
  label = np.array([[0, 1, IGNORE_LABEL, 2]], np.uint16)
  weights = border_weight_map(label, class_weights=[0.5, 2, 3])
  np.testing.assert_allclose(weights, [[0.5, 2, 0, 3]])


def test_another_foreground():
  label = blobs((20, 20), seed=0, spread=1)
  np.testing.assert_array_equal(
    border_weight_map(1 - label, foreground=0), border_weight_map(label)
  )


def test_the_work_of_a_cell_is_in_its_neighborhood(monkeypatch):
  label = cells(512, 150)
  assert 100 < ndimage.label(label)[1] < 200
  pixels, transform = [], cv2.distanceTransform
  count = lambda outside, *args: pixels.append(outside.size) or transform(outside, *args)
  monkeypatch.setattr(weight_map.cv2, 'distanceTransform', count)
  border_weight_map(label)
  assert len(pixels) > 100
  assert np.mean(pixels) < label.size / 10
