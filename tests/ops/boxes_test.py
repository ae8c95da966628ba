import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax.ops import boxes as box_ops

# Proper, the same, touching, far away; then without width, without height, turned inside out, zero.
BOXES = np.array(
  [
    [0, 0, 4, 2],
    [0, 0, 4, 2],
    [4, 0, 8, 2],
    [100, 100, 108, 104],
    [1, 1, 1, 2],
    [1, 1, 3, 1],
    [3, 2, 1, 1],
    [0, 0, 0, 0],
  ],
  np.float32,
)
EMPTY = np.arange(8) >= 4


def random_boxes(n, seed=0, size=100.0):
  corners = np.random.default_rng(seed).uniform(0, size, (n, 2, 2))
  return np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)


def defined_overlap(a, b):
  """Of one pair: the common area, and the area of each."""
  sides = lambda box: (max(0.0, box[2] - box[0]), max(0.0, box[3] - box[1]))
  common = sides([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
  return tuple(float(w) * float(h) for w, h in (common, sides(a), sides(b)))


@pytest.mark.parametrize('a, b', [(BOXES, BOXES), (random_boxes(9), random_boxes(7, 1))])
def test_iou_equals_the_definition(a, b):
  pairs = np.array([[defined_overlap(p, q) for q in b] for p in a])
  common, area_a, area_b = np.moveaxis(pairs, -1, 0)
  with np.errstate(invalid='ignore'):
    iou = np.nan_to_num(common / (area_a + area_b - common))
  np.testing.assert_allclose(box_ops.iou(a, b), iou, rtol=1e-5)
  np.testing.assert_allclose(box_ops.area(a), area_a[:, 0], rtol=1e-6)


def test_known_overlaps():
  a = np.array([[0, 0, 10, 10]], np.float32)
  b = np.array([[5, 0, 15, 10], [0, 0, 5, 5], [0, 0, 20, 20], [10, 0, 20, 10]], np.float32)
  np.testing.assert_array_equal(box_ops.iou(a, b), np.float32([[1 / 3, 0.25, 0.25, 0]]))
  assert not np.asarray(box_ops.iou(BOXES, BOXES))[EMPTY].any()


def test_no_boxes():
  assert box_ops.iou(np.zeros((0, 4), 'f4'), BOXES).shape == (0, 8)
  assert box_ops.iou(BOXES, np.zeros((0, 4), 'f4')).shape == (8, 0)


def test_exceeds_compares_as_float64_does():
  rng = np.random.default_rng(0)
  thresholds = [0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 1.0, -0.3, *rng.random(200).tolist()]
  by_rounding = 0
  for threshold in thresholds:
    near = np.float32(threshold)
    values = np.array([np.nextafter(near, -np.float32(9)), near, np.nextafter(near, np.float32(9))])
    expected = values.astype(np.float64) > threshold
    assert box_ops.exceeds(values, threshold).tolist() == expected.tolist() == [
      False, float(near) > threshold, True,
    ]  # fmt: skip
    by_rounding += expected[1]
  assert 50 < by_rounding < 150
  traced = jax.jit(box_ops.exceeds)(np.float32([0.2, 0.3, 0.4]), 0.3)
  assert traced.tolist() == [False, False, True]


def test_clip_and_nonempty():
  boxes = np.array([[-5, -5, 5, 5], [1, 2, 30, 40], [50, 50, 60, 60], [1, 2, 3, 4]], np.float32)
  expected = [[0, 0, 5, 5], [1, 2, 20, 10], [20, 10, 20, 10], [1, 2, 3, 4]]
  np.testing.assert_array_equal(box_ops.clip(boxes, (10, 20)), expected)
  np.testing.assert_array_equal(box_ops.clip(boxes, jnp.array([10, 20])), expected)
  batch = jax.vmap(box_ops.clip)(np.stack([boxes, boxes]), jnp.array([[10, 20], [100, 100]]))
  np.testing.assert_array_equal(batch[0], expected)
  np.testing.assert_array_equal(batch[1, 2], boxes[2])
  assert box_ops.nonempty(box_ops.clip(boxes, (10, 20)), 1e-3).tolist() == [True, True, False, True]
  # At the limit, and both sides count.
  sides = np.array([[0, 0, 2, 2], [0, 0, 1.5, 9], [0, 0, 9, 1.5], [3, 3, 0, 0]], np.float32)
  assert box_ops.nonempty(sides, 2).tolist() == [True, False, False, False]


def test_flip_and_scale():
  boxes = random_boxes(5)
  flipped = box_ops.flip(boxes, 100)
  np.testing.assert_array_equal(box_ops.flip(jnp.array([[1.0, 2, 3, 4]]), 10), [[7, 2, 9, 4]])
  np.testing.assert_allclose(box_ops.flip(flipped, 100), boxes, atol=1e-5)
  np.testing.assert_allclose(box_ops.area(flipped), box_ops.area(boxes), rtol=1e-4)
  np.testing.assert_array_equal(box_ops.scale(jnp.array([[1.0, 2, 3, 4]]), (2, 3)), [[3, 4, 9, 8]])
  each = jnp.array([[1.0, 2.0]] * 2 + [[3.0, 0.5]] * 3)
  expected = boxes * np.tile(each[:, ::-1], 2)
  np.testing.assert_array_equal(box_ops.scale(boxes, each), expected)


@pytest.mark.parametrize('weights', [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_encode_equals_its_formula_and_decode_inverts_it(weights):
  boxes, anchors = random_boxes(20), random_boxes(20, 1)
  x, y, w, h = ((boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2,
                boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])  # fmt: skip
  xa, ya, wa, ha = ((anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2,
                    anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1])  # fmt: skip
  expected = np.stack([(x - xa) / wa, (y - ya) / ha, np.log(w / wa), np.log(h / ha)], 1) * weights
  deltas = box_ops.encode(boxes, anchors, weights)
  np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)
  small = (deltas[:, 2:] / np.array(weights)[2:] < box_ops.MAX_LOG_SCALE).all(1)
  assert small.sum() > 15
  decoded = box_ops.decode(deltas, anchors, weights)
  np.testing.assert_allclose(decoded[small], boxes[small], atol=1e-3)


def test_decode_clamps_the_growth_and_broadcasts_over_classes():
  anchors = jnp.array([[0.0, 0, 16, 32]])
  grown = box_ops.decode(jnp.array([[0.0, 0, 100, 5]]), anchors)
  np.testing.assert_allclose(grown, [[8 - 500, 16 - 1000, 8 + 500, 16 + 1000]], rtol=1e-5)
  deltas = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3, 4)), jnp.float32)
  anchors = jnp.asarray(random_boxes(6))
  by_class = box_ops.decode(deltas, anchors[:, None])
  for c in range(3):
    np.testing.assert_allclose(by_class[:, c], box_ops.decode(deltas[:, c], anchors), rtol=1e-6)
  assert box_ops.decode(deltas.astype(jnp.bfloat16), anchors[:, None]).dtype == jnp.float32


