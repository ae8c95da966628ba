"""Semantic segmentation: one class per pixel."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import boundary, confusion, rand, surface
from segjax.metrics.base import crop_padding
from segjax.ops import tiles
from segjax.tasks import queries
from segjax.tasks.base import Task, Variables, check_metrics, own_metric
from segjax.types import (
  IGNORE_LABEL,
  Array,
  Batch,
  NonNegativeInt,
  PositiveInt,
  SegjaxError,
  SumCount,
)

# Annotations in a batch.
ANNOTATIONS: tuple[str, ...] = ('label',)

# Module of the functions in `config.losses`, and the arguments that the task passes.
LOSSES = 'segjax.losses.dense'
LOSS_INPUTS = ('logits', 'label', 'weight')

# Choices of `config.eval.metrics`: class names -> metric.
METRICS = {
  'boundary': lambda class_names: boundary.boundary_metrics(class_names),
  'boundary_either': lambda class_names: boundary.boundary_metrics(class_names, present='either'),
  'boundary_either_one_to_one': lambda class_names: boundary.boundary_metrics(
    class_names, present='either', matching='one_to_one'
  ),
  'confusion': lambda class_names: confusion.confusion_metrics(class_names),
  'isbi': lambda class_names: rand.isbi_metrics(foreground=len(class_names) - 1),
  'surface': lambda class_names: surface.surface_metrics(class_names),
}

# The numbers of each metric. By default the first of those measured selects the best checkpoint.
MEASURES = {
  'confusion': confusion.MEASURES,
  'boundary': ('boundary_f1',),
  'boundary_either': ('boundary_f1_either',),
  'boundary_either_one_to_one': ('boundary_f1_either_one_to_one',),
  'isbi': rand.MEASURES,
  'surface': surface.MEASURES,
}

# Symmetries of the square that test-time augmentation averages over, as (quarter turns, flip).
SYMMETRIES = {
  'none': ((0, False),),
  'flip': ((0, False), (0, True)),
  'dihedral': tuple((k, flip) for k in range(4) for flip in (False, True)),
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Keys of `config.eval`.

  Attributes:
    metrics: names in `METRICS`, or of functions of your own, `class_names -> Metric`.
    tile: height and width of the tiles in tiled inference; None to process the image at once.
    overlap: context in pixels around a tile, rounded up to a multiple of the network's stride; for
      models without a `margin`.
    window: in place of tiles, height and width of windows that are spread evenly over the image,
      and whose probabilities are averaged where they overlap.
    test_time_augmentation: averages the probabilities over these symmetries of the image. The
      loss of an evaluation that averages, here, over windows or samples, is that of the averaged
      softmax, also where the loss of the training is of sigmoids.
    samples: averages the probabilities over this many passes with dropout (Bayesian SegNet, arXiv
      1511.02680); 0 for one pass without. The model's `__call__` must accept `sample`.
  """

  metrics: tuple[str, ...] = ('confusion',)
  tile: tuple[PositiveInt, PositiveInt] | None = None
  overlap: NonNegativeInt = 0
  window: tuple[PositiveInt, PositiveInt] | None = None
  test_time_augmentation: Literal['none', 'flip', 'dihedral'] = 'none'
  samples: NonNegativeInt = 0

  def __post_init__(self):
    check_metrics(self.metrics, METRICS)
    if self.window is not None and (self.tile is not None or self.overlap):
      raise SegjaxError('config.eval.tile and window both divide an image: set one to none')


