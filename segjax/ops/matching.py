"""Matching of anchors or proposals to ground-truth objects (Faster R-CNN, section 3.1.2)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from segjax.ops import boxes as box_ops
from segjax.types import Array


class Matches(NamedTuple):
  """The match of each of A boxes; boxes that are neither positive nor negative are ignored.

  Attributes:
    index: i32[A], the object with the largest IoU, the first if tied; 0 without objects. Its box
      and class are the target of positives.
    positive: bool[A].
    negative: bool[A].
  """

  index: Array
  positive: Array
  negative: Array


def match(
  boxes: Array,
  objects: Array,
  object_valid: Array,
  object_crowd: Array,
  *,
  high: float,
  low: float,
  low_quality: bool = False,
  valid: Array | None = None,
) -> Matches:
  """Matches the boxes of one image to its objects by IoU, as torchvision's `Matcher` does.

  A box is positive if its IoU with its object is at least `high`, and negative if it is less than
  `low`. Padding and crowds are never matched: boxes on them are negative. The
  objects are processed one by one, to avoid a matrix of all pairs.

  IoUs and thresholds are compared in float32, as in PyTorch: an IoU of exactly 0.7 is at least
  `high` = 0.7 and one of 0.3 is not less than `low` = 0.3, since both are rounded alike.

  A difference from torchvision: an object that overlaps no box has no positives, whereas with
  `low_quality` torchvision makes all boxes with IoU 0 positive.

  Args:
    boxes: f32[A, 4], anchors or proposals.
    objects: f32[N, 4], ground-truth boxes.
    object_valid: bool[N], False for padding.
    object_crowd: bool[N].
    high: 0.7 in the paper's RPN, 0.5 for proposals.
    low: at most `high`; 0.3 and 0.5.
    low_quality: whether the boxes with the largest IoU with an object (including ties) are positive
      even if it is below `high`. The target of such a box is still the object with which it has the
      largest IoU.
    valid: bool[A], False for boxes to ignore, such as padding proposals; None for all True.

  Raises:
    ValueError: `low` is more than `high`.
  """
  if low > high:
    raise ValueError(f'low is {low} and high is {high}: low must be at most high')
  boxes, objects = lax.stop_gradient((boxes, objects))
  count = boxes.shape[0]
  valid = jnp.ones(count, bool) if valid is None else valid

  def see(state, scanned):
    index, best, is_best = state
    number, box, target = scanned
    # The barrier prevents recomputation: an IoU computed twice, in two fusions, may differ in its
    # last bit, so that no box would equal the largest.
    overlap = lax.optimization_barrier(box_ops.iou(box[None], boxes)[0])
    overlap = jnp.where(valid & target, overlap, -1)
    if low_quality:
      largest = overlap.max()
      is_best |= (overlap == largest) & (largest > 0)
    index = jnp.where(overlap > best, number, index)
    return (index, jnp.maximum(best, overlap), is_best), None

  state = (jnp.zeros(count, jnp.int32), jnp.full(count, -1.0), jnp.zeros(count, bool))
  scanned = (
    jnp.arange(objects.shape[0], dtype=jnp.int32),
    objects,
    object_valid & ~object_crowd,
  )
  (index, best, is_best), _ = lax.scan(see, state, scanned)
  positive = valid & ((best >= high) | is_best)
  return Matches(index, positive, valid & (best < low) & ~positive)
