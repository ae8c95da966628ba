import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from segjax.metrics import confusion
from segjax.types import IGNORE_LABEL

NAMES = ('sky', 'road', 'car')


def state(prediction, label, valid=None):
  metric = confusion.confusion_metrics(NAMES)
  prediction, label = np.asarray(prediction, np.int32), np.asarray(label, np.int32)
  valid = np.ones(len(label), bool) if valid is None else np.asarray(valid)
  return jax.jit(metric.from_batch)({'label': prediction}, {'label': label, 'valid': valid})


def example(images=2, seed=0):
  rng = np.random.default_rng(seed)
  label = rng.choice([0, 1, 2, IGNORE_LABEL], (images, 6, 7), p=[0.5, 0.3, 0.1, 0.1])
  return rng.integers(0, 3, label.shape), label


def test_hand_computed():
  #                     truth  0  0  0  0  1  1  1  2  ignored
  label = np.array([[[0, 0, 0, 0, 1, 1, 1, 2, IGNORE_LABEL]]])
  prediction = np.array([[[0, 0, 0, 1, 1, 1, 2, 1, 2]]])
  matrix = state(prediction, label)
  assert matrix.dtype == jnp.int32
  assert matrix.tolist() == [[3, 1, 0], [0, 2, 1], [0, 1, 0]]
  result = confusion.confusion_metrics(NAMES).compute(matrix)
  # Union: 4, 5, 2. Truth + prediction: 7, 7, 2.
  per_class = result.pop('per_class')
  assert per_class['sky'] == pytest.approx({'iou': 3 / 4, 'accuracy': 3 / 4, 'dice': 6 / 7})
  assert per_class['road'] == pytest.approx({'iou': 2 / 5, 'accuracy': 2 / 3, 'dice': 4 / 7})
  assert per_class['car'] == pytest.approx({'iou': 0, 'accuracy': 0, 'dice': 0})
  assert result == pytest.approx(
    {
      'pixel_accuracy': 5 / 8,
      'mean_class_accuracy': (3 / 4 + 2 / 3 + 0) / 3,
      'mean_iou': (3 / 4 + 2 / 5 + 0) / 3,
      'frequency_weighted_iou': (4 * 3 / 4 + 3 * 2 / 5 + 0) / 8,
      'mean_dice': (6 / 7 + 4 / 7 + 0) / 3,
    }
  )


def test_equals_scikit_learn():
  prediction, label = example()
  matrix = state(prediction, label)
  keep = label != IGNORE_LABEL
  truth, predicted = label[keep], prediction[keep]
  np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(truth, predicted))
  result = confusion.scores(matrix, NAMES)
  iou = sklearn_metrics.jaccard_score(truth, predicted, average=None)
  dice = sklearn_metrics.f1_score(truth, predicted, average=None)
  accuracy = sklearn_metrics.recall_score(truth, predicted, average=None)
  for i, name in enumerate(NAMES):
    expected = {'iou': iou[i], 'accuracy': accuracy[i], 'dice': dice[i]}
    assert result['per_class'][name] == pytest.approx(expected)
  assert result['pixel_accuracy'] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
  assert result['mean_class_accuracy'] == pytest.approx(accuracy.mean())
  assert result['mean_iou'] == pytest.approx(iou.mean())
  assert result['mean_dice'] == pytest.approx(dice.mean())
  assert result['frequency_weighted_iou'] == pytest.approx(
    sklearn_metrics.jaccard_score(truth, predicted, average='weighted')
  )


def test_more_classes_than_a_byte_holds():
  label = np.array([[[0, 254, 255, 256, 299, IGNORE_LABEL, 255]]], np.int32)
  prediction = np.array([[[0, 254, 255, 299, 299, 255, 1]]], np.int32)
  matrix = np.asarray(confusion.confusion_matrix(prediction, label, 300))
  pairs = [(0, 0), (254, 254), (255, 1), (255, 255), (256, 299), (299, 299)]
  assert list(zip(*np.nonzero(matrix), strict=True)) == pairs
  assert matrix.sum() == 6
  per_class = confusion.scores(matrix, [str(k) for k in range(300)])['per_class']
  assert per_class['255'] == {'iou': 0.5, 'accuracy': 0.5, 'dice': pytest.approx(2 / 3)}