def make_task(
  model: Any,
  config: EvalConfig,
  *,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
  things: Sequence[int] | None = None,
) -> Task:
  """The semantic task around `model`.

  Args:
    model: a Linen module f[B, H, W, C] -> logits f32[B, h, w, classes] that takes `train`. A model
      whose output is smaller than its input has `margin` (pixels per side) and `output_size`. Or
      one that predicts masks, as `segjax.models.eomt.EoMT`.
    config: of the evaluation.
    class_names: one per class.
    losses: name -> `(logits, label, weight or None) -> SumCount`; the total loss is the sum of
      their means.
    draw: `(image u8[H, W, C], truth i[H, W], prediction i[H, W], uncertainty f32[H, W] or None) ->
      {title: u8[H, W, 3]}`.
    things: not used.

  `forward` returns a dict with `logits` f32[B, h, w, classes]; with `config.samples`, `uncertainty`
  f32[B, h, w], see `monte_carlo`; and in training, of a model with an auxiliary classifier, its
  logits `auxiliary`, whose losses are added, times `model.auxiliary_scale`.

  Raises:
    SegjaxError: `config.samples` is set for a model without dropout at test time; or
      `config.window` for one with a margin.
  """
  del things
  if config.samples:
    _check_dropout(model, config.samples)
  if config.window is not None and getattr(model, 'margin', 0):
    raise SegjaxError(
      f'config.eval.window: the output of {type(model).__name__} is smaller than its input: set it '
      "to none, or config.model.padding to 'same'"
    )
  metrics = tuple(
    METRICS[name](class_names) if name in METRICS else own_metric(name, class_names)
    for name in config.metrics
  )
  visualize, drawn = functools.partial(_visualize, draw), ('label', 'uncertainty')
  if getattr(model, 'predicts_masks', False):
    classes = range(len(class_names))
    return queries.make_task(
      model,
      losses,
      functools.partial(queries.make_targets, things=None, by_label=classes, most=model.queries),
      batch_keys=('image', 'size', 'label', 'valid'),
      evaluate=functools.partial(_forward, queries.PerPixelModel(model), config, train=False),
      predict=_predict,
      metrics=metrics,
      visualize=visualize,
      drawn=drawn,
    )
  dense_keys = ('image', 'label', 'weight')
  return Task(
    batch_spec={
      **dict.fromkeys(dense_keys, P('data', 'space')),
      **dict.fromkeys(('size', 'valid'), P('data')),
    },
    init=lambda key, batch: model.init(key, batch['image']),
    forward=functools.partial(_forward, model, config),
    batch_statistics=functools.partial(_batch_statistics, model),
    losses=functools.partial(_compute_losses, losses, model),
    predict=_predict,
    metrics=metrics,
    visualize=visualize,
    drawn=drawn,
  )


def _check_dropout(model: Any, samples: int) -> None:
  name = type(model).__name__
  if 'sample' not in inspect.signature(type(model).__call__).parameters:
    raise SegjaxError(
      f'config.eval.samples={samples}: {name} has no dropout at test time: set it to 0, or use a '
      'model that has, such as segnet.SegNet'
    )
  if getattr(model, 'dropout', 1) == 0:
    raise SegjaxError(
      f'config.eval.samples={samples}: all samples of a {name} with config.model.dropout=0 are '
      'equal: set config.eval.samples=0, or train with dropout'
    )


def _forward(
  model: Any,
  config: EvalConfig,
  variables: Variables,
  batch: Batch,
  *,
  train: bool,
  key: Array | None = None,
  step: Array | None = None,
) -> tuple[dict[str, Array], Variables]:
  del step
  if train:
    return _train_outputs(model, variables, batch, key)

  def infer(**kwargs: Any) -> Array:
    network = functools.partial(model.apply, variables, **kwargs)
    if config.window is not None:
      return _windowed(network, model, config, batch)
    apply = functools.partial(_whole, network, model, config)
    return symmetric_average(apply, batch['image'], config.test_time_augmentation)

  if not config.samples:
    return {'logits': infer()}, {}
  sample = lambda key: infer(sample=True, rngs={'dropout': key})
  return monte_carlo(sample, config.samples), {}


def _batch_statistics(model: Any, variables: Variables, batch: Batch, key: Array) -> Variables:
  if not hasattr(model, 'bn_momentum'):
    raise SegjaxError(
      f'config.train.recompute_batch_norm: {type(model).__name__} has no bn_momentum: add it, or '
      'set the key to false'
    )
  # Without momentum the running statistics are those of the batch.
  return _train_outputs(model.clone(bn_momentum=0.0), variables, batch, key)[1]


def _compute_losses(
  losses: Mapping[str, Callable[..., SumCount]],
  model: Any,
  outputs: Mapping[str, Array],
  batch: Batch,
) -> dict[str, SumCount]:
  logits, label = outputs['logits'], _masked_label(batch)
  if logits.shape[:3] != label.shape:
    height, width = logits.shape[1:3]
    raise SegjaxError(
      f"the model's output is {height}x{width} for labels of {label.shape[1]}x{label.shape[2]}: "
      'set config.data.size.crop_size to a size that it can output'
    )
  weight = batch.get('weight')
  found = {name: loss(logits, label, weight) for name, loss in losses.items()}
  if 'auxiliary' in outputs:
    for name, loss in losses.items():
      total, count = loss(outputs['auxiliary'], label, weight)
      found[f'auxiliary_{name}'] = SumCount(model.auxiliary_scale * total, count)
  return found


