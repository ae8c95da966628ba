import numpy as np
import pytest
from scipy import ndimage, optimize
from shifted_blobs import example

from segjax.metrics import boundary
from segjax.metrics.boundary import boundary_f1, boundary_metrics, contour, spread
from segjax.tasks.semantic import MEASURES, METRICS
from segjax.types import IGNORE_LABEL

NAMES = ['sky', 'road', 'car']


def evaluate(prediction, label, valid=None, size=None, **kwargs):
  metric = boundary_metrics(NAMES, **kwargs)
  valid = np.ones(len(label), bool) if valid is None else np.asarray(valid)
  size = np.tile(size or label.shape[1:], (len(label), 1))
  return metric.from_batch({'label': prediction}, {'label': label, 'valid': valid, 'size': size})


def scores(prediction, label, **kwargs):
  return boundary_metrics(NAMES, **kwargs).compute(evaluate(prediction, label, **kwargs))


def brute_force(prediction, label, classes, radius):
  """BF of each class by all pairs of contour pixels; None without a contour in the truth."""
  h, w = label.shape

  def pixels(mask):
    return [
      (i, j)
      for i, j in np.argwhere(mask)
      if any(
        0 <= i + p < h and 0 <= j + q < w and not mask[i + p, j + q]
        for p, q in ((0, 1), (1, 0), (0, -1), (-1, 0))
      )
    ]

  def part(of, near):
    return np.mean([any((i - p) ** 2 + (j - q) ** 2 <= radius**2 for p, q in near) for i, j in of])

  result = []
  for k in range(classes):
    truth = pixels(label == k)
    predicted = pixels((prediction == k) & (label != IGNORE_LABEL))
    if not truth:
      result.append(None)
    elif not predicted:
      result.append(0.0)
    else:
      p, r = part(predicted, truth), part(truth, predicted)
      result.append(2 * p * r / (p + r) if p + r else 0.0)
  return result


def inner(mask):
  """The pixels of a mask with a 4-neighbor in the image that is outside it."""
  outside = np.pad(~mask, 1)
  return mask & (outside[:-2, 1:-1] | outside[2:, 1:-1] | outside[1:-1, :-2] | outside[1:-1, 2:])


@pytest.mark.parametrize('radius', [0.5, 1.0, 1.5, 3.0])
def test_equals_brute_force(radius):
  prediction, label = example()
  tolerance = radius / np.hypot(*label.shape[1:])
  expected = [brute_force(p, t, 3, radius) for p, t in zip(prediction, label, strict=True)]
  for p, t, e in zip(prediction, label, expected, strict=True):
    f1, of_truth, _ = boundary_f1(p, t, 3, tolerance)
    np.testing.assert_allclose(f1[of_truth], [x for x in e if x is not None], rtol=1e-12)
    assert of_truth.tolist() == [x is not None for x in e]
  result = scores(prediction, label, tolerance=tolerance)
  means = [np.mean([x for x in e if x is not None]) for e in expected]
  assert result['boundary_f1'] == pytest.approx(np.mean(means))
  assert 0.1 < result['boundary_f1'] < 1
  for k, name in enumerate(NAMES):
    values = [e[k] for e in expected if e[k] is not None]
    assert result['boundary_per_class'][name]['boundary_f1'] == pytest.approx(np.mean(values))


def columns(*names):
  """A label of 4 equal rows."""
  return np.tile([NAMES.index(n) for n in names], (4, 1))[None]


def test_hand_computed():
  # 4 x 7, diagonal sqrt(65); a tolerance of one pixel. The road's contour has two columns.
  label = columns('sky', 'sky', 'road', 'road', 'road', 'car', 'car')
  prediction = columns('sky', 'sky', 'road', 'sky', 'sky', 'sky', 'sky')
  result = scores(prediction, label, tolerance=1 / 65**0.5)
  # Sky: predicted columns 1 and 3, true column 1. P = 1/2, R = 1.
  # Road: predicted column 2, true 2 and 4: P = 1, R = 1/2. Car: not predicted.
  values = [v['boundary_f1'] for v in result['boundary_per_class'].values()]
  assert values == pytest.approx([2 / 3, 2 / 3, 0])
  assert result['boundary_f1'] == pytest.approx(4 / 9)


@pytest.mark.parametrize('offset, expected', [(4, 1), (5, 0)])
def test_the_tolerance_is_a_part_of_the_diagonal(offset, expected):
  # The paper's 360 x 480: 0.75 % of a diagonal of 600 is 4.5 pixels.
  label, prediction = np.zeros((2, 1, 360, 480), int)
  label[..., 200:], prediction[..., 200 + offset :] = 1, 1
  assert scores(prediction, label)['boundary_f1'] == expected


