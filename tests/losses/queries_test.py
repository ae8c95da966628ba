"""Losses of matched queries, by hand and by what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax.losses import queries
from segjax.losses.queries import Matched

LOSSES = (queries.query_class, queries.query_mask, queries.query_dice)
LAYERS, BATCH, QUERIES, CLASSES, OBJECTS, POINTS = 3, 2, 5, 4, 3, 8


def make_matched(seed=0):
  rng = np.random.default_rng(seed)
  valid = np.array([[True, True, False], [True, False, False]])
  target = np.full((LAYERS, BATCH, QUERIES), CLASSES)
  target[:, 0, [4, 1]], target[:, 1, 2] = [0, 3], 2
  return Matched(
    classes=rng.normal(size=(LAYERS, BATCH, QUERIES, CLASSES + 1)).astype(np.float32),
    target=target,
    points=rng.normal(size=(LAYERS, BATCH, OBJECTS, POINTS)).astype(np.float32),
    mask=rng.integers(0, 2, (LAYERS, BATCH, OBJECTS, POINTS)).astype(np.float32),
    valid=valid,
    example=np.ones(BATCH, bool),
  )


def means(matched):
  parts = [loss({'matched': matched}) for loss in LOSSES]
  return np.array([part.sum / part.count for part in parts])


def test_by_hand():
  """Summed over the layers; averaged over weighted queries, and over objects."""
  m = make_matched()
  log_p = m.classes - np.log(np.exp(m.classes).sum(-1, keepdims=True))
  weight = np.where(m.target == CLASSES, 0.1, 1.0)
  chosen = np.take_along_axis(log_p, m.target[..., None], -1)[..., 0]
  of_class = -(weight * chosen).sum() / (3 * 1.0 + 7 * 0.1)
  p = 1 / (1 + np.exp(-m.points))
  bce = -(m.mask * np.log(p) + (1 - m.mask) * np.log(1 - p)).mean(-1)
  dice = 1 - (2 * (p * m.mask).sum(-1) + 1) / (p.sum(-1) + m.mask.sum(-1) + 1)
  expected = [of_class, bce[:, m.valid].sum() / 3, dice[:, m.valid].sum() / 3]
  np.testing.assert_allclose(means(m), expected, rtol=1e-5)


def test_padding_changes_nothing():
  m = make_matched()
  more = lambda x, axis: np.concatenate([x, np.flip(x, axis)], axis)
  objects = m._replace(
    points=more(m.points, 2), mask=more(m.mask, 2), valid=np.pad(m.valid, ((0, 0), (0, OBJECTS)))
  )
  np.testing.assert_allclose(means(objects), means(m), rtol=1e-6)
  examples = Matched(
    *(more(field, 1) for field in m[:4]),
    valid=np.pad(m.valid, ((0, BATCH), (0, 0))),
    example=np.array([True, True, False, False]),
  )
  np.testing.assert_allclose(means(examples), means(m), rtol=1e-6)


def test_no_object_at_all():
  m = make_matched()
  empty = m._replace(target=np.full_like(m.target, CLASSES), valid=np.zeros_like(m.valid))
  of_class, of_mask, of_dice = (loss({'matched': empty}) for loss in LOSSES)
  assert of_mask.count == of_dice.count == of_mask.sum == of_dice.sum == 0
  np.testing.assert_allclose(of_class.count, 0.1 * BATCH * QUERIES, rtol=1e-6)


@pytest.mark.parametrize('no_object', [0.0, 1.0])
def test_the_weight_of_no_object(no_object):
  found = queries.query_class({'matched': make_matched()}, no_object=no_object)
  np.testing.assert_allclose(found.count, 3 + 7 * no_object, rtol=1e-6)


def test_perfect_predictions_cost_nothing():
  m = make_matched()
  sure = m._replace(classes=50 * jnp.eye(CLASSES + 1)[m.target], points=100 * m.mask - 50)
  np.testing.assert_allclose(means(sure), 0, atol=1e-5)


@pytest.mark.parametrize('name', ['query_class', 'query_mask', 'query_dice'])
def test_gradients_are_finite_differences(name):
  """Of the mean; what is padding has none."""
  m = make_matched()
  field = 'classes' if name == 'query_class' else 'points'

  def mean(values):
    part = getattr(queries, name)({'matched': m._replace(**{field: values})})
    return part.sum / part.count

  given = getattr(m, field)
  check_grads(jax.jit(mean), (given,), order=1, modes=['rev'], eps=1e-2, atol=1e-3, rtol=1e-2)
  gradient = np.asarray(jax.grad(mean)(given))
  assert (np.abs(gradient).max(-1) > 0)[:, m.valid].all() if field == 'points' else gradient.any()
  if field == 'points':
    assert not gradient[:, ~m.valid].any()


@pytest.mark.parametrize('size', [1e3, 1e30])
def test_logits_however_large_have_finite_losses_and_gradients(size):
  m = make_matched()

  def total(classes, points):
    given = {'matched': m._replace(classes=classes, points=points)}
    return sum(loss(given).sum for loss in LOSSES)

  value, gradients = jax.value_and_grad(total, (0, 1))(size * m.classes, size * m.points)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
