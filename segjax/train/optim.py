"""Optimizers and learning-rate schedules: Optax, put together from `config.optim`."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.types import (
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Range,
  SegjaxError,
)

# Of a moving average.
Decay = Annotated[float, Range(0, 1, open='high')]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Keys of `config.optim`.

  Attributes:
    name: 'sgd' (momentum; weight decay is L2 inside the gradient, as in Caffe), 'adam' (likewise)
      or 'adamw' (decoupled weight decay).
    learning_rate: the schedule's highest value.
    schedule: 'constant', 'poly' (1 - t/T)^power, 'step' (× decay_factor at each of `boundaries`),
      or 'cosine' (to zero).
    warmup_steps: steps of linear warm-up from `warmup_factor` × learning_rate, before the schedule;
      fewer than `train.steps`, unless these are 0.
    warmup_factor: where the warm-up starts.
    power: exponent of 'poly'.
    boundaries: steps at which 'step' decays.
    decay_factor: what 'step' multiplies by.
    momentum: of SGD.
    nesterov: Nesterov's form of it.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: Adam's denominator.
    weight_decay: coefficient; biases and norm parameters are left out.
    decay_exclude: names of the parameters that weight decay leaves out.
    multipliers: pairs (regular expression on the parameter's path, factor on its update); all that
      match are multiplied. (('bias$', 2.0),) gives biases 2x the learning rate, a factor 0 freezes.
    clip_norm: gradients are scaled down to this global norm; None does not clip.
    accumulate: parts of the batch for gradient accumulation, which gives the whole batch's result.
    ema: decay of the moving average of the parameters, which evaluation then uses; None keeps none.
  """

  name: Literal['sgd', 'adam', 'adamw'] = 'sgd'
  learning_rate: NonNegativeFloat = 0.01
  schedule: Literal['constant', 'poly', 'step', 'cosine'] = 'constant'
  warmup_steps: NonNegativeInt = 0
  warmup_factor: Fraction = 0.0
  power: NonNegativeFloat = 0.9
  boundaries: tuple[PositiveInt, ...] = ()
  decay_factor: NonNegativeFloat = 0.1
  momentum: Decay = 0.9
  nesterov: bool = False
  b1: Decay = 0.9
  b2: Decay = 0.999
  eps: NonNegativeFloat = 1e-8
  weight_decay: NonNegativeFloat = 0.0
  decay_exclude: tuple[str, ...] = ('bias', 'scale')
  multipliers: tuple[tuple[str, NonNegativeFloat], ...] = ()
  clip_norm: PositiveFloat | None = None
  accumulate: PositiveInt = 1
  ema: Decay | None = None


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
  """The learning rate at each step of a run of `steps` steps."""
  after = max(steps - config.warmup_steps, 1)
  rate = config.learning_rate
  main = {
    'constant': lambda: optax.constant_schedule(rate),
    'poly': lambda: optax.polynomial_schedule(rate, 0.0, config.power, after),
    'cosine': lambda: optax.cosine_decay_schedule(rate, after),
    'step': lambda: optax.piecewise_constant_schedule(
      rate, {b - config.warmup_steps: config.decay_factor for b in config.boundaries}
    ),
  }[config.schedule]()
  if not config.warmup_steps:
    return main
  warmup = optax.linear_schedule(rate * config.warmup_factor, rate, config.warmup_steps)
  return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(
  config: OptimConfig, steps: int, params: Any, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
  """The optimizer for `params` over a run of `steps` steps.

  Args:
    config: see `OptimConfig`.
    steps: of the run.
    params: as shapes at least.
    frozen: regular expressions on the paths of the parameters that stay as they are: a model's
      `frozen_parameters`, which weight decay would move.

  Raises:
    SegjaxError: a pattern of `multipliers` is not a regular expression or matches no parameter.
  """
  paths = parameter_paths(params)
  decayed = jax.tree.map(lambda path: path.split('/')[-1] not in config.decay_exclude, paths)
  factors = _factors((*config.multipliers, *((pattern, 0.0) for pattern in frozen)), paths)
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
  adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
  direction = {
    'sgd': lambda: (decay, optax.trace(config.momentum, config.nesterov)),
    'adam': lambda: (decay, adam),
    'adamw': lambda: (adam, decay),
  }[config.name]()
  multiply = optax.stateless(
    lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, factors)
  )
  rate = optax.scale_by_learning_rate(make_schedule(config, steps))
  return optax.chain(clip, *direction, multiply, rate)


def parameter_paths(params: Any) -> Any:
  """The tree of `params` with each leaf's path, `'down0/conv1/kernel'`, in its place."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), params
  )


def _factors(multipliers: tuple[tuple[str, float], ...], paths: Any) -> Any:
  for pattern, _ in multipliers:
    try:
      matched = any(re.search(pattern, path) for path in jax.tree.leaves(paths))
    except re.error as e:
      raise SegjaxError(
        f'config.optim.multipliers: {pattern!r} is not a regular expression: {e}'
      ) from e
    if not matched:
      raise SegjaxError(
        f'config.optim.multipliers: {pattern!r} matches no parameter; paths look like '
        f'{jax.tree.leaves(paths)[0]}'
      )

  def factor(path: str) -> float:
    result = 1.0
    for pattern, value in multipliers:
      result *= value if re.search(pattern, path) else 1.0
    return result

  return jax.tree.map(factor, paths)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
  """The moving average after `step` (counted from 0), which forgets its start at first.

  The decay is min(decay, (1 + step) / (10 + step)), so that early weights do not linger.
  """
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(params, ema, 1.0 - decay)
