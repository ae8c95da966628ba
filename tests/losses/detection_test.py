import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax.losses import detection
from segjax.ops import boxes as box_ops
from segjax.ops import matching, sampling
from segjax.types import SegjaxError

IMAGES, SLOTS, CLASSES, SIDE = 2, 6, 3, 4


def example(seed=0):
  """Samples of two images as from `sample`: positives, negatives, then padding."""
  rng = np.random.default_rng(seed)
  shape = (IMAGES, SLOTS)
  f32 = lambda *more: rng.normal(size=(*shape, *more)).astype(np.float32)
  slot = np.arange(SLOTS)
  return {
    'positive': slot < np.array([[2], [1]]),
    'valid': slot < np.array([[5], [4]]),
    'classes': rng.integers(0, CLASSES, shape).astype(np.int32),
    'objectness': f32(),
    'logits': f32(1 + CLASSES),
    'deltas': f32(CLASSES, 4) / 4,
    'targets': f32(4) / 4,
    'masks': f32(SIDE, SIDE, CLASSES),
    'softmax_masks': f32(SIDE, SIDE, 1 + CLASSES),
    'mask_targets': rng.random((*shape, SIDE, SIDE)).astype(np.float32),
  }


# name: (key of what has a gradient, the loss of an example with that replaced)
LOSSES = {
  'objectness': (
    'objectness',
    lambda e: detection.objectness_loss(e['objectness'], e['positive'], e['valid']),
  ),
  'class': (
    'logits',
    lambda e: detection.class_loss(e['logits'], e['classes'], e['positive'], e['valid']),
  ),
  'rpn box': (
    'deltas',
    lambda e: detection.box_loss(e['deltas'][..., 0, :], e['targets'], e['positive'], e['valid']),
  ),
  'box': (
    'deltas',
    lambda e: detection.box_loss(
      e['deltas'], e['targets'], e['positive'], e['valid'], e['classes']
    ),
  ),
  'mask': (
    'masks',
    lambda e: detection.mask_loss(e['masks'], e['mask_targets'], e['positive'], e['classes']),
  ),
  'softmax mask': (
    'softmax_masks',
    lambda e: detection.mask_loss(
      e['softmax_masks'], e['mask_targets'], e['positive'], e['classes'], activation='softmax'
    ),
  ),
}
# Compiled once for each shape.
LOSSES = {name: (key, jax.jit(loss)) for name, (key, loss) in LOSSES.items()}
every_loss = pytest.mark.parametrize('name', LOSSES)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
  x = np.exp(np.asarray(x, np.float64))
  return x / x.sum(-1, keepdims=True)


def binary(p, t):
  return -t * np.log(p) - (1 - t) * np.log(1 - p)


def defined(name, e, beta=1 / 9):
  """Sample by sample."""
  total = 0.0
  for i in np.argwhere(e['valid']):
    i, c = tuple(i), e['classes'][tuple(i)]
    t = e['mask_targets'][i].astype(np.float64)
    positive = e['positive'][i]
    if name == 'objectness':
      total += binary(sigmoid(e['objectness'][i]), float(positive))
    elif name == 'class':
      total -= np.log(softmax(e['logits'][i])[c + 1 if positive else 0])
    elif 'box' in name and positive:
      for d in e['deltas'][i][0 if 'rpn' in name else c] - e['targets'][i]:
        total += 0.5 * d * d / beta if abs(d) < beta else abs(d) - 0.5 * beta
    elif name == 'mask' and positive:
      total += binary(sigmoid(e['masks'][i][..., c]), t).sum()
    elif name == 'softmax mask' and positive:
      p = softmax(e['softmax_masks'][i])
      total -= (t * np.log(p[..., c + 1]) + (1 - t) * np.log(p[..., 0])).sum()
  return total, 3 * SIDE * SIDE if 'mask' in name else 9


@every_loss
def test_equals_its_definition(name):
  for seed in range(3):
    e = example(seed)
    result = LOSSES[name][1](e)
    np.testing.assert_allclose(result, defined(name, e), rtol=1e-5)
    assert result.sum.dtype == result.count.dtype == jnp.float32


def test_smooth_l1_of_known_differences():
  d = jnp.array([-2.0, -0.5, 0.0, 0.25, 1.0])
  np.testing.assert_allclose(detection.smooth_l1(d, 1.0), [1.5, 0.125, 0, 0.03125, 0.5])
  np.testing.assert_allclose(detection.smooth_l1(d, 0.5), [1.75, 0.25, 0, 0.0625, 0.75])
  np.testing.assert_allclose(detection.smooth_l1(d, 0.0), [2, 0.5, 0, 0.25, 1])
  for beta in (0.0, 0.5):
    gradient = jax.grad(lambda d, beta=beta: detection.smooth_l1(d, beta).sum())(d)
    slope = d / beta if beta else jnp.sign(d)
    np.testing.assert_allclose(gradient, jnp.clip(slope, -1, 1))


