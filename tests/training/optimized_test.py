"""Train steps as they are compiled for users, beside the same without XLA's optimization.

All other tests compile whole networks without it (see `tests/conftest.py`); what it changes of a
single operation is seen by the tests of that operation, which `make test` compiles with it.
"""

import os

import commands
import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.training import compile, optim, step
from segjax.workdir import Workdir

pytestmark = pytest.mark.skipif(
  not os.environ.get('SEGJAX_TEST_OPTIMIZED'), reason='only where programs are optimized'
)


UNOPTIMIZED = {'xla_backend_optimization_level': '0'}


# Panoptic FPN is the second network and a few convolutions.
@pytest.mark.timeout(900)
@pytest.mark.parametrize('task', ['semantic', 'instance'])
def test_optimization_changes_rounding_alone(task, tmp_path):
  pairs = [word.removeprefix('--config.').split('=', 1) for word in commands.SMALL[task]]
  # With SGD parameters move by the gradient; Adam's first step is its sign, however small it is.
  pairs += [('optim.name', 'sgd'), ('train.steps', '3'), ('data.dir', str(tmp_path / 'data'))]
  path = commands.CONFIGS[task].removeprefix('--config=')
  given = config_lib.override(config_lib.read_file(path), pairs)
  run, builder = run_lib.assemble(Workdir(tmp_path / 'run'), given, write=False)
  batches = run_lib.train_batches(run, builder)
  batch = {key: value for key, value in next(batches)[0].items() if key in run.task.batch_spec}
  batches.close()
  optimizer = run_lib.make_optimizer(run, batch)
  init = jax.jit(run_lib.init_state(run, optimizer, batch), compiler_options=UNOPTIMIZED)
  state = init(jax.random.key(0))
  schedule = optim.make_schedule(run.experiment.optim, 3)
  train_step = step.make_train_step(run.task, optimizer, schedule, seed=0)
  plain = jax.jit(train_step, compiler_options=UNOPTIMIZED)
  (expected, of_plain), (found, of_users) = (
    jax.device_get(function(state, batch)) for function in (plain, compile.jit(train_step))
  )
  for name in of_plain:
    np.testing.assert_allclose(of_users[name], of_plain[name], rtol=1e-3, err_msg=name)
  moved = jax.tree.map(
    lambda new, old: np.asarray(new) - np.asarray(old), found.params, state.params
  )
  others = jax.tree.map(lambda new, old: np.asarray(new) - old, expected.params, state.params)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(others))
  assert largest > 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * largest), moved, others)
