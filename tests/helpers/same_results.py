"""Compares two results of an image, up to rounding."""

import numpy as np


def check_same(found, expected):
  """`segjax.Result`s of two programs for one network, which may be hardly trained."""
  if expected.label is not None:
    assert found.label.dtype == expected.label.dtype
    assert (found.label == expected.label).mean() >= 0.999
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-4)
  if expected.boxes is not None:
    assert len(expected.scores) and np.array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert (found.masks == expected.masks).mean() >= 0.999
  if expected.segments is not None:
    check_same_segments(found, expected)


def check_same_segments(found, expected):
  """But for one segment, which one of the two may have dropped at a threshold."""
  ours, theirs = (
    {info['id']: (info['category'], info['isthing']) for info in result.segments_info}
    for result in (found, expected)
  )
  alone = list(ours.keys() ^ theirs.keys())
  assert theirs and len(alone) <= 1
  assert all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())
  rest = ~np.isin(found.segments, alone) & ~np.isin(expected.segments, alone)
  assert rest.any() and (found.segments == expected.segments)[rest].mean() >= 0.999
