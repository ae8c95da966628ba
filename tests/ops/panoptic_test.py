"""Merging against a plain NumPy form of the heuristic, and pasting against the host's form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import panoptic
from segjax.ops.paste_masks import paste_masks
from segjax.types import IGNORE_LABEL, Detections

HEIGHT, WIDTH, MASK = 24, 30, 7
# Of 8 classes, 0 to 2 are things; the semantic labels are "other", four stuff classes of which two
# are one, and one that is not stuff.
THINGS = (2, 0, 1)
STUFF = (None, 5, 3, 7, 3, None)
NAN, INF = math.nan, math.inf


def smooth_masks(count, seed=0):
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:MASK, :MASK] / MASK - 0.4
  radius = rng.uniform(0.2, 0.7, (count, 1, 1))
  return (1 / (1 + np.exp(12 * (np.hypot(y, x) - radius)))).astype('f4')


def random_boxes(count, seed=1):
  rng = np.random.default_rng(seed)
  extent = rng.uniform(2, 16, (count, 2))
  corner = rng.uniform(-3, 1, (count, 2)) + rng.uniform(0, 1, (count, 2)) * [WIDTH, HEIGHT]
  return np.concatenate([corner, corner + extent], -1).astype('f4')


def random_example(count, seed=0, batch=2):
  """Labels and detections that overlap; scores tie, and some are not valid."""
  rng = np.random.default_rng(seed)
  label = np.kron(rng.integers(0, 7, (batch, 4, 5)), np.ones((6, 6), int)).astype('i4')
  label[label == 6] = IGNORE_LABEL
  detections = Detections(
    boxes=random_boxes(batch * count, seed).reshape(batch, count, 4),
    classes=rng.integers(0, 3, (batch, count)).astype('i4'),
    scores=rng.choice(np.float32([0.2, 0.5, 0.6, 0.75, 0.9]), (batch, count)),
    masks=smooth_masks(batch * count, seed).reshape(batch, count, MASK, MASK),
    valid=rng.random((batch, count)) < 0.8,
  )
  return label, detections


def plain(
  label,
  detections,
  size=(HEIGHT, WIDTH),
  score_threshold=0.5,
  overlap_threshold=0.5,
  stuff_area=4096,
  mask_threshold=0.5,
):
  """The heuristic for one image: {segment: class} and the map, in the terms of `merge_segments`."""
  boxes, classes, scores, masks, valid = detections
  pasted = paste_masks(masks, boxes, label.shape, rule='detectron2', threshold=mask_threshold)
  pasted[:, size[0] :] = pasted[:, :, size[1] :] = False
  ids, used, found = np.zeros(label.shape, int), np.zeros(label.shape, bool), {}
  for k in sorted(range(len(scores)), key=lambda k: -scores[k]):  # stable
    area = pasted[k].sum()
    if not valid[k] or scores[k] < score_threshold or area == 0:
      continue
    if (pasted[k] & used).sum() / area > overlap_threshold:
      continue
    ids[pasted[k] & ~used] = k + 1
    if (pasted[k] & ~used).any():
      found[k + 1] = THINGS[classes[k]]
    used |= pasted[k]
  for j, stuff in enumerate([5, 3, 7]):
    mask = np.isin(label, [v for v, c in enumerate(STUFF) if c == stuff]) & ~used
    mask[size[0] :] = mask[:, size[1] :] = False
    if mask.any() and mask.sum() >= stuff_area:
      ids[mask] = len(scores) + 1 + j
      found[len(scores) + 1 + j] = stuff
  return found, ids


def run(label, detections, size=None, stuff_classes=STUFF, **thresholds):
  return panoptic.merge_segments(
    label,
    detections,
    thing_classes=THINGS,
    stuff_classes=stuff_classes,
    size=size,
    **thresholds,
  )


compiled = jax.jit(run, static_argnames='stuff_classes')


def merge(label, detections, size=None, **kwargs):
  """Compiled once for each shape: all thresholds and the size are given, and traced."""
  thresholds = {'score_threshold': 0.5, 'overlap_threshold': 0.5, 'stuff_area': 4096.0}
  thresholds |= {'mask_threshold': 0.5}
  thresholds |= {key: float(x) for key, x in kwargs.items() if key in thresholds}
  size = np.full((len(label), 2), [HEIGHT, WIDTH], np.int32) if size is None else size
  return compiled(label, detections, size, **(kwargs | thresholds))


def check(label, detections, size=None, **thresholds):
  """Each image equals the plain form; returns the segments."""
  segments = merge(label, detections, size, **thresholds)
  assert segments.ids.dtype == segments.classes.dtype == jnp.int32
  assert not segments.crowd.any()
  for i in range(len(label)):
    of_image = [np.asarray(field[i]) for field in detections]
    kwargs = thresholds if size is None else {'size': size[i], **thresholds}
    found, ids = plain(label[i], of_image, **kwargs)
    np.testing.assert_array_equal(segments.ids[i], ids)
    valid = np.flatnonzero(segments.valid[i])
    assert {k + 1: int(segments.classes[i, k]) for k in valid} == found
    assert set(np.unique(ids)) - {0} == set(found)
  return segments


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
  'thresholds',
  [
    {'score_threshold': 0.5, 'overlap_threshold': 0.5, 'stuff_area': 40},
    {'score_threshold': 0.55, 'overlap_threshold': 0.2, 'stuff_area': 90},
    {'score_threshold': 0.0, 'overlap_threshold': 1.0, 'stuff_area': 0},
    {'score_threshold': 0.0, 'overlap_threshold': 0.0, 'stuff_area': 1e9},
    # Masks reach beyond their boxes.
    {'overlap_threshold': 0.9, 'mask_threshold': 0.05},
  ],
)
def test_equals_the_plain_form(thresholds, seed):
  label, detections = random_example(12, seed)
  check(label, detections, **thresholds)


def test_the_examples_show_every_rule():
  """Else the test above would pass without them."""
  label, detections = random_example(12)
  with_all = check(label, detections, score_threshold=0, overlap_threshold=1.0, stuff_area=0)
  for key, value in {'score_threshold': 0.7, 'overlap_threshold': 0.2, 'stuff_area': 90}.items():
    thresholds = {'score_threshold': 0.0, 'overlap_threshold': 1.0, 'stuff_area': 0, key: value}
    fewer = check(label, detections, **thresholds)
    assert fewer.valid.sum() < with_all.valid.sum(), key
  # Scores tie: in another order, other pixels belong to the same detections.
  reversed_ = Detections(*(field[:, ::-1] for field in detections))
  found = check(label, reversed_, score_threshold=0, overlap_threshold=1.0, stuff_area=0)
  count = detections.scores.shape[1]
  ids = np.where(np.isin(found.ids, np.arange(1, count + 1)), count + 1 - found.ids, found.ids)
  assert set(np.unique(ids)) == set(np.unique(with_all.ids))
  assert (ids != with_all.ids).any()


def test_padding_stays_void():
  label, detections = random_example(12)
  size = np.array([[15, 30], [24, 11]], np.int32)
  ids = check(label, detections, size=size, stuff_area=20).ids
  assert not ids[0, 15:].any() and not ids[1, :, 11:].any()
  assert ids[0, :15].any() and ids[1, :, :11].any()


def hand_made(*boxes, scores, classes=(0, 0, 0)):
  """Three detections; full masks: each fills its box. Those without a box are not valid."""
  count = len(boxes)
  return Detections(
    boxes=np.array([boxes + ((0, 0, 9, 9),) * (3 - count)], 'f4'),
    classes=np.array([classes], 'i4'),
    scores=np.array([(*scores, 1, 1, 1)[:3]], 'f4'),
    masks=np.ones((1, 3, MASK, MASK), 'f4'),
    valid=np.arange(3)[None] < count,
  )


def test_hand_made():
  label = np.full((1, HEIGHT, WIDTH), 1, np.int32)
  # The second is half covered by the first, and the third, of which 60 % is, covers nothing.
  detections = hand_made(
    (0, 0, 10, 10), (5, 0, 15, 10), (4, 0, 14, 10), scores=(0.9, 0.7, 0.8), classes=(0, 1, 2)
  )
  segments = check(label, detections)
  expected = np.zeros((HEIGHT, WIDTH), int)
  expected[:10, :15], expected[:10, :10] = 2, 1
  np.testing.assert_array_equal(segments.ids[0], expected)
  assert segments.valid[0].tolist() == [True, True, False, False, False, False]
  assert segments.classes[0].tolist() == [2, 0, 0, 0, 0, 0]
  # 720 - 150 pixels of stuff are left.
  assert check(label, detections, stuff_area=570).valid[0, 3]
  assert not check(label, detections, stuff_area=571).valid[0, 3]


@pytest.mark.parametrize('covered', [1, 3, 6, 7, 9])
def test_an_overlap_at_the_threshold_is_not_too_much(covered):
  """As in float64: 3 of 10 columns are not more than 0.3."""
  label = np.zeros((1, HEIGHT, WIDTH), np.int32)
  detections = hand_made((0, 0, covered, 10), (0, 0, 10, 10), scores=(0.9, 0.8))
  assert check(label, detections, overlap_threshold=covered / 10).valid[0, 1]
  assert not check(label, detections, overlap_threshold=covered / 10 - 0.001).valid[0, 1]


def test_ties_go_to_the_lower_index_whatever_the_order():
  label = np.zeros((1, HEIGHT, WIDTH), np.int32)
  detections = hand_made((0, 0, 8, 8), (2, 0, 10, 8), (1, 0, 9, 8), scores=(0.6, 0.9, 0.9))
  segments = check(label, detections, overlap_threshold=0.9)
  assert segments.valid[0, :3].tolist() == [True, True, True]
  assert [int((segments.ids == k).sum()) for k in (1, 2, 3)] == [8, 64, 8]


def test_nothing_to_merge():
  label = np.zeros((1, HEIGHT, WIDTH), np.int32)
  assert not check(label, hand_made(scores=())).valid.any()
  empty = jax.tree.map(lambda x: x[:, :0], hand_made(scores=()))
  segments = merge(label, empty)
  assert segments.ids.shape == label.shape and not segments.ids.any()
  assert segments.valid.tolist() == [[False] * 3]
  without_stuff = merge(label, hand_made((0, 0, 9, 9), scores=(0.9,)), stuff_classes=(None,))
  assert without_stuff.valid.tolist() == [[True, False, False]]
  assert int(without_stuff.ids.sum()) == 81


def test_scores_in_place_of_labels_and_no_padding():
  label, detections = random_example(12)
  label = np.where(label == IGNORE_LABEL, 0, label)
  scores = jax.nn.one_hot(label, 6) + 0.1
  expected = merge(label, detections, stuff_area=20)
  jax.tree.map(
    np.testing.assert_array_equal, compiled(scores, detections, stuff_area=20.0), expected
  )


def test_labels_that_are_not_listed_are_void():
  detections = hand_made(scores=())
  for value in (-1, -3, 6, 255, IGNORE_LABEL):
    label = np.full((1, HEIGHT, WIDTH), value, np.int32)
    assert not check(label, detections, stuff_area=0).ids.any()


def test_more_labels_than_a_byte_holds():
  """300 stuff classes under three things; void stays void."""
  label = np.full((1, HEIGHT, WIDTH), IGNORE_LABEL, np.int32)
  label[0, :4] = np.array([0, 254, 255, 299])[:, None]
  segments = merge(label, hand_made(scores=()), stuff_classes=tuple(range(300)), stuff_area=0)
  np.testing.assert_array_equal(segments.ids[0, :4, 0], np.array([0, 254, 255, 299]) + 3 + 1)
  assert not segments.ids[0, 4:].any()
  valid = np.flatnonzero(segments.valid[0])
  assert segments.classes[0, valid].tolist() == [0, 254, 255, 299]


def test_masks_are_needed():
  label, detections = random_example(2)
  with pytest.raises(ValueError, match='use a network with a mask head'):
    merge(label, detections._replace(masks=None))


def test_holds_one_mask_of_an_image_at_a_time_where_the_image_is():
  """And a batch sharded over devices communicates no maps."""
  label, detections = random_example(40, batch=4)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  args = jax.device_put((label, detections), place)
  program = compiled.lower(*args).compile()
  # Of an image: 20 maps of four bytes; 40 masks of four bytes would be twice that.
  assert program.memory_analysis().temp_size_in_bytes < 20 * 4 * HEIGHT * WIDTH
  text = program.as_text()
  assert 'all-reduce' in text
  assert 'all-gather' not in text and 'all-to-all' not in text
  for i, ids in enumerate(program(*args).ids):
    expected = plain(label[i], [np.asarray(field[i]) for field in detections])
    np.testing.assert_array_equal(ids, expected[1])


@functools.partial(jax.jit, static_argnames='threshold')
def paste(masks, boxes, threshold=0.5):
  one = functools.partial(panoptic.paste_mask_on_device, size=(HEIGHT, WIDTH), threshold=threshold)
  return jax.vmap(one)(masks, boxes)


@pytest.mark.parametrize('threshold', [0.5, 0.2])
def test_pasting_equals_the_host(threshold):
  special = [
    [4, 4, 12, 12], [10, 10, 10.2, 10.3], [-6.4, -3.3, 8.2, 9.1], [21, 11, 37.5, 28.2],
    [-20, -20, 50, 40], [-30, -30, -20, -20], [40, 2, 50, 9], [5, 25, 9, 29], [7, 6, 7, 6],
    [7, 6, 7, 12], [12, 12, 6, 6], [0, 0, WIDTH, HEIGHT], [NAN, 1, 5, 5], [1, 1, INF, 5],
    [-INF, -INF, INF, INF], [1e30, 1e30, 3e38, 3e38], [-3e38, -3e38, 3e38, 3e38],
  ]  # fmt: skip
  boxes = np.concatenate([np.array(special, 'f4'), random_boxes(200)])
  masks = smooth_masks(len(boxes))
  expected = paste_masks(masks, boxes, (HEIGHT, WIDTH), rule='detectron2', threshold=threshold)
  differ = paste(masks, boxes, threshold=threshold) != expected
  assert expected.any((1, 2)).sum() > 150
  assert differ.sum() < 3
  # Pixels may differ if the probability equals the threshold up to rounding.
  wider, closer = (
    paste_masks(masks, boxes, (HEIGHT, WIDTH), rule='detectron2', threshold=threshold + shift)
    for shift in (-1e-5, 1e-5)
  )
  assert not (differ & (wider == closer)).any()


def test_a_level_mask_at_the_threshold_is_set():
  """Interpolation leaves it what it is."""
  masks = np.full((1, MASK, MASK), 0.3, 'f4')
  box = np.array([[0.3, 0.7, 28.9, 22.2]], 'f4')
  whole = paste(np.ones_like(masks), box, threshold=0.999)
  assert whole.sum() > 400
  np.testing.assert_array_equal(paste(masks, box, threshold=np.float32(0.3).item()) & whole, whole)
