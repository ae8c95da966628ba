"""Optimizers against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training.optim import (
  OptimConfig,
  check_schedule,
  make_optimizer,
  make_schedule,
  update_ema,
)
from segjax.types import SegjaxError

PARAMS = {
  'conv': {'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([0.5])},
  'norm': {'scale': jnp.array([2.0])},
}
GRADS = {
  'conv': {'kernel': jnp.array([0.1, 0.2]), 'bias': jnp.array([0.3])},
  'norm': {'scale': jnp.array([-0.4])},
}


def run(config, steps=2, grads=GRADS):
  optimizer = make_optimizer(config, 10, PARAMS)
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'schedule': 'step'}, r"boundaries=\(\) with config\.optim\.schedule='step': name the steps"),
    ({'boundaries': (5,)}, r"with config\.optim\.schedule='constant': set it to \(\)"),
    ({'schedule': 'step', 'boundaries': (5, 3)}, 'name each step once, in order'),
    ({'schedule': 'step', 'boundaries': (5, 5)}, 'name each step once, in order'),
  ],
)
def test_boundaries_that_do_nothing_are_an_error(keys, message):
  with pytest.raises(SegjaxError, match=message):
    check_schedule(OptimConfig(**keys))
  check_schedule(OptimConfig(schedule='step', boundaries=(3, 5)))


def test_sgd_momentum_and_decay_by_hand():
  params = run(OptimConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01))
  for path in (('conv', 'kernel'), ('conv', 'bias'), ('norm', 'scale')):
    w, g = np.asarray(PARAMS[path[0]][path[1]]), np.asarray(GRADS[path[0]][path[1]])
    decay = 0.01 if path[1] == 'kernel' else 0.0
    v = np.zeros_like(w)
    for _ in range(2):
      v = 0.9 * v + g + decay * w
      w = w - 0.1 * v
    np.testing.assert_allclose(params[path[0]][path[1]], w, rtol=1e-6)


def test_nesterov_looks_ahead_by_hand():
  params = run(OptimConfig(learning_rate=0.1, momentum=0.9, nesterov=True))
  w, g, v = np.asarray(PARAMS['norm']['scale']), np.asarray(GRADS['norm']['scale']), 0.0
  for _ in range(2):
    v = 0.9 * v + g
    w = w - 0.1 * (g + 0.9 * v)
  np.testing.assert_allclose(params['norm']['scale'], w, rtol=1e-6)


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_adam_by_hand(name):
  """Adam's decay is part of the gradient of which the moments are; AdamW's is not."""
  b1, b2, eps, decay = 0.8, 0.95, 1e-3, 0.3
  params = run(
    OptimConfig(name=name, learning_rate=0.1, b1=b1, b2=b2, eps=eps, weight_decay=decay), steps=3
  )
  w, gradient = (np.asarray(tree['conv']['kernel'], np.float64) for tree in (PARAMS, GRADS))
  mean = square = np.zeros_like(w)
  for step in (1, 2, 3):
    g = gradient + decay * w * (name == 'adam')
    mean, square = b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * g**2
    move = mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + eps)
    w = w - 0.1 * (move + decay * w * (name == 'adamw'))
  np.testing.assert_allclose(params['conv']['kernel'], w, rtol=1e-5)


def test_adamw_decays_kernels_only_and_apart_from_the_moments():
  with_decay = run(OptimConfig(name='adamw', learning_rate=0.1, weight_decay=0.5), steps=1)
  without = run(OptimConfig(name='adamw', learning_rate=0.1), steps=1)
  difference = jax.tree.map(lambda a, b: np.asarray(a - b), with_decay, without)
  np.testing.assert_allclose(
    difference['conv']['kernel'], -0.1 * 0.5 * PARAMS['conv']['kernel'], rtol=1e-5
  )
  assert difference['conv']['bias'] == 0
  assert difference['norm']['scale'] == 0


def test_multipliers_scale_the_updates_that_match():
  plain = run(OptimConfig(learning_rate=0.1))
  scaled = run(OptimConfig(learning_rate=0.1, multipliers=(('bias$', 2.0), ('^norm/', 0.0))))
  np.testing.assert_array_equal(scaled['conv']['kernel'], plain['conv']['kernel'])
  np.testing.assert_allclose(
    scaled['conv']['bias'] - 0.5, 2 * (plain['conv']['bias'] - 0.5), rtol=1e-6
  )
  np.testing.assert_array_equal(scaled['norm']['scale'], PARAMS['norm']['scale'])


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_what_is_frozen_does_not_decay(name):
  optimizer = make_optimizer(OptimConfig(name=name, weight_decay=0.5), 10, PARAMS, ('^conv/',))
  zeros = jax.tree.map(jnp.zeros_like, GRADS)
  updates, _ = optimizer.update({**GRADS, 'conv': zeros['conv']}, optimizer.init(PARAMS), PARAMS)
  assert not updates['conv']['kernel'].any()
  assert updates['norm']['scale'].any()


@pytest.mark.parametrize('pattern', ['nothing_like_it', '('])
def test_multipliers_that_match_nothing_are_an_error(pattern):
  with pytest.raises(SegjaxError, match='config.optim.multipliers'):
    make_optimizer(OptimConfig(multipliers=((pattern, 2.0),)), 10, PARAMS)


def test_late_parameters_rest_then_warm_up():
  """The two-stage warm-up of EoMT: 2 steps for the others, 4 more for these, then poly."""
  late = (('^conv/', 2, 4),)
  keys = {'name': 'sgd', 'momentum': 0.0, 'learning_rate': 1.0, 'schedule': 'poly', 'power': 1.0}
  optimizer = make_optimizer(OptimConfig(**keys, warmup_steps=2, late=late), 10, PARAMS)
  ones = jax.tree.map(jnp.ones_like, PARAMS)
  state, rates = optimizer.init(PARAMS), []
  for _ in range(10):
    updates, state = optimizer.update(ones, state, PARAMS)
    rates.append((-float(updates['norm']['scale'][0]), -float(updates['conv']['bias'][0])))
  common, those = zip(*rates, strict=True)
  np.testing.assert_allclose(common, [0, 0.5, *(1 - np.arange(8) / 8)], atol=1e-6)
  np.testing.assert_allclose(those, [0, 0, 0, 0.25, 0.5, 0.75, *(1 - np.arange(4) / 4)], atol=1e-6)


def test_steps_come_at_the_same_time_for_late_parameters():
  late = (('^conv/', 2, 4),)
  config = OptimConfig(
    momentum=0.0, learning_rate=1.0, schedule='step', boundaries=(1, 7), late=late
  )
  optimizer = make_optimizer(config, 10, PARAMS)
  state, rates = optimizer.init(PARAMS), []
  for _ in range(10):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    rates.append((-float(updates['norm']['scale'][0]), -float(updates['conv']['bias'][0])))
  common, those = zip(*rates, strict=True)
  np.testing.assert_allclose(common, [1, *[0.1] * 6, *[0.01] * 3], rtol=1e-5)
  warm = [0, 0, 0, 0.025, 0.05, 0.075, 0.1, *[0.01] * 3]
  np.testing.assert_allclose(those, warm, rtol=1e-5, atol=1e-8)


def test_late_keeps_the_state_of_the_optimizer():
  """So that a run goes on with another warm-up."""
  plain, late = (
    make_optimizer(OptimConfig(late=late), 10, PARAMS).init(PARAMS)
    for late in ((), (('^c', 1, 2),))
  )
  assert jax.tree.structure(plain) == jax.tree.structure(late)


@pytest.mark.parametrize('pattern', ['nothing_like_it', '('])
def test_late_that_matches_nothing_is_an_error(pattern):
  with pytest.raises(SegjaxError, match='config.optim.late'):
    make_optimizer(OptimConfig(late=((pattern, 1, 2),)), 10, PARAMS)


def test_clip_norm_scales_to_the_norm():
  big = jax.tree.map(lambda g: 100 * g, GRADS)
  config = OptimConfig(learning_rate=1.0, momentum=0.0, clip_norm=0.5)
  moved = jax.tree.map(lambda a, b: a - b, run(config, 1, big), PARAMS)
  assert optax.tree.norm(moved) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    ({}, {0: 1.0, 99: 1.0}),
    ({'schedule': 'poly', 'power': 2.0}, {0: 1.0, 50: 0.25, 100: 0.0}),
    ({'schedule': 'cosine'}, {0: 1.0, 50: 0.5, 100: 0.0}),
    ({'schedule': 'step', 'boundaries': (30, 60)}, {29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01}),
    ({'warmup_steps': 10}, {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
    ({'warmup_steps': 10, 'warmup_factor': 0.5}, {0: 0.5, 10: 1.0}),
    ({'schedule': 'step', 'boundaries': (30,), 'warmup_steps': 10}, {29: 1.0, 30: 0.1}),
    # Warm-up does not bring back a step that comes before its end.
    (
      {'schedule': 'step', 'boundaries': (5, 30), 'warmup_steps': 10},
      {4: 0.4, 5: 0.05, 9: 0.09, 10: 0.1, 29: 0.1, 30: 0.01},
    ),
    ({'schedule': 'cosine', 'warmup_steps': 20}, {20: 1.0, 60: 0.5, 100: 0.0}),
  ],
)
def test_schedules(config, expected):
  schedule = make_schedule(OptimConfig(learning_rate=1.0, **config), 100)
  for step, value in expected.items():
    assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


def test_ema_forgets_its_start_at_first():
  ema = update_ema({'w': jnp.array(0.0)}, {'w': jnp.array(1.0)}, jnp.array(0), 0.99)
  assert float(ema['w']) == pytest.approx(0.9)
  ema = update_ema({'w': jnp.array(0.0)}, {'w': jnp.array(1.0)}, jnp.array(10**6), 0.99)
  assert float(ema['w']) == pytest.approx(0.01)