def test_a_distance_of_exactly_the_tolerance_matches():
  # 1200 x 1600: 0.0075 · 2000 = 15; and the diagonal steps 9, 12 of the same length.
  label, prediction = np.zeros((2, 1, 1200, 1600), int)
  label[0, 500, 500], prediction[0, 509, 512] = 1, 1
  assert boundary_f1(prediction[0], label[0], 2, 0.0075)[0][1] == 1
  prediction[0] = np.roll(prediction[0], 1, axis=0)
  assert boundary_f1(prediction[0], label[0], 2, 0.0075)[0][1] == 0


def test_contour_hand_computed():
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
  # The image border and diagonal neighbors do not form contours.
  assert (contour(mask) & mask).tolist() == np.array(
    [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]], bool
  ).tolist()
  assert not contour(np.ones((3, 3), bool)).any()


@pytest.mark.parametrize('reach', [0, 1, 2, 20, 25, 90_000])
def test_spread_reaches_exactly_the_distance(reach):
  """Of two classes in one set, against an exact distance transform of each."""
  rng = np.random.default_rng(0)
  masks = rng.random((2, 30, 40)) < 0.01
  result = spread((masks[0] + 2 * masks[1]).astype(np.uint8), reach)
  for k, mask in enumerate(masks):
    squared = np.rint(ndimage.distance_transform_edt(~mask) ** 2)
    np.testing.assert_array_equal(result >> k & 1, squared <= reach)


def test_a_perfect_prediction_is_1_and_what_is_predicted_on_ignored_pixels_does_not_matter():
  prediction, label = example()
  rng = np.random.default_rng(1)
  perfect = np.where(label == IGNORE_LABEL, rng.integers(0, 3, label.shape), label)
  assert scores(perfect, label)['boundary_f1'] == 1
  noisy = np.where(label == IGNORE_LABEL, rng.integers(0, 3, label.shape), prediction)
  assert scores(noisy, label) == scores(prediction, label)


def test_which_classes_count():
  label = columns('sky', 'sky', 'road', 'road')
  prediction = columns('sky', 'sky', 'road', 'car')
  # The road's contour is in column 2 in both, and has column 2's right side twice.
  assert scores(prediction, label)['boundary_f1'] == 1
  either = scores(prediction, label, present='either')
  assert either['boundary_f1_either'] == pytest.approx(2 / 3)
  assert either['boundary_per_class_either']['car']['boundary_f1'] == 0
  assert np.isnan(scores(prediction, label)['boundary_per_class']['car']['boundary_f1'])


@pytest.mark.parametrize('radius', [0.5, 1.0, 2.5, 3.0])
def test_one_to_one_equals_an_assignment(radius):
  """The matching with most pairs is an assignment of the least cost."""
  (prediction, *_), (label, *_) = example()
  f1, *_ = boundary_f1(prediction, label, 3, radius / np.hypot(*label.shape), 'one_to_one')
  loose, *_ = boundary_f1(prediction, label, 3, radius / np.hypot(*label.shape))
  known = label != IGNORE_LABEL
  for k in range(3):
    a, b = (np.argwhere(inner(m)) for m in (label == k, (prediction == k) & known))
    near = ((a[:, None] - b) ** 2).sum(-1) <= radius**2
    rows, columns = optimize.linear_sum_assignment(near, maximize=True)
    pairs = near[rows, columns].sum()
    assert f1[k] == pytest.approx(2 * pairs / (len(a) + len(b)))
  assert (f1 <= loose).all()
  assert (f1 < loose).any() == (radius >= 1)  # within less than a pixel there is one at most


def test_one_to_one_in_blocks_is_the_same(monkeypatch):
  (prediction, *_), (label, *_) = example()
  whole, *_ = boundary_f1(prediction, label, 3, 0.08, 'one_to_one')
  monkeypatch.setattr(boundary, '_BLOCK', 7)
  blocks, *_ = boundary_f1(prediction, label, 3, 0.08, 'one_to_one')
  np.testing.assert_array_equal(blocks, whole)
  assert (whole > 0).all()


