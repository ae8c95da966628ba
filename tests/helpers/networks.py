"""Networks without the cost of compiling their initialization: shapes, and random variables."""

import functools

import jax
import numpy as np

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
