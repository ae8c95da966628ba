"""The train step: invariances, and effects of its options."""

import dataclasses
import functools
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_task import make_batch, make_task

from segjax.metrics.base import Metric
from segjax.training import sharding
from segjax.training.state import TrainState, eval_variables, init_state
from segjax.training.step import make_eval_step, make_train_step, mean, name_parts, sum_losses
from segjax.types import IGNORE_LABEL, SumCount

SGD = optax.sgd(0.1, 0.9)


@functools.cache
def initial_variables(norm):
  """The same for every task of this file but for its norm."""
  return jax.device_get(jax.jit(make_task(norm).init)(jax.random.key(0), make_batch()))


@functools.cache
def compiled(*, ema=None, accumulate=1, optimizer=SGD, mesh=(1, 1), norm='none', seed=0, **keys):
  """A task, its initial state and its step, compiled once for all tests; `keys` as `make_task`."""
  *mesh, fsdp = (*mesh, False)[:3]
  task = make_task(norm, **keys)
  same = dataclasses.replace(task, init=lambda key, batch: initial_variables(norm))
  mesh = sharding.make_mesh(sharding.MeshConfig(*mesh))
  state = init_state(same, optimizer, jax.random.key(0), make_batch(), ema=ema is not None)
  places = sharding.state_shardings(state, mesh, fsdp=fsdp)
  state = sharding.put(jax.device_get(state), places)
  task = sharding.gathered(task, mesh) if fsdp else task
  rate = optax.constant_schedule(0.1)
  step = make_train_step(task, optimizer, rate, seed=seed, accumulate=accumulate, ema=ema)
  # What `tests/conftest.py` chooses to compile fast gives wrong gradients of BatchNorm where the
  # image height is split (jaxlib 0.10); with the default they are right.
  fast = 'xla_cpu_use_fusion_emitters' in os.environ['XLA_FLAGS']
  options = {'xla_cpu_use_fusion_emitters': True} if fast and mesh.shape['space'] > 1 else None
  places = (places, sharding.replicated(mesh))
  step = jax.jit(step, out_shardings=places, compiler_options=options)
  return state, step, lambda batch: sharding.put_batch(batch, mesh, task.batch_spec)


def run(batch, *, steps=3, **keys):
  """The state after `steps` on one batch, and the scalars of each."""
  state, step, put = compiled(**keys)
  batch, history = put(batch), []
  for _ in range(steps):
    state, scalars = step(state, batch)
    history.append({k: float(v) for k, v in scalars.items()})
  return jax.device_get(state), history


