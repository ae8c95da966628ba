"""Which ground truth an anchor or a proposal is to learn (Faster R-CNN, section 3.1.2)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from segjax.ops import boxes as box_ops
from segjax.types import Array


class Matches(NamedTuple):
  """What each of A boxes is to learn; one that is neither positive nor negative: nothing.

  Attributes:
    index: i32[A], the object of the largest IoU, the first of tied ones; 0 where there is none. Its
      box and class are the target where `positive`.
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
  crowd_threshold: float | None = None,
  valid: Array | None = None,
) -> Matches:
  """Matches the boxes of one image to its objects by IoU, as torchvision's `Matcher` does.

  A box is positive from IoU `high` with its object, negative below `low`. Absent objects and crowds
  are never matched; without any other object every box is negative. The objects are gone through
  one by one, so that no matrix of all pairs is held.

  One difference from torchvision: an object that overlaps no box makes none positive, where
  `low_quality` there makes positive each box of IoU 0 with it.

  Args:
    boxes: f32[A, 4], anchors or proposals.
    objects: f32[N, 4], boxes of the ground truth.
    object_valid: bool[N], False for padding.
    object_crowd: bool[N].
    high: 0.7 in the paper's RPN, 0.5 for proposals.
    low: at most `high`; 0.3 and 0.5.
    low_quality: whether the boxes of the largest IoU with an object, all that tie, are positive
      however small it is. Each learns the object of its own largest IoU, perhaps another one.
    crowd_threshold: a box more than this share of which lies in one crowd is not negative; None for
      no such rule, as in torchvision. Detectron has 0.7.
    valid: bool[A], False for boxes that are neither positive nor negative, such as padded proposals
      and what no object may count as its best; None for all True.

  Raises:
    ValueError: if `low` is more than `high`.
  """
  if low > high:
    raise ValueError(f'low is {low} and high is {high}: low is at most high')
  boxes, objects = lax.stop_gradient((boxes, objects))
  count = boxes.shape[0]
  valid = jnp.ones(count, bool) if valid is None else valid

  def see(state, scanned):
    index, best, is_best, in_crowd = state
    number, box, target, crowd = scanned
    # The barrier: computed twice, in two fusions, an IoU may differ in its last bit, and no box
    # would then equal the largest.
    overlap = lax.optimization_barrier(box_ops.iou(box[None], boxes)[0])
    overlap = jnp.where(valid & target, overlap, -1)
    if low_quality:
      largest = overlap.max()
      is_best |= (overlap == largest) & (largest > 0)
    if crowd_threshold is not None:
      in_crowd |= crowd & (box_ops.ioa(boxes, box[None])[:, 0] > crowd_threshold)
    index = jnp.where(overlap > best, number, index)
    return (index, jnp.maximum(best, overlap), is_best, in_crowd), None

  none = jnp.zeros(count, bool)
  state = (jnp.zeros(count, jnp.int32), jnp.full(count, -1.0), none, none)
  scanned = (
    jnp.arange(objects.shape[0], dtype=jnp.int32),
    objects,
    object_valid & ~object_crowd,
    object_valid & object_crowd,
  )
  (index, best, is_best, in_crowd), _ = lax.scan(see, state, scanned)
  positive = valid & ((best >= high) | is_best)
  return Matches(index, positive, valid & (best < low) & ~positive & ~in_crowd)
