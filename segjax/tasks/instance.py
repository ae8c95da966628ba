"""Instance segmentation: each object's box, class, score and mask."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from segjax.metrics import coco
from segjax.ops import boxes as box_ops
from segjax.ops.nms import nms
from segjax.ops.paste_masks import Rule, paste_masks
from segjax.tasks.base import Task, Variables
from segjax.types import Array, Batch, Detections, SegjaxError, SumCount, nearest

# Where `config.losses` finds its functions, and what the task gives them.
LOSSES = 'segjax.losses.detection'
LOSS_INPUTS = ('outputs',)
# Keys of `config.data` without which batches lack what the task learns from.
DATA_KEYS: tuple[str, ...] = ('instances',)

# Metrics that `config.eval.metrics` may name -> what COCO's evaluation measures.
METRICS = {'coco': ('box', 'mask'), 'coco_box': ('box',)}


def make_task(
  model: Any,
  *,
  class_names: Sequence[str],
  losses: Mapping[str, Callable[..., SumCount]],
  metrics: Sequence[str] = ('coco',),
  paste: Rule = 'torchvision',
  test_time_augmentation: Literal['none', 'flip'] = 'none',
  scales: tuple[float, ...] = (1.0,),
  draw_threshold: float = 0.5,
  draw: Callable[..., dict[str, np.ndarray]] | None = None,
) -> Task:
  """The instance task around `model`.

  Args:
    model: a Linen module as `segjax.models.mask_rcnn.MaskRCNN`.
    class_names: one a kind of thing.
    losses: name -> `outputs -> SumCount`, of what the model puts out in training; their means add
      up.
    metrics: names in `METRICS`.
    paste: the rule by which masks are put into the image, see `segjax.ops.paste_masks`.
    test_time_augmentation: 'flip' looks at the image and its mirror image.
    scales: looks at the image at each of these sizes, relative to its own.
    draw_threshold: pictures show what is found with this score or a higher one.
    draw: `(image f32[H, W, C], size (h, w), annotation, detections, *, paste, threshold) ->
      {title: uint8[H, W, 3]}`; `paste` is `paste_masks` by the rule.

  The key that `forward` is given is not used: what is drawn for an example comes from its
  `batch['draw']`, so that neither devices nor accumulation change it. There is no loss outside
  training, where nothing is sampled.
  """
  if not scales or min(scales) <= 0:
    raise SegjaxError(f'config.eval.scales={scales} must hold one positive number or more')
  put_masks = functools.partial(paste_masks, rule=paste)
  views = [(s, f) for s in scales for f in _FLIPS[test_time_augmentation]]

  def init(key: Array, batch: Batch) -> Variables:
    return model.init(key, batch['image'], batch['size'])

  def forward(variables: Variables, batch: Batch, *, train: bool, key: Array | None = None):
    del key
    image, size = batch['image'], batch['size']
    if train:
      keys = jax.vmap(jax.random.key)(batch['draw'])
      outputs, state = model.apply(
        variables, image, size, batch['instances'], keys, train=True, mutable=['batch_stats']
      )
      return outputs, state
    apply = functools.partial(model.apply, variables)
    if views == [(1.0, False)]:
      return apply(image, size), {}
    return {'detections': detect_in_views(apply, model, image, size, views)}, {}

  def compute_losses(outputs: Mapping[str, Any], batch: Batch) -> dict[str, SumCount]:
    del batch
    if 'detections' in outputs:
      return {}
    return {name: loss(outputs) for name, loss in losses.items()}

  def predict(outputs: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    del batch
    return {k: v for k, v in outputs['detections']._asdict().items() if v is not None}

  def pictures(batch: Mapping[str, Any], predictions: Mapping[str, np.ndarray], count: int):
    return [
      draw(
        batch['image'][i],
        tuple(batch['size'][i].tolist()),
        batch['annotations'][i],
        {key: value[i] for key, value in predictions.items()},
        paste=put_masks,
        threshold=draw_threshold,
      )
      for i in np.flatnonzero(batch['valid'])[:count]
    ]

  by_example = ('image', 'size', 'instances', 'index', 'valid', 'draw')
  return Task(
    batch_spec=dict.fromkeys(by_example, P('data')),
    host_keys=('annotations',),
    init=init,
    forward=forward,
    batch_statistics=None,
    losses=compute_losses,
    predict=predict,
    metrics=tuple(_metric(name, class_names, put_masks, model) for name in metrics),
    pictures=pictures,
  )


_FLIPS = {'none': (False,), 'flip': (False, True)}


def _metric(name: str, class_names: Sequence[str], paste: coco.Paste, model: Any) -> Any:
  if name not in METRICS:
    raise SegjaxError(f'config.eval.metrics: there is no {name}{nearest(name, METRICS)}')
  kinds = METRICS[name]
  if 'mask' in kinds and not getattr(model, 'masks', True):
    raise SegjaxError(
      f'config.eval.metrics: {name} measures masks and this network finds none: take coco_box'
    )
  return coco.coco_metrics(class_names, kinds, paste)


# --- test-time augmentation -----------------------------------------------------------------------


def detect_in_views(
  apply: Callable[..., Mapping[str, Any]],
  model: Any,
  image: Array,
  size: Array,
  views: Sequence[tuple[float, bool]],
) -> Detections:
  """Detections of several views of each image, as one.

  The boxes of all views suppress each other as those of one view do, and the best K stay. Of these
  every view finds the masks, whose probabilities are averaged.

  Args:
    apply: the model with its variables, outside training.
    model: has `detection_nms`, `detections` and `masks`.
    image: f[B, H, W, C].
    size: i32[B, 2].
    views: (scale, whether it is the mirror image).
  """
  seen = [_view(image, size, *view) for view in views]
  found = [
    _in_image(apply(*shown)['detections'], size, view)
    for shown, view in zip(seen, views, strict=True)
  ]
  best = jax.vmap(functools.partial(_best, threshold=model.detection_nms, count=model.detections))
  fields = [(f.boxes, f.classes, f.scores, f.valid) for f in found]
  merged = best(*(jnp.concatenate(field, 1) for field in zip(*fields, strict=True)))
  if not model.masks:
    return merged
  masks = 0.0
  for shown, view in zip(seen, views, strict=True):
    given = merged._replace(boxes=_to_view(merged.boxes, size, view))
    mask = apply(*shown, given=given)['detections'].masks
    masks += mask[..., ::-1] if view[1] else mask
  return merged._replace(masks=masks / len(views))


def _view(image: Array, size: Array, scale: float, flip: bool) -> tuple[Array, Array]:
  """The image, scaled and mirrored inside its padding, and its size then."""
  if flip:
    image = flip_inside(image, size)
  if scale != 1:
    shape = tuple(-(-int(side * scale) // 32) * 32 for side in image.shape[1:3])
    image = jax.image.scale_and_translate(
      image,
      (image.shape[0], *shape, image.shape[3]),
      (1, 2),
      jnp.full(2, scale, jnp.float32),
      jnp.zeros(2),
      'linear',
    )
    size = jnp.floor(size * scale).astype(jnp.int32)
  return image, size


def flip_inside(image: Array, size: Array) -> Array:
  """Left and right exchanged within `size`, zeros beyond: f[B, H, W, C], i32[B, 2]."""
  column = jnp.arange(image.shape[2])
  source = size[:, 1:] - 1 - column
  flipped = jnp.take_along_axis(image, jnp.maximum(source, 0)[:, None, :, None], axis=2)
  return jnp.where((source >= 0)[:, None, :, None], flipped, 0)


def _in_image(found: Detections, size: Array, view: tuple[float, bool]) -> Detections:
  """Detections of a view, with their boxes in pixels of the image, which has this `size`."""
  scale, flip = view
  boxes = found.boxes / scale
  return found._replace(boxes=box_ops.flip(boxes, size[:, 1:]) if flip else boxes)


def _to_view(boxes: Array, size: Array, view: tuple[float, bool]) -> Array:
  """The inverse, of boxes f32[B, K, 4]."""
  scale, flip = view
  return scale * (box_ops.flip(boxes, size[:, 1:]) if flip else boxes)


def _best(
  boxes: Array, classes: Array, scores: Array, valid: Array, *, threshold: float, count: int
) -> Detections:
  """The best of one image's detections, by NMS within a class."""
  kept, found = nms(boxes, scores, valid, classes, threshold=threshold, size=count)
  blank = lambda x: jnp.where(found.reshape(-1, *[1] * (x.ndim - 1)), x[kept], 0)
  return Detections(blank(boxes), blank(classes), blank(scores), None, found)
