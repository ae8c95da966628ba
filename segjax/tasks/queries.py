"""Training of a network that predicts a set of masks with classes, for any of the tasks.

What differs between semantic, instance and panoptic segmentation is what the ground truth is (EoMT,
arXiv 2503.19108, §3.1): a mask for each class, for each object, or for each object and each class
of stuff. Each prediction of the network is matched with it, and supervised at sampled points
(Mask2Former, arXiv 2112.01527, §3.2 and §3.3).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from segjax.losses.queries import Matched
from segjax.metrics.base import Metric
from segjax.ops import mask_sets
from segjax.ops import points as point_ops
from segjax.ops.assignment import assign
from segjax.ops.by_image import map_images
from segjax.tasks.base import Task, Tuning, Variables, grid
from segjax.types import Array, Batch, SegjaxError, Segments, SumCount

# Thresholds of panoptic segments, and the values that `segjax evaluate --tune` tries.
_TRIED = {
  'score_threshold': (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
  'overlap_threshold': (0.4, 0.6, 0.8),
}
# Values of the masks at points, f32[P, 2] or f32[N, P, 2] -> f32[N, P].
ValuesAt = Callable[[Array], Array]


class Targets(NamedTuple):
  """The ground truth of an image, or of a batch with a leading axis: m classes, then n objects.

  Objects come last, so that their padding changes no other place, and none of the points there.

  Attributes:
    classes: i32[m + n], as the network numbers them.
    valid: bool[m + n], False for padding, for crowds, and for what has no pixel.
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
    """f32[P, 2] or f32[m + n, P, 2] -> f32[m + n, P], of one image."""
    m = len(self.labels)
    of_labels, of_masks = (points, points) if points.ndim == 2 else (points[:m], points[m:])
    parts = []
    if m:
      parts.append(point_ops.sample_classes(self.label, self.labels, of_labels))
    if len(self.masks):
      parts.append(point_ops.sample_packed(self.masks, self.label.shape[1], of_masks))
    return jnp.concatenate(parts)


