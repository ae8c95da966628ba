"""Semantic segmentation: one class for every pixel."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import boundary, confusion, rand
from segjax.ops import tiles
from segjax.tasks.base import Task, Variables
from segjax.types import IGNORE_LABEL, Array, Batch, SegjaxError, SumCount, nearest

# Where `config.losses` finds its functions, and what the task gives them.
LOSSES = 'segjax.losses.dense'
LOSS_INPUTS = ('logits', 'label', 'weight')
# Keys of `config.data` without which batches lack what the task learns from.
DATA_KEYS: tuple[str, ...] = ()

# Metrics that `config.eval.metrics` may name -> how to make one for some class names.
METRICS = {
  'boundary': lambda class_names: boundary.boundary_metrics(class_names),
  'boundary_either': lambda class_names: boundary.boundary_metrics(class_names, present='either'),
  'confusion': lambda class_names: confusion.confusion_metrics(class_names),
  'isbi': lambda class_names: rand.isbi_metrics(foreground=len(class_names) - 1),
}

# Symmetries of the square that test-time augmentation averages over, as (quarter turns, flip).
SYMMETRIES = {
  'none': ((0, False),),
  'flip': ((0, False), (0, True)),
  'dihedral': tuple((k, flip) for k in range(4) for flip in (False, True)),
}


def make_task(
  model: Any,
  *,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  metrics: Sequence[str] = ('confusion',),
  tile: tuple[int, int] | None = None,
  overlap: int = 0,
  test_time_augmentation: Literal['none', 'flip', 'dihedral'] = 'none',
  samples: int = 0,
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
) -> Task:
  """The semantic task around `model`.

  Args:
    model: a Linen module f[B, H, W, C] -> logits f32[B, h, w, classes] that takes `train`. A model
      that puts out less than it takes in says so in `margin` (pixels a side) and `output_size`.
    class_names: one a class.
    losses: name -> `(logits, label, weight or None) -> SumCount`; their means add up.
    metrics: names in `METRICS`.
    tile: height and width of the tiles of overlap-tile inference; None takes the image whole.
    overlap: context in pixels around a tile, for models without a margin of their own.
    test_time_augmentation: average the probabilities over these symmetries of the image.
    samples: average them over this many passes with dropout on (Bayesian SegNet, arXiv 1511.02680);
      0 for one pass without. The model's `__call__` then has to take `sample`.
    draw: `(image f32[H, W, C], truth i[H, W], prediction i[H, W], uncertainty f32[H, W] or None) ->
      {title: uint8[H, W, 3]}`.

  The outputs of `forward` are a dict with `logits` f32[B, h, w, classes] and, of samples,
  `uncertainty` f32[B, h, w], see `monte_carlo`.
  """
  margin = getattr(model, 'margin', 0) or overlap
  if samples and 'sample' not in inspect.signature(type(model).__call__).parameters:
    raise SegjaxError(
      f'config.eval.samples={samples}: {type(model).__name__} has no dropout at test time: leave '
      'it out, or take a model that has, such as segnet.SegNet'
    )

  def init(key: Array, batch: Batch) -> Variables:
    return model.init(key, batch['image'])

  def forward(variables: Variables, batch: Batch, *, train: bool, key: Array | None = None):
    if train:
      return _train_outputs(model, variables, batch, key)

    def infer(**kwargs: Any) -> Array:
      network = functools.partial(model.apply, variables, **kwargs)
      apply = functools.partial(_whole, network, model, margin, tile)
      return symmetric_average(apply, batch['image'], test_time_augmentation)

    if not samples:
      return {'logits': infer()}, {}
    return monte_carlo(lambda key: infer(sample=True, rngs={'dropout': key}), samples), {}

  def batch_statistics(variables: Variables, batch: Batch, key: Array) -> Variables:
    if not hasattr(model, 'bn_momentum'):
      raise SegjaxError(
        f'config.train.recompute_batch_norm: {type(model).__name__} has no bn_momentum, and '
        'nothing to recompute: leave it out'
      )
    # Without momentum the running statistics are the batch's own.
    return _train_outputs(model.clone(bn_momentum=0.0), variables, batch, key)[1]

  def compute_losses(outputs: Mapping[str, Array], batch: Batch) -> dict[str, SumCount]:
    logits, label = outputs['logits'], _masked_label(batch)
    if logits.shape[:3] != label.shape:
      raise SegjaxError(
        f'the model puts out {logits.shape[1]}x{logits.shape[2]} for labels of '
        f'{label.shape[1]}x{label.shape[2]}: set config.data.crop_size to a size it can put out'
      )
    return {n: f(logits, label, batch.get('weight')) for n, f in losses.items()}

  def predict(outputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
    del batch
    logits = outputs['logits']
    return {
      **{name: value for name, value in outputs.items() if name != 'logits'},
      'label': jnp.argmax(logits, -1).astype(jnp.int32),
      'probability': jax.nn.softmax(logits, -1),
    }

  def pictures(batch: Mapping[str, np.ndarray], predictions: Mapping[str, np.ndarray], count: int):
    rows = np.flatnonzero(batch['valid'])[:count]
    uncertainty = predictions.get('uncertainty', [None] * len(batch['valid']))
    return [
      draw(batch['image'][i], batch['label'][i], predictions['label'][i], uncertainty[i])
      for i in rows
    ]

  dense_spec = P('data', 'space')
  return Task(
    batch_spec={
      'image': dense_spec,
      'label': dense_spec,
      'weight': dense_spec,
      'valid': P('data'),
    },
    init=init,
    forward=forward,
    batch_statistics=batch_statistics,
    losses=compute_losses,
    predict=predict,
    metrics=tuple(_metric(name, class_names) for name in metrics),
    pictures=pictures,
  )


def _train_outputs(
  model: Any, variables: Variables, batch: Batch, key: Array
) -> tuple[dict[str, Array], Variables]:
  logits, new = model.apply(
    variables, batch['image'], train=True, rngs={'dropout': key}, mutable=['batch_stats']
  )
  return {'logits': logits}, new


def monte_carlo(infer: Callable[[Array], Array], samples: int) -> dict[str, Array]:
  """Mean and variance of the probabilities over samples (Bayesian SegNet, §3).

  Args:
    infer: `key -> logits f32[B, h, w, classes]`, one sample.
    samples: how many, by keys that are always the same.

  Returns:
    `logits`, whose softmax is the mean probability, and `uncertainty` f32[B, h, w], the variance of
    a class's probability, averaged over the classes.
  """

  def add(sums: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
    probability = jax.nn.softmax(infer(jax.random.fold_in(jax.random.key(0), index)), -1)
    # About a first sample, so that the difference of large numbers does not cancel.
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
  # The smallest normal float keeps an underflown probability from becoming -inf.
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


def _whole(
  apply: Callable[[Array], Array],
  model: Any,
  margin: int,
  tile: tuple[int, int] | None,
  image: Array,
) -> Array:
  """Logits as large as `image`, by one tile or by many."""
  if tile is None and margin == 0:
    return apply(image)
  size = image.shape[1:3]
  height, width = (min(t, s) for t, s in zip(tile or size, size, strict=True))
  fit = getattr(model, 'output_size', lambda size: size)
  stride = getattr(model, 'stride', 1)
  tile = (fit(max(height, stride)), fit(max(width, stride)))
  return tiles.overlap_tile(apply, image, tile, margin, stride=stride)


def _masked_label(batch: Batch) -> Array:
  """The labels, with those of padded examples ignored."""
  if 'valid' not in batch:
    return batch['label']
  return jnp.where(batch['valid'][:, None, None], batch['label'], IGNORE_LABEL)


def _metric(name: str, class_names: Sequence[str]) -> Any:
  if name not in METRICS:
    raise SegjaxError(f'config.eval.metrics: there is no {name}{nearest(name, METRICS)}')
  return METRICS[name](class_names)
