"""What torchvision's second version needs: norms in the pyramid and the heads, and more layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.convert.torchvision_detection import V2
from segjax.models.mask_rcnn import BoxHead, MaskHead, MaskRCNN
from segjax.nn.resnet import FrozenBatchNorm
from segjax.train.compile import jit

HEADS = {
  'box': BoxHead(3, 5, layers=1, convs=2, features=4, norm='batch'),
  'mask': MaskHead(3, 4, 2, 'batch'),
}


@pytest.mark.parametrize(('masks', 'parameters'), [(True, 46_359_409), (False, 43_712_278)])
def test_parameters_are_torchvisions(masks, parameters):
  """Those on its pages; ours lacks the boxes and the masks of the background."""
  model = MaskRCNN(classes=90, masks=masks, **V2)
  init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
  params = init(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32))['params']
  background = 4 * (1024 + 1) + masks * (256 + 1)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) + background == parameters


def run(head, x, valid):
  """(outputs, running statistics) in training."""

  @functools.partial(jit, once=True)
  def run(x, valid):
    variables = head.init(jax.random.key(0), x)
    outputs, state = head.apply(variables, x, valid, mutable=['batch_stats'])
    return outputs, state['batch_stats']

  return run(x, valid)


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
def test_regions_that_nothing_is_learnt_from_change_no_statistics(head):
  """Their number differs from step to step, and what stands in their slots is arbitrary."""
  x = np.random.default_rng(0).normal(size=(2, 6, 7, 7, 4)).astype(np.float32)
  x[:, 4:] = 1000
  valid = np.broadcast_to(np.arange(6) < 4, (2, 6))
  alone = run(head, x[:, :4], valid[:, :4])
  padded = run(head, x, valid)
  cut = jax.tree.map(lambda y: y[:, :4], padded[0])
  for a, b in zip(jax.tree.leaves((cut, padded[1])), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  initial = {'mean': 0, 'var': 1}
  for path, leaf in jax.tree_util.tree_leaves_with_path(alone[1]):
    assert not np.allclose(leaf, initial[path[-1].key]), path


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
def test_no_region_at_all_gives_no_nan(head):
  result = run(head, np.zeros((2, 6, 7, 7, 4), np.float32), np.zeros((2, 6), bool))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_frozen_norms_take_an_epsilon():
  variables = {
    'params': {'scale': jnp.float32([2, 3]), 'bias': jnp.float32([1, 0])},
    'batch_stats': {'mean': jnp.float32([1, 0]), 'var': jnp.float32([4, 1e-6])},
  }
  x = jnp.float32([[[[3, 1]]]])
  for epsilon in (0.0, 1.0):
    y = FrozenBatchNorm(jnp.float32, epsilon).apply(variables, x)
    scale = np.array([2, 3]) / np.sqrt(np.array([4, 1e-6]) + epsilon)
    np.testing.assert_allclose(y[0, 0, 0], scale * [2, 1] + [1, 0], rtol=1e-5)