def test_images_that_only_fill_the_batch_are_not_counted():
  prediction, label = example(images=3)
  matrix = state(prediction, label, valid=[True, False, True])
  np.testing.assert_array_equal(matrix, state(prediction[[0, 2]], label[[0, 2]]))
  np.testing.assert_array_equal(
    confusion.confusion_matrix(prediction, label, 3), state(prediction, label)
  )


def test_a_class_that_is_nowhere_is_left_out_of_the_means():
  # No sky in the truth but predicted once; no car in either.
  matrix = np.array([[0, 0, 0], [1, 3, 0], [0, 0, 0]])
  result = confusion.scores(matrix, NAMES)
  assert result['mean_iou'] == pytest.approx((0 + 3 / 4) / 2)
  assert result['mean_dice'] == pytest.approx((0 + 6 / 7) / 2)
  assert result['mean_class_accuracy'] == pytest.approx(3 / 4)
  assert result['frequency_weighted_iou'] == pytest.approx(3 / 4)
  assert np.isnan(result['per_class']['car']['iou'])
  assert np.isnan(result['per_class']['sky']['accuracy'])


def test_nothing_counted_is_nan():
  result = confusion.scores(np.zeros((3, 3), np.int32), NAMES)
  assert all(np.isnan(v) for k, v in result.items() if k != 'per_class')


def test_merged_counts_stay_exact_past_two_to_the_31():
  metric = confusion.confusion_metrics(NAMES)
  big = jnp.asarray(np.diag([2**31 - 1, 2**24 + 1, 0]), jnp.int32)
  total = metric.merge(metric.merge(big, big), big)
  assert total.dtype == np.int64
  assert np.diagonal(total).tolist() == [3 * (2**31 - 1), 3 * (2**24 + 1), 0]
  # A single wrong pixel among 2^31 shows; one state alone, still in int32, is read right too.
  wrong = metric.merge(total, np.array([[0, 1, 0], [0] * 3, [0] * 3], np.int32))
  assert metric.compute(wrong)['pixel_accuracy'] < 1
  assert metric.compute(big)['mean_dice'] == 1


def test_counts_more_pixels_than_float32_holds():
  side = 4097  # 4097^2 = 2^24 + 8193 pixels in one class.
  zeros = np.zeros((1, side, side), np.uint8)
  matrix = confusion.confusion_matrix(zeros, zeros, 2)
  assert matrix.tolist() == [[side**2, 0], [0, 0]]


def test_merging_batches_equals_one_batch():
  prediction, label = example(images=5)
  metric = confusion.confusion_metrics(NAMES)
  merged = metric.merge(state(prediction[:2], label[:2]), state(prediction[2:], label[2:]))
  np.testing.assert_array_equal(merged, state(prediction, label))


def test_the_score_of_an_image_is_its_own_mean_iou():
  prediction, label = example(images=4)
  label[2] = IGNORE_LABEL
  batch = {'label': label, 'valid': np.array([True, True, True, False])}
  metric = confusion.confusion_metrics(NAMES)
  scored = jax.jit(lambda p, b: metric.image_scores(p, b, None))({'label': prediction}, batch)
  own = [metric.compute(state(prediction[i : i + 1], label[i : i + 1]))['mean_iou'] for i in (0, 1)]
  np.testing.assert_allclose(scored, [*own, np.nan, np.nan], rtol=1e-6)
  assert metric.image_measure == 'mean_iou'


def test_the_confusion_matrix_is_that_of_the_state():
  prediction, label = example()
  known = label != IGNORE_LABEL
  expected = sklearn_metrics.confusion_matrix(label[known], prediction[known], labels=range(3))
  found = confusion.confusion_metrics(NAMES).confusion(state(prediction, label))
  np.testing.assert_array_equal(found, expected)
