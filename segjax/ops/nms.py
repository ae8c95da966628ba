"""Non-maximum suppression with a fixed output size."""

import jax.numpy as jnp
from jax import lax

from segjax.ops.boxes import exceeds, iou
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
  """Greedy non-maximum suppression of one image, equal to the sequential algorithm.

  In descending order of score (ties: lower index first), a box is kept unless its IoU with a
  previously kept box is more than `threshold`. Stops after `size` boxes are kept.

  The sorted boxes are processed in tiles. A tile is compared with the boxes kept so far, at most
  `size`, then with itself: "kept unless suppressed by a kept box before it" is iterated on the tile
  until it converges to the sequential result, after as many rounds as the longest chain of
  dependent boxes. This holds `tile` x `size` IoUs at once and needs one step per tile. On a CPU it
  is faster than one step per box or one step per kept box (experiments/speed).

  Args:
    boxes: f32[A, 4].
    scores: f32[A]; boxes with -inf or NaN are never kept.
    valid: bool[A], False for boxes to ignore; None for all True.
    classes: i32[A], or None. Boxes of different classes (or FPN levels) never suppress each other.
      Classes are compared directly; coordinate offsets, as in torchvision for few boxes, would lose
      precision.
    threshold: at least 0; 0.7 for proposals, 0.5 for detections. An equal IoU does not suppress,
      where IoUs are float32 and the threshold float64, as in torchvision on a CPU: 0.5 and 0.7 let
      boxes of this exact IoU pass, 0.3 and 0.6 do not, as rounding raises their IoU above them. See
      `segjax.ops.boxes.exceeds`.
    size: K, maximum number of kept boxes; may exceed A.
    tile: boxes per step.

  Returns:
    indices: i32[K] into `boxes`, in descending order of score; 0 for padding.
    valid: bool[K], True for the kept boxes, which come first.
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
    overlap = exceeds(iou(boxes[first], boxes[second]), threshold)
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
  """The detections of one image after class-wise NMS, without masks.

  Args:
    boxes: f32[A, 4].
    classes: i32[A].
    scores: f32[A].
    valid: bool[A].
    nms_iou: IoU threshold.
    count: K.

  Returns:
    K detections in descending order of score; zeros where not `valid`.
  """
  kept, found = nms(boxes, scores, valid, classes, threshold=nms_iou, size=count)
  blank = lambda x: jnp.where(found.reshape(-1, *[1] * (x.ndim - 1)), x[kept], 0)
  return Detections(blank(boxes), blank(classes), blank(scores), None, found)
