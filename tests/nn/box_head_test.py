"""The box head: sampled RoIs and detections by their definitions, and layers."""

import functools

import jax
import numpy as np
import pytest
from networks import abstract, apply, filled

from segjax.nn.box_head import BoxHead, BoxHeadConfig, Res5BoxHead, detect, sample_rois
from segjax.nn.rpn import Proposals
from segjax.training.compile import jit
from segjax.types import Instances, SegjaxError

SIZE = np.int32([[64, 64]])


def test_layers_are_those_of_the_config():
  config = BoxHeadConfig(features=8, convs=2, layers=3, hidden=5, norm='group')
  variables, (logits, deltas) = abstract(BoxHead(3, config), (2, 6, 7, 7, 4))
  assert logits.shape == (2, 6, 4) and deltas.shape == (2, 6, 3, 4)
  shapes = {k: v['kernel'].shape for k, v in variables['params'].items() if 'kernel' in v}
  assert shapes == {
    'conv1': (3, 3, 4, 8),
    'conv2': (3, 3, 8, 8),
    'fc6': (7 * 7 * 8, 5),
    'fc7': (5, 5),
    'fc8': (5, 5),
    'score': (5, 4),
    'deltas': (5, 12),
  }


def test_res5s_head_is_one_layer_on_the_mean():
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 3, 4)).astype(np.float32)
  head = Res5BoxHead(2)
  variables = filled(abstract(head, x)[0])
  logits, _ = apply(head, variables, x)
  layer = variables['params']['score']
  np.testing.assert_allclose(
    logits, x.mean((2, 3)) @ layer['kernel'] + layer['bias'], rtol=1e-4, atol=1e-5
  )


# Two proposals on the first object, one on the crowd, one on nothing, one that is padding.
PROPOSALS = Proposals(
  np.float32([[[8, 8, 28, 28], [0, 8, 20, 28], [40, 40, 60, 60], [0, 40, 10, 60], [8, 8, 28, 28]]]),
  np.array([[True, True, True, True, False]]),
)
INSTANCES = Instances(
  np.float32([[[10, 8, 30, 28], [40, 40, 60, 60], [0, 0, 0, 0]]]),
  np.int32([[2, 1, 0]]),
  None,
  np.array([[False, True, False]]),
  np.array([[True, True, False]]),
)


def sampled(**fields):
  config = BoxHeadConfig(**{'samples': 8, 'positive_fraction': 0.5} | fields)
  run = jit(functools.partial(sample_rois, config=config), once=True)
  found = run(jax.random.split(jax.random.key(0), 1), PROPOSALS, INSTANCES)
  return jax.tree.map(lambda x: np.asarray(x)[0], found)


def test_rois_are_proposals_and_the_objects_themselves():
  rois = sampled()
  assert rois.positive.tolist() == [True] * 2 + [False] * 6
  assert rois.valid.tolist() == [True] * 5 + [False] * 3
  boxes = {tuple(box) for box in rois.boxes[:2].tolist()}
  assert boxes == {(8, 8, 28, 28), (10, 8, 30, 28)}
  negatives = {tuple(box) for box in rois.boxes[2:5].tolist()}
  assert negatives == {(0, 8, 20, 28), (40, 40, 60, 60), (0, 40, 10, 60)}
  assert not rois.boxes[5:].any()
  assert rois.classes[:2].tolist() == [2, 2] and rois.index[:2].tolist() == [0, 0]
  # The second proposal has an IoU of 1 / 3 with the object.
  assert sampled(positive_iou=0.3).positive.sum() == 3


def test_targets_are_weighted_as_in_fast_r_cnn():
  """Two pixels to the right of 20, times 10; sizes are weighted by 5."""
  rois = sampled(positive_iou=0.3)
  of = {tuple(box): target for box, target in zip(rois.boxes.tolist(), rois.target, strict=True)}
  np.testing.assert_allclose(of[8, 8, 28, 28], [10 * 2 / 20, 0, 0, 0], atol=1e-5)
  np.testing.assert_allclose(of[0, 8, 20, 28], [10 * 10 / 20, 0, 0, 0], atol=1e-5)
  np.testing.assert_allclose(of[10, 8, 30, 28], 0, atol=1e-5)
  narrow = Proposals(np.float32([[[10, 8, 20, 28]]]), np.array([[True]]))
  run = functools.partial(sample_rois, config=BoxHeadConfig(samples=8, positive_fraction=0.5))
  found = jit(run, once=True)(jax.random.split(jax.random.key(0), 1), narrow, INSTANCES)
  i = int(np.flatnonzero((found.boxes[0] == narrow.boxes[0, 0]).all(-1))[0])
  np.testing.assert_allclose(found.target[0, i], [10 * 0.5, 0, 5 * np.log(2), 0], rtol=1e-5)


def detections(logits, deltas, proposals, **fields):
  config = BoxHeadConfig(**{'max_detections': 3, 'score_threshold': 0.1} | fields)
  found = jit(functools.partial(detect, config=config), once=True)(logits, deltas, proposals, SIZE)
  return jax.tree.map(lambda x: np.asarray(x)[0], found)


def test_detections_are_the_best_of_each_class():
  """Deltas are those of the class, by the weights; the same box of a class is found once."""
  proposals = Proposals(
    np.float32([[[8, 8, 28, 28]] * 2 + [[0, 40, 20, 60]]]), np.ones((1, 3), bool)
  )
  probability = np.array([[[0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.92, 0.05, 0.03]]])
  deltas = np.zeros((1, 3, 2, 4), np.float32)
  deltas[0, :, 1] = 10 * 0.5, 0, 5 * np.log(2), 0  # half a width to the right, twice as wide
  found = detections(np.log(probability).astype(np.float32), deltas, proposals)
  assert found.valid.tolist() == [True, True, False]
  assert found.classes.tolist() == [0, 1, 0]
  np.testing.assert_allclose(found.scores, [0.6, 0.3, 0], rtol=1e-5)
  np.testing.assert_allclose(found.boxes, [[8, 8, 28, 28], [8, 8, 48, 28], [0, 0, 0, 0]], atol=1e-4)
  assert found.masks is None


def test_padding_and_thin_boxes_are_not_detected():
  proposals = Proposals(
    np.float32([[[8, 8, 28, 28], [8, 8, 28, 28], [60, 8, 64, 28]]]), np.array([[False, True, True]])
  )
  logits = np.tile(np.float32([0, 5]), (1, 3, 1))
  deltas = np.zeros((1, 3, 1, 4), np.float32)
  deltas[0, 2, 0, 0] = 10 * 10  # beyond the image
  deltas[0, 0, 0, 0] = 10
  found = detections(logits, deltas, proposals)
  assert found.valid.tolist() == [True, False, False]
  np.testing.assert_allclose(found.boxes[0], [8, 8, 28, 28], atol=1e-4)


def test_there_is_room_for_a_positive_roi():
  message = 'config.model.box_head.positive_fraction=0.25 of samples=3 leaves no positive RoI'
  with pytest.raises(SegjaxError, match=message):
    BoxHeadConfig(samples=3)
  assert BoxHeadConfig(samples=4).max_positives == 1