def assert_same(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@functools.cache
def one_device(**keys):
  return run(make_batch(), **keys)


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_equals_the_large_batch(parts):
  """Even if microbatches have different numbers of labeled pixels and losses count separately."""
  losses = ('softmax_cross_entropy', 'dice')
  whole, history = one_device(losses=losses)
  split, split_history = run(make_batch(), losses=losses, accumulate=parts)
  assert_same(whole.params, split.params, rtol=2e-5, atol=1e-6)
  assert_same(history[-1]['loss'], split_history[-1]['loss'], rtol=1e-5)


def test_accumulated_parts_hand_on_the_model_state():
  count = lambda variables, *_, **__: (None, {'n': {'calls': variables['n']['calls'] + 1}})
  one = SumCount(jnp.ones(()), jnp.ones(()))
  task = types.SimpleNamespace(forward=count, losses=lambda outputs, batch: {'a': one})
  inputs = {'n': {'calls': 0}}, {'x': jnp.zeros(6)}, jax.random.key(0)
  assert sum_losses(task, {}, *inputs, 3) == ({'a': (3, 3)}, {'n': {'calls': 3}})


@pytest.mark.parametrize('shape', [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_mesh_does_not_change_the_result(shape, norm):
  """Over the batch, over the image height, and over both; BatchNorm uses the full batch."""
  one, history = one_device(norm=norm)
  four, four_history = run(make_batch(), norm=norm, mesh=shape)
  assert_same(one.params, four.params, rtol=1e-4, atol=1e-5)
  assert_same(one.model_state, four.model_state, rtol=1e-4, atol=1e-5)
  assert history[-1]['loss'] == pytest.approx(four_history[-1]['loss'], rel=1e-5)


@pytest.fixture
def shares_all(monkeypatch):
  """The arrays of the small network are shared by the devices, too."""
  monkeypatch.setattr(sharding, '_SMALLEST', 1)
  compiled.cache_clear()
  yield
  compiled.cache_clear()


@pytest.mark.parametrize(('mesh', 'accumulate'), [((4, 1, True), 1), ((2, 2, True), 2)])
def test_sharing_the_parameters_does_not_change_the_result(shares_all, mesh, accumulate):
  """Parameters, moments and average: each device holds a part, and the result is the same."""
  keys = {'accumulate': accumulate, 'ema': 0.9, 'optimizer': optax.adam(1e-2), 'dropout': 0.5}
  whole, history = run(make_batch(), mesh=mesh[:2], **keys)
  shared, shared_history = run(make_batch(), mesh=mesh, **keys)
  assert_same(whole, shared, rtol=1e-4, atol=1e-5)
  assert shared_history[-1]['loss'] == pytest.approx(history[-1]['loss'], rel=1e-5)
  state, step, put = compiled(mesh=mesh, **keys)
  after, _ = step(state, put(make_batch()))
  for tree in (after.params, after.ema, *(x for x in after.opt_state if hasattr(x, 'mu'))):
    kernels = [x for x in jax.tree.leaves(tree) if x.ndim == 4 and x.size % 2 == 0]
    assert kernels
    assert all(not x.sharding.is_fully_replicated for x in kernels if max(x.shape) % 4 == 0)


def test_compiled_once():
  keys = {'norm': 'batch', 'dropout': 0.5, 'ema': 0.9}
  run(make_batch(), steps=4, **keys)
  assert compiled(**keys)[1]._cache_size() == 1


def test_nonfinite_update_is_skipped_and_counted():
  keys = {'norm': 'batch', 'dropout': 0.5, 'ema': 0.9}
  before, _ = run(make_batch(), steps=0, **keys)
  batch = make_batch()
  batch['image'][0, 0, 0, 0] = np.nan
  after, history = run(batch, steps=2, **keys)
  assert [h['finite'] for h in history] == [0, 0]
  assert [h['skipped'] for h in history] == [1, 2]
  assert (after.step, after.skipped) == (2, 2)
  assert_same(
    dataclasses.replace(after, step=0, skipped=0),
    dataclasses.replace(before, step=0, skipped=0),
    rtol=0,
  )


def test_the_schedule_counts_the_updates_made():
  """Of the four updates two are skipped; each leaves the learning rate where it was."""
  task = types.SimpleNamespace(
    forward=lambda variables, batch, train, key, step: (variables['params'] * batch['x'], {}),
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
    forward=lambda variables, batch, train, key, step: (jax.random.uniform(key), {}),
    losses=lambda sampled, batch: {'moments': SumCount(sampled, sampled**2)},
  )
  inputs = task, {}, {}, {'x': np.zeros(4)}
  first, second = (sum_losses(*inputs, jax.random.key(i), 2)[0]['moments'] for i in (0, 1))
  assert not np.isclose(first.sum**2, 2 * first.count), 'one value twice has no variance'
  assert first.sum != second.sum


def test_dropout_depends_on_seed_and_step_only():
  first, _ = run(make_batch(), dropout=0.5)
  again, _ = run(make_batch(), dropout=0.5)
  assert_same(first.params, again.params, rtol=0)
  # With a learning rate of 0, only dropout can change the loss.
  _, frozen = run(make_batch(), dropout=0.5, optimizer=optax.set_to_zero())
  assert len({h['loss'] for h in frozen}) == 3
  _, other = run(make_batch(), dropout=0.5, optimizer=optax.set_to_zero(), seed=1, steps=1)
  assert other[0]['loss'] not in {h['loss'] for h in frozen}


def test_ema_is_what_evaluation_uses():
  state, _ = run(make_batch(), ema=0.5)
  assert eval_variables(state)['params'] is state.ema
  some = jax.tree.leaves(jax.tree.map(lambda a, b: not np.allclose(a, b), state.params, state.ema))
  assert all(some)


def test_nothing_labelled_gives_no_loss_and_no_gradient():
  batch = make_batch()
  batch['label'][:] = IGNORE_LABEL
  _, history = run(batch, losses=('softmax_cross_entropy', 'dice'), steps=1)
  assert history[0]['loss'] == 0
  assert history[0]['grad_norm'] == 0
  assert history[0]['finite'] == 1


def test_losses_are_named_where_there_are_several():
  assert name_parts({'a': 1.0}) == {}
  assert name_parts({'a': 1.0, 'b': 2.0}) == {'loss_a': 1.0, 'loss_b': 2.0}


def test_mean_and_its_gradient_where_nothing_was_counted():
  assert mean(SumCount(jnp.array(6.0), jnp.array(3.0))) == 2
  value, gradient = jax.value_and_grad(lambda x: mean(SumCount(x, jnp.array(0.0))))(1.0)
  assert (value, gradient) == (0, 0)


def test_eval_step_returns_what_is_drawn_or_read_on_the_host():
  task, batch = make_task(), make_batch(4)
  variables = jax.eval_shape(task.init, jax.random.key(0), batch)
  names = lambda task: set(jax.eval_shape(make_eval_step(task), variables, batch)[2])
  assert names(task) == {'label'}
  reader = Metric(
    name='a', from_batch=None, compute=None, device=False, reads=('probability', 'valid')
  )
  metrics = (*task.metrics, reader)
  assert names(dataclasses.replace(task, metrics=metrics)) == {'label', 'probability'}
  metrics = (*task.metrics, dataclasses.replace(reader, reads=None))
  assert names(dataclasses.replace(task, drawn=(), metrics=metrics)) == {'label', 'probability'}
  assert names(dataclasses.replace(task, drawn=())) == set()


def test_eval_step_counts_valid_examples_only():
  task, batch = make_task(), make_batch(4)
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  step = jax.jit(make_eval_step(task))
  # Of one shape, so that it compiles once.
  fill = lambda part: {k: np.concatenate([v, v[part]]) for k, v in batch.items()}
  padded, other = fill(slice(0, 2)), fill(slice(2, 4))
  padded['valid'][4:] = other['valid'][4:] = False
  losses, states, _, scores = step(variables, padded)
  assert_same((losses, states), step(variables, other)[:2], rtol=1e-6)
  # Of each image its own, whatever else is in the batch; none of padding.
  assert np.isfinite(scores[:4]).all() and np.isnan(scores[4:]).all()
  labeled = (batch['label'] != IGNORE_LABEL).sum()
  assert states[0].sum() == losses['softmax_cross_entropy'].count == labeled
