"""Panoptic quality (PQ) of Kirillov et al., "Panoptic segmentation", arXiv 1801.00868, section 4.

A true and a predicted segment of the same class match if their IoU is more than 0.5; a segment has
at most one match. With matched pairs (TP), unmatched predictions (FP) and unmatched true segments
(FN), for each class over the complete split:

  PQ = sum of IoU / (TP + FP / 2 + FN / 2)   SQ = sum of IoU / TP   RQ = TP / (TP + FP / 2 + FN / 2)

Void pixels of the truth are excluded from the union. Crowds are never matched and never FN. An
unmatched prediction is not FP if more than half of it is on void or on crowds of its class. Classes
with TP + FP + FN = 0 are excluded from the averages.

Only integers are summed over batches, devices and hosts. float32 sums of IoUs would not reach an
accuracy of 1e-9, so each IoU is computed on the device by integer division, truncated to 45 bits
(an error below 3e-14), and stored as three digits of 15 bits. Their sums are exact, independent of
the order, and converted to float64 at the end.

The public evaluation (panopticapi, and its copy in cityscapesscripts) differs from the paper in
three ways, which are options here. The defaults follow the public evaluation, which published
results use:
  crowds         it considers only the 'last' crowd of each class in an image, not 'all'; Cityscapes
                 has at most one
  forgiven       it compares the 'sum' of the parts of a prediction on void and on crowds with one
                 half; the paper compares 'each' part (section 4.2)
  unmatched_sq   the SQ of a class without a match is 0 ('zero') and counts in the average; the
                 mean IoU of no pairs is undefined in the paper ('skip')
It also takes the true segments and their areas from the JSON file, and counts pixels of the PNG
that are not listed there as part of the union; here inconsistent files are an error when they are
read (`segjax.data.formats.panoptic`). It reports 0 for a class with nothing to measure, here it is
NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.metrics.base import Metric, mean_known, quotient, widen
from segjax.types import Array, Batch, SegjaxError, Segments

# An IoU is DIGITS digits of BITS bits, where 1 is the digit 2^BITS. int32 sums overflow at 2^16
# pairs.
DIGITS, BITS = 3, 15
_MOST_PAIRS = 2**16 - 1

Crowds = Literal['last', 'all']
Forgiven = Literal['sum', 'each']
UnmatchedSq = Literal['zero', 'skip']

# Names of the numbers of `panoptic_metrics`.
MEASURES = tuple(
  f'{name}{group}' for group in ('', '_things', '_stuff') for name in ('pq', 'sq', 'rq')
)


def panoptic_metrics(
  class_names: Sequence[str],
  isthing: Sequence[bool],
  *,
  crowds: Crowds = 'last',
  forgiven: Forgiven = 'sum',
  unmatched_sq: UnmatchedSq = 'zero',
) -> Metric:
  """PQ, SQ and RQ on the device; see `scores`.

  Reads `predictions['segments']` and `batch['segments']`, both `Segments` of the same height and
  width, where S may differ, and `batch['valid']` bool[B].

  Args:
    class_names: C names.
    isthing: bool[C].
    crowds, forgiven, unmatched_sq: see the module docstring.
  """

  def count(predictions: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    return image_counts(
      predictions['segments'],
      batch['segments'],
      len(class_names),
      batch['valid'],
      crowds=crowds,
      forgiven=forgiven,
    )

  def from_batch(predictions: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    return _sum_images(count(predictions, batch))

  def image_scores(predictions: Mapping[str, Any], batch: Batch, state: Any) -> Array:
    del state
    # The same counts as in `from_batch`: compiled into one program, they are computed once.
    return image_pq(count(predictions, batch))

  return Metric(
    name='panoptic',
    from_batch=from_batch,
    compute=lambda state: scores(state, class_names, isthing, unmatched_sq=unmatched_sq),
    device=True,
    image_scores=image_scores,
    image_measure='pq',
  )


def panoptic_counts(
  prediction: Segments,
  truth: Segments,
  num_classes: int,
  valid: Array | None = None,
  *,
  crowds: Crowds = 'last',
  forgiven: Forgiven = 'sum',
) -> dict[str, Array]:
  """Matches the segments of each image and counts per class.

  Args:
    prediction: void in padding. A valid segment without pixels is FP.
    truth: a valid segment without pixels is FN.
    num_classes: C.
    valid: bool[B], the images to count; None for all.
    crowds, forgiven: see the module docstring.

  Returns:
    tp, fp, fn: i32[C].
    iou: i32[C, DIGITS], sums of the digits of the IoUs, most significant first: see `add_up`.
    Exact for images below 2^30 pixels.

  Raises:
    SegjaxError: prediction and truth have different sizes.
    ValueError: a batch has 2^16 or more true segments.
  """
  counts = image_counts(prediction, truth, num_classes, valid, crowds=crowds, forgiven=forgiven)
  return _sum_images(counts)


def image_counts(
  prediction: Segments,
  truth: Segments,
  num_classes: int,
  valid: Array | None = None,
  *,
  crowds: Crowds = 'last',
  forgiven: Forgiven = 'sum',
) -> dict[str, Array]:
  """The counts of each image, with a leading axis of size B; see `panoptic_counts`."""
  if prediction.ids.shape != truth.ids.shape:
    raise SegjaxError(
      f'the prediction has the shape {tuple(prediction.ids.shape)} and the truth '
      f'{tuple(truth.ids.shape)} (images, height, width): resize one of them'
    )
  if truth.valid.size > _MOST_PAIRS:
    raise SegjaxError(
      f'a batch has room for {truth.valid.size} true segments, more than the {_MOST_PAIRS} that '
      'int32 sums support: lower config.batch.eval_size or config.batch.max_segments'
    )

  def count(prediction: Segments, truth: Segments) -> dict[str, Array]:
    return _image_counts(prediction, truth, num_classes, crowds, forgiven)

  # Per image, so that a sharded batch is counted without communication.
  counts = jax.vmap(count)(Segments(*prediction), Segments(*truth))
  if valid is not None:
    counts = jax.tree.map(lambda x: x * jnp.expand_dims(valid, range(1, x.ndim)), counts)
  return counts


def _sum_images(counts: Mapping[str, Array]) -> dict[str, Array]:
  return jax.tree.map(lambda x: x.sum(0), counts)


def image_pq(counts: Mapping[str, Array]) -> Array:
  """The PQ of each image over the classes in its truth or prediction, to rank images.

  Args:
    counts: from `image_counts`.

  Returns:
    f32[B]; NaN without a segment to measure.
  """
  iou = counts['iou'] @ (2.0 ** (-BITS * jnp.arange(1, DIGITS + 1, dtype=jnp.float32)))
  weight = counts['tp'] + (counts['fp'] + counts['fn']) / 2
  quality = jnp.where(weight > 0, iou / jnp.where(weight > 0, weight, 1), 0.0)
  return quality.sum(1) / (weight > 0).sum(1)


def count_pairs(truth: Array, prediction: Array, num_truth: int, num_prediction: int) -> Array:
  """The number of pixels of each pair of segments in one image.

  On a CPU, bincount takes less than a hundredth of the time of a product of one-hot matrices
  (experiments/speed).

  Args:
    truth: i32[H, W], from 0 to `num_truth`.
    prediction: i32[H, W], from 0 to `num_prediction`.
    num_truth, num_prediction: St, Sp.

  Returns:
    i32[St + 1, Sp + 1]; row and column 0 are void.
  """
  columns = num_prediction + 1
  pair = truth.astype(jnp.int32) * columns + prediction
  pairs = jnp.bincount(pair.ravel(), length=(num_truth + 1) * columns)
  return pairs.astype(jnp.int32).reshape(-1, columns)


def _image_counts(
  prediction: Segments, truth: Segments, num_classes: int, crowds: Crowds, forgiven: Forgiven
) -> dict[str, Array]:
  """`panoptic_counts` of one image."""
  pairs = count_pairs(truth.ids, prediction.ids, truth.valid.size, prediction.valid.size)
  pairs = _void_invalid(_void_invalid(pairs, truth.valid).T, prediction.valid).T
  area, void, shared = pairs.sum(0)[1:], pairs[0, 1:], pairs[1:, 1:]
  union = pairs.sum(1)[1:, None] + (area - void) - shared
  same_class = truth.classes[:, None] == prediction.classes
  crowd = truth.crowd & truth.valid
  match = same_class & (2 * shared > union) & ~crowd[:, None]
  found, hit = match.any(1), match.any(0)

  overlap = jnp.where(
    same_class & _counted_crowds(crowd, truth.classes, crowds)[:, None], shared, 0
  )
  covers = {
    'sum': 2 * (void + overlap.sum(0)) > area,
    'each': (2 * void > area) | (2 * overlap.sum(0) > area),
  }[forgiven]
  # The match of each matched true segment; the union of others is set to 1 to avoid 0 / 0.
  shared = jnp.where(match, shared, 0).sum(1)
  union = jnp.where(found, jnp.where(match, union, 0).sum(1), 1)
  digits = _divide(shared, union)

  def by_class(values: Array, classes: Array) -> Array:
    return jax.ops.segment_sum(values.astype(jnp.int32), classes, num_segments=num_classes)

  return {
    'tp': by_class(found, truth.classes),
    'fp': by_class(prediction.valid & ~hit & ~covers, prediction.classes),
    'fn': by_class(truth.valid & ~crowd & ~found, truth.classes),
    'iou': by_class(digits, truth.classes),
  }


def _void_invalid(pairs: Array, valid: Array) -> Array:
  """Adds the rows of segments that are not valid to the row of void."""
  kept = jnp.where(valid[:, None], pairs[1:], 0)
  return jnp.concatenate([pairs[:1] + (pairs[1:] - kept).sum(0), kept])


def _counted_crowds(crowd: Array, classes: Array, crowds: Crowds) -> Array:
  """bool[S]: the crowds to consider, all or the last of each class."""
  if crowds == 'all':
    return crowd
  place = jnp.arange(len(crowd))
  later = (classes[:, None] == classes) & crowd & (place > place[:, None])
  return crowd & ~later.any(1)


def _divide(numerator: Array, denominator: Array) -> Array:
  """Quotients in [0, 1] of i32[S] as truncated digits i32[S, DIGITS], most significant first.

  Long division, since jit has no 64-bit integers by default. 1 is the digit 2^BITS.
  """

  def bit(_, state):
    rest, digit = state
    more = rest >= denominator
    return 2 * jnp.where(more, rest - denominator, rest), 2 * digit + more

  digits = []
  rest = numerator
  for _ in range(DIGITS):
    # The leading bit is 0 except for the quotient 1, which leaves no remainder.
    rest, digit = lax.fori_loop(0, BITS + 1, bit, (rest, jnp.zeros_like(rest)))
    digits.append(digit)
    rest = rest // 2
  return jnp.stack(digits, axis=-1)


def add_up(digits: np.ndarray) -> np.ndarray:
  """Converts the IoU sums of `panoptic_counts`, digits i[C, DIGITS], to f64[C]."""
  return widen(digits) @ 2.0 ** (-BITS * np.arange(1, DIGITS + 1))


def scores(
  state: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  isthing: Sequence[bool],
  *,
  unmatched_sq: UnmatchedSq = 'zero',
) -> dict[str, Any]:
  """PQ, SQ and RQ from the counts of a split.

  Args:
    state: summed results of `panoptic_counts`.
    class_names: C names.
    isthing: bool[C].
    unmatched_sq: see the module docstring.

  Returns:
    pq, sq, rq: averaged over the classes with TP + FP + FN > 0.
    pq_things, sq_things, rq_things: over the thing classes among them.
    pq_stuff, sq_stuff, rq_stuff: over the stuff classes among them.
    per_class: {name: {'pq', 'sq', 'rq', 'tp', 'fp', 'fn'}}.
    Floats, NaN if there is nothing to average; counts are integers.
  """
  tp, fp, fn = (widen(state[key]) for key in ('tp', 'fp', 'fn'))
  iou = add_up(state['iou'])
  measured = tp + fp + fn > 0
  weight = tp + fp / 2 + fn / 2
  sq = quotient(iou, tp)
  if unmatched_sq == 'zero':
    sq = np.where(measured & (tp == 0), 0.0, sq)
  values = {'pq': quotient(iou, weight), 'sq': sq, 'rq': quotient(tp, weight)}
  things = np.asarray(isthing, bool)
  groups = {'': measured, '_things': measured & things, '_stuff': measured & ~things}
  return {
    **{
      f'{name}{group}': mean_known(value[chosen])
      for group, chosen in groups.items()
      for name, value in values.items()
    },
    'per_class': {
      class_name: {
        **{name: float(value[i]) for name, value in values.items()},
        'tp': int(tp[i]),
        'fp': int(fp[i]),
        'fn': int(fn[i]),
      }
      for i, class_name in enumerate(class_names)
    },
  }
