"""Our programs: compiled inference and train steps, with random variables of a sensible size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.losses import dense as losses
from segjax.tasks import semantic
from segjax.tasks.base import Task
from segjax.training import compile as compile_lib
from segjax.training.state import TrainState
from segjax.training.step import make_train_step
from speed.row import Cost, Program

# Of SGD with momentum, on both sides.
RATE, MOMENTUM = 1e-3, 0.9


def program(
  function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> tuple[Callable[..., Any], Cost]:
  """A compiled program for these arguments, and what it costs."""
  lowered = compile_lib.jit(function, donate_argnums=donate).lower(*args)
  compiled = lowered.compile()
  memory = compiled.memory_analysis()  # None where the backend does not say
  temporary = float(memory.temp_size_in_bytes) if memory else 0.0
  flops, read = _count(lowered, 'flops'), _count(compiled, 'bytes accessed')
  return compiled, Cost(flops, read, temporary)


def call(function: Callable[..., Any], *args: Any) -> tuple[Program, Cost]:
  """A program that runs `function` with these arguments, which are put on the device."""
  args = jax.device_put(args)
  compiled, cost = program(function, *args)
  return lambda: jax.block_until_ready(compiled(*args)), cost


def variables(model: Any, *inputs: Any, **options: Any) -> dict[str, Any]:
  """Random variables of a network as NumPy arrays: He's normal kernels, unit norms."""
  shapes = jax.eval_shape(lambda key: model.init(key, *inputs, **options), jax.random.key(0))
  rng = np.random.default_rng(0)

  def fill(path: Any, leaf: Any) -> np.ndarray:
    name = path[-1].key
    if name in ('scale', 'var'):
      return np.ones(leaf.shape, np.float32)
    if name in ('bias', 'mean'):
      return np.zeros(leaf.shape, np.float32)
    deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5
    return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, dict(shapes))


def inference(model: Any, variables: Any, image: np.ndarray) -> tuple[Program, Cost]:
  """The outputs for an image batch f[B, H, W, C]."""
  return call(lambda v, x: model.apply(v, x, train=False), variables, image)


def training(
  task: Task, variables: dict[str, Any], batch: Any, rate: float = RATE
) -> tuple[Program, Cost]:
  """A step of SGD with momentum, which goes on from the step before; returns its loss."""
  optimizer = optax.sgd(rate, MOMENTUM)
  step = make_train_step(task, optimizer, optax.constant_schedule(rate), seed=0)
  params = variables['params']
  rest = {name: value for name, value in variables.items() if name != 'params'}
  zero = np.zeros((), np.int32)
  momentum = jax.tree.map(
    lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(optimizer.init, params)
  )
  state = TrainState(zero, zero, params, rest, momentum)
  state, batch = jax.device_put((jax.tree.map(jnp.array, state), batch))
  compiled, cost = program(step, state, batch, donate=(0,))
  holder = [state]

  def run() -> float:
    holder[0], scalars = jax.block_until_ready(compiled(holder[0], batch))
    return float(scalars['loss'])

  return run, cost


def dense_task(model: Any) -> Task:
  """Semantic segmentation with cross-entropy."""
  return semantic.make_task(
    model,
    semantic.EvalConfig(),
    class_names=[str(k) for k in range(model.classes)],
    losses={'softmax_cross_entropy': losses.softmax_cross_entropy},
  )


def _count(stage: Any, key: str) -> float | None:
  found = stage.cost_analysis()
  found = found[0] if isinstance(found, list) else found  # older versions: one for each program
  return float(found.get(key, 0.0)) if found else None
