import itertools

import cv2
import numpy as np
import pytest
from real_data import real_data
from scipy import ndimage, stats
from skimage.metrics import adapted_rand_error, variation_of_information

from segjax.metrics import rand
from segjax.types import IGNORE_LABEL


def cells(size=(24, 30), seed=0, spread=1.5):
  noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), spread)
  return noise > -0.02


def example(images=2):
  """Labels, and noisy probabilities of their inside."""
  rng = np.random.default_rng(3)
  label = np.stack([cells(seed=i) for i in range(images)]).astype(np.int32)
  inside = np.clip(label * 0.5 + 0.25 + 0.2 * rng.normal(size=label.shape), 0, 1)
  inside = inside.astype(np.float32)
  return np.stack([1 - inside, inside], -1), label


def evaluate(probability, label, valid=None, size=None, **kwargs):
  metric = rand.isbi_metrics(**kwargs)
  batch = {
    'label': label,
    'valid': np.ones(len(label), bool) if valid is None else np.asarray(valid),
    'size': np.tile(size or label.shape[1:], (len(label), 1)),
  }
  return metric.from_batch({'probability': probability}, batch)


def with_singletons(parts):
  """Each membrane pixel as its own segment."""
  flat = parts.astype(np.int64)
  flat[parts == 0] = parts.max() + 1 + np.arange((parts == 0).sum())
  return flat


def test_pair_counts_equal_brute_force():
  rng = np.random.default_rng(0)
  truth, parts = rng.integers(0, 3, (2, 4, 5))
  pixels = list(zip(truth.ravel(), with_singletons(parts).ravel(), strict=True))
  pairs = [(a, b) for a, b in itertools.product(pixels, pixels) if a[0] > 0 and b[0] > 0]
  expected = [
    sum(a[0] == b[0] and a[1] == b[1] for a, b in pairs),
    sum(a[0] == b[0] for a, b in pairs),
    sum(a[1] == b[1] for a, b in pairs),
  ]
  assert rand.pair_counts(truth, parts).tolist() == expected


@pytest.mark.parametrize('seed', [1, 2])
def test_equals_scikit_image(seed):
  truth, parts = rand.segments(cells(seed=0)), rand.segments(cells(seed=seed))
  both, of_truth, of_parts = rand.pair_counts(truth, parts) - (truth > 0).sum()
  # Scikit-image leaves out the pairs of a pixel with itself.
  error, of_true_pairs, of_test_pairs = adapted_rand_error(truth, with_singletons(parts))
  np.testing.assert_allclose(
    [1 - 2 * both / (of_truth + of_parts), both / of_truth, both / of_parts],
    [error, of_true_pairs, of_test_pairs],
    rtol=1e-9,
  )


@pytest.mark.parametrize('seed', [1, 2])
def test_information_score_equals_scikit_image(seed):
  truth, parts = rand.segments(cells(seed=0)), rand.segments(cells(seed=seed))
  splits_and_merges = variation_of_information(truth, with_singletons(parts), ignore_labels=(0,))
  entropies = [
    stats.entropy(np.unique(s[truth > 0], return_counts=True)[1], base=2)
    for s in (truth, with_singletons(parts))
  ]
  # VI = H(T) + H(S) - 2 I.
  np.testing.assert_allclose(
    rand.information_score(truth, parts),
    1 - splits_and_merges.sum() / sum(entropies),
    rtol=1e-9,
  )


def test_scores_hand_computed():
  truth = np.array([[1, 1, 0, 2, 2]])
  assert rand.pair_counts(truth, truth).tolist() == [8, 8, 8]
  assert rand.information_score(truth, truth) == pytest.approx(1)
  merged = np.ones((1, 5), np.int32)
  assert rand.pair_counts(truth, merged).tolist() == [8, 8, 16]
  assert rand.information_score(truth, merged) == pytest.approx(0)
  membrane = np.zeros((1, 5), np.int32)
  assert rand.pair_counts(truth, membrane).tolist() == [4, 8, 4]
  # H(T) = log 2, H(S) = log 4, I = log 2.
  assert rand.information_score(truth, membrane) == pytest.approx(2 / 3)
  assert rand.information_score(merged, merged) == 1
  # Halves and other halves: the entropies are the same, and nothing is mutual.
  halves = np.array([[1, 1, 2, 2], [1, 2, 1, 2]])
  assert rand.information_score(*halves[:, None]) == pytest.approx(0)
  assert rand.pair_counts(0 * truth, truth).tolist() == [0, 0, 0]
  assert rand.information_score(0 * truth, truth) == 0


def test_segments_are_4_connected():
  assert rand.segments(np.array([[1, 0], [0, 1]], bool)).max() == 2
  assert rand.segments(np.array([[1, 1], [0, 1]], bool)).max() == 1


def test_thin_hand_computed():
  parts = np.array([[1, 0, 0, 0, 2]] * 3)
  assert rand.thin(parts).tolist() == [[1, 1, 0, 2, 2]] * 3
  # One segment takes everything, to the image's border; none takes nothing.
  alone = np.zeros((4, 5), np.int32)
  assert rand.thin(alone).tolist() == alone.tolist()
  alone[1, 2] = 1
  assert (rand.thin(alone) == 1).all()


