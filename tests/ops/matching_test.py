import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import boxes as box_ops
from segjax.ops import matching

OPTIONS = ('high', 'low', 'low_quality')
match = jax.jit(matching.match, static_argnames=OPTIONS)


def integer_boxes(n, rng, size=12):
  """Of small whole numbers: many ties, and areas that float32 holds."""
  corner = rng.integers(0, size, (n, 2))
  return np.concatenate([corner, corner + rng.integers(1, size, (n, 2))], 1).astype(np.float32)


def example(seed, a=30, n=6):
  """Boxes, objects, which of them are there, and which are crowds."""
  rng = np.random.default_rng(seed)
  boxes, objects = integer_boxes(a, rng), integer_boxes(n, rng)
  return boxes, objects, rng.random(n) < 0.8, rng.random(n) < 0.3


def defined(boxes, objects, valid, crowd, *, high, low, low_quality, box_valid=None):
  """Object by object and box by box."""
  overlap = np.asarray(box_ops.iou(objects, boxes))
  box_valid = np.ones(len(boxes), bool) if box_valid is None else box_valid
  targets = [n for n in range(len(objects)) if valid[n] and not crowd[n]]
  index = np.zeros(len(boxes), int)
  positive, negative = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
  for a in np.flatnonzero(box_valid):
    index[a] = max(targets, key=lambda n: (overlap[n, a], -n), default=0)
    best = overlap[index[a], a] if targets else 0
    positive[a] = best >= high and bool(targets)
    for n in targets:
      largest = overlap[n, box_valid].max()
      positive[a] |= low_quality and overlap[n, a] == largest > 0
    negative[a] = not positive[a] and (best < low or not targets)
  return index, positive, negative


def assert_same(actual, expected):
  index, positive, negative = expected
  np.testing.assert_array_equal(actual.positive, positive)
  np.testing.assert_array_equal(actual.negative, negative)
  np.testing.assert_array_equal(np.asarray(actual.index)[positive], index[positive])
  assert actual.index.dtype == jnp.int32


RULES = [
  {'high': 0.7, 'low': 0.3, 'low_quality': True},
  {'high': 0.5, 'low': 0.5, 'low_quality': False},
  {'high': 0.5, 'low': 0.25, 'low_quality': True},
]


@pytest.mark.parametrize('rule', RULES)
def test_equals_the_definition(rule):
  seen = np.zeros(3, int)
  for seed in range(20):
    arguments = example(seed)
    box_valid = np.random.default_rng(seed).random(30) < 0.8
    expected = defined(*arguments, **rule, box_valid=box_valid)
    assert_same(match(*arguments, **rule, valid=box_valid), expected)
    _, positive, negative = expected
    seen += [positive.sum(), negative.sum(), (box_valid & ~positive & ~negative).sum()]
  assert (seen[:2] > 15).all()
  assert seen[2] > 15 if rule['low'] < rule['high'] else seen[2] == 0


@pytest.mark.parametrize('rule', RULES)
def test_padding_changes_nothing(rule):
  boxes, objects, valid, crowd = example(0)
  pad = lambda x, n, value: np.concatenate([x, np.full((n, *x.shape[1:]), value, x.dtype)])
  padded = (boxes, pad(objects, 6, 3), pad(valid, 6, False), pad(crowd, 6, True))
  plain = match(boxes, objects, valid, crowd, **rule)
  np.testing.assert_array_equal(match(*padded, **rule), plain)
  padded = (pad(boxes, 5, 3), *padded[1:])
  longer = match(*padded, **rule, valid=np.arange(35) < 30)
  np.testing.assert_array_equal(np.asarray(longer)[:, :30], plain)
  assert not np.asarray(longer)[1:, 30:].any()


@pytest.mark.parametrize('crowded', [False, True])
def test_without_objects_all_are_negative(crowded):
  boxes, objects, _, _ = example(0)
  there = np.full(6, crowded)
  for rule in RULES[:1] + [{'high': 0.5, 'low': 0.0}]:
    result = match(boxes, objects, there, there, **rule)
    assert not result.positive.any()
    assert result.negative.all()
    assert not result.index.any()
  result = matching.match(boxes, objects[:0], there[:0], there[:0], high=0.7, low=0.3)
  assert result.negative.all()


def test_thresholds_are_the_least_of_the_better_side():
  # IoU 1/2, 3/10 and 1/4 with the object.
  boxes = np.array([[0, 0, 5, 10], [0, 0, 3, 10], [0, 0, 10, 2.5]], np.float32)
  objects = np.array([[0, 0, 10, 10]], np.float32)
  there, crowd = np.array([True]), np.array([False])
  result = match(boxes, objects, there, crowd, high=0.5, low=0.3)
  assert result.positive.tolist() == [True, False, False]
  assert result.negative.tolist() == [False, False, True]


