"""Statistics of batch normalisation, averaged over batches."""

import jax
import numpy as np
import optax
from tiny_task import make_batch, make_task

from segjax.train import evaluate
from segjax.train.state import eval_variables, init_state


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
