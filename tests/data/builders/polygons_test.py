"""Polygons as people draw them: masks, and what is counted of them."""

import numpy as np
import pytest

from segjax.data.builders import polygons
from segjax.data.formats import coco

SIZE = 10, 12
SQUARE = [[2, 3], [6, 3], [6, 7], [2, 7]]
BOW_TIE = [[2, 3], [6, 7], [6, 3], [2, 7]]


def convert(*corners, **kwargs):
  problems = []
  shapes = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in corners]
  return polygons.to_object(shapes, 3, SIZE, problems, **kwargs), problems


def test_a_square_covers_its_pixels():
  found, problems = convert(SQUARE)
  mask = np.zeros(SIZE, np.uint8)
  mask[3:7, 2:6] = 1
  assert found.label == 3 and found.box == (2, 3, 4, 4) and not problems
  np.testing.assert_array_equal(coco.decode_mask(found.counts, SIZE), mask)


def test_polygons_and_masks_are_united():
  other, _ = convert([[8, 0], [10, 0], [10, 2], [8, 2]])
  found, problems = convert(SQUARE, SQUARE, counts=[other.counts])
  assert coco.decode_mask(found.counts, SIZE).sum() == 16 + 4 and not problems
  assert convert(counts=[other.counts])[0] == other


@pytest.mark.parametrize(
  ('corners', 'kept', 'problem'),
  [
    ([[2, 3], [6, 3]], False, polygons.SHORT),
    ([], False, polygons.SHORT),
    (BOW_TIE, True, polygons.CROSSING),
    ([[2, 3], [20, 3], [20, 7], [2, 7]], True, polygons.BEYOND),
    ([[22, 3], [26, 3], [26, 7], [22, 7]], False, polygons.EMPTY),
    ([[2.1, 3.1], [2.2, 3.1], [2.2, 3.2]], False, polygons.EMPTY),
  ],
)
def test_what_is_wrong_is_told(corners, kept, problem):
  found, problems = convert(corners)
  assert (found is not None) == kept and problems == [problem]


def test_a_short_part_leaves_the_others():
  assert convert(SQUARE, [[1, 1]]) == (convert(SQUARE)[0], [polygons.SHORT])


def test_one_pixel_beyond_the_edge_is_tolerated():
  assert convert([[-1, -1], [13, -1], [13, 11], [-1, 11]])[1] == []


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e9])
def test_absurd_coordinates_are_an_error(value):
  with pytest.raises(ValueError, match='not pairs of finite coordinates'):
    convert([[2, 3], [6, 3], [6, value]])


def crosses_by_search(polygon):
  """Two sides without a common end that meet inside both, by solving for the point."""
  n, found = len(polygon), False
  for i in range(n):
    for j in range(i + 2, n - (i == 0)):
      p, r = polygon[i], polygon[(i + 1) % n] - polygon[i]
      q, s = polygon[j], polygon[(j + 1) % n] - polygon[j]
      matrix = np.stack([r, -s], axis=1)
      if abs(np.linalg.det(matrix)) > 1e-12:
        t, u = np.linalg.solve(matrix, q - p)
        found |= 0 < t < 1 and 0 < u < 1
  return found


def test_crossing_is_found_where_a_search_finds_it():
  rng = np.random.default_rng(0)
  cases = [rng.random((n, 2)) for n in (3, 4, 4, 4, 5, 5, 5, 6, 7) for _ in range(10)]
  found = [polygons.crosses_itself(case) for case in cases]
  assert found == [crosses_by_search(case) for case in cases] and 10 < sum(found) < 80


def test_touching_sides_do_not_cross():
  assert not polygons.crosses_itself(np.array([[0, 0], [4, 0], [4, 4], [0, 0], [-2, 3]], float))
  bridge = [[0, 0], [2, 0], [2, 2], [6, 2], [6, 4], [2, 2], [0, 2]]  # two parts joined by a line
  assert not polygons.crosses_itself(np.array(bridge, float))


def test_long_polygons_are_not_searched():
  star = np.array([[0, 3], [9, 3], [2, 9], [5, 0], [8, 9]], float)
  assert polygons.crosses_itself(star)
  assert not polygons.crosses_itself(np.tile(star, (polygons._LONGEST_CHECKED // 5 + 1, 1)))
