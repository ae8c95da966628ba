"""Panoptic segmentation: one segment for each pixel, of a thing or of stuff.

A network finds things as instance segmentation does and the class of each pixel as semantic
segmentation does; `segjax.ops.panoptic.merge_segments` makes one answer of both. It does so at the
size of `batch['segments']`, the images' own, on which PQ is defined.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import coco, panoptic
from segjax.metrics.base import Metric
from segjax.ops.panoptic import merge_segments
from segjax.ops.paste_masks import Rule, paste_masks
from segjax.ops.resize import resize_inside
from segjax.tasks.base import Task, Tuning, Variables
from segjax.types import (
  IGNORE_LABEL,
  Array,
  Batch,
  Detections,
  SegjaxError,
  Segments,
  SumCount,
  nearest,
)

# Where `config.losses` finds its functions, and what the task gives them.
LOSSES = 'segjax.losses.panoptic'
LOSS_INPUTS = ('outputs',)
# Keys of `config.data` without which batches lack what the task learns from.
DATA_KEYS: tuple[str, ...] = ('instances', 'segments')

METRICS = ('pq', 'coco')

# What `segjax evaluate --tune` tries, beside the config's own values. Areas are parts of the own,
# or of the default where that is 0.
_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_OVERLAPS = (0.3, 0.5, 0.7)
_AREAS = (0.0, 1 / 16, 1 / 4, 1.0, 4.0)
_STUFF_AREA = 4096.0


def make_task(
  model: Any,
  *,
  class_names: Sequence[str],
  things: Sequence[int],
  losses: Mapping[str, Callable[..., SumCount]],
  metrics: Sequence[str] = ('pq',),
  score_threshold: float = 0.5,
  overlap_threshold: float = 0.5,
  stuff_area: float = _STUFF_AREA,
  crowds: panoptic.Crowds = 'last',
  forgiven: panoptic.Forgiven = 'sum',
  unmatched_sq: panoptic.UnmatchedSq = 'zero',
  paste: Rule = 'detectron2',
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
) -> Task:
  """The panoptic task around `model`.

  Args:
    model: a Linen module as `segjax.models.panoptic_fpn.PanopticFPN`. Its `semantic` scores are of
      all classes, if `semantic_things`, else of "other" and the kinds of stuff.
    class_names: one a class.
    things: which classes are things; these are the classes of the model's detections.
    losses: name -> `outputs -> SumCount`, of what the model puts out in training; their means add
      up.
    metrics: 'pq', on the device, at the images' own sizes; 'coco', AP on the host of what was found
      before the merging, against the things among the segments.
    score_threshold: instances with a lower score are left out.
    overlap_threshold: an instance is left out if more than this share of it is taken.
    stuff_area: a kind of stuff with fewer pixels left in an image is void; 4096 is for images of
      about 640 x 480, smaller ones want less.
    crowds, forgiven, unmatched_sq: see `segjax.metrics.panoptic`.
    paste: for 'coco', see `segjax.ops.paste_masks`. The merging has the rule 'detectron2'.
    draw: `(image f32[H, W, C], size (h, w), native (h, w), truth, prediction) -> {title: uint8[H',
      W', 3]}`, the last two `Segments` without the batch axis.

  The key that `forward` is given is not used: what is drawn for an example comes from its
  `batch['draw']`. There is no loss outside training, where nothing is sampled.

  Raises:
    SegjaxError: an unknown metric, or a model without a mask head.
  """
  if not getattr(model, 'masks', True):
    raise SegjaxError('config.model.masks: a panoptic network needs masks: set it to true')
  stuff = [i for i in range(len(class_names)) if i not in things]
  # The channel that each class is learnt as, and the class that each channel stands for.
  if model.semantic_things:
    channels = list(range(len(class_names)))
    channel_classes = [i if i in stuff else None for i in channels]
  else:
    channels = [1 + stuff.index(i) if i in stuff else 0 for i in range(len(class_names))]
    channel_classes = [None, *stuff]
  thresholds = {
    'score_threshold': score_threshold,
    'overlap_threshold': overlap_threshold,
    'stuff_area': stuff_area,
  }

  def init(key: Array, batch: Batch) -> Variables:
    return model.init(key, batch['image'], batch['size'])

  def forward(variables: Variables, batch: Batch, *, train: bool, key: Array | None = None):
    del key
    image, size = batch['image'], batch['size']
    if not train:
      return model.apply(variables, image, size), {}
    keys = jax.vmap(jax.random.key)(batch['draw'])
    outputs, state = model.apply(
      variables, image, size, batch['instances'], keys, train=True, mutable=['batch_stats']
    )
    label = _channel_label(batch['label'], channels)
    return {**outputs, 'semantic': (outputs['semantic'], label)}, state

  def compute_losses(outputs: Mapping[str, Any], batch: Batch) -> dict[str, SumCount]:
    del batch
    if 'detections' in outputs:
      return {}
    return {name: loss(outputs) for name, loss in losses.items()}

  merge = functools.partial(merge_segments, thing_classes=things, stuff_classes=channel_classes)

  def predict(outputs: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    label, found = at_native_size(outputs, batch)
    segments = merge(label, found, size=batch['native'], **thresholds)
    return {**outputs['detections']._asdict(), 'segments': segments}

  def count(outputs: Mapping[str, Any], batch: Batch, settings: Array) -> dict[str, Array]:
    label, found = at_native_size(outputs, batch)

    def count_one(setting: Array) -> dict[str, Array]:
      chosen = dict(zip(thresholds, setting, strict=True))
      segments = merge(label, found, size=batch['native'], **chosen)
      return pq.from_batch({'segments': segments}, batch)

    return jax.lax.map(count_one, settings)

  def pictures(batch: Mapping[str, Any], predictions: Mapping[str, Any], count: int):
    return [
      draw(
        batch['image'][i],
        tuple(batch['size'][i].tolist()),
        tuple(batch['native'][i].tolist()),
        *(Segments(*(f[i] for f in s)) for s in (batch['segments'], predictions['segments'])),
      )
      for i in np.flatnonzero(batch['valid'])[:count]
    ]

  isthing = [i in things for i in range(len(class_names))]
  rules: dict[str, Any] = {'crowds': crowds, 'forgiven': forgiven, 'unmatched_sq': unmatched_sq}
  pq = panoptic.panoptic_metrics(class_names, isthing, **rules)
  thing_names = [class_names[i] for i in things]
  made = {
    'pq': lambda: pq,
    'coco': lambda: _coco(thing_names, functools.partial(paste_masks, rule=paste)),
  }
  for name in metrics:
    if name not in made:
      raise SegjaxError(f'config.eval.metrics: there is no {name}{nearest(name, METRICS)}')
  by_example = ('image', 'size', 'native', 'index', 'valid', 'draw')
  truth = ('instances', 'label', 'segments')
  return Task(
    batch_spec=dict.fromkeys((*by_example, *truth), P('data')),
    host_keys=('annotations',),
    init=init,
    forward=forward,
    batch_statistics=None,
    losses=compute_losses,
    predict=predict,
    metrics=tuple(made[name]() for name in metrics),
    pictures=pictures,
    tuning=Tuning(
      names=tuple(thresholds),
      settings=_grid(tuple(thresholds.values())),
      metric=pq,
      measure='pq',
      count=count,
    ),
  )


def at_native_size(outputs: Mapping[str, Any], batch: Batch) -> tuple[Array, Detections]:
  """What a network finds, in pixels of the images as they are stored.

  Args:
    outputs: `semantic` f32[B, h, w, C] and `detections`.
    batch: `size`, `native`, and `segments`, whose height and width are those of the result.

  Returns:
    i32[B, H, W], the channel of the highest score, and the detections.
  """
  size, native = batch['size'], batch['native']
  shape = batch['segments'].ids.shape[1:]
  scores = resize_inside(outputs['semantic'], size, native, shape)
  label = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  found = outputs['detections']
  y, x = jnp.unstack(native / size, axis=1)
  scale = jnp.stack([x, y, x, y], axis=1)
  return label, found._replace(boxes=found.boxes * scale[:, None])


def _channel_label(label: Array, channels: Sequence[int]) -> Array:
  """i32[B, H, W]: of each class its channel; IGNORE_LABEL stays."""
  table = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.int32)
  table[: len(channels)] = channels
  return jnp.asarray(table)[label]


def _coco(class_names: Sequence[str], paste: coco.Paste) -> Metric:
  """COCO's AP, its figures of each class beside those of PQ."""
  fields = Detections._fields
  metric = coco.coco_metrics(class_names, ('box', 'mask'), paste)

  def compute(state: Any) -> dict[str, Any]:
    values = dict(metric.compute(state))
    per_thing = values.pop('per_class')
    return {**values, 'per_thing': per_thing}

  def from_batch(predictions: Mapping[str, Any], batch: Batch) -> Any:
    return metric.from_batch({key: predictions[key] for key in fields}, batch)

  return dataclasses.replace(metric, from_batch=from_batch, compute=compute)


def _grid(own: tuple[float, float, float]) -> tuple[tuple[float, ...], ...]:
  """The own thresholds first, so that they win a tie, then all others."""
  score, overlap, area = own
  values = (
    {score, *_SCORES},
    {overlap, *_OVERLAPS},
    {area, *(part * (area or _STUFF_AREA) for part in _AREAS)},
  )
  others = (s for s in itertools.product(*map(sorted, values)) if s != own)
  return own, *others
