"""Semantic segmentation: one class for every pixel."""

import functools
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

# Metrics that `config.eval.metrics` may name -> how to make one for some class names.
METRICS = {
  'boundary': lambda class_names: boundary.boundary_metrics(class_names),
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
    draw: `(image f32[H, W, C], truth i[H, W], prediction i[H, W]) -> {title: uint8[H, W, 3]}`.
  """
  margin = getattr(model, 'margin', 0) or overlap

  def init(key: Array, batch: Batch) -> Variables:
    return model.init(key, batch['image'])

  def forward(variables: Variables, batch: Batch, *, train: bool, key: Array | None = None):
    if train:
      return model.apply(
        variables, batch['image'], train=True, rngs={'dropout': key}, mutable=['batch_stats']
      )
    network = functools.partial(model.apply, variables)
    apply = functools.partial(_whole, network, model, margin, tile)
    return symmetric_average(apply, batch['image'], test_time_augmentation), {}

  def compute_losses(logits: Array, batch: Batch) -> dict[str, SumCount]:
    label = _masked_label(batch)
    if logits.shape[:3] != label.shape:
      raise SegjaxError(
        f'the model puts out {logits.shape[1]}x{logits.shape[2]} for labels of '
        f'{label.shape[1]}x{label.shape[2]}: set config.data.crop_size to a size it can put out'
      )
    return {n: f(logits, label, batch.get('weight')) for n, f in losses.items()}

  def predict(logits: Array, batch: Batch) -> dict[str, Array]:
    del batch
    return {
      'label': jnp.argmax(logits, -1).astype(jnp.int32),
      'probability': jax.nn.softmax(logits, -1),
    }

  def pictures(batch: Mapping[str, np.ndarray], predictions: Mapping[str, np.ndarray], count: int):
    rows = np.flatnonzero(batch['valid'])[:count]
    return [draw(batch['image'][i], batch['label'][i], predictions['label'][i]) for i in rows]

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
    losses=compute_losses,
    predict=predict,
    metrics=tuple(_metric(name, class_names) for name in metrics),
    pictures=pictures,
  )


def symmetric_average(apply: Any, image: Array, kind: str) -> Array:
  """Logits of f[B, H, W, C] whose softmax is the mean probability over the symmetries `kind`."""
  if kind == 'none':
    return apply(image)
  total = 0.0
  for turns, flip in SYMMETRIES[kind]:
    view = jnp.rot90(image[:, :, ::-1] if flip else image, turns, axes=(1, 2))
    back = jnp.rot90(jax.nn.softmax(apply(view), -1), -turns, axes=(1, 2))
    total += back[:, :, ::-1] if flip else back
  mean = total / len(SYMMETRIES[kind])
  # The smallest normal float keeps an underflown probability from becoming -inf.
  return jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))


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
