"""RoIs: the configured operation, and batch statistics of sampled RoIs only."""

import jax
import numpy as np
import pytest
from networks import abstract, filled

from segjax.nn.box_head import BoxHead, BoxHeadConfig
from segjax.nn.mask_head import MaskHead
from segjax.nn.roi import RoIConfig, extract
from segjax.ops.roi_align import multilevel_roi_align, roi_pool, roi_warp
from segjax.training.compile import jit

RNG = np.random.default_rng(0)
LEVELS = [RNG.normal(size=(1, n, n, 3)).astype(np.float32) for n in (8, 4)]
BOXES = np.float32([[[3, 5, 21, 30], [0, 0, 32, 32]]])


@pytest.mark.parametrize(
  ('fields', 'levels', 'operation', 'options'),
  [
    ({'aligned': True}, 2, multilevel_roi_align, {'aligned': True, 'sampling_ratio': 2}),
    (
      {'sampling_ratio': 0, 'max_samples': 2, 'mode': 'max'},
      2,
      multilevel_roi_align,
      {'aligned': False, 'sampling_ratio': 0, 'max_samples': 2, 'mode': 'max'},
    ),
    ({'op': 'roi_pool'}, 1, roi_pool, {}),
    ({'op': 'roi_warp', 'mode': 'max'}, 1, roi_warp, {'sampling_ratio': 2, 'mode': 'max'}),
    (
      {'op': 'roi_warp', 'sampling_ratio': 0, 'max_samples': 1},
      1,
      roi_warp,
      {'sampling_ratio': 0, 'max_samples': 1},
    ),
  ],
)
def test_the_operation_is_that_of_the_config(fields, levels, operation, options):
  strides = (4, 8)[:levels]
  found = jit(
    lambda x: extract(x, BOXES, RoIConfig(**fields), strides=strides, resolution=3), once=True
  )(LEVELS[:levels])
  where = {'strides': strides} if levels == 2 else {'spatial_scale': 1 / 4}
  maps = LEVELS if levels == 2 else LEVELS[0]
  run = jit(lambda x: operation(x, BOXES, output_size=3, **where, **options), once=True)
  assert found.shape == (1, 2, 3, 3, 3)
  np.testing.assert_array_equal(found, run(maps))


HEADS = {
  'box': BoxHead(3, BoxHeadConfig(features=4, norm='batch', convs=2, layers=1, hidden=5)),
  'mask': MaskHead(3, features=4, convs=2, norm='batch'),
}


@pytest.fixture(scope='module', params=HEADS)
def run(request):
  """(x, valid) -> (outputs, running statistics) in training, compiled once for a shape."""
  head = HEADS[request.param]
  variables = filled(abstract(head, (2, 6, 7, 7, 4))[0])
  apply = jit(lambda x, v: head.apply(variables, x, v, mutable=['batch_stats']), once=True)
  return lambda x, valid: jax.device_get(apply(x, valid)), variables['batch_stats']


def test_rois_that_are_not_sampled_change_no_statistics(run):
  """The number of sampled RoIs varies, and padding RoIs have arbitrary content."""
  apply, before = run
  x = np.random.default_rng(0).normal(size=(2, 6, 7, 7, 4)).astype(np.float32)
  valid = np.broadcast_to(np.arange(6) < 4, (2, 6))
  alone = apply(x[:, :4], valid[:, :4])
  x[:, 4:] = 1000
  padded = apply(x, valid)
  cut = jax.tree.map(lambda y: y[:, :4], padded[0])
  for a, b in zip(jax.tree.leaves((cut, padded[1])), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  moved = jax.tree.map(lambda a, b: np.any(a != b), dict(alone[1]['batch_stats']), dict(before))
  assert all(jax.tree.leaves(moved))


def test_no_roi_at_all_gives_no_nan(run):
  result = run[0](np.zeros((2, 6, 7, 7, 4), np.float32), np.zeros((2, 6), bool))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