def make_targets(
  batch: Batch, *, things: Sequence[int] | None, by_label: Sequence[int], most: int
) -> Targets:
  """The ground truth of a training batch.

  Args:
    batch: with `instances` where there are things, and `label` where there are other classes.
    things: the class of each class of objects; None for no objects.
    by_label: the classes that have one mask an image.
    most: masks of an image that are `valid`; of more, those with the most pixels are. (What is left
      out is counted where batches are prepared, see `segjax.data.pipeline.train_batches`.)

  Returns:
    `Targets` with a leading axis B: m = min(len(by_label), most) classes, then n objects.
  """
  image = batch['image']
  size, width = image.shape[:3], image.shape[2]
  classes, areas = [], []
  labels = jnp.broadcast_to(jnp.asarray(by_label, jnp.int32), (size[0], len(by_label)))
  label = batch['label'] if len(by_label) else jnp.zeros(size, jnp.int32)
  if len(by_label):
    pixels = (label[..., None] == labels[:, None, None]).sum((1, 2))
    if most < len(by_label):
      pixels, index = jax.lax.top_k(pixels, most)
      labels = jnp.take_along_axis(labels, index, 1)
    classes.append(labels)
    areas.append(pixels)
  masks = jnp.zeros((size[0], 0, size[1], -(-width // 8)), jnp.uint8)
  if things is not None:
    objects = batch['instances']
    masks = objects.masks
    classes.append(jnp.asarray(things, jnp.int32)[objects.classes])
    area = jax.lax.population_count(masks).sum((2, 3), dtype=jnp.int32)
    areas.append(jnp.where(objects.valid & ~objects.crowd, area, 0))
  areas = jnp.concatenate(areas, 1)
  valid = areas > 0
  if areas.shape[1] > most:
    valid &= jnp.argsort(jnp.argsort(-areas, axis=1, stable=True), axis=1) < most
  if 'valid' in batch:
    valid &= batch['valid'][:, None]
  return Targets(jnp.concatenate(classes, 1), valid, masks, label, labels)


def match(
  predictions: Sequence[Any], targets: Targets, keys: Array, config: Any, example: Array
) -> Matched:
  """Matches each of L predictions with the ground truth, and samples both at points.

  Args:
    predictions: L times `classes` f32[B, Q, C + 1] and `masks` f32[B, Q, h, w], logits.
    targets: of the batch.
    keys: random keys [B].
    config: see `segjax.models.eomt.MatchingConfig`, with P points.
    example: bool[B], False for padding examples.

  Returns:
    Of each of the L predictions: the class of each query, i32[L, B, Q], and mask logits and masks
    at P points of each of the N = m + n targets, f32[L, B, N, P].
  """
  stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *predictions)
  layers = len(predictions)
  keys = jax.vmap(lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys))(
    jnp.arange(layers)
  )
  of_image = functools.partial(_match_image, config=config)
  blocks = point_ops.find_blocks(targets.valid)
  of_batch = jax.vmap(of_image, in_axes=(0, 0, 0, point_ops.Blocks(0, None), 0))
  target, point_logits, mask = jax.vmap(of_batch, in_axes=(0, 0, None, None, 0))(
    stacked.classes, stacked.masks, targets, blocks, keys
  )
  return Matched(stacked.classes, target, point_logits, mask, targets.valid, example)


def _match_image(
  classes: Array,
  masks: Array,
  targets: Targets,
  blocks: point_ops.Blocks,
  key: Array,
  *,
  config: Any,
) -> tuple[Array, Array, Array]:
  """(classes i32[Q] of the queries, mask logits f32[N, P] at points, masks f32[N, P] there)."""
  point_key, loss_key = jax.random.split(key)
  everywhere = jax.random.uniform(point_key, (config.points, 2))
  fixed = jax.lax.stop_gradient(masks)
  # Sampled once: XLA would do so again for each of the terms.
  sampled = jax.lax.optimization_barrier(
    (point_ops.sample_maps(fixed, everywhere), targets.values_at(everywhere))
  )
  cost = matching_cost(
    jax.lax.stop_gradient(classes), sampled[0], targets.classes, sampled[1], config
  )
  query = assign(cost, targets.valid)
  none, queries = classes.shape[-1] - 1, len(classes)
  place = jnp.where(targets.valid, query, queries)
  target = jnp.full(queries, none, jnp.int32).at[place].set(targets.classes, mode='drop')

  def choose(block: Array, query: Array) -> Array:
    return point_ops.uncertain_points(
      jax.random.fold_in(loss_key, block),
      functools.partial(point_ops.sample_maps, fixed[query]),
      config.points,
      len(query),
      oversample=config.oversample,
      importance=config.importance,
    )

  points = point_ops.over_blocks(choose, blocks, query)
  return target, point_ops.sample_valid(masks[query], points, blocks), targets.values_at(points)


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

  Points and masked queries are sampled by a seed per image, `batch['seed']`, so that they do not
  depend on the number of devices or on gradient accumulation.
  """
  keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(batch['seed'])
  predictions, state = model.apply(
    variables, batch['image'], keys[:, 0], step=step, train=True, mutable=['masked']
  )
  example = batch.get('valid', jnp.ones(len(batch['image']), bool))
  return {
    'matched': match(predictions, targets_of(batch), keys[:, 1], model.matching, example)
  }, state


# --- the three tasks ------------------------------------------------------------------------------


def make_task(
  model: Any,
  losses: Mapping[str, Callable[..., SumCount]],
  targets_of: Callable[[Batch], Targets],
  *,
  batch_keys: Sequence[str],
  evaluate: Callable[[Variables, Batch], tuple[Any, Variables]] | None = None,
  **fields: Any,
) -> Task:
  """A task around a network that predicts masks.

  Args:
    model: a Linen module as `segjax.models.eomt.EoMT`.
    losses: name -> `outputs -> SumCount`.
    targets_of: the ground truth of a training batch.
    batch_keys: that the task reads, besides `seed`.
    evaluate: `forward` outside training; by default, outputs are the last `prediction`.
    fields: the others of the task.
  """

  def forward_by_kind(
    variables: Variables,
    batch: Batch,
    *,
    train: bool,
    key: Array | None = None,
    step: Array | None = None,
  ) -> tuple[dict[str, Any], Variables]:
    del key  # seeds are by image, see `forward`
    if train:
      return forward(model, targets_of, variables, batch, step=step)
    if evaluate is not None:
      return evaluate(variables, batch)
    return {'prediction': model.apply(variables, batch['image'])[-1]}, {}

  def compute_losses(outputs: Mapping[str, Any], batch: Batch) -> dict[str, SumCount]:
    """Empty outside training, where nothing is matched."""
    del batch
    return {name: loss(outputs) for name, loss in losses.items()} if 'matched' in outputs else {}

  return Task(
    batch_spec=dict.fromkeys((*batch_keys, 'seed'), P('data')),
    init=lambda key, batch: model.init(key, batch['image']),
    forward=forward_by_kind,
    batch_statistics=None,
    losses=compute_losses,
    **fields,
  )


def check_unused(config: Any, keys: Sequence[str], instead: str) -> None:
  """Raises a SegjaxError where a key of `config.eval` is set that such a network does not read."""
  for key in keys:
    if getattr(config, key) != type(config).__dataclass_fields__[key].default:
      raise SegjaxError(
        f'config.eval.{key} is for networks that detect boxes: leave it out, and see {instead}'
      )


class PerPixelModel(NamedTuple):
  """A network that predicts masks, as one that classifies pixels.

  Attributes:
    model: the network.
  """

  model: Any

  @property
  def stride(self) -> int:
    """Side of a patch, which the input's sides must be multiples of."""
    return self.model.patch

  def apply(self, variables: Variables, image: Array) -> Array:
    """f[B, H, W, C] -> f32[B, H, W, classes], logits.

    Their softmax is the sum over the queries of class probability x mask probability, divided by
    its sum over the classes.
    """
    prediction = self.model.apply(variables, image)[-1]
    scores = lambda masks: mask_sets.semantic_scores(*masks, image.shape[1:3])
    # Image by image: Q masks of the size of an image are large.
    found = map_images(scores, tuple(prediction))
    return jnp.log(jnp.maximum(found, jnp.finfo(jnp.float32).tiny))

  def scores(self, logits: Array) -> Array:
    """The sums over the queries that the logits are of."""
    return jnp.exp(logits)


def predict_objects(model: Any, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
  """The fields of `Detections`, and `regions`, see `segjax.metrics.coco.image_result`."""
  classes, masks = outputs['prediction']
  canvas = batch['image'].shape[1:3]
  count = min(model.inference.objects, classes.shape[1] * (classes.shape[2] - 1))
  find = lambda image: mask_sets.find_objects(*image[:2], canvas, image[2], count)
  found = map_images(find, (classes, masks, batch['size']))
  whole = jnp.array([0, 0, canvas[1], canvas[0]], jnp.float32)
  return {**found._asdict(), 'regions': jnp.broadcast_to(whole, found.boxes.shape)}


def predict_segments(
  model: Any,
  things: Sequence[int],
  outputs: Mapping[str, Any],
  batch: Batch,
  **tuned: float | Array,
) -> dict[str, Any]:
  """`segments` at the original size, of which the k-th is query k; and `scores` f32[B, Q].

  Args:
    model: of the outputs.
    things: the other classes are stuff.
    outputs: with the last `prediction`.
    batch: that it is of.
    tuned: thresholds in place of those of the model.
  """
  classes, masks = outputs['prediction']
  thresholds = dataclasses.asdict(model.inference) | tuned
  del thresholds['objects']
  find = functools.partial(mask_sets.find_segments, things=things, **thresholds)
  canvas, shape = batch['image'].shape[1:3], batch['segments'].ids.shape[1:]
  of_image = lambda x: find(x[0], x[1], canvas, x[2], x[3], shape)
  images = classes, masks, batch['size'], batch['native']
  ids, kinds, scores, valid = map_images(of_image, images)
  return {'segments': Segments(ids, kinds, jnp.zeros_like(valid), valid), 'scores': scores}


def make_tuning(model: Any, things: Sequence[int], metric: Metric) -> Tuning:
  """The thresholds of `predict_segments` that `segjax evaluate --tune` searches, by PQ."""
  names = tuple(_TRIED)

  def count(outputs: Mapping[str, Any], batch: Batch, settings: Array) -> Any:
    def count_one(setting: Array) -> Any:
      tuned = dict(zip(names, setting, strict=True))
      return metric.from_batch(predict_segments(model, things, outputs, batch, **tuned), batch)

    return jax.lax.map(count_one, settings)

  own = tuple(getattr(model.inference, name) for name in names)
  settings = grid(own, tuple(_TRIED.values()))
  return Tuning(names, settings, metric, 'pq', count, group='model.inference')
