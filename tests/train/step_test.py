"""The train step: what must not change the result, and what must."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_task import make_batch, make_task

from segjax.train import sharding
from segjax.train.state import TrainState, init_state
from segjax.train.step import make_eval_step, make_train_step, mean, sum_losses
from segjax.types import IGNORE_LABEL, SumCount


def run(task, batch, *, steps=3, mesh=None, ema=None, optimizer=None, **kwargs):
  optimizer = optimizer or optax.sgd(0.1, 0.9)
  mesh = mesh or sharding.make_mesh(sharding.MeshConfig(data=1))
  schedule = optax.constant_schedule(0.1)
  state = init_state(task, optimizer, jax.random.key(0), batch, ema=ema is not None)
  state = sharding.put_replicated(jax.device_get(state), mesh)
  step = jax.jit(make_train_step(task, optimizer, schedule, seed=0, ema=ema, **kwargs))
  batch = sharding.put_batch(batch, mesh, task.batch_spec)
  history = []
  for _ in range(steps):
    state, scalars = step(state, batch)
    history.append({k: float(v) for k, v in scalars.items()})
  return jax.device_get(state), history, step


def assert_same(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_equals_the_large_batch(parts):
  """Though the parts hold different numbers of labelled pixels, and the losses count apart."""
  task = make_task(losses=('softmax_cross_entropy', 'dice'))
  whole, history, _ = run(task, make_batch())
  split, split_history, _ = run(task, make_batch(), accumulate=parts)
  assert_same(whole.params, split.params, rtol=2e-5, atol=1e-6)
  assert_same(history[-1]['loss'], split_history[-1]['loss'], rtol=1e-5)


@pytest.mark.parametrize('shape', [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_mesh_does_not_change_the_result(shape, norm):
  """Over the batch, over the image height, and over both; BatchNorm sees the whole batch."""
  task = make_task(norm=norm)
  mesh = sharding.make_mesh(sharding.MeshConfig(*shape))
  one, history, _ = run(task, make_batch())
  four, four_history, _ = run(task, make_batch(), mesh=mesh)
  assert_same(one.params, four.params, rtol=1e-4, atol=1e-5)
  assert_same(one.model_state, four.model_state, rtol=1e-4, atol=1e-5)
  assert history[-1]['loss'] == pytest.approx(four_history[-1]['loss'], rel=1e-5)


def test_compiled_once():
  _, _, step = run(make_task(norm='batch', dropout=0.5), make_batch(), steps=4, ema=0.9)
  assert step._cache_size() == 1


def test_nonfinite_update_is_left_out_and_counted():
  batch = make_batch()
  task = make_task(norm='batch')
  before, _, _ = run(task, batch, steps=0, ema=0.9)
  batch['image'][0, 0, 0, 0] = np.nan
  after, history, _ = run(task, batch, steps=2, ema=0.9)
  assert [h['finite'] for h in history] == [0, 0]
  assert (after.step, after.skipped) == (2, 2)
  assert_same(
    dataclasses.replace(after, step=0, skipped=0),
    dataclasses.replace(before, step=0, skipped=0),
    rtol=0,
  )


def test_the_schedule_counts_the_updates_made():
  """Of the four updates two are skipped; each leaves the learning rate where it was."""
  task = types.SimpleNamespace(
    forward=lambda variables, batch, train, key: (variables['params'] * batch['x'], {}),
    losses=lambda outputs, batch: {'mean': SumCount(outputs.sum(), jnp.float32(outputs.size))},
  )
  schedule = lambda count: 1 / (1.0 + count)
  optimizer = optax.sgd(schedule)
  step = jax.jit(make_train_step(task, optimizer, schedule, seed=0))
  params = jnp.float32(3)
  zero = jnp.zeros((), jnp.int32)
  state, history = TrainState(zero, zero, params, {}, optimizer.init(params)), []
  for x in (np.nan, 1, np.nan, 1):
    state, scalars = step(state, {'x': np.full(2, x, np.float32)})
    history.append([float(scalars['learning_rate']), int(scalars['skipped']), float(state.params)])
  assert history == [[1, 1, 3], [1, 1, 2], [0.5, 2, 2], [0.5, 2, 1.5]]


def test_each_part_of_a_batch_samples_by_a_key_of_its_own():
  task = types.SimpleNamespace(
    forward=lambda variables, batch, train, key: (jax.random.uniform(key), {}),
    losses=lambda sampled, batch: {'moments': SumCount(sampled, sampled**2)},
  )
  inputs = task, {}, {}, {'x': np.zeros(4)}
  first, second = (sum_losses(*inputs, jax.random.key(i), 2)[0]['moments'] for i in (0, 1))
  assert not np.isclose(first.sum**2, 2 * first.count), 'one value twice has no variance'
  assert first.sum != second.sum


def test_dropout_depends_on_seed_and_step_only():
  task, batch = make_task(dropout=0.5), make_batch()
  first, history, _ = run(task, batch)
  again, _, _ = run(task, batch)
  assert_same(first.params, again.params, rtol=0)
  # With nothing learnt from step to step, only the draw can change the loss.
  _, frozen, _ = run(task, batch, optimizer=optax.set_to_zero())
  assert len({h['loss'] for h in frozen}) == 3


def test_ema_is_what_evaluation_uses():
  from segjax.train.state import eval_variables

  state, _, _ = run(make_task(), make_batch(), ema=0.5)
  assert eval_variables(state)['params'] is state.ema
  some = jax.tree.leaves(jax.tree.map(lambda a, b: not np.allclose(a, b), state.params, state.ema))
  assert all(some)


def test_nothing_labelled_gives_no_loss_and_no_gradient():
  batch = make_batch()
  batch['label'][:] = IGNORE_LABEL
  state, history, _ = run(make_task(losses=('softmax_cross_entropy', 'dice')), batch, steps=1)
  assert history[0]['loss'] == 0
  assert history[0]['grad_norm'] == 0
  assert history[0]['finite'] == 1


def test_mean_and_its_gradient_where_nothing_was_counted():
  assert mean(SumCount(jnp.array(6.0), jnp.array(3.0))) == 2
  value, gradient = jax.value_and_grad(lambda x: mean(SumCount(x, jnp.array(0.0))))(1.0)
  assert (value, gradient) == (0, 0)


def test_eval_step_counts_valid_examples_only():
  task, batch = make_task(), make_batch(4)
  variables = task.init(jax.random.key(0), batch)
  step = make_eval_step(task)
  padded = {k: np.concatenate([v, v[:2]]) for k, v in batch.items()}
  padded['valid'][4:] = False
  losses, states, _ = step(variables, batch)
  padded_losses, padded_states, _ = step(variables, padded)
  assert_same(losses, padded_losses, rtol=1e-6)
  assert_same(states, padded_states, rtol=0)