def test_values_and_gradients_are_finite_for_all_pairs_of_degenerate_boxes():
  first, second = np.repeat(BOXES, 8, 0), np.tile(BOXES, (8, 1))
  either = np.repeat(EMPTY, 8) | np.tile(EMPTY, 8)
  deltas = np.asarray(box_ops.encode(first, second))
  assert np.isfinite(deltas).all()
  assert not deltas[either].any()
  assert deltas[~either].any()
  functions = [
    lambda a, b: box_ops.iou(a, b).sum(),
    lambda a, b: box_ops.encode(a, b).sum(),
    lambda a, b: box_ops.decode(a * 1e3, b).sum(),
    lambda a, b: box_ops.area(box_ops.clip(a, (3, 3))).sum() + box_ops.area(b).sum(),
  ]
  gradients = jax.jit(lambda a, b: [jax.grad(f, (0, 1))(a, b) for f in functions])(first, second)
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('name', ['iou', 'encode', 'decode'])
def test_numerical_gradient(name):
  a, b = random_boxes(4, size=3.0), random_boxes(4, 1, size=3.0)
  if name == 'decode':
    a = np.asarray(box_ops.encode(a, b))
  check_grads(jax.jit(getattr(box_ops, name)), (a, b), 1, ['rev'], atol=2e-2, rtol=2e-2, eps=1e-3)


def test_equals_torchvision():
  torch = pytest.importorskip('torch')
  detection = pytest.importorskip('torchvision.models.detection._utils')
  ops = pytest.importorskip('torchvision.ops')
  a, b = random_boxes(40), random_boxes(40, 1)
  ta, tb = torch.tensor(a), torch.tensor(b)
  np.testing.assert_allclose(box_ops.iou(a, b), ops.box_iou(ta, tb), rtol=1e-6)
  np.testing.assert_allclose(box_ops.area(a), ops.box_area(ta), rtol=1e-6)
  np.testing.assert_array_equal(box_ops.clip(a, (30, 60)), ops.clip_boxes_to_image(ta, (30, 60)))
  keep = ops.remove_small_boxes(ta, 20)
  np.testing.assert_array_equal(np.flatnonzero(box_ops.nonempty(a, 20)), keep)
  deltas = np.random.default_rng(2).normal(size=(40, 3, 4)).astype('f4') * 5
  for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
    coder = detection.BoxCoder(weights)
    theirs = coder.encode_single(ta, tb)
    np.testing.assert_allclose(box_ops.encode(a, b, weights), theirs, rtol=1e-5, atol=1e-6)
    theirs = coder.decode(torch.tensor(deltas.reshape(40, 12)), [tb])
    np.testing.assert_allclose(
      box_ops.decode(deltas, b[:, None], weights), theirs, rtol=1e-5, atol=1e-3
    )
