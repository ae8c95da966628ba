"""Evaluation over a complete split: every image counts once, with one division at the end."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.tasks.base import Task
from segjax.training import sharding
from segjax.training.state import TrainState, eval_variables
from segjax.training.step import name_parts

Put = Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]


def recompute_statistics(
  batch_statistics: Callable[[Mapping[str, Any], Any, jax.Array], Any],
  state: TrainState,
  batches: Iterable[Any],
  *,
  seed: int,
) -> TrainState:
  """`state` with batch-norm statistics averaged over `batches`.

  Means and variances of the batches are averaged, as in SegNet's release
  (compute_bn_statistics.py), instead of running averages over changing weights.

  Args:
    batch_statistics: `Task.batch_statistics`, compiled.
    state: on the mesh.
    batches: on the mesh, without padding examples.
    seed: for dropout.
  """
  variables = eval_variables(state)
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  total, count = None, 0
  for batch in batches:
    new = batch_statistics(variables, batch, jax.random.fold_in(key, count))
    total = new if total is None else jax.tree.map(jnp.add, total, new)
    count += 1
  mean = jax.tree.map(lambda x: x / count, total)
  return dataclasses.replace(state, model_state={**state.model_state, **mean})


def evaluate(
  eval_step: Callable[..., tuple[dict, tuple, dict]],
  variables: Mapping[str, Any],
  batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str]]],
  task: Task,
  put: Put,
  *,
  num_images: int = 0,
) -> tuple[dict[str, Any], list[tuple[str, dict[str, np.ndarray]]]]:
  """Evaluates `variables` on a split.

  Args:
    eval_step: from `segjax.training.step.make_eval_step`, compiled.
    variables: parameters and model state on the mesh.
    batches: this process's part of the split, `(batch, names)`, the last batch padded.
    task: that defines the metrics.
    put: moves a batch to the mesh.
    num_images: number of examples to draw.

  Returns:
    The metrics by name, including the mean losses `loss` and `loss_<name>` if the task has losses
    outside training, and `(name, panels)` of the first examples.
  """
  totals: dict[str, np.ndarray] = {}
  states: list[Any] = [None] * len(task.metrics)
  drawn: list[tuple[str, dict[str, np.ndarray]]] = []
  reads = [metric.reads for metric in task.metrics if not metric.device]
  for local, names in batches:
    batch = put(local)
    losses, device_states, predictions = eval_step(variables, batch)
    for name, pair in sharding.to_host(losses).items():
      totals[name] = totals.get(name, 0.0) + np.asarray(pair, np.float64)
    drawing = len(drawn) < num_images
    if drawing or reads:
      # Images and segments are large, and usually only needed for drawing.
      host_predictions = sharding.to_host(predictions if drawing else _read(predictions, reads))
      host_batch = _whole_batch(local, batch if drawing else _read(batch, reads), task.host_keys)
    del predictions  # large: free them before the next batch
    device_states = iter(sharding.to_host(device_states))
    for i, metric in enumerate(task.metrics):
      new = (
        next(device_states) if metric.device else metric.from_batch(host_predictions, host_batch)
      )
      states[i] = new if states[i] is None else metric.merge(states[i], new)
    if drawing:
      images = task.visualize(host_batch, host_predictions, num_images - len(drawn))
      drawn += zip(names, images, strict=False)

  means = {name: float(t[0] / t[1]) if t[1] else 0.0 for name, t in totals.items()}
  metrics = {'loss': sum(means.values()), **name_parts(means)} if means else {}
  for metric, state in zip(task.metrics, states, strict=True):
    metrics |= metric.compute(state)
  return metrics, drawn


def tune(
  tune_step: Callable[..., Any],
  variables: Mapping[str, Any],
  batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str]]],
  task: Task,
  put: Put,
) -> list[dict[str, Any]]:
  """Evaluates each of `task.tuning.settings` in one pass over a split.

  Args:
    tune_step: from `segjax.training.step.make_tune_step`, compiled.
    variables, batches, task, put: as for `evaluate`.

  Returns:
    The metrics of each setting, in order.
  """
  metric, settings, states = task.tuning.metric, task.tuning.settings, None
  for local, _ in batches:
    new = sharding.to_host(tune_step(variables, put(local), np.array(settings, np.float32)))
    states = new if states is None else metric.merge(states, new)
  return [metric.compute(jax.tree.map(lambda x, i=i: x[i], states)) for i in range(len(settings))]


def _read(entries: Mapping[str, Any], reads: Iterable[Collection[str] | None]) -> dict[str, Any]:
  """The predictions, or the entries of a batch, that metrics read; see `Metric.reads`."""
  return {
    name: value
    for name, value in entries.items()
    if any(name != 'image' if names is None else name in names for names in reads)
  }


def _whole_batch(
  local: Mapping[str, Any], batch: Mapping[str, jax.Array], host_keys: Sequence[str]
) -> dict[str, Any]:
  """The entries of `batch` and the lists of `host_keys`, gathered from all processes."""
  lists = {key: local[key] for key in host_keys if key in local}
  if jax.process_count() == 1:
    return {**{name: local[name] for name in batch}, **lists}
  return {**sharding.to_host(dict(batch)), **sharding.gather_lists(lists)}
