"""Training of a network that predicts a set of masks with classes, for any of the tasks.

What differs between semantic, instance and panoptic segmentation is what the ground truth is (EoMT,
arXiv 2503.19108, §3.1): a mask for each class, for each object, or for each object and each class
of stuff. Each prediction of the network is matched with it, and supervised at sampled points
(Mask2Former, arXiv 2112.01527, §3.2 and §3.3).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segjax.losses.queries import Matched
from segjax.ops import points as point_ops
from segjax.ops.assignment import assign
from segjax.tasks.base import Variables
from segjax.types import Array, Batch, SegjaxError

# Values of the masks at points, f32[P, 2] or f32[N, P, 2] -> f32[N, P].
ValuesAt = Callable[[Array], Array]


class Targets(NamedTuple):
  """The ground truth of an image, or of a batch with a leading axis: n objects, then m classes.

  Attributes:
    classes: i32[n + m], as the network numbers them.
    valid: bool[n + m], False for padding, for crowds, and for a class without a pixel.
    masks: u8[n, H, ceil(W / 8)], one bit a pixel.
    label: i32[H, W], of the batch.
    labels: i32[m], the value in the label of each of the m classes.
  """

  classes: Array
  valid: Array
  masks: Array
  label: Array
  labels: Array

  def values_at(self, points: Array) -> Array:
    """f32[P, 2] or f32[n + m, P, 2] -> f32[n + m, P], of one image."""
    n = len(self.masks)
    of_masks, of_labels = (points, points) if points.ndim == 2 else (points[:n], points[n:])
    parts = []
    if n:
      parts.append(point_ops.sample_packed(self.masks, self.label.shape[1], of_masks))
    if len(self.labels):
      parts.append(point_ops.sample_classes(self.label, self.labels, of_labels))
    return jnp.concatenate(parts)


def make_targets(batch: Batch, things: Sequence[int] | None, by_label: Sequence[int]) -> Targets:
  """The ground truth of a training batch.

  Args:
    batch: with `instances` where there are things, and `label` where there are other classes.
    things: the class of each class of objects; None for no objects.
    by_label: the classes that have one mask an image.
  """
  image = batch['image']
  size, width = image.shape[:3], image.shape[2]
  classes, valid = [], []
  masks = jnp.zeros((size[0], 0, size[1], -(-width // 8)), jnp.uint8)
  if things is not None:
    objects = batch['instances']
    masks = objects.masks
    classes.append(jnp.asarray(things, jnp.int32)[objects.classes])
    valid.append(objects.valid & ~objects.crowd)
  labels = jnp.asarray(by_label, jnp.int32)
  label = batch['label'] if by_label else jnp.zeros(size, jnp.int32)
  if by_label:
    classes.append(jnp.broadcast_to(labels, (size[0], len(labels))))
    valid.append((label[..., None] == labels).any((1, 2)))
  valid = jnp.concatenate(valid, 1)
  if 'valid' in batch:
    valid &= batch['valid'][:, None]
  labels = jnp.broadcast_to(labels, (size[0], len(labels)))
  return Targets(jnp.concatenate(classes, 1), valid, masks, label, labels)


def match(
  predictions: Sequence[Any], targets: Targets, keys: Array, config: Any, example: Array
) -> Matched:
  """Matches each of L predictions with the ground truth, and samples both at points.

  Args:
    predictions: L times `classes` f32[B, Q, C + 1] and `masks` f32[B, Q, h, w], logits.
    targets: of the batch.
    keys: random keys [B].
    config: see `segjax.models.eomt.MatchingConfig`.
    example: bool[B], False for padding examples.
  """
  stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *predictions)
  layers = len(predictions)
  keys = jax.vmap(lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys))(
    jnp.arange(layers)
  )
  of_image = functools.partial(_match_image, config=config)
  of_batch = jax.vmap(of_image)
  target, point_logits, mask = jax.vmap(of_batch, in_axes=(0, 0, None, 0))(
    stacked.classes, stacked.masks, targets, keys
  )
  return Matched(stacked.classes, target, point_logits, mask, targets.valid, example)


def _match_image(
  classes: Array, masks: Array, targets: Targets, key: Array, *, config: Any
) -> tuple[Array, Array, Array]:
  """(classes i32[Q] of the queries, mask logits f32[N, P] at points, masks f32[N, P] there)."""
  point_key, loss_key = jax.random.split(key)
  everywhere = jax.random.uniform(point_key, (config.points, 2))
  fixed = jax.lax.stop_gradient(masks)
  cost = matching_cost(
    jax.lax.stop_gradient(classes),
    point_ops.sample_maps(fixed, everywhere),
    targets.classes,
    targets.values_at(everywhere),
    config,
  )
  query = assign(cost, targets.valid)
  none, queries = classes.shape[-1] - 1, len(classes)
  place = jnp.where(targets.valid, query, queries)
  target = jnp.full(queries, none, jnp.int32).at[place].set(targets.classes, mode='drop')

  chosen = masks[query]
  points = point_ops.uncertain_points(
    loss_key,
    functools.partial(point_ops.sample_maps, fixed[query]),
    config.points,
    len(query),
    oversample=config.oversample,
    importance=config.importance,
  )
  return target, point_ops.sample_maps(chosen, points), targets.values_at(points)


def matching_cost(
  class_logits: Array, mask_logits: Array, classes: Array, masks: Array, config: Any
) -> Array:
  """f32[N, Q], what it costs to give each object to each query.

  Args:
    class_logits: f32[Q, C + 1].
    mask_logits: f32[Q, P], at points.
    classes: i32[N].
    masks: f32[N, P], at the same points.
    config: with the weights of the three terms.
  """
  of_class = -jax.nn.softmax(class_logits)[:, classes].T
  p, count = jax.nn.sigmoid(mask_logits), mask_logits.shape[1]
  product = functools.partial(jnp.einsum, 'np,qp->nq', precision='highest')
  of_mask = product(masks, jax.nn.softplus(-mask_logits))
  of_mask += product(1 - masks, jax.nn.softplus(mask_logits))
  both = masks.sum(1)[:, None] + p.sum(1)
  of_dice = 1 - (2 * product(masks, p) + 1) / (both + 1)
  return (
    config.class_weight * of_class
    + config.mask_weight * of_mask / count
    + config.dice_weight * of_dice
  )


def forward(
  model: Any,
  targets_of: Callable[[Batch], Targets],
  variables: Variables,
  batch: Batch,
  *,
  step: Array | None = None,
) -> tuple[dict[str, Matched], Variables]:
  """The training outputs, see `Task.forward`: `matched`.

  Points and masked queries are drawn by a seed per image, `batch['seed']`, so that they do not
  depend on the number of devices or on gradient accumulation.
  """
  keys = jax.vmap(jax.random.key)(batch['seed'])
  predictions, state = model.apply(
    variables, batch['image'], keys, step=step, train=True, mutable=['masked']
  )
  example = batch.get('valid', jnp.ones(len(batch['image']), bool))
  return {'matched': match(predictions, targets_of(batch), keys, model.matching, example)}, state


def check_counts(model: Any, objects: int, by_label: int) -> None:
  """Raises a SegjaxError where an image may have more masks than the network has queries."""
  if objects + by_label > model.queries:
    raise SegjaxError(
      f'config.model.queries={model.queries} is less than the {objects} objects of '
      f'config.batch.max_objects and the {by_label} other classes: raise it, or lower '
      'config.batch.max_objects, which keeps the largest'
    )
