"""Networks without the cost of compiling their initialization: shapes, random variables, and what
holds of several.
"""

import functools

import jax
import numpy as np

from segjax.convert.load import flat_paths
from segjax.training.compile import jit


def abstract(model, *shapes, **kwargs):
  """Shapes of (variables, outputs) for float32 inputs of these shapes, or for arrays."""
  inputs = [jax.ShapeDtypeStruct(s, np.float32) if type(s) is tuple else s for s in shapes]
  init = functools.partial(model.init_with_output, **kwargs)
  outputs, variables = jax.eval_shape(init, jax.random.key(0), *inputs)
  return variables, outputs


def count(tree):
  """Numbers in all arrays of a tree."""
  return sum(x.size for x in jax.tree.leaves(tree))


def filled(shapes, seed=1):
  """Random variables of these shapes: kernels as of He et al., variances and scales positive."""
  rng = np.random.default_rng(seed)

  def fill(path, x):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
    if path[-1].key == 'bias':
      return rng.uniform(0, 0.5, x.shape).astype(np.float32)
    return rng.normal(0, np.sqrt(2 / max(1, np.prod(x.shape[:-1]))), x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, dict(shapes))


def apply(model, variables, *inputs, **kwargs):
  """Compiled whole, which is faster than one operation after the other."""
  return jit(functools.partial(model.apply, **kwargs), once=True)(variables, *inputs)


def check_everything_learns(model, x, without=()):
  """All gradients are finite; those of a frozen norm alone are zero, and its statistics stay.

  Of paths that end in one of `without` the gradient is 0 but for rounding.
  """
  variables = filled(abstract(model, x.shape)[0])

  @functools.partial(jit, once=True)
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    logits, state = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return (logits**2).mean(), state

  gradients, state = gradient(variables['params'])
  frozen = lambda path: getattr(model, 'norm', '') == 'frozen' and path.startswith('backbone/')
  for path, g in flat_paths(gradients).items():
    assert np.isfinite(g).all()
    if not path.endswith(tuple(without)):
      assert np.any(g) != (frozen(path) and '_norm/' in path), path
  old, new = (flat_paths(v.get('batch_stats', {})) for v in (variables, state))
  assert old.keys() == new.keys()
  for path in old:
    assert np.array_equal(old[path], new[path]) == frozen(path), path
  return old


def check_dropout_acts_in_training_only(model, x):
  variables = filled(abstract(model, x.shape)[0])
  run = lambda key: model.apply(
    variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats']
  )[0]
  run = jit(run, once=True)
  a, b = (np.asarray(run(jax.random.key(i))) for i in (0, 1))
  assert np.abs(a - b).max() > 0.1
  without = apply(model.clone(dropout=0.0), variables, x)
  np.testing.assert_allclose(apply(model, variables, x), without, rtol=1e-6)


def check_bfloat16_computes_in_it_and_outputs_float32(model, x):
  variables = filled(abstract(model, x.shape)[0])
  coarse = model.clone(dtype='bfloat16')
  assert {v.dtype for v in jax.tree.leaves(abstract(coarse, x.shape)[0])} == {np.dtype('f4')}
  a, b = (apply(m, variables, x) for m in (model, coarse))
  assert b.dtype == np.float32
  assert 0 < np.abs(a - b).mean() < 0.1 * np.abs(a).mean()
