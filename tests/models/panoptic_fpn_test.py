"""Panoptic FPN: Mask R-CNN as it is, and a semantic branch of the paper's size."""

import functools

import jax
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, SIZE, TINY, make_batch

from segjax.losses import panoptic as losses
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.panoptic_fpn import PanopticFPN, SemanticBranch
from segjax.nn.resnet import VARIANTS
from segjax.train.compile import jit
from segjax.types import SegjaxError

FIELDS = {**TINY, 'norm': 'group', 'anchor_sizes': (8, 16, 32, 64, 128)}
MODEL = PanopticFPN(**FIELDS, stuff=4, semantic_features=8, semantic_groups=2)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, 'shallow', SHALLOW)
    yield


@pytest.fixture(scope='module')
def variables():
  image, size, _ = make_batch()
  return jit(lambda key: MODEL.init(key, image, size), once=True)(jax.random.key(0))


@functools.partial(jit, once=True, static_argnames=('model', 'train'))
def apply(model, variables, image, size, instances=None, *, train=False):
  return model.apply(variables, image, size, instances, KEYS, train=train)


def test_the_instance_part_is_that_of_mask_rcnn(variables):
  """By the same names, so that weights of the one start the other."""
  image, size, _ = make_batch()
  params = dict(variables['params'])
  del params['semantic']
  ours = apply(MODEL, variables, image, size)
  theirs = apply(MaskRCNN(**FIELDS), {'params': params}, image, size)
  assert set(ours) == {*theirs, 'semantic'}
  for a, b in zip(ours['detections'], theirs['detections'], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert ours['semantic'].shape == (2, SIZE, SIZE, 5)


def test_the_semantic_loss_reaches_what_both_parts_share(variables):
  """And no head of the instance part."""
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
  branch = SemanticBranch(54, 128, 32)
  levels = [jax.ShapeDtypeStruct((1, 32 >> i, 48 >> i, 256), np.float32) for i in range(4)]
  params = jax.eval_shape(branch.init, jax.random.key(0), levels)['params']
  names = ['conv2_1', 'conv3_1', 'conv4_1', 'conv4_2', 'conv5_1', 'conv5_2', 'conv5_3']
  assert set(params) == {*names, *(f'{name}_norm' for name in names), 'score'}
  count = sum(x.size for x in jax.tree.leaves(params))
  first, later, norm = 9 * 256 * 128, 9 * 128 * 128, 2 * 128
  assert count == 4 * first + 3 * later + 7 * norm + 128 * 54 + 54


def test_levels_of_odd_sizes_are_doubled_to_that_of_the_finer_one():
  branch = SemanticBranch(3, 4, 2)
  levels = [np.ones((1, h, w, 2), np.float32) for h, w in ((9, 11), (5, 6), (3, 3), (2, 2))]
  logits, _ = jax.eval_shape(branch.init_with_output, jax.random.key(0), levels)
  assert logits.shape == (1, 9, 11, 3)


def test_needs_a_pyramid():
  image, size, _ = make_batch()
  model = MODEL.clone(feature_maps='c4')
  with pytest.raises(SegjaxError, match='config.model.feature_maps='):
    jax.eval_shape(model.init, jax.random.key(0), image, size)
