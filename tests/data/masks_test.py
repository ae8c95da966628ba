"""Masks in windows are the masks, whatever is done to them."""

import cv2
import numpy as np
import pytest

from segjax.data import masks as mask_lib
from segjax.data.masks import Masks, Window


def dense(size=(37, 53), count=9, seed=0):
  """Blobs: one of the whole image, one of a pixel, an empty one, one in each corner, and others."""
  rng = np.random.default_rng(seed)
  found = np.zeros((count, *size), np.uint8)
  for mask in found:
    y, x = (int(rng.integers(n)) for n in size)
    part = mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)]
    part[...] = rng.random(part.shape) < 0.6
  found[0], found[1] = 1, 0
  found[2] = 0
  found[2, 5, 7] = 1
  found[3, :4, :3] = found[4, -5:, -2:] = 1
  return found


def test_they_are_the_array():
  array = dense()
  masks = Masks.of(array)
  assert masks.shape == array.shape and len(masks) == len(array)
  assert masks.dtype == array.dtype == np.asarray(masks).dtype
  np.testing.assert_array_equal(masks, array)
  np.testing.assert_array_equal(list(masks), array)
  np.testing.assert_array_equal(masks[2:5, ::-1, 7], array[2:5, ::-1, 7])
  np.testing.assert_array_equal(np.asarray(masks, bool), array > 0)
  np.testing.assert_array_equal(masks.take(np.array([4, 0, 4])), array[[4, 0, 4]])
  assert Masks.of(masks) is masks
  with pytest.raises(ValueError, match='cannot be avoided'):
    np.array(masks, copy=False)
  with pytest.raises(ValueError, match='axis 0, not 1'):
    masks.take([0], 1)


def test_windows_are_tight():
  array = dense()
  masks = Masks.of(array)
  for window, mask in zip(masks.windows, array, strict=True):
    assert window.pixels.sum() == mask.sum()
    if not mask.any():
      assert window.pixels.size == 0
      continue
    for edge in window.pixels[[0, -1]], window.pixels.T[[0, -1]]:
      assert edge.any(1).all()
  np.testing.assert_array_equal(masks.areas, array.sum((1, 2)))
  np.testing.assert_array_equal(masks.union(), array.any(0))
  np.testing.assert_array_equal(Masks.of(array[3:]).union(), array[3:].any(0))
  rows, columns = np.nonzero(array[5])
  expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
  np.testing.assert_array_equal(masks.boxes[5], expected)
  assert not masks.boxes[1].any()


def test_none():
  masks = Masks.of(np.zeros((0, 5, 6), np.uint8))
  assert masks.shape == (0, 5, 6) and masks.boxes.shape == (0, 4) and masks.areas.shape == (0,)
  assert np.asarray(masks).shape == (0, 5, 6) and not masks.union().any()


def test_both():
  first, second = dense(seed=1), dense(seed=2)
  joined = mask_lib.concatenate([Masks.of(first), Masks.of(second)])
  np.testing.assert_array_equal(joined, np.concatenate([first, second]))


@pytest.mark.parametrize('size', [(37, 53), (36, 56), (8, 8), (3, 1)])
def test_bits(size):
  array = np.random.default_rng(3).integers(0, 2, (4, *size)).astype(np.uint8)
  array[1, :, : size[1] // 2] = 0
  array[2] = 0
  out = np.zeros((6, size[0] + 2, -(-size[1] // 8) + 1), np.uint8)
  Masks.of(array).pack(out)
  packed = np.packbits(array, axis=-1)
  np.testing.assert_array_equal(out[:4, : size[0], : packed.shape[2]], packed)
  assert np.unpackbits(out).sum() == array.sum()


@pytest.mark.parametrize('size', [(37, 53), (80, 31), (9, 120), (1, 1), (74, 106)])
def test_selecting_the_nearest_places_is_resizing(size):
  array = dense()
  rows, columns = map(mask_lib.nearest_places, array.shape[1:], size)
  resized = Masks.of(array).map(lambda w: mask_lib.select(w, rows, columns), size=size)
  for found, mask in zip(resized, array, strict=True):
    expected = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('at', [range(9), range(8, -1, -1), range(-3, 4), range(11, 5, -1)])
def test_places_past_the_ends(at):
  index = np.arange(10, 19)
  found = mask_lib.places(index, at)
  assert found.tolist() == [index[i] if 0 <= i < 9 else -1 for i in at]


def test_flipping_cutting_and_turning():
  array = dense()
  masks = Masks.of(array)
  rows = mask_lib.places(np.arange(37), range(30, -6, -1))
  columns = mask_lib.places(np.arange(53), range(10, 60))
  moved = masks.map(lambda w: mask_lib.select(w, rows, columns), size=(36, 50))
  expected = np.zeros((9, 36, 50), np.uint8)
  expected[:, :31, :43] = array[:, 30::-1, 10:]
  np.testing.assert_array_equal(moved, expected)
  turned = Masks((50, 36), moved.map(mask_lib.transpose).windows)
  np.testing.assert_array_equal(turned, expected.swapaxes(1, 2))


def test_a_window_without_pixels_is_empty():
  (window,) = Masks((5, 6), [Window(2, 3, np.zeros((2, 2), np.uint8))]).windows
  assert window.pixels.size == 0
