import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.metrics.base import Metric, add


def test_add_widens_every_leaf():
  a = {'count': jnp.asarray(2**31 - 1, jnp.int32), 'sums': (jnp.asarray([0.1]), np.float64(1))}
  total = add(a, a)
  assert total['count'].dtype == np.int64
  assert total['count'] == 2**32 - 2
  assert total['sums'][0].dtype == np.float64
  np.testing.assert_array_equal(total['sums'][0], [2 * np.float64(np.float32(0.1))])
  assert total['sums'][1] == 2


def test_a_metric_adds_unless_told_otherwise_and_is_frozen():
  metric = Metric(
    name='sum', from_batch=lambda predictions, batch: predictions, compute=float, device=False
  )
  assert metric.merge is add
  with pytest.raises(dataclasses.FrozenInstanceError):
    metric.name = 'other'
