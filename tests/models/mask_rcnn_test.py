"""Mask R-CNN: shapes, padding, images without objects, and what is learnt through what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, TINY, make_batch

from segjax.models import mask_rcnn
from segjax.models.mask_rcnn import MaskRCNN
from segjax.nn.resnet import VARIANTS
from segjax.train.compile import jit

# Few anchors, so that all of them are sampled and no draw decides a loss.
MODEL = MaskRCNN(
  **{**TINY, 'rpn_samples': 4096, 'regions': 64},
  norm='group',
  anchor_sizes=(8, 16, 32, 64, 128),
  score_threshold=0.0,
)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, 'shallow', SHALLOW)
    yield


@pytest.fixture(scope='module')
def variables():
  image, size, _ = make_batch()
  init = jit(lambda key: MODEL.init(key, image, size), once=True)
  return init(jax.random.key(0))


@functools.partial(jit, once=True, static_argnames='train')
def apply(variables, image, size, instances=None, *, train=False):
  return MODEL.apply(variables, image, size, instances, KEYS, train=train)


def test_masks_of_given_boxes_are_those_of_the_same_boxes_found(variables):
  image, size, _ = make_batch()
  found = apply(variables, image, size)['detections']
  again = jit(lambda given: MODEL.apply(variables, image, size, given=given), once=True)
  again = again(found._replace(masks=None))['detections']
  for a, b in zip(found, again, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_detections_have_fixed_shapes_and_lie_in_their_image(variables):
  image, size, _ = make_batch()
  found = apply(variables, image, size)['detections']
  assert found.boxes.shape == (2, 6, 4)
  assert found.classes.shape == found.scores.shape == found.valid.shape == (2, 6)
  assert found.masks.shape == (2, 6, 28, 28)
  assert found.valid.all()
  assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
  assert (found.boxes >= 0).all()
  assert (found.boxes[1, :, 2] <= 60).all()
  assert (found.boxes[1, :, 3] <= 50).all()
  assert ((found.masks > 0) & (found.masks < 1)).all()


def test_a_padded_image_finds_what_its_own_part_shows(variables):
  """What lies beyond `size` is no place for a box."""
  image, size, _ = make_batch()
  small = np.array([[32, 40], [40, 32]], np.int32)
  found = apply(variables, image, small)['detections']
  assert (found.boxes[..., 2:] <= small[:, None, ::-1]).all()


def test_learns_from_matched_regions(variables):
  image, size, instances = make_batch()
  outputs = apply(variables, image, size, instances, train=True)
  rpn, box, mask = outputs['rpn'], outputs['box'], outputs['mask']
  assert rpn.positive[0].sum() >= 5, 'each object has an anchor at least'
  assert not rpn.positive[1].any()
  assert rpn.valid.any(1).all()
  assert box.logits.shape == (2, 64, 4)
  assert box.deltas.shape == (2, 64, 3, 4)
  regions = box.regions
  # The objects themselves are among the regions, and exact.
  assert regions.positive[0].sum() >= 5
  assert set(np.asarray(regions.index[0][regions.positive[0]])) == set(range(5))
  exact = regions.positive[0] & (jnp.abs(regions.target[0]).max(-1) < 1e-5)
  assert exact.sum() >= 5
  assert not regions.positive[:, 32:].any()
  assert mask.logits.shape == (2, 32, 28, 28, 3)
  # The mask of a rectangle fills its own box; half a pixel off, it does not reach the far borders.
  np.testing.assert_allclose(mask.target[0][exact[:32]][:, :20, :20], 1, atol=1e-5)


def test_more_padding_changes_nothing(variables):
  image, size, instances = make_batch()
  _, _, padded = make_batch(padding=5)
  few = apply(variables, image, size, instances, train=True)
  many = apply(variables, image, size, padded, train=True)
  # All anchors are sampled, in an order that may differ.
  for a, b in zip(few['rpn'], many['rpn'], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  for name in ('positive', 'valid'):
    a, b = (getattr(o['box'].regions, name).sum(1) for o in (few, many))
    np.testing.assert_array_equal(a, b)


def test_crowds_are_no_targets(variables):
  image, size, instances = make_batch(crowd=True)
  outputs = apply(variables, image, size, instances, train=True)
  assert not outputs['rpn'].positive.any()
  assert not outputs['box'].regions.positive.any()


def test_gradients_are_finite_and_reach_every_layer(variables):
  image, size, instances = make_batch()

  def total(params):
    outputs = MODEL.apply(
      {**variables, 'params': params},
      image,
      size,
      instances,
      KEYS,
      train=True,
    )
    used = [outputs['rpn'].logits, outputs['rpn'].deltas]
    used += [outputs['box'].logits, outputs['box'].deltas, outputs['mask'].logits]
    return sum(jnp.sum(x**2) for x in used)

  grads = jit(jax.grad(total), once=True)(variables['params'])
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    assert jnp.isfinite(grad).all(), name
    assert jnp.any(grad != 0), name


def test_of_class_takes_each_regions_own():
  masks = jnp.arange(2 * 3 * 2 * 2 * 4).reshape(2, 3, 2, 2, 4)
  classes = jnp.array([[0, 3, 1], [2, 2, 0]])
  picked = mask_rcnn.of_class(masks, classes)
  for b in range(2):
    for r in range(3):
      np.testing.assert_array_equal(picked[b, r], masks[b, r, :, :, classes[b, r]])


def test_parameters_are_torchvisions():
  """maskrcnn_resnet50_fpn has 44,401,393, frozen norms not counted.

  Ours lacks what is never trained: the boxes and the masks of the background.
  """
  model = MaskRCNN(classes=90)
  init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
  params = init(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32))['params']
  leaves = jax.tree_util.tree_leaves_with_path(params)
  learnt = sum(leaf.size for path, leaf in leaves if '_norm' not in jax.tree_util.keystr(path))
  background = 4 * (1024 + 1) + (256 + 1)
  assert learnt + background == 44_401_393
