import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.ops.pooling import max_pool_2x2


def reference(x):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


@pytest.mark.parametrize('shape', [(2, 4, 6, 3), (1, 5, 7, 2), (2, 2, 3, 1), (1, 1, 4, 1)])
def test_equals_the_library_forwards_and_backwards(shape):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  y = max_pool_2x2(x)
  assert y.shape == (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
  np.testing.assert_array_equal(y, reference(x))
  np.testing.assert_array_equal(y, nn.max_pool(x, (2, 2), (2, 2)))
  g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
  ours = jax.vjp(max_pool_2x2, x)[1](g)[0]
  theirs = jax.vjp(reference, x)[1](g)[0]
  np.testing.assert_array_equal(ours, theirs)


def test_tied_maxima_share_one_gradient():
  gradient = jax.grad(lambda x: max_pool_2x2(x).sum())(jnp.zeros((1, 2, 2, 1)))
  np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_keeps_the_type():
  assert max_pool_2x2(jnp.zeros((1, 4, 4, 1), jnp.bfloat16)).dtype == jnp.bfloat16
  assert max_pool_2x2(jnp.arange(4, dtype=jnp.int32).reshape(1, 2, 2, 1)).tolist() == [[[[3]]]]
