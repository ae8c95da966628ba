"""Mask R-CNN: shapes, padding, images without objects, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, TINY, make_batch, make_model
from networks import abstract, count, filled

from segjax.models.mask_rcnn import MaskRCNN
from segjax.nn.resnet import VARIANTS
from segjax.training.compile import jit

# Few anchors, so that all of them are sampled and no loss depends on the key.
MODEL = make_model(
  TINY
  | {
    'backbone.norm': 'group',
    'rpn.samples': 4096,
    'rpn.anchor_sizes': (8, 16, 32, 64, 128),
    'box_head.samples': 64,
    'box_head.score_threshold': 0.0,
  }
)
PARTS = ('rpn', 'box', 'mask')


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, 'shallow', SHALLOW)
    yield


@pytest.fixture(scope='module')
def variables():
  return filled(abstract(MODEL, *make_batch()[:2])[0])


@functools.partial(jit, once=True)
def evaluate(variables, image, size):
  """Detections, and the detections for their boxes as `given`."""
  found = MODEL.apply(variables, image, size)['detections']
  given = found._replace(masks=None)
  return found, MODEL.apply(variables, image, size, given=given)['detections']


def outputs_in_training(variables, image, size, instances):
  return MODEL.apply(variables, image, size, instances, KEYS, train=True)


train = jit(outputs_in_training, once=True)


@functools.partial(jit, once=True)
@functools.partial(jax.grad, argnums=1)
def gradient(weights, params, image, size, instances):
  """Gradient of the weighted sum of the mean squared outputs of `PARTS`."""
  outputs = outputs_in_training({'params': params}, image, size, instances)
  used = (outputs['rpn'][:2], outputs['box'][:2], outputs['mask'][:1])
  squares = [sum(jnp.mean(x**2) for x in parts) for parts in used]
  return weights @ jnp.stack(squares)


def test_masks_of_given_boxes_are_those_of_the_same_boxes_found(variables):
  image, size, _ = make_batch()
  for a, b in zip(*evaluate(variables, image, size), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_detections_have_fixed_shapes_and_lie_in_their_image(variables):
  image, size, _ = make_batch()
  found, _ = evaluate(variables, image, size)
  assert found.boxes.shape == (2, 6, 4)
  assert found.classes.shape == found.scores.shape == found.valid.shape == (2, 6)
  assert found.masks.shape == (2, 6, 28, 28)
  assert found.valid.all()
  assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
  assert (found.boxes >= 0).all()
  assert (found.boxes[1, :, 2] <= 60).all()
  assert (found.boxes[1, :, 3] <= 50).all()
  assert ((found.masks >= 0) & (found.masks <= 1)).all()
  assert np.ptp(found.masks) > 0.1


def test_objects_lie_in_the_part_of_a_padded_image_that_is_its_own(variables):
  """Boxes are clipped to `size`, and those of the padding alone are none."""
  image, size, _ = make_batch()
  small = np.array([[12, 20], [20, 12]], np.int32)
  found, _ = evaluate(variables, image, small)
  assert found.valid.any(1).all()
  assert (found.boxes[..., 2:] <= small[:, None, ::-1]).all()
  first, last = np.split(np.asarray(found.boxes)[np.asarray(found.valid)], 2, axis=-1)
  assert (first >= 0).all() and (last > first).all()


def test_trains_on_matched_rois(variables):
  image, size, instances = make_batch()
  outputs = train(variables, image, size, instances)
  rpn, box, mask = (outputs[part] for part in PARTS)
  assert rpn.positive[0].sum() >= 5, 'each object has an anchor at least'
  assert not rpn.positive[1].any()
  assert rpn.valid.any(1).all()
  assert box.logits.shape == (2, 64, 4)
  assert box.deltas.shape == (2, 64, 3, 4)
  rois = jax.device_get(box.rois)
  # The ground-truth boxes are among the RoIs.
  assert rois.positive[0].sum() >= 5
  assert set(rois.index[0][rois.positive[0]]) == set(range(5))
  exact = rois.positive[0] & (np.abs(rois.target[0]).max(-1) < 1e-5)
  assert exact.sum() >= 5
  assert not rois.positive[:, 32:].any()
  assert mask.logits.shape == (2, 32, 28, 28, 3)
  # The mask of a rectangle fills its own box; half a pixel off, it does not reach the far borders.
  target = np.asarray(mask.target[0])
  np.testing.assert_allclose(target[exact[:32]][:, :20, :20], 1, atol=1e-5)


def test_more_padding_changes_nothing(variables):
  image, size, instances = make_batch()
  _, _, padded = make_batch(padding=5)
  few = train(variables, image, size, instances)
  many = train(variables, image, size, padded)
  # All anchors are sampled, in an order that may differ.
  for a, b in zip(few['rpn'], many['rpn'], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  for name in ('positive', 'valid'):
    a, b = (getattr(o['box'].rois, name).sum(1) for o in (few, many))
    np.testing.assert_array_equal(a, b)


def test_crowds_are_no_targets(variables):
  image, size, instances = make_batch(crowd=True)
  outputs = train(variables, image, size, instances)
  assert not outputs['rpn'].positive.any()
  assert not outputs['box'].rois.positive.any()


def test_gradients_are_finite_and_reach_every_layer(variables):
  found = gradient(np.ones(3, np.float32), variables['params'], *make_batch())
  for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(found)):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    assert np.isfinite(x).all(), name
    assert x.any(), name


def test_no_gradient_passes_through_the_proposals(variables):
  """The heads depend on the RPN through the boxes only, and do not train it."""
  for part, weights in zip(PARTS, np.eye(3, dtype=np.float32), strict=True):
    found = jax.device_get(gradient(weights, variables['params'], *make_batch()))
    reached = {name for name, tree in found.items() if any(x.any() for x in jax.tree.leaves(tree))}
    assert reached == {part, 'fpn', 'backbone'}


def test_parameters_are_torchvisions():
  """maskrcnn_resnet50_fpn has 44,401,393, frozen norms not counted.

  Ours lacks what is never trained: the boxes and the masks of the background.
  """
  image, size = np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 2), np.int32)
  params = abstract(MaskRCNN(classes=90), image, size)[0]['params']
  leaves = jax.tree_util.tree_leaves_with_path(params)
  trained = [leaf for path, leaf in leaves if '_norm' not in jax.tree_util.keystr(path)]
  background = 4 * (1024 + 1) + (256 + 1)
  assert count(trained) + background == 44_401_393