@every_loss
def test_slots_that_are_not_counted_change_nothing(name):
  """Whatever they hold: infinite and NaN values, classes that do not exist."""
  key, loss = LOSSES[name]
  e = example()
  counted = e['valid'] if name in ('objectness', 'class') else e['positive']
  dirty = dict(e)
  for k, value in e.items():
    if k not in ('positive', 'valid'):
      read = e['positive'] if k in ('classes', 'targets', 'mask_targets') else counted
      read = read.reshape(read.shape + (1,) * (value.ndim - 2))
      dirty[k] = np.where(read, value, 99 if k == 'classes' else np.nan)
  np.testing.assert_array_equal(loss(dirty), loss(e))
  gradient = np.asarray(jax.grad(lambda x: loss({**dirty, key: x}).sum)(dirty[key]))
  assert np.isfinite(gradient).all()
  assert not gradient[~counted].any()
  assert gradient[counted].reshape(counted.sum(), -1).any(1).all()


@every_loss
def test_nothing_to_count_is_zero_without_nan(name):
  key, loss = LOSSES[name]
  e = example()
  e['positive'] = e['valid'] = np.zeros((IMAGES, SLOTS), bool)
  assert loss(e) == (0, 0)
  assert not np.asarray(jax.grad(lambda x: loss({**e, key: x}).sum)(e[key])).any()


@every_loss
def test_sums_and_counts_add_over_a_split_batch_and_padding(name):
  loss = LOSSES[name][1]
  e = example()
  whole = loss(e)
  images = [loss({k: v[i] for k, v in e.items()}) for i in range(IMAGES)]
  np.testing.assert_allclose(np.sum(images, 0), whole, rtol=1e-6)
  pad = lambda v: np.pad(v, [(0, 1), (0, SLOTS), *[(0, 0)] * (v.ndim - 2)])
  np.testing.assert_allclose(loss({k: pad(v) for k, v in e.items()}), whole, rtol=1e-6)


@every_loss
def test_numerical_gradient_and_bfloat16(name):
  key, loss = LOSSES[name]
  e = example()
  # A larger step than the default: the sum of many pixels has few digits.
  total = jax.jit(lambda x: loss({**e, key: x}).sum)
  check_grads(total, (e[key],), 1, ['rev'], atol=1e-2, rtol=1e-2, eps=1e-2)
  low = jnp.asarray(e[key], jnp.bfloat16)
  result = loss({**e, key: low})
  assert result.sum.dtype == jnp.float32
  np.testing.assert_allclose(result, loss({**e, key: low.astype(jnp.float32)}), rtol=1e-6)


def test_large_logits_have_exact_losses_and_finite_gradients():
  one = np.ones(1, bool)
  for x, positive, expected in ((200.0, True, 0), (-200.0, True, 200), (200.0, False, 200)):
    loss = lambda x, positive=positive: detection.objectness_loss(x, one & positive, one).sum
    assert loss(jnp.array([x])) == expected
    assert np.isfinite(jax.grad(loss)(jnp.array([x]))).all()
  logits = jnp.array([[1e4, 1e4 + 1.0]])
  loss = lambda x: detection.class_loss(x, np.zeros(1, int), ~one, one).sum
  np.testing.assert_allclose(loss(logits), np.log1p(np.e), rtol=1e-6)
  np.testing.assert_allclose(loss(jnp.array([[10.0, 0.0]])), np.log1p(np.exp(-10.0)), rtol=1e-2)


def test_class_agnostic_equals_one_class():
  e = example()
  where = e['positive'], e['valid']
  zeros = np.zeros_like(e['classes'])
  box = lambda deltas, *more: detection.box_loss(deltas, e['targets'], *where, *more)
  np.testing.assert_array_equal(box(e['deltas'][..., 0, :]), box(e['deltas'][..., :1, :], zeros))
  for key, activation, channels in (('masks', 'sigmoid', 1), ('softmax_masks', 'softmax', 2)):
    mask = lambda *more, key=key, activation=activation, channels=channels: detection.mask_loss(
      e[key][..., :channels], e['mask_targets'], e['positive'], *more, activation=activation
    )
    np.testing.assert_array_equal(mask(), mask(zeros))


