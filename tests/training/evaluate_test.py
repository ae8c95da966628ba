"""Batch-norm statistics averaged over batches; what is copied to the host."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_task import make_batch, make_task

from segjax.metrics.base import Metric
from segjax.training import evaluate
from segjax.training.state import eval_variables, init_state
from segjax.types import SegjaxError


def test_recomputed_statistics_are_the_mean_over_batches():
  task = make_task('batch')
  state = init_state(task, optax.sgd(0.1), jax.random.key(0), make_batch(4), ema=False)
  batches = [make_batch(4, seed=seed) for seed in range(3)]
  new = evaluate.recompute_statistics(task.batch_statistics, state, batches, seed=0)
  single = [
    task.batch_statistics(eval_variables(state), batch, jax.random.key(0)) for batch in batches
  ]
  jax.tree.map(
    lambda got, *each: np.testing.assert_allclose(got, np.mean(each, 0), rtol=1e-5, atol=1e-6),
    new.model_state,
    *single,
  )
  assert new.params is state.params
  assert not np.allclose(
    new.model_state['batch_stats']['down0']['norm1']['mean'],
    single[0]['batch_stats']['down0']['norm1']['mean'],
  )


def test_statistics_that_no_batch_changes_stay_as_they_are():
  """Those of frozen layers: the mean of n equal numbers is not always the number."""
  frozen, moving = np.float32(0.1), np.float32(3.0)
  statistics = lambda variables, batch, key: {
    'batch_stats': {'frozen': variables['batch_stats']['frozen'], 'moving': batch}
  }
  found = evaluate.average_statistics(
    statistics,
    {'params': {}, 'batch_stats': {'frozen': frozen, 'moving': moving}},
    [np.float32(x) for x in range(7)],
    jax.random.key(0),
  )['batch_stats']
  assert functools.reduce(np.add, [frozen] * 7) / np.float32(7) != frozen
  assert (found['frozen'], found['moving']) == (frozen, 3.0)


def host_metric(name, reads, seen, **keys):
  """A host metric that notes the names of what it gets."""

  def from_batch(predictions, batch):
    seen.append((set(predictions), set(batch)))
    return {'count': np.zeros(())}

  return Metric(
    name=name, from_batch=from_batch, compute=lambda s: {}, device=False, reads=reads, **keys
  )


@pytest.mark.parametrize(
  ('reads', 'predicted', 'kept'),
  [
    ((('boxes', 'valid'),), {'boxes'}, {'valid', 'annotations'}),
    (
      (('boxes', 'valid'), ('segments',)),
      {'boxes', 'segments'},
      {'valid', 'segments', 'annotations'},
    ),
    ((None,), {'boxes', 'segments'}, {'valid', 'segments', 'annotations'}),
  ],
)
def test_only_what_is_read_is_fetched(reads, predicted, kept):
  """Images and maps of segments are large: metrics get what they read, panels what they show."""
  seen, drawn = [], []

  def visualize(batch, predictions, rows):
    drawn.append((set(predictions), set(batch), list(rows)))
    return [{} for _ in rows]

  task = types.SimpleNamespace(
    metrics=[host_metric(str(names), names, seen) for names in reads],
    host_keys=('annotations',),
    visualize=visualize,
    drawn=('segments',),
    ranking=None,
  )
  arrays = {key: np.ones(1) for key in ('image', 'segments', 'valid')}
  predictions = {key: np.zeros(1) for key in ('boxes', 'segments')}
  found = evaluate.evaluate(
    lambda variables, batch: ({}, (), predictions, None),
    {},
    [({**arrays, 'annotations': [{}]}, ['a'])] * 2,
    task,
    lambda local: {key: local[key] for key in arrays},
    num_images=1,
  )
  assert seen == [(predicted, kept)] * len(reads) * 2
  assert drawn == [({'segments'}, {*arrays, 'annotations'}, [0])], 'the first image only'
  assert (found.examples, found.worst, found.measure) == ([('a', {})], [], '')


def ranked_task(drawn):
  """A task whose image has its own pixel as its score; notes the scores that are drawn."""

  def visualize(batch, predictions, rows):
    drawn.extend(batch['image'][row] for row in rows)
    return [{'image': batch['image'][row]} for row in rows]

  ranking = host_metric(
    'own',
    ('score',),
    [],
    image_scores=lambda predictions, batch, state: predictions['score'],
    image_measure='own',
  )
  return types.SimpleNamespace(
    metrics=[ranking], host_keys=(), visualize=visualize, drawn=None, ranking=ranking
  )


def ranked_batches(scores, size):
  for start in range(0, len(scores), size):
    part = np.array(scores[start : start + size])
    names = [f'i{start + row}' for row in range(len(part))]
    yield {'image': part, 'valid': np.ones(len(part), bool)}, names


def eval_step(variables, batch):
  return {}, (), {'score': batch['image']}, None


def own_metric(found):
  return types.SimpleNamespace(name='mine', share=None, compute=lambda state: found)


def test_numbers_of_any_type_are_values_of_a_metric():
  found = {'a': np.float32(0.5), 'b': jnp.int32(3), 'each': {'x': {'n': np.int64(2), 'q': None}}}
  computed = evaluate._compute(own_metric(found), None)
  assert json.dumps(computed) == '{"a": 0.5, "b": 3, "each": {"x": {"n": 2, "q": null}}}'


@pytest.mark.parametrize(
  'value', [[0.1, 0.2], np.zeros(2), {'small': 0.5}, {'x': {'y': [1]}}, 'good', object()]
)
def test_other_values_of_a_metric_are_refused(value):
  with pytest.raises(SegjaxError, match='the metric mine computed own=.*: return numbers, or tab'):
    evaluate._compute(own_metric({'own': value}), None)


def test_a_metric_without_names_is_refused():
  with pytest.raises(SegjaxError, match=r'the metric mine computed 0\.5: return a dict'):
    evaluate._compute(own_metric(np.float32(0.5)), None)


@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_the_worst_images_are_found_in_one_pass(size):
  scores, drawn = [0.5, 0.9, np.nan, 0.1, 0.5, 0.1, 0.7, 0.05], []
  batches = ranked_batches(scores, size)
  put = lambda local: local
  found = evaluate.evaluate(eval_step, {}, batches, ranked_task(drawn), put, num_images=3)
  # Equal ones in the order of the split; what cannot be measured is not the worst.
  assert [name for name, _ in found.worst] == ['i7', 'i3', 'i5']
  assert [panels['image'] for _, panels in found.worst] == [0.05, 0.1, 0.1]
  assert [name for name, _ in found.examples] == ['i0', 'i1', 'i2']
  assert found.scores == [(f'i{i}', s) for i, s in enumerate(scores) if s == s]
  assert found.measure == 'own'
  assert 0.7 not in drawn, 'an image that is neither among the first nor among the worst'


def test_no_images_no_drawing():
  drawn = []
  batches = ranked_batches([0.5, 0.1], 2)
  found = evaluate.evaluate(eval_step, {}, batches, ranked_task(drawn), lambda local: local)
  assert (drawn, found.examples, found.worst) == ([], [], [])
  assert found.scores == [('i0', 0.5), ('i1', 0.1)]


def test_draw_runs_the_network_only_where_an_image_is_wanted():
  drawn, ran = [], []

  def noted(variables, batch):
    ran.append(batch['image'].tolist())
    return eval_step(variables, batch)

  batches = ranked_batches([0.1, 0.2, 0.3, 0.4, 0.5], 2)
  found = evaluate.draw(noted, {}, batches, ranked_task(drawn), lambda b: b, {'i3', 'i4', 'x'})
  assert [name for name, _ in found] == ['i3', 'i4']
  assert ran == [[0.3, 0.4], [0.5]] and drawn == [0.4, 0.5]