def test_one_to_one_counts_a_contour_that_is_drawn_twice_once():
  label = np.zeros((9, 9), int)
  label[4] = 1
  prediction = label.copy()
  prediction[6] = 1
  near, *_ = boundary_f1(prediction, label, 2, 3 / np.hypot(9, 9))
  once, *_ = boundary_f1(prediction, label, 2, 3 / np.hypot(9, 9), 'one_to_one')
  assert near[1] == 1
  assert once[1] == pytest.approx(2 * 9 / (9 + 18))


def test_one_to_one_of_a_class_without_contour_is_zero():
  label = columns('sky', 'sky', 'road', 'road')
  f1, of_truth, _ = boundary_f1(label[0] * 0, label[0], 3, 0.1, 'one_to_one')
  assert (f1.tolist(), of_truth.tolist()) == ([0, 0, 0], [True, True, False])


def test_the_mean_is_over_the_classes_of_an_image_first():
  two = columns('sky', 'sky', 'road', 'road')
  three = columns('sky', 'road', 'car', 'car')
  label = np.concatenate([two, three])
  prediction = np.concatenate([two, columns('sky', 'sky', 'sky', 'sky')])
  result = scores(prediction, label)
  assert result['boundary_f1'] == pytest.approx((1 + 0) / 2)
  assert result['boundary_per_class']['sky']['boundary_f1'] == pytest.approx(1 / 2)
  assert result['boundary_per_class']['car']['boundary_f1'] == 0


def test_an_image_without_a_contour_is_left_out():
  flat = columns('sky', 'sky', 'sky', 'sky')
  label = columns('sky', 'sky', 'road', 'road')
  both = scores(np.concatenate([label, label]), np.concatenate([flat, label]))
  assert both['boundary_f1'] == 1
  for empty in (flat, np.full_like(flat, IGNORE_LABEL)):
    result = scores(label, empty)
    assert np.isnan(result['boundary_f1'])
    assert all(np.isnan(v['boundary_f1']) for v in result['boundary_per_class'].values())


def test_states_add_and_padding_leaves_no_trace():
  prediction, label = example(images=3)
  metric = boundary_metrics(NAMES)
  parts = [
    evaluate(prediction[:2], label[:2]),
    evaluate(prediction[1:], label[1:], valid=[False, True]),
  ]
  merged = metric.compute(metric.merge(*parts))
  whole = scores(prediction, label)
  assert merged['boundary_f1'] == pytest.approx(whole['boundary_f1'])
  assert merged['boundary_per_class'] == {
    k: pytest.approx(v) for k, v in whole['boundary_per_class'].items()
  }


def pad(array, value):
  return np.pad(array, [(0, 0), (0, 13), (0, 38)], constant_values=value)


def test_padding_of_an_image_does_not_matter():
  """Its line is no contour, and it does not lengthen the diagonal of the tolerance."""
  prediction, label = example()
  flat = columns('sky', 'sky', 'sky', 'sky')
  for truth, guess, tolerance in ((label, prediction, 0.05), (flat, flat, 0.0075)):
    padded = evaluate(
      pad(guess, 1), pad(truth, IGNORE_LABEL), size=truth.shape[1:], tolerance=tolerance
    )
    alone = evaluate(guess, truth, tolerance=tolerance)
    for key, value in alone.items():
      np.testing.assert_array_equal(padded[key], value, err_msg=key)
  assert alone['images'] == 0, 'an image of one class has no contour'


@pytest.mark.parametrize('name', [name for name in METRICS if name.startswith('boundary')])
def test_the_task_knows_it_by_name(name):
  metric, (prediction, label) = METRICS[name](NAMES), example()
  assert metric.name == name
  assert not metric.device
  size = np.tile(label.shape[1:], (len(label), 1))
  batch = {'label': label, 'valid': np.ones(len(label), bool), 'size': size}
  found = metric.compute(metric.from_batch({'label': prediction}, batch))
  table = 'boundary_per_class' + name.removeprefix('boundary')
  assert found.keys() == {*MEASURES[name], table}


def test_more_classes_than_a_byte_holds():
  """Classes of large numbers score what the same classes with small ones do."""
  prediction, label = example()
  far = np.array([254, 255, 299])
  moved = np.where(label == IGNORE_LABEL, IGNORE_LABEL, far[label % 3])
  for i in range(len(label)):
    f1, of_truth, of_prediction = boundary_f1(far[prediction[i]], moved[i], 300, 0.05)
    for many, few in zip(
      (f1, of_truth, of_prediction), boundary_f1(prediction[i], label[i], 3, 0.05), strict=True
    ):
      np.testing.assert_array_equal(many[far], few)
      assert many.sum() == few.sum()
