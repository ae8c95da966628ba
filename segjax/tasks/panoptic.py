"""Panoptic segmentation: each pixel belongs to one segment, a thing or stuff.

A network detects things as in instance segmentation and classifies each pixel as in semantic
segmentation. `segjax.ops.panoptic.merge_segments` merges both, at the size of `batch['segments']`,
the original image size, for which PQ is defined.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import coco, panoptic
from segjax.metrics.base import Metric
from segjax.ops import boxes as box_ops
from segjax.ops.panoptic import merge_segments
from segjax.ops.paste_masks import Rule, paste_regions
from segjax.ops.resize import resize_inside
from segjax.tasks import detection, queries
from segjax.tasks.base import Task, Tuning, Variables, check_metrics, grid, own_metric
from segjax.types import (
  IGNORE_LABEL,
  Array,
  Batch,
  Detections,
  Fraction,
  NonNegativeFloat,
  SegjaxError,
  Segments,
  SumCount,
)

# Annotations in a batch.
ANNOTATIONS: tuple[str, ...] = ('label', 'objects', 'segments')
# Module of the functions in `config.losses`, and the arguments that the task passes.
LOSSES = 'segjax.losses.panoptic'
LOSS_INPUTS = ('outputs',)

METRICS = ('pq', 'coco')
# The numbers of each metric. By default the first of those measured selects the best checkpoint.
MEASURES = {'pq': panoptic.MEASURES, 'coco': coco.measures('mask', 'box')}

# Keys of `config.eval` that `segjax evaluate --tune` searches, and the values that it tries in
# addition to the config's. Areas are multiples of the config's, or of the default if that is 0.
_TUNED = ('score_threshold', 'overlap_threshold', 'stuff_area')
_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_OVERLAPS = (0.3, 0.5, 0.7)
_AREAS = (0.0, 1 / 16, 1 / 4, 1.0, 4.0)
_STUFF_AREA = 4096.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Keys of `config.eval`.

  Attributes:
    metrics: 'pq', on the device, at the original image sizes; 'coco', AP on the host, of the
      detections before merging, against the thing segments; or names of functions of your own,
      `class_names -> Metric`.
    score_threshold: detections with a lower score are dropped.
    overlap_threshold: detections with more than this fraction already covered are dropped.
    stuff_area: stuff segments with fewer pixels become void; 4096 suits images of about 640 x 480,
      smaller images need less.
    crowds, forgiven, unmatched_sq: see `segjax.metrics.panoptic`.
    paste: for 'coco', see `segjax.ops.paste_masks`. Merging always uses 'detectron2'.
  """

  metrics: tuple[str, ...] = ('pq',)
  score_threshold: Fraction = 0.5
  overlap_threshold: Fraction = 0.5
  stuff_area: NonNegativeFloat = _STUFF_AREA
  crowds: panoptic.Crowds = 'last'
  forgiven: panoptic.Forgiven = 'sum'
  unmatched_sq: panoptic.UnmatchedSq = 'zero'
  paste: Rule = 'detectron2'

  def __post_init__(self):
    check_metrics(self.metrics, METRICS)


