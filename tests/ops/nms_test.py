import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.nms import nms

# Compiled for few shapes: 70 boxes are 3 tiles of 32.
COUNT, TILE = 70, 32
run = jax.jit(nms, static_argnames=('threshold', 'size', 'tile'))


def overlap(a, b):
  """In float32, as the device computes it; 0 for empty boxes."""
  width = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), np.float32(0))
  height = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), np.float32(0))
  common = width * height
  if not common:
    return np.float32(0)
  areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
  return common / (sum(areas, np.float32(0)) - common)


def defined(boxes, scores, valid=None, classes=None, *, threshold, size):
  """One box after the other."""
  usable = [i for i in range(len(boxes)) if scores[i] > -np.inf and (valid is None or valid[i])]
  kept = []
  for i in sorted(usable, key=lambda i: (-scores[i], i)):
    rivals = [j for j in kept if classes is None or classes[i] == classes[j]]
    if not any(float(overlap(boxes[i], boxes[j])) > threshold for j in rivals):
      kept.append(i)
  return kept[:size]


def assert_kept(result, expected):
  indices, valid = map(np.asarray, result)
  assert indices.dtype == np.int32
  assert indices[: len(expected)].tolist() == list(map(int, expected))
  assert valid.tolist() == [i < len(expected) for i in range(len(valid))]
  assert not indices[~valid].any()


def check(*arguments, threshold=0.5, size=COUNT):
  expected = defined(*arguments, threshold=threshold, size=size)
  assert_kept(run(*arguments, threshold=threshold, size=size, tile=TILE), expected)
  return expected


def random_boxes(rng, n=COUNT, size=12):
  """Of small whole numbers: many overlaps, equal IoUs and equal boxes, and exact float32."""
  corner = rng.integers(0, size, (n, 2))
  return np.concatenate([corner, corner + rng.integers(1, size, (n, 2))], 1).astype(np.float32)


@pytest.mark.parametrize('seed', range(5))
def test_equals_the_definition(seed):
  rng = np.random.default_rng(seed)
  boxes, scores = random_boxes(rng), rng.normal(size=COUNT).astype(np.float32)
  assert len(check(boxes, scores)) < 60
  assert len(check(boxes, scores, size=10)) == 10  # More candidates than slots.
  assert len(check(boxes, scores, threshold=1.0)) == COUNT  # Nothing is suppressed.


def test_ties_go_by_the_lower_index():
  rng = np.random.default_rng(0)
  boxes = random_boxes(rng)
  check(boxes, rng.integers(0, 3, COUNT).astype(np.float32))
  expected = check(boxes, np.zeros(COUNT, np.float32))
  assert expected == sorted(expected)
  check(boxes, np.where(np.arange(COUNT) % 2, 0.0, -0.0).astype(np.float32))


def test_long_chains_within_a_tile_and_over_its_border():
  """Each box overlaps the next by more than half: every second one stays, across the tiles."""
  x = np.arange(COUNT, dtype=np.float32)
  boxes = np.stack([x, 0 * x, x + 4, 0 * x + 1], 1)  # IoU 3/5, then 2/6.
  assert check(boxes, -x) == list(range(0, COUNT, 2))


@pytest.mark.parametrize(
  # Rounded to float32, 3 / 10 and 6 / 10 are more than the float64 0.3 and 0.6, and 7 / 10 is less.
  ('threshold', 'common', 'kept'),
  [
    (0.5, 5, [0, 1, 2]),
    (0.25, 2.5, [0, 1, 2]),
    (0.7, 7, [0, 1, 2]),
    (0.3, 3, [0, 2]),
    (0.6, 6, [0, 2]),
  ],
)
def test_an_iou_equal_to_the_threshold_suppresses_where_rounding_raises_it(threshold, common, kept):
  boxes = np.zeros((COUNT, 4), np.float32)
  boxes[:3] = [[0, 0, 10, 10], [0, 0, common, 10], [100, 0, 100 + common, 10]]
  valid = np.arange(COUNT) < 3
  scores = np.arange(COUNT, 0, -1, dtype=np.float32)
  assert check(boxes, scores, valid, threshold=threshold) == kept
  boxes[1, 2] += 0.01
  assert check(boxes, scores, valid, threshold=threshold) == [0, 2]


