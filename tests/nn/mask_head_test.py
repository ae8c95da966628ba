"""The mask head: channels, layers, and which mask is a RoI's."""

import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract

from segjax.nn.mask_head import MaskHead, MaskHeadConfig, MaskMLP, of_class, with_masks
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