def test_a_sigmoid_mask_reads_the_channel_of_its_class_only():
  e = example()
  gradient = jax.grad(lambda x: LOSSES['mask'][1]({**e, 'masks': x}).sum)(e['masks'])
  channel = e['classes'][..., None] == np.arange(CLASSES)
  np.testing.assert_array_equal(
    np.asarray(gradient).any((2, 3)), channel & e['positive'][..., None]
  )


def test_masks_may_be_bool():
  e = example()
  mask = lambda targets: detection.mask_loss(e['masks'], targets, e['positive'], e['classes'])
  hard = e['mask_targets'] > 0.5
  np.testing.assert_array_equal(mask(hard), mask(hard.astype(np.float32)))


def test_divided_by_slots():
  e = example()
  where = e['positive'], e['valid']
  a = detection.objectness_loss(e['objectness'], *where, divide_by='slots')
  b = detection.box_loss(e['deltas'][..., 0, :], e['targets'], *where, divide_by='slots')
  assert a.count == b.count == IMAGES * SLOTS
  np.testing.assert_allclose(a.sum, LOSSES['objectness'][1](e).sum, rtol=1e-6)
  np.testing.assert_allclose(b.sum, LOSSES['rpn box'][1](e).sum, rtol=1e-6)


def test_wrong_arguments():
  e = example()
  with pytest.raises(SegjaxError, match="divide_by is 'count'"):
    detection.objectness_loss(e['objectness'], e['positive'], e['valid'], divide_by='count')
  with pytest.raises(SegjaxError, match="activation is 'relu'"):
    detection.mask_loss(e['masks'], e['mask_targets'], e['positive'], activation='relu')


def test_the_losses_of_a_config_are_these_of_what_a_network_outputs():
  e = example()
  where = e['positive'], e['valid']
  rpn_deltas = e['deltas'][..., 0, :]
  rois = types.SimpleNamespace(
    classes=e['classes'], target=e['targets'], positive=e['positive'], valid=e['valid']
  )
  outputs = {
    'rpn': types.SimpleNamespace(
      logits=e['objectness'],
      deltas=rpn_deltas,
      target=e['targets'],
      positive=where[0],
      valid=where[1],
    ),
    'box': (e['logits'], e['deltas'], rois),
    'mask': (e['masks'], e['mask_targets'], rois),
  }
  slots = {'divide_by': 'slots'}
  box = lambda deltas, *classes, **options: detection.box_loss(
    deltas, e['targets'], *where, *classes, **options
  )
  mask = lambda key, classes, **options: detection.mask_loss(
    e[key], e['mask_targets'], e['positive'], classes, **options
  )
  softmax = {'activation': 'softmax'}
  of_softmax = {'mask': (e['softmax_masks'], *outputs['mask'][1:])}
  agnostic = {'mask': (e['masks'][..., :1], *outputs['mask'][1:])}
  pairs = [
    (detection.rpn_class(outputs), detection.objectness_loss(e['objectness'], *where)),
    (
      detection.rpn_class(outputs, **slots),
      detection.objectness_loss(e['objectness'], *where, **slots),
    ),
    (detection.rpn_box(outputs), box(rpn_deltas, beta=1 / 9)),
    (detection.rpn_box(outputs, beta=1, **slots), box(rpn_deltas, beta=1, **slots)),
    (
      detection.box_class(outputs),
      detection.class_loss(e['logits'], e['classes'], *where),
    ),
    (detection.box_regression(outputs), box(e['deltas'], e['classes'], beta=1 / 9)),
    (detection.box_regression(outputs, beta=1), box(e['deltas'], e['classes'], beta=1)),
    (detection.mask(outputs), mask('masks', e['classes'])),
    (detection.mask(of_softmax, **softmax), mask('softmax_masks', e['classes'], **softmax)),
    (
      detection.mask(agnostic),
      detection.mask_loss(e['masks'][..., :1], e['mask_targets'], e['positive']),
    ),
  ]
  for found, expected in pairs:
    np.testing.assert_array_equal(found, expected)
  del outputs['mask']
  with pytest.raises(SegjaxError, match='config.losses.mask: the network has no mask head'):
    detection.mask(outputs)


