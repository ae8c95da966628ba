"""Norms by their definitions, and channels of narrow networks."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from networks import apply, filled

from segjax.nn.conv import make_norm, scaled


@pytest.mark.parametrize(
  ('channels', 'width', 'expected'),
  [
    (96, 1.0, 96),
    (256, 0.5, 128),
    (96, 0.25, 24),
    (96, 1 / 64, 2),
    (384, 1 / 64, 6),
    (16, 1e-9, 2),
  ],
)
def test_scaled_channels_are_even_and_never_none(channels, width, expected):
  assert scaled(channels, width) == expected


class Norm(nn.Module):
  kind: str
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, mask=None, *, train=False):
    options = {'momentum': 0.9, 'epsilon': self.epsilon, 'dtype': 'float32'}
    return make_norm(self.kind, train=train, name='norm', **options)(x, mask=mask)


def norm(kind, x, mask=None, **kwargs):
  """(the variables, of x by them, the new running statistics)."""
  model = Norm(kind, kwargs.pop('epsilon', 1e-5))
  variables = filled(jax.eval_shape(model.init, jax.random.key(0), x))
  y, state = apply(model, variables, x, mask, mutable=['batch_stats'], **kwargs)
  return jax.tree.map(np.asarray, (variables, y, dict(state).get('batch_stats')))


X = np.random.default_rng(0).normal(3, 2, size=(4, 2, 3, 32)).astype(np.float32)
AXES = (0, 1, 2)


def normalized(x, mean, var, variables, epsilon=1e-5):
  layer = variables['params']['norm']
  return (x - mean) / np.sqrt(var + epsilon) * layer['scale'] + layer['bias']


def test_batch_norm_keeps_nine_tenths_of_its_running_statistics():
  variables, y, state = norm('batch', X, train=True)
  mean, var = X.mean(AXES), X.var(AXES)
  np.testing.assert_allclose(y, normalized(X, mean, var, variables), rtol=1e-3, atol=1e-4)
  old = variables['batch_stats']['norm']
  for name, value in (('mean', mean), ('var', var)):
    np.testing.assert_allclose(
      state['norm'][name], 0.9 * old[name] + 0.1 * value, rtol=1e-4, err_msg=name
    )


def test_batch_norm_uses_its_running_statistics_outside_training():
  variables, y, state = norm('batch', X, epsilon=0.5)
  old = variables['batch_stats']['norm']
  expected = normalized(X, old['mean'], old['var'], variables, epsilon=0.5)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, state['norm'], old)


def test_masked_examples_are_in_no_statistics():
  x = X.copy()
  x[2:] = 1000
  mask = np.arange(4).reshape(-1, 1, 1, 1) < 2
  _, y, state = norm('batch', x, mask, train=True)
  _, alone, expected = norm('batch', X[:2], train=True)
  np.testing.assert_allclose(y[:2], alone, rtol=1e-4, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state, expected)


@pytest.mark.parametrize(('channels', 'groups'), [(32, 2), (16, 1), (20, 1)])
def test_group_norm_has_groups_of_16_channels_or_one(channels, groups):
  x = X[..., :channels]
  variables, y, _ = norm('group', x, train=True)
  parts = x.reshape(4, 2, 3, groups, -1)
  mean, var = (f(parts, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
  expected = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(y, normalized(expected, 0, 1, variables, 0), rtol=1e-3, atol=1e-4)


def test_none_is_no_layer():
  x = X[:1]
  np.testing.assert_array_equal(make_norm('none', train=True, dtype='float32', name='n')(x), x)
