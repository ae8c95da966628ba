"""The RPN: anchors, proposals and sampled anchors by their definitions."""

import functools

import jax
import numpy as np
import pytest
from networks import apply, filled

from segjax.nn import rpn
from segjax.nn.rpn import RPNConfig, RPNHead, make_anchors, propose, sample_anchors
from segjax.training.compile import jit
from segjax.types import Instances, SegjaxError

# Two levels with one anchor per location.
ANCHORS = [
  np.float32([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]]),
  np.float32([[0, 0, 16, 16]]),
]
OPTIONS = {'pre_nms': 3, 'post_nms': 4, 'nms_iou': 0.7}
SIZE = np.int32([[16, 12]])


def test_anchors_of_one_map():
  """15 per location at stride 16; Detectron2's are ordered by size, then ratio, and not rounded."""
  config = RPNConfig(anchor_style='detectron2')
  (anchors,) = make_anchors(config, (64, 128), [(4, 8)], stride=16, pyramid=False)
  assert rpn.anchors_per_location(config, pyramid=False) == 15
  assert anchors.shape == (4 * 8 * 15, 4)
  places = anchors.reshape(4, 8, 5, 3, 4)
  centers = (places[..., :2] + places[..., 2:]) / 2
  np.testing.assert_allclose(centers[3, 7], np.broadcast_to([7 * 16, 3 * 16], (5, 3, 2)), atol=1e-4)
  width, height = np.moveaxis(places[0, 0, :, :, 2:] - places[0, 0, :, :, :2], -1, 0)
  np.testing.assert_allclose(np.sqrt(width * height)[:, 0], [32, 64, 128, 256, 512], rtol=1e-6)
  np.testing.assert_allclose(height[0] / width[0], [0.5, 1, 2], rtol=1e-6)


@pytest.mark.parametrize(('style', 'stride'), [('torchvision', 61), ('detectron2', 64)])
def test_detectron2s_anchors_have_the_strides_of_the_network(style, stride):
  """torchvision's have a stride of 61 for the 13 rows of P6."""
  grids = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
  config = RPNConfig(anchor_style=style)
  levels = make_anchors(config, (800, 1216), grids, stride=4, pyramid=True)
  assert rpn.anchors_per_location(config, pyramid=True) == 3
  rows = levels[-1].reshape(13, 19, 3, 4)[:, 0, 0]
  np.testing.assert_allclose(np.diff(rows[:, 1]), stride, rtol=1e-6)