@jax.jit
def matched_losses(objects, object_valid, object_classes, crowd):
  """From objects to losses, as a task composes them; outputs are random, one per anchor."""
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 60, (200, 2))
  anchors = np.concatenate([corner, corner + rng.uniform(4, 40, (200, 2))], 1).astype(np.float32)
  outputs = rng.normal(size=(200, 1 + CLASSES)).astype(np.float32)
  # Proposals: the objects come last, so that padding them moves nothing else.
  proposals = jnp.concatenate([anchors, objects])
  outputs = np.concatenate([outputs, np.resize(outputs, (len(objects), 1 + CLASSES))])
  valid = jnp.concatenate([np.ones(200, bool), object_valid & ~crowd])
  matches = matching.match(proposals, objects, object_valid, crowd, high=0.5, low=0.5, valid=valid)
  sampled = sampling.sample(jax.random.key(0), matches.positive, matches.negative, 64, 0.25)
  matched = matches.index[sampled.index]
  targets = box_ops.encode(
    jnp.asarray(objects)[matched], jnp.asarray(proposals)[sampled.index], (10, 10, 5, 5)
  )
  logits, where = jnp.asarray(outputs)[sampled.index], (sampled.positive, sampled.valid)
  classes = jnp.asarray(object_classes)[matched]
  return (
    detection.objectness_loss(logits[:, 0], *where),
    detection.class_loss(logits, classes, *where),
    detection.box_loss(logits, targets, *where),
  ), sampled


def test_padding_the_ground_truth_changes_no_loss():
  """N to 2N, through matching, sampling and the losses, with a crowd among the objects."""
  objects = np.array([[5, 5, 30, 30], [20, 10, 60, 50], [0, 0, 90, 20], [0, 0, 0, 0]], np.float32)
  valid, crowd = np.array([1, 1, 1, 0], bool), np.array([0, 0, 1, 0], bool)
  classes = np.array([2, 0, 1, 0], np.int32)
  plain, sampled = matched_losses(objects, valid, classes, crowd)
  assert 2 < sampled.positive.sum() <= 16
  assert sampled.valid.all()
  pad = lambda x: np.pad(x, [(0, 4), *[(0, 0)] * (x.ndim - 1)])
  padded, _ = matched_losses(*map(pad, (objects, valid, classes, crowd)))
  for a, b in zip(plain, padded, strict=True):
    np.testing.assert_array_equal(a, b)


def test_equals_torchvision():
  torch = pytest.importorskip('torch')
  heads = pytest.importorskip('torchvision.models.detection.roi_heads')
  functional = torch.nn.functional
  e = example()
  valid, positive = e['valid'], e['positive']
  mean = lambda loss: float(loss.sum / loss.count)
  # The RPN's, as RegionProposalNetwork.compute_loss puts them.
  box = functional.smooth_l1_loss(
    torch.tensor(e['deltas'][positive][:, 0]), torch.tensor(e['targets'][positive]),
    beta=1 / 9, reduction='sum',
  )  # fmt: skip
  np.testing.assert_allclose(mean(LOSSES['rpn box'][1](e)), float(box) / valid.sum(), rtol=1e-5)
  objectness = functional.binary_cross_entropy_with_logits(
    torch.tensor(e['objectness'][valid]), torch.tensor(positive[valid].astype('f4'))
  )
  np.testing.assert_allclose(mean(LOSSES['objectness'][1](e)), float(objectness), rtol=1e-5)
  # The heads': torchvision has boxes and masks of the background too, first.
  label = np.where(positive, e['classes'] + 1, 0)
  deltas = np.pad(e['deltas'], [(0, 0), (0, 0), (1, 0), (0, 0)])[valid].reshape(valid.sum(), -1)
  theirs = heads.fastrcnn_loss(
    torch.tensor(e['logits'][valid]), torch.tensor(deltas),
    [torch.tensor(label[valid]).long()], [torch.tensor(e['targets'][valid])],
  )  # fmt: skip
  np.testing.assert_allclose(mean(LOSSES['class'][1](e)), float(theirs[0]), rtol=1e-5)
  np.testing.assert_allclose(mean(LOSSES['box'][1](e)), float(theirs[1]), rtol=1e-5)
  # A mask that fills its box exactly, so that torchvision's crop and resize give it unchanged.
  masks = np.pad(e['masks'], [*[(0, 0)] * 4, (1, 0)])[positive].transpose(0, 3, 1, 2)
  count = int(positive.sum())
  truth = (e['mask_targets'][positive] > 0.5).astype('f4')
  whole = torch.tensor([[0.0, 0, SIDE, SIDE]] * count)
  theirs = heads.maskrcnn_loss(
    torch.tensor(masks), [whole], [torch.tensor(truth)],
    [torch.tensor(label[positive]).long()], [torch.arange(count)],
  )  # fmt: skip
  e['mask_targets'][positive] = truth
  np.testing.assert_allclose(mean(LOSSES['mask'][1](e)), float(theirs), rtol=1e-5)
