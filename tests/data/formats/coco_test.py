"""COCO's masks: run lengths against their definition and against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as mask_lib

from segjax.data.formats import coco

# A class of pycocotools that predates NumPy 2.
OLD_ARRAY = 'ignore:__array__ implementation:DeprecationWarning'


def random_mask(seed, height=9, width=11):
  """Blobs: runs of many lengths, some of them longer than five bits hold, some shrinking."""
  rng = np.random.default_rng(seed)
  mask = rng.random((height, width)) < rng.random((height, 1)) * rng.random((1, width))
  return np.kron(mask, np.ones((1 + seed, 2), bool))


def encode(mask):
  return mask_lib.encode(np.asfortranarray(mask, np.uint8))['counts']


def column_runs(mask):
  """Run lengths by definition: down the columns, zeros first."""
  runs, value = [0], 0
  for pixel in mask.T.ravel().tolist():
    if pixel != value:
      runs, value = [*runs, 0], pixel
    runs[-1] += 1
  return runs


@pytest.mark.filterwarnings(OLD_ARRAY)
@pytest.mark.parametrize('seed', range(6))
def test_run_lengths_and_masks(seed):
  mask = random_mask(seed)
  counts = encode(mask)
  assert coco.run_lengths(counts) == coco.run_lengths(counts.decode()) == column_runs(mask)
  decoded = coco.decode_mask(counts, mask.shape)
  assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous
  np.testing.assert_array_equal(decoded, mask)
  np.testing.assert_array_equal(
    mask_lib.decode({'size': list(mask.shape), 'counts': counts}), decoded
  )


@pytest.mark.parametrize('value', [0, 1])
def test_empty_and_full_mask(value):
  mask = np.full((3, 50), value, np.uint8)
  counts = encode(mask)
  assert coco.run_lengths(counts) == ([0, 150] if value else [150])
  np.testing.assert_array_equal(coco.decode_mask(counts, (3, 50)), mask)


@pytest.mark.filterwarnings(OLD_ARRAY)
@pytest.mark.parametrize('runs', [[2, 3, 0, 4, 1], [0, 4, 6], [7, 0, 3], [1, 1, 7, 1], [10]])
def test_windows_of_any_runs(runs):
  """Runs that touch, that cross columns, that are empty."""
  counts = mask_lib.frPyObjects({'size': [5, 2], 'counts': runs}, 5, 2)['counts']
  y, x, pixels = coco.decode_window(counts, (5, 2))
  ones = [i % 2 for i, run in enumerate(runs) for _ in range(run)]
  mask = np.array(ones, np.uint8).reshape(2, 5).T
  found = np.zeros((5, 2), np.uint8)
  found[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
  np.testing.assert_array_equal(found, mask)
  np.testing.assert_array_equal(coco.decode_mask(counts, (5, 2)), mask)
  with pytest.raises(ValueError, match='corrupt run lengths'):
    coco.decode_window(counts, (5, 3))


@pytest.mark.parametrize('counts', ['=2405o', '=\x01', '=\x80', '=é', 'P' * 13 + '0'])
def test_corrupt_run_lengths(counts):
  with pytest.raises(ValueError, match='corrupt run lengths'):
    coco.run_lengths(counts)


@pytest.mark.parametrize('kind', ['list', 'str', 'bytes'])
def test_segmentation_of_run_lengths(kind):
  mask = random_mask(3)
  counts = encode(mask)
  given = {'list': column_runs(mask), 'str': counts.decode(), 'bytes': counts}[kind]
  segmentation = {'size': list(mask.shape), 'counts': given}
  assert coco.segmentation_counts(segmentation, mask.shape) == counts.decode()


def test_segmentation_of_polygons_is_their_union():
  whole = [[2, 1, 8, 1, 8, 6, 2, 6], [6, 4, 10, 4, 10, 8, 6, 8]]
  mask = np.zeros((9, 12), np.uint8)
  mask[1:6, 2:8] = mask[4:8, 6:10] = 1
  assert coco.segmentation_counts(whole, (9, 12)) == encode(mask).decode()


BAD = {
  'short': ({'size': [9, 12], 'counts': [100, 7]}, 'run lengths of 107 pixels for 9x12'),
  'long': ({'size': [9, 12], 'counts': [100, 7, 2]}, 'run lengths of 109 pixels'),
  'cut string': ({'size': [9, 12], 'counts': '=2'}, 'run lengths of 15 pixels'),
  'corrupt string': ({'size': [9, 12], 'counts': '=2405o'}, 'corrupt run lengths'),
  'negative': ({'size': [9, 12], 'counts': [110, -2]}, 'corrupt run lengths'),
  'fraction': ({'size': [9, 12], 'counts': [107.5, 0.5]}, 'corrupt run lengths'),
  'nothing': ({'size': [9, 12], 'counts': None}, 'corrupt run lengths'),
  'transposed': ({'size': [12, 9], 'counts': [108]}, r'size \[12, 9\], not \[9, 12\]'),
  'no counts': ({'size': [9, 12]}, 'neither polygons nor run lengths'),
  'no mask': (None, 'neither polygons nor run lengths'),
  'nested': ([[[1, 1], [2, 2], [3, 3]]], 'not pairs of finite coordinates'),
  'words': ([['a'] * 6], 'not pairs of finite coordinates'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_segmentation(case):
  segmentation, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    coco.segmentation_counts(segmentation, (9, 12))


@pytest.mark.parametrize('shape', [(5, 9), (1, 1)])
def test_object_of_a_mask(shape):
  mask = np.zeros(shape, bool)
  mask[-3:, -1] = mask[-1, -4:] = True  # an L in the last corner
  thing = coco.mask_object(mask, id=3, label=0, category_id=9, iscrowd=True)
  rows, columns = np.nonzero(mask)
  x, y = columns.min(), rows.min()
  assert thing['bbox'].tolist() == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
  assert thing['area'] == mask.sum()
  assert (thing['id'], thing['label'], thing['category_id'], thing['iscrowd']) == (3, 0, 9, True)
  np.testing.assert_array_equal(coco.decode_mask(thing['segmentation'], shape), mask)