@pytest.mark.parametrize('side', [500, 300, 100])
def test_anchors_are_where_the_network_looks_also_for_sizes_that_32_does_not_divide(side):
  """Of 500 pixels, P3 has 63 rows: 500 // 63 would be a stride of 7."""
  grids = [(-(-side // 2**level),) * 2 for level in range(2, 7)]
  levels = make_anchors(RPNConfig(), (side, side), grids, stride=4, pyramid=True)
  for level, anchors, (rows, columns) in zip(range(2, 7), levels, grids, strict=True):
    last = anchors.reshape(rows, columns, 3, 4)[-1, -1]
    centers = (last[:, :2] + last[:, 2:]) / 2
    np.testing.assert_array_equal(centers, (rows - 1) * 2**level)


@pytest.mark.parametrize('convs', [0, 2])
def test_the_head_has_the_same_weights_at_every_level(convs):
  rng = np.random.default_rng(0)
  levels = [rng.normal(size=(2, n, n + 1, 4)).astype(np.float32) for n in (4, 2)]
  head = RPNHead(3, convs)
  variables = filled(jax.eval_shape(head.init, jax.random.key(0), levels))
  layers = {*(f'conv{i + 1}' for i in range(convs)), 'objectness', 'deltas'}
  assert set(variables['params']) == layers
  logits, deltas = apply(head, variables, levels)
  assert [x.shape for x in logits] == [(2, 4 * 5 * 3), (2, 2 * 3 * 3)]
  assert [x.shape for x in deltas] == [(2, 4 * 5 * 3, 4), (2, 2 * 3 * 3, 4)]
  [alone], _ = apply(head, variables, levels[1:])
  np.testing.assert_allclose(logits[1], alone, rtol=1e-5, atol=1e-5)


def inputs():
  """Logits and zero deltas for `ANCHORS`."""
  logits = [np.float32([[1, 4, 3, 2]]), np.float32([[0]])]
  deltas = [np.zeros((1, 4, 4), np.float32), np.zeros((1, 1, 4), np.float32)]
  return logits, deltas


def test_the_best_of_each_level_are_proposed_inside_the_image():
  logits, deltas = inputs()
  found = jit(functools.partial(propose, anchors=ANCHORS, **OPTIONS), once=True)(
    logits, deltas, size=SIZE
  )
  # The fifth, of another level, though its score is the lowest; not the fourth of the first level.
  expected = [[8, 0, 12, 8], [0, 8, 8, 16], [8, 8, 12, 16], [0, 0, 12, 16]]
  np.testing.assert_allclose(found.boxes[0], expected, atol=1e-5)
  assert found.valid.all()


def test_proposals_of_a_level_suppress_each_other_and_thin_ones_are_dropped():
  logits, deltas = inputs()
  deltas[0][0, 2] = 1, -1, 0, 0  # onto the second, of a higher score
  deltas[0][0, 3] = 0, 0, -20, 0  # thinner than any object
  deltas[1][0, 0] = 0.25, -0.25, np.log(0.5), np.log(0.5)  # onto the second, of another level
  found = jit(functools.partial(propose, anchors=ANCHORS, **OPTIONS), once=True)(
    logits, deltas, size=SIZE
  )
  np.testing.assert_allclose(found.boxes[0, :2], [[8, 0, 12, 8]] * 2, atol=1e-5)
  assert found.valid[0].tolist() == [True, True, False, False]
  assert not found.boxes[0, 2:].any()


def test_no_gradient_passes_through_the_proposals():
  logits, deltas = inputs()

  @functools.partial(jit, once=True)
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradient(logits, deltas):
    return propose(logits, deltas, ANCHORS, SIZE, **OPTIONS).boxes.sum()

  assert not any(x.any() for x in jax.tree.leaves(gradient(logits, deltas)))


def test_sampled_anchors_have_the_deltas_to_their_object_as_target():
  logits, deltas = (
    [np.float32(rng)[None] for rng in x]
    for x in (
      [np.arange(4), [4]],
      [np.arange(16).reshape(4, 4), np.arange(16, 20).reshape(1, 4)],
    )
  )
  boxes = np.zeros((1, 2, 4), np.float32)
  boxes[0, 0] = 9, 1, 17, 9  # IoU 49 / 79 with the second anchor, its best
  valid = np.array([[True, False]])
  instances = Instances(boxes, np.zeros((1, 2), np.int32), None, ~valid & valid, valid)

  def run(**fields):
    config = RPNConfig(**{'samples': 8} | fields)
    sample = lambda keys: sample_anchors(keys, ANCHORS, logits, deltas, instances, config)
    found = jit(sample, once=True)(jax.random.split(jax.random.key(0), 1))
    return jax.tree.map(lambda x: np.asarray(x)[0], found)

  found = run()
  assert found.positive.tolist() == [True] + [False] * 7
  assert found.valid.tolist() == [True] * 5 + [False] * 3
  assert found.logits[0] == 1 and set(found.logits[:5]) == set(range(5))
  np.testing.assert_array_equal(found.deltas[0], np.arange(4, 8))
  # One pixel right and down, of 8; the size is the same.
  np.testing.assert_allclose(found.target[0], [1 / 8, 1 / 8, 0, 0], atol=1e-6)
  # The anchor of the second level has an IoU of 0.21: positive, or neither.
  for positive_iou, positives, valid in ((0.2, 2, 5), (0.3, 1, 4)):
    found = run(positive_iou=positive_iou, negative_iou=0.1)
    assert (found.positive.sum(), found.valid.sum()) == (positives, valid)
  # At most half of them are positive.
  assert run(samples=2, positive_iou=0.2, negative_iou=0.1).positive.tolist() == [True, False]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'anchor_sizes': ()}, r'config.model.rpn.anchor_sizes=\(\) is empty'),
    ({'aspect_ratios': ()}, r'config.model.rpn.aspect_ratios=\(\) is empty'),
    (
      {'negative_iou': 0.6, 'positive_iou': 0.5},
      'config.model.rpn.negative_iou=0.6 must be at most positive_iou=0.5',
    ),
  ],
)
def test_keys_that_do_not_fit_each_other(fields, message):
  with pytest.raises(SegjaxError, match=message):
    RPNConfig(**fields)
