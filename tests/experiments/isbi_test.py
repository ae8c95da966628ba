import numpy as np
from scipy import ndimage

from segjax.metrics import rand


def v_rand(truth, parts):
  both, of_truth, of_parts = rand.pair_counts(truth, parts)
  return 2 * both / (of_truth + of_parts)


def test_cut_is_that_which_adds_most_to_v_rand(root, monkeypatch):
  monkeypatch.syspath_prepend(root / 'experiments')
  from unet import isbi

  noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 50)), 2)
  truth, parts = rand.segments(noise > 0.02), rand.segments(noise > -0.02)
  new, sizes = isbi.cut(truth, parts)

  def with_cut(part):
    return np.where((parts == part) & (truth > 0), parts.max() + truth, parts)

  found = {part: v_rand(truth, with_cut(part)) for part in range(1, parts.max() + 1)}
  best = max(found, key=found.get)
  assert found[best] > v_rand(truth, parts) + 0.1
  np.testing.assert_array_equal(new, with_cut(best))
  inside = np.bincount(truth[(parts == best) & (truth > 0)])
  assert len(sizes) > 1 and sizes == sorted(inside[inside > inside.max() / 10], reverse=True)


def test_a_large_part_of_one_cell_is_not_cut(root, monkeypatch):
  monkeypatch.syspath_prepend(root / 'experiments')
  from unet import isbi

  truth = np.repeat([[1, 2, 3]], [50, 12, 10], axis=1)
  new, sizes = isbi.cut(truth, np.where(truth == 1, 1, 2))
  assert rand.pair_counts(truth, new).tolist() == rand.pair_counts(truth, truth).tolist()
  assert sizes == [12, 10]
