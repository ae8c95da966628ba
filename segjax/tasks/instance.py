"""Instance segmentation: box, class, score and mask of each object."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import coco
from segjax.metrics.base import Metric
from segjax.ops.paste_masks import Rule, paste_regions
from segjax.tasks import detection, queries
from segjax.tasks.base import Task, check_metrics, own_metric
from segjax.types import Array, Batch, Fraction, PositiveFloat, SegjaxError, SumCount

# Annotations in a batch.
ANNOTATIONS: tuple[str, ...] = ('objects',)
# Module of the functions in `config.losses`, and the arguments that the task passes.
LOSSES = 'segjax.losses.detection'
LOSS_INPUTS = ('outputs',)

# Choices of `config.eval.metrics` -> IoU types of COCO's evaluation.
METRICS = {'coco': ('box', 'mask'), 'coco_box': ('box',)}
# The numbers of each metric. By default the first of those measured selects the best checkpoint.
MEASURES = {'coco': coco.measures('mask', 'box'), 'coco_box': coco.measures('box')}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Keys of `config.eval`.

  Attributes:
    metrics: names in `METRICS`, or of functions of your own, `class_names -> Metric`.
    paste: how masks are pasted into the image, see `segjax.ops.paste_masks`.
    test_time_augmentation: 'flip' detects in the image and in its horizontal flip. The detections
      of all views go through NMS together; their masks are averaged.
    scales: detects in the image at these scales, in the same way.
    draw_threshold: panels show detections with at least this score.
  """

  metrics: tuple[str, ...] = ('coco',)
  paste: Rule = 'torchvision'
  test_time_augmentation: detection.Augmentation = 'none'
  scales: tuple[PositiveFloat, ...] = (1.0,)
  draw_threshold: Fraction = 0.5

  def __post_init__(self):
    check_metrics(self.metrics, METRICS)
    if not self.scales:
      raise SegjaxError('config.eval.scales=() is empty: set at least one scale')


def make_task(
  model: Any,
  config: EvalConfig,
  *,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
  things: Sequence[int] | None = None,
) -> Task:
  """The instance task around `model`.

  Args:
    model: a Linen module as `segjax.models.mask_rcnn.MaskRCNN`, or one that predicts masks, as
      `segjax.models.eomt.EoMT`.
    config: of the evaluation.
    class_names: one per thing class.
    losses: name -> `outputs -> SumCount`, of the model's outputs in training; the total loss is the
      sum of their means.
    draw: `(image u8[H, W, C], size (h, w), annotation, detections, *, paste, threshold) ->
      {title: u8[H, W, 3]}`; `paste` is `paste_regions` with the rule `config.paste`.
    things: not used; all classes are things.

  Raises:
    SegjaxError: a metric needs masks, and the model has no mask head; a key of `config` is for a
      network that detects boxes.
  """
  del things
  paste = functools.partial(paste_regions, rule=config.paste)
  views = detection.make_views(config.scales, config.test_time_augmentation)
  threshold = config.draw_threshold
  metrics = tuple(_metric(name, class_names, paste, model, threshold) for name in config.metrics)
  visualize = functools.partial(_visualize, draw, paste=paste, threshold=threshold)
  if getattr(model, 'predicts_masks', False):
    unused = ('paste', 'test_time_augmentation', 'scales')
    queries.check_unused(config, unused, 'config.model.inference')
    classes = range(len(class_names))
    return queries.make_task(
      model,
      losses,
      functools.partial(queries.make_targets, things=classes, by_label=(), most=model.queries),
      batch_keys=('image', 'size', 'instances', 'valid'),
      host_keys=('annotations',),
      predict=functools.partial(queries.predict_objects, model),
      metrics=metrics,
      visualize=visualize,
    )
  return Task(
    batch_spec=dict.fromkeys(detection.BATCH_KEYS, P('data')),
    host_keys=('annotations',),
    init=functools.partial(detection.init, model),
    forward=functools.partial(detection.forward, model, views=views),
    batch_statistics=None,
    losses=functools.partial(detection.compute_losses, losses),
    predict=_predict,
    metrics=metrics,
    visualize=visualize,
  )


def _predict(outputs: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
  del batch
  return {k: v for k, v in outputs['detections']._asdict().items() if v is not None}


def _visualize(
  draw: Callable[..., dict[str, np.ndarray]],
  batch: Mapping[str, Any],
  predictions: Mapping[str, np.ndarray],
  rows: Sequence[int],
  **options: Any,
) -> list[dict[str, np.ndarray]]:
  return [
    draw(
      batch['image'][i],
      tuple(batch['size'][i].tolist()),
      batch['annotations'][i],
      {key: value[i] for key, value in predictions.items()},
      **options,
    )
    for i in rows
  ]


def _metric(
  name: str, class_names: Sequence[str], paste: coco.Paste, model: Any, min_score: float
) -> Metric:
  if name not in METRICS:
    return own_metric(name, class_names)
  kinds = METRICS[name]
  if 'mask' in kinds and not getattr(model, 'masks', True):
    raise SegjaxError(
      f'config.eval.metrics: {name} needs masks and this network has no mask head: use coco_box'
    )
  return coco.coco_metrics(class_names, kinds, paste, min_score=min_score)