def make_task(
  model: Any,
  config: EvalConfig,
  *,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
  things: Sequence[int] | None = None,
) -> Task:
  """The panoptic task around `model`.

  Args:
    model: a Linen module as `segjax.models.panoptic_fpn.PanopticFPN`. Its `semantic` scores cover
      all classes if `semantic_things`, else "other" and the stuff classes. Or one that predicts
      masks, as `segjax.models.eomt.EoMT`.
    config: of the evaluation.
    class_names: one per class.
    losses: name -> `outputs -> SumCount`, of the model's outputs in training; the total loss is the
      sum of their means.
    draw: `(image u8[H, W, C], size (h, w), native (h, w), truth, prediction) -> {title: u8[H', W',
      3]}`, the last two `Segments` without the batch axis.
    things: indices of the thing classes, in the order of the model's detection classes.

  Raises:
    SegjaxError: the model has no mask head; a key of `config` is for one that detects boxes.
  """
  if getattr(model, 'predicts_masks', False):
    return _query_task(model, config, class_names, losses, draw, things)
  if not getattr(model, 'masks', True):
    group = 'config.model.instance' if hasattr(type(model), 'parts') else 'config.model'
    raise SegjaxError(f'{group}.masks: a panoptic network needs masks: set it to true')
  things = tuple(things or ())
  channels, channel_classes = _channels(len(class_names), things, model.semantic_things)
  merge = functools.partial(merge_segments, thing_classes=things, stuff_classes=channel_classes)
  own = tuple(getattr(config, name) for name in _TUNED)
  areas = [part * (config.stuff_area or _STUFF_AREA) for part in _AREAS]
  metrics = _metrics(config, class_names, things)
  pq = metrics['pq']
  return Task(
    batch_spec=dict.fromkeys((*detection.BATCH_KEYS, 'native', 'label', 'segments'), P('data')),
    host_keys=('annotations',),
    init=functools.partial(detection.init, model),
    forward=functools.partial(_forward, model, channels),
    batch_statistics=None,
    losses=functools.partial(detection.compute_losses, losses),
    predict=functools.partial(_predict, merge, own),
    metrics=tuple(metrics[name] for name in config.metrics),
    visualize=functools.partial(_visualize, draw),
    drawn=('segments',),
    tuning=Tuning(
      names=_TUNED,
      settings=grid(own, (_SCORES, _OVERLAPS, areas)),
      metric=pq,
      measure='pq',
      count=functools.partial(_count, merge, pq),
    ),
  )


def _query_task(
  model: Any,
  config: EvalConfig,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  draw: Callable[..., dict[str, np.ndarray]] | None,
  things: Sequence[int] | None,
) -> Task:
  """`make_task` of a network that predicts masks."""
  queries.check_unused(config, (*_TUNED, 'paste'), 'config.model.inference')
  if 'coco' in config.metrics:
    raise SegjaxError(
      "config.eval.metrics: 'coco' is of the detections of a network before they are merged, and "
      f'{type(model).__name__} has none: leave it out, or train it on the task instance'
    )
  things = tuple(things or ())
  stuff = [i for i in range(len(class_names)) if i not in things]
  metrics = _metrics(config, class_names, things)
  keys = ('image', 'size', 'instances', 'valid', 'native', 'label', 'segments')
  return queries.make_task(
    model,
    losses,
    functools.partial(queries.make_targets, things=things, by_label=stuff, most=model.queries),
    batch_keys=keys,
    host_keys=('annotations',),
    predict=functools.partial(queries.predict_segments, model, things),
    tuning=queries.make_tuning(model, things, metrics['pq']),
    metrics=tuple(metrics[name] for name in config.metrics),
    visualize=functools.partial(_visualize, draw),
    drawn=('segments',),
  )


def _channels(
  classes: int, things: Sequence[int], semantic_things: bool
) -> tuple[list[int], list[int | None]]:
  """(semantic channel of each class, class of each channel or None if it is not stuff)."""
  stuff = [i for i in range(classes) if i not in things]
  if semantic_things:
    return list(range(classes)), [i if i in stuff else None for i in range(classes)]
  return [1 + stuff.index(i) if i in stuff else 0 for i in range(classes)], [None, *stuff]


def _metrics(
  config: EvalConfig, class_names: Sequence[str], things: Sequence[int]
) -> dict[str, Metric]:
  isthing = [i in things for i in range(len(class_names))]
  rules = {key: getattr(config, key) for key in ('crowds', 'forgiven', 'unmatched_sq')}
  paste = functools.partial(paste_regions, rule=config.paste)
  own = {name: own_metric(name, class_names) for name in config.metrics if name not in METRICS}
  return {
    'pq': panoptic.panoptic_metrics(class_names, isthing, **rules),
    'coco': _coco([class_names[i] for i in things], paste),
    **own,
  }


