"""Batch-norm statistics averaged over batches; what is copied to the host."""

import types

import jax
import numpy as np
import optax
import pytest
from tiny_task import make_batch, make_task

from segjax.metrics.base import Metric
from segjax.training import evaluate
from segjax.training.state import eval_variables, init_state


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
def test_only_pictures_fetch_more_than_what_metrics_read(reads, predicted, kept):
  """Images and maps of segments are large."""
  seen = []

  def from_batch(predictions, batch):
    seen.append((set(predictions), set(batch)))
    return np.zeros(())

  metrics = [
    Metric(
      name=str(names), from_batch=from_batch, compute=lambda state: {}, device=False, reads=names
    )
    for names in reads
  ]
  task = types.SimpleNamespace(
    metrics=metrics, host_keys=('annotations',), visualize=lambda batch, predictions, count: [{}]
  )
  arrays = {key: np.zeros(1) for key in ('image', 'segments', 'valid')}
  predictions = {key: np.zeros(1) for key in ('boxes', 'segments')}
  evaluate.evaluate(
    lambda variables, batch: ({}, (), predictions),
    {},
    [({**arrays, 'annotations': [{}]}, ['a'])] * 2,
    task,
    lambda local: {key: local[key] for key in arrays},
    num_images=1,
  )
  n = len(metrics)
  assert seen[:n] == [({'boxes', 'segments'}, {*arrays, 'annotations'})] * n, 'batches to draw'
  assert seen[n:] == [(predicted, kept)] * n
