import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import sampling

sample = jax.jit(sampling.sample, static_argnums=(3, 4))


def candidates(positives, negatives, ignored, seed=0):
  """The given number of each, in random order."""
  label = np.repeat([1, 0, -1], [positives, negatives, ignored])
  np.random.default_rng(seed).shuffle(label)
  return label == 1, label == 0


@pytest.mark.parametrize(
  'positives, negatives, expected',
  [
    (20, 50, (4, 12)),  # Enough of both: a quarter.
    (2, 50, (2, 14)),  # Negatives fill up.
    (20, 5, (4, 5)),  # Positives do not.
    (0, 50, (0, 16)),
    (20, 0, (4, 0)),
    (0, 0, (0, 0)),
  ],
)
def test_counts(positives, negatives, expected):
  positive, negative = candidates(positives, negatives, 70 - positives - negatives)
  index, is_positive, valid = map(
    np.asarray, sample(jax.random.key(0), positive, negative, 16, 0.25)
  )
  assert index.shape == is_positive.shape == valid.shape == (16,)
  assert index.dtype == np.int32
  assert (is_positive.sum(), (valid & ~is_positive).sum()) == expected
  # Positives, negatives, then empty slots; nothing is sampled twice.
  order = 2 - 2 * is_positive - (valid & ~is_positive)
  assert (np.diff(order) >= 0).all()
  assert positive[index[is_positive]].all()
  assert negative[index[valid & ~is_positive]].all()
  assert len(set(index[valid])) == valid.sum()
  assert not index[~valid].any()


def test_fewer_candidates_than_slots_are_all_sampled():
  positive, negative = candidates(3, 4, 2)
  index, is_positive, valid = sample(jax.random.key(0), positive, negative, 32, 0.5)
  assert set(index[is_positive].tolist()) == set(np.flatnonzero(positive))
  assert set(index[valid & ~is_positive].tolist()) == set(np.flatnonzero(negative))
  assert valid.sum() == 7


def test_a_fraction_of_0_or_1():
  positive, negative = candidates(9, 9, 0)
  assert not sample(jax.random.key(0), positive, negative, 8, 0.0).positive.any()
  assert sample(jax.random.key(0), positive, negative, 8, 1.0).positive.all()


def test_the_number_of_positives_is_floored_as_torchvisions():
  positive, negative = candidates(9, 9, 0)
  assert sample(jax.random.key(0), positive, negative, 10, 0.25).positive.sum() == 2


def test_subsets_are_equally_likely():
  """Chi-squared of the 10 subsets of 2 of 5 positives and the 20 of 3 of 6 negatives."""
  positive, negative = candidates(5, 6, 3)
  count = 6000
  keys = jax.random.split(jax.random.key(1), count)
  result = jax.jit(jax.vmap(lambda key: sampling.sample(key, positive, negative, 5, 0.4)))(keys)
  assert result.valid.all()
  sampled = np.asarray(result.index)
  # 99.9th percentiles of the chi-squared distribution of 9 and of 19 degrees of freedom.
  for part, among, limit in ((sampled[:, :2], positive, 27.9), (sampled[:, 2:], negative, 43.8)):
    subsets = list(itertools.combinations(np.flatnonzero(among), part.shape[1]))
    counts = dict.fromkeys(subsets, 0)
    for subset in np.sort(part, 1):
      counts[tuple(subset)] += 1
    expected = count / len(subsets)
    assert sum((n - expected) ** 2 for n in counts.values()) / expected < limit


def test_the_key_decides():
  positive, negative = candidates(50, 200, 50)
  indices = lambda seed: np.asarray(sample(jax.random.key(seed), positive, negative, 64, 0.5).index)
  np.testing.assert_array_equal(indices(0), indices(0))
  assert len(set(indices(0)) & set(indices(1))) < 40


def test_padding_and_other_labels_do_not_change_what_is_sampled():
  positive, negative = candidates(10, 40, 10)
  plain = sample(jax.random.key(0), positive, negative, 16, 0.25)
  padded = sample(jax.random.key(0), np.pad(positive, (0, 60)), np.pad(negative, (0, 60)), 16, 0.25)
  np.testing.assert_array_equal(plain, padded)
  others = sample(jax.random.key(0), positive, np.zeros(60, bool), 16, 0.25)
  np.testing.assert_array_equal(plain.index[:4], others.index[:4])


def test_a_vmapped_batch_equals_its_images():
  images = [candidates(p, n, 60 - p - n, seed) for seed, (p, n) in enumerate([(3, 50), (30, 2)])]
  positive, negative = map(jnp.asarray, map(np.stack, zip(*images, strict=True)))
  keys = jax.random.split(jax.random.key(0), 2)
  batch = jax.vmap(lambda *image: sampling.sample(*image, 16, 0.5))(keys, positive, negative)
  for i in range(2):
    alone = sample(keys[i], positive[i], negative[i], 16, 0.5)
    np.testing.assert_array_equal([x[i] for x in batch], alone)


def test_counts_equal_torchvisions():
  torch = pytest.importorskip('torch')
  utils = pytest.importorskip('torchvision.models.detection._utils')
  for size, fraction in ((16, 0.25), (16, 0.5), (33, 0.3)):
    sampler = utils.BalancedPositiveNegativeSampler(size, fraction)
    for positives, negatives in ((20, 30), (3, 30), (30, 3), (0, 9), (9, 0)):
      positive, negative = candidates(positives, negatives, 60 - positives - negatives)
      label = torch.tensor(np.where(positive, 1, np.where(negative, 0, -1)))
      theirs = [int(mask[0].sum()) for mask in sampler([label])]
      _, is_positive, valid = sample(jax.random.key(0), positive, negative, size, fraction)
      assert [int(is_positive.sum()), int((valid & ~is_positive).sum())] == theirs