def _forward(
  model: Any,
  channels: Sequence[int],
  variables: Variables,
  batch: Batch,
  *,
  train: bool,
  key: Array | None = None,
  step: Array | None = None,
) -> tuple[dict[str, Any], Variables]:
  """`detection.forward`; in training `semantic` is the pair (scores, label in channels)."""
  outputs, state = detection.forward(model, variables, batch, train=train, key=key, step=step)
  if train:
    label = _channel_label(batch['label'], channels)
    outputs = {**outputs, 'semantic': (outputs['semantic'], label)}
  return outputs, state


def _predict(
  merge: Callable[..., Segments],
  setting: Sequence[float | Array],
  outputs: Mapping[str, Any],
  batch: Batch,
) -> dict[str, Any]:
  """The detections, in pixels of the network's input, and `segments` at the original size."""
  label, found = at_native_size(outputs, batch)
  segments = merge(label, found, size=batch['native'], **dict(zip(_TUNED, setting, strict=True)))
  return {**outputs['detections']._asdict(), 'segments': segments}


def _count(
  merge: Callable[..., Segments],
  metric: Metric,
  outputs: Mapping[str, Any],
  batch: Batch,
  settings: Array,
) -> dict[str, Array]:
  """The states of `metric` for each of `settings` f32[T, n], see `Tuning.count`."""
  label, found = at_native_size(outputs, batch)

  def count_one(setting: Array) -> dict[str, Array]:
    chosen = dict(zip(_TUNED, setting, strict=True))
    segments = merge(label, found, size=batch['native'], **chosen)
    return metric.from_batch({'segments': segments}, batch)

  return jax.lax.map(count_one, settings)


def _visualize(
  draw: Callable[..., dict[str, np.ndarray]],
  batch: Mapping[str, Any],
  predictions: Mapping[str, Any],
  rows: Sequence[int],
) -> list[dict[str, np.ndarray]]:
  return [
    draw(
      batch['image'][i],
      tuple(batch['size'][i].tolist()),
      tuple(batch['native'][i].tolist()),
      *(Segments(*(f[i] for f in s)) for s in (batch['segments'], predictions['segments'])),
    )
    for i in rows
  ]


def at_native_size(outputs: Mapping[str, Any], batch: Batch) -> tuple[Array, Detections]:
  """Maps the outputs of a network to the original image sizes.

  Args:
    outputs: `semantic` f32[B, h, w, C] and `detections`.
    batch: `size`, `native`, and `segments`, whose shape gives H and W.

  Returns:
    i32[B, H, W], the channel of the highest score, and the detections.
  """
  size, native = batch['size'], batch['native']
  shape = batch['segments'].ids.shape[1:]
  scores = resize_inside(outputs['semantic'], size, native, shape)
  label = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  found = outputs['detections']
  boxes = box_ops.scale(found.boxes, (native / size)[:, None])
  return label, found._replace(boxes=boxes)


def _channel_label(label: Array, channels: Sequence[int]) -> Array:
  """Maps classes to channels, i32[B, H, W]; IGNORE_LABEL is kept."""
  channel = jnp.asarray(channels, jnp.int32)[label]
  return jnp.where(label < len(channels), channel, IGNORE_LABEL)


def _coco(class_names: Sequence[str], paste: coco.Paste) -> Metric:
  """COCO's AP, with per-class results under `per_thing`, as `per_class` is PQ's."""
  fields = Detections._fields
  metric = coco.coco_metrics(class_names, ('box', 'mask'), paste)

  def renamed(values: dict[str, Any]) -> dict[str, Any]:
    return {'per_thing' if key == 'per_class' else key: value for key, value in values.items()}

  def from_batch(predictions: Mapping[str, Any], batch: Batch) -> Any:
    return metric.from_batch({key: predictions[key] for key in fields}, batch)

  return dataclasses.replace(
    metric,
    from_batch=from_batch,
    compute=lambda state: renamed(metric.compute(state)),
    join=lambda parts: renamed(metric.join(parts)),
  )