def test_ties():
  # Boxes 0 and 1 tie as the best of object 0; box 2 has the same IoU with objects 1 and 2.
  boxes = np.array([[0, 0, 2, 10], [8, 0, 10, 10], [20, 0, 30, 10], [0, 0, 1, 10]], np.float32)
  objects = np.array([[0, 0, 10, 10], [20, 0, 25, 10], [25, 0, 30, 10]], np.float32)
  there, crowd = np.ones(3, bool), np.zeros(3, bool)
  result = match(boxes, objects, there, crowd, high=0.7, low=0.3, low_quality=True)
  assert result.positive.tolist() == [True, True, True, False]
  assert result.index.tolist() == [0, 0, 1, 0]
  assert result.negative.tolist() == [False, False, False, True]


def test_a_low_quality_match_learns_its_own_best_object():
  # The only box: the best there is for both objects, of which it overlaps the second more.
  boxes = np.array([[0, 0, 10, 10]], np.float32)
  objects = np.array([[0, 0, 1, 10], [8, 0, 10, 10]], np.float32)
  result = match(
    boxes, objects, np.ones(2, bool), np.zeros(2, bool), high=0.7, low=0.3, low_quality=True
  )
  assert result.positive.tolist() == [True]
  assert result.index.tolist() == [1]


def test_an_object_that_overlaps_nothing_makes_nothing_positive():
  boxes, objects, *_ = example(0)
  objects[:] = [[500, 500, 510, 510]] * 3 + [[2, 2, 2, 2]] * 3
  there, crowd = np.ones(6, bool), np.zeros(6, bool)
  assert match(boxes, objects, there, crowd, high=0.7, low=0.3, low_quality=True).negative.all()


def test_boxes_on_a_crowd_are_background_unless_they_have_an_object():
  boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 5], [8, 8, 40, 40]], np.float32)
  objects = np.array([[0, 0, 10, 10], [0, 0, 20, 20]], np.float32)
  rule = {'high': 0.7, 'low': 0.3}
  arguments = boxes, objects, np.ones(2, bool), np.array([False, True])
  result = match(*arguments, **rule)
  assert result.positive.tolist() == [True, False, False]
  assert result.negative.tolist() == [False, True, True]


def test_a_vmapped_batch_equals_its_images_and_has_no_gradient():
  images = [example(seed) for seed in range(3)]
  batch = [np.stack(x) for x in zip(*images, strict=True)]
  function = functools.partial(matching.match, **RULES[0])
  result = jax.jit(jax.vmap(function))(*batch)
  for i, image in enumerate(images):
    np.testing.assert_array_equal([x[i] for x in result], match(*image, **RULES[0]))

  def loss(boxes):
    matches = function(boxes, *images[0][1:])
    return jnp.where(matches.positive[:, None], boxes, 0).sum()

  gradient = jax.jit(jax.grad(loss))(images[0][0])
  positive = match(*images[0], **RULES[0]).positive
  np.testing.assert_array_equal(gradient, np.repeat(positive[:, None], 4, 1))


def test_low_above_high_is_an_error():
  with pytest.raises(ValueError, match='low must be at most high'):
    match(*example(0), high=0.3, low=0.7)


@pytest.mark.parametrize('low_quality', [False, True])
# Thresholds that integer boxes meet exactly, in float32 above or below the decimal.
@pytest.mark.parametrize(('high', 'low'), [(0.5, 0.3), (0.7, 0.3), (0.6, 0.4), (0.6, 1 / 3)])
def test_equals_torchvision(low_quality, high, low):
  torch = pytest.importorskip('torch')
  utils = pytest.importorskip('torchvision.models.detection._utils')
  ops = pytest.importorskip('torchvision.ops')
  matcher = utils.Matcher(high, low, low_quality)
  compared = 0
  for seed in range(40):
    boxes, objects, *_ = example(seed)
    quality = ops.box_iou(torch.tensor(objects), torch.tensor(boxes))
    if not (quality.max(1).values > 0).all():
      continue  # The documented difference.
    compared += 1
    theirs = matcher(quality).numpy()
    ours = match(
      boxes, objects, np.ones(6, bool), np.zeros(6, bool), high=high, low=low,
      low_quality=low_quality,
    )  # fmt: skip
    assert_same(ours, (theirs, theirs >= 0, theirs == matcher.BELOW_LOW_THRESHOLD))
  assert compared > 20
