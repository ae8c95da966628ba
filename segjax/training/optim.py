"""Optimizers and learning-rate schedules, built with Optax from `config.optim`."""

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

# Decay of a moving average.
Decay = Annotated[float, Range(0, 1, open='high')]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Keys of `config.optim`.

  Attributes:
    name: 'sgd' with momentum or 'adam', both with L2 regularization in the gradient, or 'adamw'
      (decoupled weight decay).
    learning_rate: peak learning rate.
    schedule: 'constant', 'poly' (1 - t/T)^power, 'step' (× decay_factor at each of `boundaries`),
      or 'cosine' (to zero).
    warmup_steps: steps of linear warm-up from `warmup_factor` × learning_rate, before the schedule;
      fewer than `train.steps`, unless that is 0.
    warmup_factor: initial factor of the warm-up.
    power: exponent of 'poly'.
    boundaries: steps at which 'step' decays.
    decay_factor: factor of 'step' at each boundary.
    momentum: of SGD.
    nesterov: whether to use Nesterov momentum.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to Adam's denominator.
    weight_decay: coefficient.
    decay_exclude: names of parameters without weight decay; by default biases and norm scales.
    multipliers: pairs (regular expression for parameter paths, factor of the update); factors of
      all matches multiply. (('bias$', 2.0),) gives biases 2x the learning rate; 0 freezes, but the
      gradients count in `clip_norm`.
    late: triples (regular expression for parameter paths, start, steps): these parameters rest
      until the step `start`, then their rate is warmed up from 0 over `steps` and follows the
      schedule; 'poly' and 'cosine' decay from there on. Of several that match, the last one counts.
    clip_norm: maximum global gradient norm; None disables clipping.
    accumulate: microbatches for gradient accumulation; the result is that of the full batch but for
      batch normalization, whose statistics are those of each microbatch.
    ema: decay of an exponential moving average of the parameters, used in evaluation; None disables
      it.
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
  late: tuple[tuple[str, NonNegativeInt, PositiveInt], ...] = ()
  clip_norm: PositiveFloat | None = None
  accumulate: PositiveInt = 1
  ema: Decay | None = None


def check_schedule(config: OptimConfig) -> None:
  """Raises a SegjaxError where `boundaries` and `schedule` do not go together."""
  decays, boundaries = config.schedule == 'step', config.boundaries
  if decays != bool(boundaries):
    remedy = 'name the steps' if decays else "set it to (), or config.optim.schedule to 'step'"
    raise SegjaxError(
      f'config.optim.boundaries={boundaries} with config.optim.schedule={config.schedule!r}: '
      f'{remedy}'
    )
  if list(boundaries) != sorted(set(boundaries)):
    raise SegjaxError(f'config.optim.boundaries={boundaries}: name each step once, in order')


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
  """The learning rate at each step of a run of `steps` steps, but for parameters that are late."""
  after = max(steps - config.warmup_steps, 1)
  rate = config.learning_rate
  if config.schedule == 'step':  # a product: steps may come before the end of warm-up
    decays = dict.fromkeys(config.boundaries, config.decay_factor)
    stepped = optax.piecewise_constant_schedule(rate, decays)
    if not config.warmup_steps:
      return stepped
    factor = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps)
    return lambda step: factor(step) * stepped(step)
  main = {
    'constant': lambda: optax.constant_schedule(rate),
    'poly': lambda: optax.polynomial_schedule(rate, 0.0, config.power, after),
    'cosine': lambda: optax.cosine_decay_schedule(rate, after),
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
    params: arrays or shapes.
    frozen: regular expressions for the paths of frozen parameters, such as a model's
      `frozen_parameters`; also disables their weight decay.

  Raises:
    SegjaxError: a pattern of `multipliers` or `late` is not a regular expression or matches no
      parameter.
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
  return optax.chain(clip, *direction, multiply, _scale_by_rate(config, steps, paths))


def _scale_by_rate(config: OptimConfig, steps: int, paths: Any) -> optax.GradientTransformation:
  """Multiplies by the negative learning rate, which differs where `config.late` says so."""
  common = make_schedule(config, steps)
  plain = optax.scale_by_learning_rate(common)
  if not config.late:
    return plain
  patterns = [pattern for pattern, *_ in config.late]
  _check_patterns(patterns, paths, 'late')
  schedules = [common, *(_late_schedule(config, steps, *late) for _, *late in config.late)]

  def find(path: str) -> int:
    found = [i for i, pattern in enumerate(patterns, 1) if re.search(pattern, path)]
    return found[-1] if found else 0

  chosen = jax.tree.map(find, paths)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    rates = [schedule(state.count) for schedule in schedules]
    updates = jax.tree.map(lambda update, i: -rates[i] * update, updates, chosen)
    return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

  # The state is that of a single schedule.
  return optax.GradientTransformation(plain.init, update)


def _late_schedule(config: OptimConfig, steps: int, start: int, warmup: int) -> optax.Schedule:
  """The schedule of a parameter that is frozen until `start`."""
  boundaries = tuple(boundary - start for boundary in config.boundaries)
  later = dataclasses.replace(config, warmup_steps=warmup, warmup_factor=0.0, boundaries=boundaries)
  rest = optax.constant_schedule(0.0)
  return optax.join_schedules([rest, make_schedule(later, steps - start)], [start])


def parameter_paths(params: Any) -> Any:
  """The tree of `params` with leaves replaced by their paths, such as `'down0/conv1/kernel'`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), params
  )


def _check_patterns(patterns: Sequence[str], paths: Any, key: str) -> None:
  for pattern in patterns:
    try:
      matched = any(re.search(pattern, path) for path in jax.tree.leaves(paths))
    except re.error as e:
      raise SegjaxError(f'config.optim.{key}: {pattern!r} is not a regular expression: {e}') from e
    if not matched:
      raise SegjaxError(
        f'config.optim.{key}: {pattern!r} matches no parameter; paths look like '
        f'{jax.tree.leaves(paths)[0]}'
      )


def _factors(multipliers: tuple[tuple[str, float], ...], paths: Any) -> Any:
  _check_patterns([pattern for pattern, _ in multipliers], paths, 'multipliers')

  def factor(path: str) -> float:
    result = 1.0
    for pattern, value in multipliers:
      result *= value if re.search(pattern, path) else 1.0
    return result

  return jax.tree.map(factor, paths)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
  """The exponential moving average after `step` (from 0).

  The decay is min(decay, (1 + step) / (10 + step)), so that early weights are forgotten quickly.
  """
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(params, ema, 1.0 - decay)
