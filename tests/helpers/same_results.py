"""Compares two results of an image, up to rounding."""

import numpy as np


def check_same(found, expected):
  """`segjax.Result`s of two programs for one network."""
  if expected.label is not None:
    assert found.label.dtype == expected.label.dtype
    assert (found.label == expected.label).mean() >= 0.999
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-4)
  if expected.boxes is not None:
    assert len(expected.scores) and np.array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.masks.shape == expected.masks.shape
    assert all(map(_overlap, found.masks, expected.masks))
  if expected.segments is not None:
    assert (found.segments == expected.segments).mean() >= 0.999
    assert len(found.segments_info) == len(expected.segments_info) > 0
    for a, b in zip(found.segments_info, expected.segments_info, strict=True):
      assert (a['id'], a['category'], a['isthing']) == (b['id'], b['category'], b['isthing'])
      assert _overlap(found.segments == a['id'], expected.segments == b['id'])


def _overlap(mask, other):
  """Whether two masks are the same up to few pixels of their edges."""
  return (mask & other).sum() >= 0.98 * (mask | other).sum()
