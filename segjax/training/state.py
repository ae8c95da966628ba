"""The training state: everything that the next step depends on."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.tasks.base import Task
from segjax.types import Array, Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The state of a run between two steps.

  Attributes:
    step: i32[], number of steps, including skipped updates; with the seed it determines the next
      batch and all randomness.
    skipped: i32[], updates skipped because of a non-finite loss or gradient.
    params: parameters, float32.
    model_state: other collections, such as batch-norm statistics.
    opt_state: optimizer state.
    ema: exponential moving average of `params`, or None.
  """

  step: Array
  skipped: Array
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any = None


def init_state(
  task: Task, optimizer: optax.GradientTransformation, key: Array, batch: Batch, *, ema: bool
) -> TrainState:
  """The state before the first step; traceable by `jit`."""
  variables = dict(task.init(key, batch))
  params = variables.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    model_state=variables,
    opt_state=optimizer.init(params),
    ema=params if ema else None,
  )


def eval_variables(state: TrainState) -> dict[str, Any]:
  """The variables for evaluation: with the moving average of the parameters, if it exists."""
  return {'params': state.params if state.ema is None else state.ema, **state.model_state}


def variables_from_arrays(arrays: dict[str, Any]) -> dict[str, Any]:
  """`eval_variables` of a state given as `flat_arrays`."""
  average = any(name.startswith('ema.') for name in arrays)
  variables: dict[str, Any] = {'params': {}}
  for name, array in arrays.items():
    kind, *path = name.split('.')
    if kind == ('ema' if average else 'params'):
      path = ['params', *path]
    elif kind != 'model_state':
      continue
    node = variables
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = array
  return variables


def flat_arrays(tree: Any) -> dict[str, Any]:
  """Flattens a state to `{'params.down0.conv1.kernel': array, …}`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def array_digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
  """SHA-256 of each array: of its type, its shape and its bytes in C order."""
  return {name: _digest(np.asarray(array)) for name, array in arrays.items()}


def _digest(array: np.ndarray) -> str:
  sha = hashlib.sha256(f'{array.dtype.name}{array.shape}'.encode())
  sha.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b'')
  return sha.hexdigest()


def combined_digest(digests: dict[str, str]) -> str:
  """One SHA-256 of several arrays, independent of their order."""
  text = ''.join(f'{name} {digest}\n' for name, digest in sorted(digests.items()))
  return hashlib.sha256(text.encode()).hexdigest()
