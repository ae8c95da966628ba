"""The train, evaluation and tuning steps: pure functions, shared by all tasks."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from segjax.tasks.base import Task
from segjax.training import optim
from segjax.training.state import TrainState
from segjax.types import Array, Batch, SumCount

T = TypeVar('T')


def mean(value: SumCount) -> Array:
  """`sum / count`, or 0 with a finite gradient if the count is 0."""
  some = value.count > 0
  return jnp.where(some, value.sum / jnp.where(some, value.count, 1), 0.0)


def name_parts(means: Mapping[str, T]) -> dict[str, T]:
  """`loss_<name>` for each loss, if there is more than one."""
  return {f'loss_{name}': value for name, value in means.items()} if len(means) > 1 else {}


def make_train_step(
  task: Task,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  seed: int,
  accumulate: int = 1,
  ema: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """`(state, batch) -> (state, scalars)` for one update.

  Sums and counts are accumulated over `accumulate` microbatches and divided once, so that the
  gradient is that of the full batch (except that BatchNorm normalizes each microbatch separately).
  Updates with a non-finite loss or gradient are skipped, and `scalars['finite']` is False.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    updates_made = state.step - state.skipped

    def loss_function(params):
      parts, model_state = sum_losses(
        task, params, state.model_state, batch, key, accumulate, state.step
      )
      means = {name: mean(part) for name, part in parts.items()}
      return sum(means.values()), (means, model_state)

    (loss, (means, model_state)), grads = jax.value_and_grad(loss_function, has_aux=True)(
      state.params
    )
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_ema = None if ema is None else optim.update_ema(state.ema, params, state.step, ema)

    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = TrainState(
      step=state.step + 1,
      skipped=state.skipped + jnp.where(finite, 0, 1),
      params=keep(params, state.params),
      model_state=keep({**state.model_state, **model_state}, state.model_state),
      opt_state=keep(opt_state, state.opt_state),
      ema=keep(new_ema, state.ema),
    )
    scalars = {
      'loss': loss,
      **name_parts(means),
      'grad_norm': grad_norm,
      'learning_rate': jnp.asarray(schedule(updates_made), jnp.float32),
      'skipped': state.skipped,
      'finite': finite,
    }
    return state, scalars

  return train_step


def sum_losses(
  task: Task,
  params: Any,
  model_state: Any,
  batch: Batch,
  key: Array,
  accumulate: int,
  step: Array | None = None,
) -> tuple[dict[str, SumCount], Any]:
  """Sums and counts of the losses over `accumulate` microbatches, and the new model state.

  Microbatches run sequentially with rematerialization: only one backward pass is in memory at a
  time, at the cost of an additional forward pass.
  """

  def part(model_state: Any, inputs: tuple[Batch, Array]) -> tuple[Any, dict[str, SumCount]]:
    part_batch, part_key = inputs
    variables = {'params': params, **model_state}
    outputs, new = task.forward(variables, part_batch, train=True, key=part_key, step=step)
    return {**model_state, **new}, task.losses(outputs, part_batch)

  if accumulate == 1:
    model_state, losses = part(model_state, (batch, key))
    return losses, model_state
  # Microbatch m takes rows m, m + accumulate, …, so that it is sharded like the batch.
  split = lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1)
  inputs = (jax.tree.map(split, dict(batch)), jax.random.split(key, accumulate))
  model_state, losses = jax.lax.scan(jax.checkpoint(part), model_state, inputs)
  return jax.tree.map(lambda x: x.sum(0), losses), model_state


def make_eval_step(
  task: Task,
) -> Callable[..., tuple[dict[str, SumCount], tuple, dict[str, Array], Array | None]]:
  """`(variables, batch) -> (losses, states of the device metrics, predictions, image scores)`.

  The scores f[B] are those of `task.ranking`, or None if it is not a device metric.
  The predictions are those that are drawn or that a host metric reads, and stay on the device until
  then.
  """
  ranking = task.ranking
  readers = [task.drawn, *(metric.reads for metric in task.metrics if not metric.device)]

  def eval_step(variables: Mapping[str, Any], batch: Batch):
    outputs, _ = task.forward(variables, batch, train=False)
    predictions = task.predict(outputs, batch)
    metrics = [metric for metric in task.metrics if metric.device]
    states = tuple(metric.from_batch(predictions, batch) for metric in metrics)
    scores = None
    if ranking in metrics:
      state = states[metrics.index(ranking)]
      scores = ranking.image_scores(predictions, batch, state)
    if None not in readers:
      wanted = set().union(*readers)
      predictions = {name: value for name, value in predictions.items() if name in wanted}
    return task.losses(outputs, batch), states, predictions, scores

  return eval_step


def make_tune_step(task: Task) -> Callable[[Mapping[str, Any], Batch, Array], Any]:
  """`(variables, batch, settings f32[T, n]) -> states`, for a task with `tuning`."""

  def tune_step(variables: Mapping[str, Any], batch: Batch, settings: Array) -> Any:
    outputs, _ = task.forward(variables, batch, train=False)
    return task.tuning.count(outputs, batch, settings)

  return tune_step
