"""The assignment of objects to queries costs as little as SciPy's."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from segjax.ops.assignment import assign

OBJECTS, QUERIES = 6, 9
run = jax.jit(jax.vmap(assign))


def random_costs(count, seed):
  """Every third matrix is of small whole numbers, with many ties; some objects are padding."""
  rng = np.random.default_rng(seed)
  cost = rng.normal(size=(count, OBJECTS, QUERIES)).astype(np.float32)
  cost[::3] = rng.integers(-2, 3, cost[::3].shape)
  valid = rng.random((count, OBJECTS)) < rng.random((count, 1))
  return cost, valid


def check(count, seed):
  costs, valids = random_costs(count, seed)
  # What padding costs does not matter.
  costs[~valids] = np.random.default_rng(seed).choice([1e9, -1e9, np.nan, np.inf], QUERIES)
  for cost, valid, query in zip(costs, valids, np.asarray(run(costs, valids)), strict=True):
    assert sorted(set(query)) == sorted(query)
    best = cost[valid][linear_sum_assignment(cost[valid])].sum(dtype=np.float64)
    found = cost[valid, query[valid]].sum(dtype=np.float64)
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-5)


def test_the_cost_is_the_least():
  check(300, seed=0)


@pytest.mark.slow
def test_the_cost_is_the_least_of_10_000():
  check(10_000, seed=1)


def test_as_many_objects_as_queries():
  cost = np.random.default_rng(0).normal(size=(1, 5, 5)).astype(np.float32)
  (query,) = np.asarray(run(cost, np.ones((1, 5), bool)))
  assert sorted(query) == list(range(5))
  np.testing.assert_array_equal(query, linear_sum_assignment(cost[0])[1])


def test_costs_that_are_not_finite_are_the_last_choice():
  cost = np.array([[np.nan, 1.0, np.inf], [5.0, 0.0, np.nan]], np.float32)
  assert np.asarray(assign(cost, np.ones(2, bool))).tolist() == [1, 0]
  broken = np.full((2, 3), np.nan, np.float32)
  assert len(set(np.asarray(assign(broken, np.ones(2, bool))).tolist())) == 2


@pytest.mark.parametrize('seed', range(3))
def test_more_rows_than_queries(seed):
  """Padding goes without, whatever it costs and wherever it is."""
  rng = np.random.default_rng(seed)
  cost = rng.normal(size=(40, OBJECTS + 4, OBJECTS)).astype(np.float32)
  cost[::2] = rng.integers(-2, 3, cost[::2].shape)
  for i, count in enumerate(rng.integers(0, OBJECTS + 1, 40)):
    valid = rng.permutation(OBJECTS + 4) < count
    given = np.where(valid[:, None], cost[i], rng.choice([-1e9, 1e9, np.nan], OBJECTS))
    query = np.asarray(run(given[None], valid[None]))[0]
    assert sorted(set(query[valid])) == sorted(query[valid])
    best = cost[i][valid][linear_sum_assignment(cost[i][valid])].sum()
    np.testing.assert_allclose(cost[i][valid, query[valid]].sum(), best, rtol=0, atol=1e-5)


def test_without_any_object():
  """Of a batch of images, one has none; and there may be no row at all."""
  cost = np.ones((2, 3, 4), np.float32)
  found = np.asarray(run(cost, np.array([[False] * 3, [True, True, False]])))
  assert all(len(set(row)) == 3 for row in found.tolist())
  assert assign(np.zeros((0, 4), np.float32), np.zeros(0, bool)).shape == (0,)
