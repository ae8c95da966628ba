"""Shared by the instance and panoptic tasks: training on sampled boxes, and test-time views."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from segjax.ops import boxes as box_ops
from segjax.ops.nms import best_detections
from segjax.ops.resize import resize_images
from segjax.tasks.base import Variables
from segjax.types import Array, Batch, Detections, SumCount

# Keys of a batch with objects whose first axis is the image.
BATCH_KEYS = ('image', 'size', 'instances', 'valid', 'seed')

# A test-time view of an image: its scale, and whether it is flipped horizontally.
View = tuple[float, bool]
Augmentation = Literal['none', 'flip']
_FLIPS: dict[Augmentation, tuple[bool, ...]] = {'none': (False,), 'flip': (False, True)}


def init(model: Any, key: Array, batch: Batch) -> Variables:
  """The variables of `model`, see `Task.init`."""
  return model.init(key, batch['image'], batch['size'])


def forward(
  model: Any,
  variables: Variables,
  batch: Batch,
  *,
  train: bool,
  key: Array | None = None,
  step: Array | None = None,
  views: Sequence[View] = ((1.0, False),),
) -> tuple[dict[str, Any], Variables]:
  """The outputs of `model`, see `Task.forward`; `views` apply outside training.

  `key` is not used: anchors and RoIs are sampled by a seed per image, `batch['seed']`, so that the
  samples do not depend on the number of devices or on gradient accumulation.
  """
  del key, step
  image, size = batch['image'], batch['size']
  if train:
    keys = jax.vmap(jax.random.key)(batch['seed'])
    instances, options = batch['instances'], {'train': True, 'mutable': ['batch_stats']}
    return model.apply(variables, image, size, instances, keys, **options)
  apply = functools.partial(model.apply, variables)
  if tuple(views) == ((1.0, False),):
    return apply(image, size), {}
  return {'detections': detect_in_views(apply, model, image, size, views)}, {}


def compute_losses(
  losses: Mapping[str, Callable[..., SumCount]], outputs: Mapping[str, Any], batch: Batch
) -> dict[str, SumCount]:
  """The losses of the training outputs; empty outside training, where nothing is sampled."""
  del batch
  return {} if 'detections' in outputs else {name: loss(outputs) for name, loss in losses.items()}


# --- test-time augmentation -----------------------------------------------------------------------


def make_views(scales: Sequence[float], augmentation: Augmentation) -> tuple[View, ...]:
  """All combinations of the scales with the flips of `augmentation`."""
  return tuple((scale, flip) for scale in scales for flip in _FLIPS[augmentation])


def detect_in_views(
  apply: Callable[..., Mapping[str, Any]],
  model: Any,
  image: Array,
  size: Array,
  views: Sequence[View],
) -> Detections:
  """Merges the detections of several views of each image.

  NMS runs on the boxes of all views together, and keeps the best K. Every view then predicts their
  masks, and the mask probabilities are averaged.

  Args:
    apply: the model with its variables, outside training.
    model: has `box_head.nms_iou`, `box_head.max_detections` and `masks`.
    image: f[B, H, W, C].
    size: i32[B, 2].
    views: of each image.
  """
  seen = [_view(image, size, *view) for view in views]
  found = [
    _in_image(apply(*shown)['detections'], size, shown[1], flip)
    for shown, (_, flip) in zip(seen, views, strict=True)
  ]
  options = {'nms_iou': model.box_head.nms_iou, 'count': model.box_head.max_detections}
  fields = [(f.boxes, f.classes, f.scores, f.valid) for f in found]
  every = (jnp.concatenate(field, 1) for field in zip(*fields, strict=True))
  merged = jax.vmap(functools.partial(best_detections, **options))(*every)
  if not model.masks:
    return merged
  masks = 0.0
  for shown, (_, flip) in zip(seen, views, strict=True):
    given = merged._replace(boxes=_to_view(merged.boxes, size, shown[1], flip))
    mask = apply(*shown, given=given)['detections'].masks
    masks += mask[..., ::-1] if flip else mask
  return merged._replace(masks=masks / len(views))


def _view(image: Array, size: Array, scale: float, flip: bool) -> tuple[Array, Array]:
  """The image, scaled and flipped within its padding, and its new size in whole pixels."""
  if flip:
    image = flip_inside(image, size)
  if scale != 1:
    shape = tuple(-(-max(1, round(side * scale)) // 32) * 32 for side in image.shape[1:3])
    # At most the shape, whatever the device rounds.
    new_size = jnp.clip(jnp.round(size * scale).astype(jnp.int32), 1, jnp.array(shape))
    image, size = resize_images(image, size, new_size, shape), new_size
  return image, size


def flip_inside(image: Array, size: Array) -> Array:
  """Flips f[B, H, W, C] horizontally within `size` i32[B, 2]; the padding is set to zero."""
  column = jnp.arange(image.shape[2])
  source = size[:, 1:] - 1 - column
  flipped = jnp.take_along_axis(image, jnp.maximum(source, 0)[:, None, :, None], axis=2)
  return jnp.where((source >= 0)[:, None, :, None], flipped, 0)


def _in_image(found: Detections, size: Array, seen: Array, flip: bool) -> Detections:
  """Detections of a view of size `seen` with their boxes mapped back to the image of `size`."""
  boxes = box_ops.scale(found.boxes, (size / seen)[:, None])
  return found._replace(boxes=box_ops.flip(boxes, size[:, 1:]) if flip else boxes)


def _to_view(boxes: Array, size: Array, seen: Array, flip: bool) -> Array:
  """Maps boxes f32[B, K, 4] from the image to a view of size `seen`."""
  boxes = box_ops.flip(boxes, size[:, 1:]) if flip else boxes
  return box_ops.scale(boxes, (seen / size)[:, None])