def _predict(outputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
  del batch
  logits = outputs['logits']
  return {
    **{name: value for name, value in outputs.items() if name != 'logits'},
    'label': jnp.argmax(logits, -1).astype(jnp.int32),
    'probability': jax.nn.softmax(logits, -1),
  }


def _visualize(
  draw: Callable[..., dict[str, np.ndarray]],
  batch: Mapping[str, np.ndarray],
  predictions: Mapping[str, np.ndarray],
  rows: Sequence[int],
) -> list[dict[str, np.ndarray]]:
  panels = []
  for i in rows:
    arrays = batch['image'], batch['label'], predictions['label'], predictions.get('uncertainty')
    panels.append(draw(*(None if a is None else crop_padding(a, batch, i) for a in arrays)))
  return panels


def _train_outputs(
  model: Any, variables: Variables, batch: Batch, key: Array
) -> tuple[dict[str, Array], Variables]:
  auxiliary = getattr(model, 'auxiliary', False)
  found, new = model.apply(
    variables,
    batch['image'],
    train=True,
    rngs={'dropout': key},
    mutable=['batch_stats'],
    **({'with_auxiliary': True} if auxiliary else {}),
  )
  if not auxiliary:
    return {'logits': found}, new
  logits, of_auxiliary = found
  return {'logits': logits, 'auxiliary': of_auxiliary}, new


def monte_carlo(infer: Callable[[Array], Array], samples: int) -> dict[str, Array]:
  """Mean and variance of the probabilities over dropout samples (Bayesian SegNet, §3).

  Args:
    infer: `key -> logits f32[B, h, w, classes]`, one sample.
    samples: number of samples; their keys are fixed.

  Returns:
    `logits`, whose softmax is the mean probability, and `uncertainty` f32[B, h, w], the variance of
    a class's probability, averaged over the classes.
  """

  def add(sums: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
    probability = jax.nn.softmax(infer(jax.random.fold_in(jax.random.key(0), index)), -1)
    # Relative to the first sample, to avoid cancellation in the variance.
    shifted = probability - first
    return (sums[0] + shifted, sums[1] + shifted**2), None

  first = jax.nn.softmax(infer(jax.random.fold_in(jax.random.key(0), 0)), -1)
  zeros = (jnp.zeros_like(first), jnp.zeros_like(first))
  (total, squares), _ = jax.lax.scan(add, zeros, jnp.arange(1, samples))
  variance = squares / samples - (total / samples) ** 2
  return {
    'logits': _log(first + total / samples),
    'uncertainty': jnp.maximum(variance, 0).mean(-1),
  }


def _log(probability: Array) -> Array:
  # The smallest normal float avoids -inf if a probability underflows.
  return jnp.log(jnp.maximum(probability, jnp.finfo(jnp.float32).tiny))


def symmetric_average(apply: Any, image: Array, kind: str) -> Array:
  """Logits of f[B, H, W, C] whose softmax is the mean probability over the symmetries `kind`."""
  if kind == 'none':
    return apply(image)
  total = 0.0
  for turns, flip in SYMMETRIES[kind]:
    view = jnp.rot90(image[:, :, ::-1] if flip else image, turns, axes=(1, 2))
    back = jnp.rot90(jax.nn.softmax(apply(view), -1), -turns, axes=(1, 2))
    total += back[:, :, ::-1] if flip else back
  return _log(total / len(SYMMETRIES[kind]))


def _whole(apply: Callable[[Array], Array], model: Any, config: EvalConfig, image: Array) -> Array:
  """Logits of the size of `image`, by one or several tiles."""
  stride = getattr(model, 'stride', 1)
  # Of a padded network, tiles with their context start where pooling does, as the whole image.
  margin = getattr(model, 'margin', 0) or -(-config.overlap // stride) * stride
  if config.tile is None and margin == 0:
    return apply(image)
  size = image.shape[1:3]
  height, width = (min(t, s) for t, s in zip(config.tile or size, size, strict=True))
  fit = getattr(model, 'output_size', lambda size: size)
  tile = (fit(max(height, stride)), fit(max(width, stride)))
  return tiles.overlap_tile(apply, image, tile, margin, stride=stride)


def _windowed(
  apply: Callable[[Array], Array], model: Any, config: EvalConfig, batch: Batch
) -> Array:
  """Logits whose softmax is the mean probability over the windows, see `EvalConfig.window`.

  Of a network that predicts masks it is the mean of its scores, as published; with symmetries, of
  the softmax of their logarithms.
  """
  image = batch['image']
  whole = image.shape[1:3]
  size = batch.get('size', jnp.broadcast_to(jnp.asarray(whole, jnp.int32), (len(image), 2)))
  window = tuple(min(sides) for sides in zip(config.window, whole, strict=True))
  probability = getattr(model, 'scores', jax.nn.softmax)
  seen = lambda x: probability(symmetric_average(apply, x, config.test_time_augmentation))
  return _log(tiles.mean_of_windows(seen, image, size, window))


def _masked_label(batch: Batch) -> Array:
  """The labels, with IGNORE_LABEL in padding examples."""
  if 'valid' not in batch:
    return batch['label']
  return jnp.where(batch['valid'][:, None, None], batch['label'], IGNORE_LABEL)