THRESHOLDS = (0.1, 0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def sets_of(threshold, count=40):
  """Boxes f32[count, COUNT, 4] of integers, many with an IoU of the threshold, and their scores."""
  rng = np.random.default_rng(round(1000 * threshold))
  boxes = np.stack([random_boxes(rng) for _ in range(count)])
  return boxes, np.stack([rng.permutation(COUNT) for _ in range(count)]).astype(np.float32)


def greedy(boxes, scores, threshold, dtype):
  """As `defined`, for boxes with areas; float32 IoUs and the threshold are compared as `dtype`."""
  width, height = (
    np.maximum(np.minimum.outer(b, b) - np.maximum.outer(a, a), np.float32(0))
    for a, b in (boxes[:, ::2].T, boxes[:, 1::2].T)
  )
  area = np.diag(width * height)
  ious = width * height / (np.add.outer(area, area) - width * height)
  assert ious.dtype == np.float32
  near = ious.astype(dtype) > dtype(threshold)
  kept = []
  for i in np.argsort(-scores):
    if not near[i, kept].any():
      kept.append(i)
  return kept


def test_ties_of_400_sets_are_decided_in_double_precision():
  by_rounding = 0
  for threshold in THRESHOLDS:
    boxes, scores = sets_of(threshold)
    options = {'threshold': threshold, 'size': COUNT, 'tile': TILE}
    results = jax.jit(jax.vmap(functools.partial(nms, **options)))(boxes, scores)
    for *arrays, indices, found in zip(boxes, scores, *map(np.asarray, results), strict=True):
      expected = greedy(*arrays, threshold, np.float64)
      assert_kept((indices, found), expected)
      by_rounding += expected != greedy(*arrays, threshold, np.float32)
  assert by_rounding > 50


def test_ties_of_400_sets_are_torchvisions():
  torch, ops = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  for threshold in THRESHOLDS:
    boxes, scores = sets_of(threshold)
    options = {'threshold': threshold, 'size': COUNT, 'tile': TILE}
    results = jax.jit(jax.vmap(functools.partial(nms, **options)))(boxes, scores)
    for *arrays, indices, found in zip(boxes, scores, *map(np.asarray, results), strict=True):
      theirs = ops.nms(*map(torch.tensor, arrays), threshold).tolist()
      assert_kept((indices, found), theirs)


def test_degenerate_boxes_neither_suppress_nor_are_suppressed():
  rng = np.random.default_rng(0)
  boxes = random_boxes(rng)
  boxes[::3, 2] = boxes[::3, 0]
  boxes[::7] = 0
  boxes[1] = [8, 8, 2, 2]
  scores = rng.normal(size=COUNT).astype(np.float32)
  expected = check(boxes, scores, threshold=0.0)
  empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
  assert set(np.flatnonzero(empty)) <= set(expected)
  assert len(expected) < 60


def test_invalid_entries_are_never_kept_and_never_suppress():
  rng = np.random.default_rng(0)
  boxes, scores = random_boxes(rng), rng.normal(size=COUNT).astype(np.float32)
  valid = rng.random(COUNT) < 0.6
  expected = check(boxes, scores, valid)
  by_score = np.where(valid, scores, -np.inf).astype(np.float32)
  assert_kept(run(boxes, by_score, threshold=0.5, size=COUNT, tile=TILE), expected)
  not_a_number = np.where(valid, scores, np.nan).astype(np.float32)
  assert_kept(run(boxes, not_a_number, threshold=0.5, size=COUNT, tile=TILE), expected)
  assert check(boxes, scores, np.zeros(COUNT, bool)) == []
  lonely = np.arange(COUNT) == 66
  assert check(boxes, scores, lonely) == [66]


def test_infinite_scores_come_first():
  boxes = random_boxes(np.random.default_rng(0))
  scores = np.arange(COUNT, dtype=np.float32)
  scores[5] = np.inf
  assert check(boxes, scores)[0] == 5


@pytest.mark.parametrize('seed', range(3))
def test_classes_do_not_suppress_each_other(seed):
  rng = np.random.default_rng(seed)
  boxes, scores = random_boxes(rng), rng.normal(size=COUNT).astype(np.float32)
  classes = rng.integers(0, 4, COUNT).astype(np.int32)
  expected = check(boxes, scores, None, classes)
  separate = [
    np.flatnonzero(classes == c)[
      defined(boxes[classes == c], scores[classes == c], threshold=0.5, size=COUNT)
    ]
    for c in range(4)
  ]
  assert set(expected) == set(np.concatenate(separate))
  assert len(expected) > len(check(boxes, scores))
  # Of large numbers and far away, where an offset of the coordinates would cost their digits.
  boxes[:, ::2] += 5000
  assert check(boxes, scores, None, classes * 10**6) == expected


@pytest.mark.parametrize('count', [0, 1, 3])
def test_fewer_boxes_than_slots(count):
  rng = np.random.default_rng(0)
  boxes, scores = random_boxes(rng, count), rng.normal(size=count).astype(np.float32)
  result = nms(boxes, scores, threshold=0.5, size=4)
  assert_kept(result, defined(boxes, scores, threshold=0.5, size=4))


@pytest.mark.parametrize('tile', [1, 70, 128])
def test_the_tile_does_not_matter(tile):
  rng = np.random.default_rng(0)
  boxes, scores = random_boxes(rng), rng.normal(size=COUNT).astype(np.float32)
  result = run(boxes, scores, threshold=0.5, size=COUNT, tile=tile)
  assert_kept(result, defined(boxes, scores, threshold=0.5, size=COUNT))


def test_a_vmapped_batch_equals_its_images_and_passes_no_gradient():
  """Images that end after different numbers of tiles; what is kept has a gradient, keeping not."""
  rng = np.random.default_rng(0)
  boxes = np.stack([random_boxes(rng) for _ in range(3)])
  scores = rng.normal(size=(3, COUNT)).astype(np.float32)
  valid = np.arange(COUNT) < np.array([[COUNT], [0], [5]])
  function = functools.partial(nms, threshold=0.5, size=COUNT, tile=TILE)

  def loss(boxes, scores):
    indices, found = jax.vmap(function)(boxes, scores, valid)
    kept = jnp.take_along_axis(boxes, indices[..., None], 1)
    return jnp.where(found[..., None], kept, 0).sum(), (indices, found)

  gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  (of_boxes, of_scores), (indices, found) = gradient(boxes, scores)
  for i in range(3):
    expected = defined(boxes[i], scores[i], valid[i], threshold=0.5, size=COUNT)
    assert_kept((indices[i], found[i]), expected)
    assert np.flatnonzero(of_boxes[i].any(-1)).tolist() == sorted(expected)
  assert not of_scores.any()


def test_equals_torchvision():
  torch = pytest.importorskip('torch')
  ops = pytest.importorskip('torchvision.ops')
  for seed in range(5):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 30, (COUNT, 2, 2)).astype(np.float32), 1).reshape(COUNT, 4)
    scores = rng.normal(size=COUNT).astype(np.float32)
    classes = rng.integers(0, 3, COUNT).astype(np.int32)
    tensors = [torch.tensor(x) for x in (boxes, scores, classes)]
    for threshold in (0.3, 0.5, 0.7):
      options = {'threshold': threshold, 'size': COUNT, 'tile': TILE}
      theirs = ops.nms(*tensors[:2], threshold).tolist()
      assert_kept(run(boxes, scores, **options), theirs)
      theirs = ops.batched_nms(*tensors, threshold).tolist()
      assert_kept(run(boxes, scores, None, classes, **options), theirs)
