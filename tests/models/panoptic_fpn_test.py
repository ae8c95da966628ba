"""Panoptic FPN: an unchanged Mask R-CNN, and a semantic branch of the paper's size."""

import functools

import jax
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, SIZE, TINY, make_batch, make_model
from networks import abstract, apply, count, filled

from segjax.losses import panoptic as losses
from segjax.models.panoptic_fpn import PanopticFPN, SemanticBranch, SemanticBranchConfig
from segjax.nn.resnet import VARIANTS
from segjax.training.compile import jit
from segjax.types import SegjaxError

FIELDS = {**TINY, 'backbone.norm': 'group', 'rpn.anchor_sizes': (8, 16, 32, 64, 128)}
BRANCH = {'stuff': 4, 'semantic.features': 8, 'semantic.groups': 2}
MODEL = make_model(FIELDS | BRANCH, PanopticFPN)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, 'shallow', SHALLOW)
    yield


@pytest.fixture(scope='module')
def variables():
  return filled(abstract(MODEL, *make_batch()[:2])[0])


def test_the_instance_part_is_that_of_mask_rcnn(variables):
  """The same parameter names, so that Mask R-CNN weights can be loaded."""
  image, size, _ = make_batch()
  params = {k: v for k, v in variables['params'].items() if k != 'semantic'}
  part = make_model(FIELDS)

  @functools.partial(jit, once=True)
  def both(variables, params):
    return MODEL.apply(variables, image, size), part.apply({'params': params}, image, size)

  ours, theirs = both(variables, params)
  assert set(ours) == {*theirs, 'semantic'}
  for a, b in zip(ours['detections'], theirs['detections'], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert ours['semantic'].shape == (2, SIZE, SIZE, 5)


def test_the_semantic_loss_reaches_what_both_parts_share(variables):
  """But no instance head."""
  image, size, instances = make_batch()
  label = np.random.default_rng(0).integers(0, 5, (2, SIZE, SIZE))

  @functools.partial(jit, once=True)
  def gradient(params):
    def loss(params):
      outputs = MODEL.apply({'params': params}, image, size, instances, KEYS, train=True)
      assert set(outputs) == {'rpn', 'box', 'mask', 'semantic'}
      total, count = losses.semantic({'semantic': (outputs['semantic'], label)})
      return total / count

    return jax.grad(loss)(params)

  found = jax.device_get(gradient(variables['params']))
  for part, gradients in found.items():
    reached = {bool(values.any()) for values in jax.tree.leaves(gradients)}
    assert reached == {part in ('semantic', 'fpn', 'backbone')}, part


def test_the_branch_has_the_papers_layers():
  """One, one, two and three convolutions of 3x3, each with a norm, and one of 1x1 (Fig. 3)."""
  levels = [jax.ShapeDtypeStruct((1, 32 >> i, 48 >> i, 256), np.float32) for i in range(4)]
  params = abstract(SemanticBranch(54), levels)[0]['params']
  names = ['conv2_1', 'conv3_1', 'conv4_1', 'conv4_2', 'conv5_1', 'conv5_2', 'conv5_3']
  assert set(params) == {*names, *(f'{name}_norm' for name in names), 'score'}
  first, later, norm = 9 * 256 * 128, 9 * 128 * 128, 2 * 128
  assert count(params) == 4 * first + 3 * later + 7 * norm + 128 * 54 + 54


def test_levels_of_odd_sizes_are_doubled_to_that_of_the_finer_one():
  branch = SemanticBranch(3, SemanticBranchConfig(features=4, groups=2))
  levels = [np.ones((1, h, w, 2), np.float32) for h, w in ((9, 11), (5, 6), (3, 3), (2, 2))]
  assert abstract(branch, levels)[1].shape == (1, 9, 11, 3)


def test_keys_that_do_not_fit_each_other():
  with pytest.raises(SegjaxError, match='config.model.feature_maps='):
    make_model(FIELDS | BRANCH | {'feature_maps': 'c4'}, PanopticFPN)
  with pytest.raises(SegjaxError, match='config.model.semantic.groups=3 must divide features=8'):
    SemanticBranchConfig(8, 3)


def test_the_branch_by_hand():
  """Fig. 3 in NumPy, on levels of odd sizes: a level is doubled after each of its convolutions."""
  rng = np.random.default_rng(0)
  branch = SemanticBranch(3, SemanticBranchConfig(features=4, groups=2))
  sizes = [(9, 11), (5, 6), (3, 3), (2, 2)]
  levels = [rng.normal(size=(1, h, w, 2)).astype(np.float32) for h, w in sizes]
  params = filled(abstract(branch, levels)[0])['params']

  def convolve(x, name):
    windows = np.lib.stride_tricks.sliding_window_view(
      np.pad(x, [(1, 1), (1, 1), (0, 0)]), (3, 3), axis=(0, 1)
    )
    x = np.einsum('hwcij,ijco->hwo', windows, params[name]['kernel'])
    for group in (slice(0, 2), slice(2, 4)):
      part = x[..., group]
      x[..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return np.maximum(x * params[f'{name}_norm']['scale'] + params[f'{name}_norm']['bias'], 0)

  def double(x, size):
    """Bilinear, with centers of pixels aligned; cut to the size."""
    for axis in (0, 1):
      at = (np.arange(2 * x.shape[axis]) + 0.5) / 2 - 0.5
      low = np.floor(at).astype(int)
      weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
      first, second = (np.take(x, np.clip(i, 0, x.shape[axis] - 1), axis) for i in (low, low + 1))
      x = first * (1 - weight) + second * weight
    return x[: size[0], : size[1]]

  total = convolve(levels[0][0], 'conv2_1')
  for level in (1, 2, 3):
    x = levels[level][0]
    for i in range(level):
      x = double(convolve(x, f'conv{level + 2}_{i + 1}'), sizes[level - i - 1])
    total = total + x
  expected = total @ params['score']['kernel'][0, 0] + params['score']['bias']
  found = apply(branch, {'params': params}, levels)
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