def test_thin_leaves_one_pixel_between_nearest_segments():
  parts = rand.segments(cells((60, 70), spread=2) & cells((60, 70), seed=1, spread=2))
  thinned = rand.thin(parts)
  assert parts.max() > 10
  np.testing.assert_array_equal(thinned[parts > 0], parts[parts > 0])
  for a, b in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
    assert not ((a != b) & (a > 0) & (b > 0)).any()
  # Every pixel of a line touches two segments (or lines, where three meet).
  padded = np.pad(thinned, 1)
  shifts = [padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
  line = thinned == 0
  kinds = [len({int(s[i]) for s in shifts}) for i in map(tuple, np.argwhere(line))]
  assert min(kinds) >= 2
  assert line.sum() < 0.5 * (parts == 0).sum()
  # A grown pixel belongs to its nearest segment, in city-block steps, save where a line is round.
  distance = np.stack(
    [ndimage.distance_transform_cdt(parts != k, 'taxicab') for k in range(1, parts.max() + 1)]
  )
  own = np.take_along_axis(distance, np.maximum(thinned - 1, 0)[None], 0)[0]
  assert (own != distance.min(0))[~line].mean() < 1e-3


def test_a_perfect_prediction():
  _, label = example()
  probability = np.stack([label == 0, label == 1], -1).astype(np.float32)
  result = rand.isbi_metrics().compute(evaluate(probability, label))
  assert result['pixel_error'] == 0
  assert result['rand_error'] == 0
  assert result['v_rand'] == pytest.approx(1, abs=0.02)  # Thinning moves a few pixels.
  assert result['v_info'] == pytest.approx(1, abs=0.02)
  # All thresholds are as good.
  assert [result[f'{name}_threshold'] for name in ('pixel', 'rand', 'v_rand', 'v_info')] == [0] * 4


def test_values_by_definition():
  probability, label = example()
  state = evaluate(probability, label)
  result = rand.isbi_metrics().compute(state)
  pixel, pairs, thinned, info = [], [], [], []
  for threshold in np.float32([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]):
    mask = probability[..., 1] > threshold
    pixel.append(2 * (mask & (label == 1)).sum() / (mask.sum() + (label == 1).sum()))
    truths, parts = [[rand.segments(m) for m in x] for x in (label == 1, mask)]
    thin = [rand.thin(p) for p in parts]
    pairs.append(sum(map(rand.pair_counts, truths, parts)))
    thinned.append(sum(map(rand.pair_counts, truths, thin)))
    info.append(np.mean(list(map(rand.information_score, truths, thin))))
  assert result == pytest.approx(
    {
      'pixel_error': 1 - max(pixel),
      'rand_error': 1 - max(2 * b / (t + p) for b, t, p in pairs),
      'v_rand': max(2 * b / (t + p) for b, t, p in thinned),
      'v_info': max(info),
      'pixel_threshold': np.argmax(pixel) / 10,
      'rand_threshold': np.argmin([1 - 2 * b / (t + p) for b, t, p in pairs]) / 10,
      'v_rand_threshold': np.argmin([1 - 2 * b / (t + p) for b, t, p in thinned]) / 10,
      'v_info_threshold': np.argmax(info) / 10,
    }
  )
  assert 0.01 < result['pixel_error'] < 0.5


def test_the_foreground_is_the_named_class():
  probability, label = example()
  flipped = evaluate(probability[..., ::-1], 1 - label, foreground=0)
  expected = rand.isbi_metrics().compute(evaluate(probability, label))
  assert rand.isbi_metrics(foreground=0).compute(flipped) == expected


def test_states_add_and_padding_leaves_no_trace():
  probability, label = example(images=3)
  metric = rand.isbi_metrics()
  whole = metric.compute(evaluate(probability, label))
  parts = [
    evaluate(probability[:2], label[:2]),
    evaluate(probability[1:], label[1:], valid=[False, True]),
  ]
  assert metric.compute(metric.merge(*parts)) == pytest.approx(whole, rel=1e-12)


def test_padding_of_an_image_does_not_matter():
  """Two cells that touch the border do not meet behind it, whatever is predicted there."""
  probability, label = example()
  inside = np.pad(probability[..., 1], [(0, 0), (0, 8), (0, 2)], constant_values=1)
  padded = evaluate(
    np.stack([1 - inside, inside], -1),
    np.pad(label, [(0, 0), (0, 8), (0, 2)], constant_values=IGNORE_LABEL),
    size=label.shape[1:],
  )
  for key, value in evaluate(probability, label).items():
    np.testing.assert_array_equal(padded[key], value, err_msg=key)


def test_ignored_pixels_are_in_no_count():
  probability, label = example(images=1)
  label[:, :10] = IGNORE_LABEL
  below = evaluate(probability[:, 10:], label[:, 10:])
  state = evaluate(probability, label)
  np.testing.assert_array_equal(state['pixel'], below['pixel'])
  np.testing.assert_array_equal(state['rand'][:, 1], below['rand'][:, 1])
  everything = evaluate(probability, np.full_like(label, IGNORE_LABEL))
  assert state['pixel'][0, 0] > 0
  assert not any(v.any() for v in everything.values())


def test_nothing_to_measure_is_nan():
  probability, label = example(images=1)
  result = rand.isbi_metrics().compute(evaluate(probability, 0 * label))
  assert all(np.isnan(v) for v in result.values())


def test_a_noisy_real_label():
  path = real_data('isbi2012', 'label', '0.png')
  label = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).astype(np.int32)[None]
  noise = np.random.default_rng(0).normal(size=label.shape)
  inside = np.clip(ndimage.gaussian_filter(label[0] * 1.0, 1.5) + 0.1 * noise, 0, 1)
  result = rand.isbi_metrics().compute(evaluate(np.stack([1 - inside, inside], -1), label))
  assert result['rand_error'] < 0.1
  assert result['v_rand'] > 0.9
