"""The mask head: channels, layers, and which mask is a RoI's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract

from segjax.nn.box_head import SampledRoIs
from segjax.nn.mask_head import (
  MaskHead,
  MaskHeadConfig,
  MaskMLP,
  MaskSamples,
  first_positives,
  of_class,
  with_masks,
)
from segjax.types import Detections

FOUND = Detections(None, np.array([[0, 1]]), None, None, None)


@pytest.mark.parametrize(
  ('fields', 'channels'),
  [
    ({}, 3),
    ({'class_agnostic': True}, 1),
    ({'activation': 'softmax'}, 4),
    ({'activation': 'softmax', 'class_agnostic': True}, 2),
  ],
)
def test_channels(fields, channels):
  assert MaskHeadConfig(**fields).channels(3) == channels


def test_convolutions_double_the_size():
  variables, logits = abstract(MaskHead(3, features=8, convs=2), (2, 6, 5, 5, 4))
  assert logits.shape == (2, 6, 10, 10, 3)
  shapes = {k: v['kernel'].shape for k, v in variables['params'].items()}
  assert shapes == {
    'conv1': (3, 3, 4, 8),
    'conv2': (3, 3, 8, 8),
    'upconv': (2, 2, 8, 8),
    'score': (1, 1, 8, 3),
  }


def test_an_mlp_sees_a_whole_roi():
  variables, logits = abstract(MaskMLP(3, (7, 9), 6), (2, 6, 5, 5, 4))
  assert logits.shape == (2, 6, 6, 6, 3)
  shapes = {k: v['kernel'].shape for k, v in variables['params'].items()}
  assert shapes == {'fc1': (100, 7), 'fc2': (7, 9), 'score': (9, 6 * 6 * 3)}


def test_of_class_takes_each_rois_own():
  masks = np.arange(2 * 3 * 2 * 2 * 4).reshape(2, 3, 2, 2, 4)
  classes = np.array([[0, 3, 1], [2, 2, 0]])
  picked = of_class(jnp.asarray(masks), classes)
  for b, r in np.ndindex(2, 3):
    np.testing.assert_array_equal(picked[b, r], masks[b, r, :, :, classes[b, r]])


def test_sigmoid_masks_are_those_of_the_class():
  logits = jnp.log(jnp.array([1.0, 3.0])) * jnp.ones((1, 2, 1, 1, 1))
  masks = with_masks(FOUND, logits, MaskHeadConfig()).masks
  np.testing.assert_allclose(masks[0, :, 0, 0], [0.5, 0.75], rtol=1e-6)


def test_softmax_masks_are_the_probability_of_the_class():
  logits = jnp.log(jnp.array([0.5, 0.2, 0.3])) * jnp.ones((1, 2, 1, 1, 1))
  masks = with_masks(FOUND, logits, MaskHeadConfig(activation='softmax')).masks
  np.testing.assert_allclose(masks[0, :, 0, 0], [0.2, 0.3], 1e-6)


def test_one_mask_for_all_classes():
  masks = with_masks(FOUND, jnp.zeros((1, 2, 1, 1, 1)), MaskHeadConfig(class_agnostic=True)).masks
  np.testing.assert_allclose(masks, 0.5 * np.ones((1, 2, 1, 1)))


class Head(nn.Module):
  """A mask head on given features of 64 slots, of all of them or of those with positives."""

  part: bool
  norm: str = 'none'

  @nn.compact
  def __call__(self, features, rois):
    def samples(head, rois):
      count = rois.positive.shape[1]
      target = rois.boxes[..., 0, None, None] * jnp.ones((1, 1, 4, 4))
      return MaskSamples(head(features[:, :count], rois.positive), target, rois)

    head = MaskHead(3, features=4, convs=1, norm=self.norm, name='mask')
    return first_positives(samples, head, rois) if self.part else samples(head, rois)


def rois_with(positives, slots=64):
  """Of each image the first `positives` are positive."""
  positive = np.arange(slots) < np.array(positives)[:, None]
  boxes = np.random.default_rng(0).normal(size=(*positive.shape, 4)).astype('f4')
  return SampledRoIs(boxes, *[None] * 3, positive, positive)


@pytest.mark.parametrize('norm', ['none', 'batch'])
@pytest.mark.parametrize(
  ('positives', 'computed'), [((1, 0), 16), ((3, 16), 16), ((17, 2), 32), ((40, 0), 64)]
)
def test_slots_without_a_positive_roi_are_not_computed(positives, computed, norm):
  rois = rois_with(positives)
  features = np.random.default_rng(1).normal(size=(2, 64, 2, 2, 3)).astype('f4')
  variables = Head(part=False, norm=norm).init(jax.random.key(0), features, rois)

  def loss(params, features, part):
    state = {**variables, 'params': params}
    head = Head(part=part, norm=norm)
    found, changed = head.apply(state, features, rois, mutable=['batch_stats'])
    positive = rois.positive[:, :, None, None, None]
    error = (found.logits - found.target[..., None]) ** 2
    return jnp.where(positive, error, 0).sum(), (found, changed)

  run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnames='part')
  (all_loss, (_, expected)), all_gradients = run(variables['params'], features, part=False)
  (own_loss, (found, changed)), gradients = run(variables['params'], features, part=True)
  assert found.logits.shape == (2, 64, 4, 4, 3)
  assert np.any(found.logits[:, computed - 1])
  assert not np.any(found.logits[:, computed:])
  np.testing.assert_allclose(own_loss, all_loss, rtol=1e-5)
  for ours, theirs in zip(
    jax.tree.leaves((gradients, changed)), jax.tree.leaves((all_gradients, expected)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_positive_roi_at_all():
  rois = rois_with((0, 0))
  features = np.ones((2, 64, 2, 2, 3), 'f4')
  variables = Head(part=True).init(jax.random.key(0), features, rois)
  found = jax.jit(Head(part=True).apply)(variables, features, rois)
  assert np.isfinite(found.logits).all()
  assert not np.any(found.logits[:, 16:])
