"""Non-maximum suppression with a fixed number of results."""

import jax.numpy as jnp
from jax import lax

from segjax.ops.boxes import iou
from segjax.types import Array, Detections


def nms(
  boxes: Array,
  scores: Array,
  valid: Array | None = None,
  classes: Array | None = None,
  *,
  threshold: float,
  size: int,
  tile: int = 128,
) -> tuple[Array, Array]:
  """Greedy non-maximum suppression of one image, exactly as by the sequential definition.

  By falling score, the lower index first where scores tie: a box is kept unless its IoU with a box
  kept before is more than `threshold`. Ends after `size` kept ones.

  The sorted boxes are gone through in tiles. A tile is compared with the boxes kept so far, at most
  `size`, then within itself: "kept unless a kept one before it suppresses it" is iterated on the
  whole tile until nothing changes, which is the sequential result, after as many rounds as the
  longest chain of boxes that decide over each other. IoUs of `tile` x `size` boxes are held at once
  and the steps are few, one a tile: on a CPU it is faster than one step a box or one step a kept
  box (experiments/mask_rcnn_speed/nms.py).

  Args:
    boxes: f32[A, 4].
    scores: f32[A]; a box of -inf or NaN is never kept.
    valid: bool[A], False for boxes that neither are kept nor suppress; None for all True.
    classes: i32[A], or None. Boxes of different classes (or levels of a pyramid) never suppress
      each other. They are compared by number: offsets to the coordinates, as in torchvision for
      few boxes, cost digits.
    threshold: at least 0; 0.7 for proposals, 0.5 for detections. An equal IoU does not suppress.
    size: K, the most that are kept; may exceed A.
    tile: boxes a step.

  Returns:
    indices: i32[K] into `boxes`, by falling score; 0 where there is none.
    valid: bool[K], True for the first ones, as many as were kept.
  """
  if not scores.shape[0]:  # nothing to index
    return jnp.zeros(size, jnp.int32), jnp.zeros(size, bool)
  boxes, scores = lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
  usable = scores > -jnp.inf if valid is None else valid & (scores > -jnp.inf)
  order = jnp.argsort(jnp.where(usable, scores, -jnp.inf), descending=True, stable=True)
  total = jnp.sum(usable, dtype=jnp.int32)
  order = jnp.pad(order.astype(jnp.int32), (0, -scores.shape[0] % tile))
  boxes = boxes[order]
  classes = None if classes is None else jnp.asarray(classes)[order]
  place = jnp.arange(tile, dtype=jnp.int32)
  slot = jnp.arange(size, dtype=jnp.int32)

  def suppresses(first, second):
    """bool[len(first), len(second)] of indices into the sorted boxes."""
    overlap = iou(boxes[first], boxes[second]) > threshold
    return overlap if classes is None else overlap & (classes[first][:, None] == classes[second])

  def unfinished(state):
    start, kept, count = state
    del kept
    return (start < total) & (count < size)

  def add_tile(state):
    start, kept, count = state
    candidate = start + place
    free = candidate < total
    free &= ~(suppresses(kept, candidate) & (slot < count)[:, None]).any(0)
    within = suppresses(candidate, candidate) & (place[:, None] < place)

    def refine(state):
      keep, _ = state
      refined = free & ~(within & keep[:, None]).any(0)
      return refined, (refined != keep).any()

    keep, _ = lax.while_loop(lambda state: state[1], refine, (free, jnp.array(True)))
    target = jnp.where(keep, count + jnp.cumsum(keep, dtype=jnp.int32) - 1, size)
    kept = kept.at[target].set(candidate, mode='drop')
    return start + tile, kept, count + jnp.sum(keep, dtype=jnp.int32)

  start = (jnp.int32(0), jnp.zeros(size, jnp.int32), jnp.int32(0))
  _, kept, count = lax.while_loop(unfinished, add_tile, start)
  found = slot < count
  return jnp.where(found, order[kept], 0), found


def best_detections(
  boxes: Array, classes: Array, scores: Array, valid: Array, *, nms_iou: float, count: int
) -> Detections:
  """The detections of one image that `nms` within a class keeps, without masks.

  Args:
    boxes: f32[A, 4].
    classes: i32[A].
    scores: f32[A].
    valid: bool[A].
    nms_iou: IoU above which one suppresses another.
    count: K.

  Returns:
    K by falling score; zeros where not `valid`.
  """
  kept, found = nms(boxes, scores, valid, classes, threshold=nms_iou, size=count)
  blank = lambda x: jnp.where(found.reshape(-1, *[1] * (x.ndim - 1)), x[kept], 0)
  return Detections(blank(boxes), blank(classes), blank(scores), None, found)
