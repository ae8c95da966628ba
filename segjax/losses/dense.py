"""Pixel-wise losses, and class weights.

Each loss is called `(logits, label, weight)` and returns a float32 `SumCount`:

  logits f[B, H, W, C]   any float type; the arithmetic is float32
  label  i[B, H, W]      class index; pixels of IGNORE_LABEL do not count
  weight f[B, H, W]      weight per pixel (U-Net's border weight map), or None for 1

The keyword arguments are config keys. If all pixels are ignored, sum, count and gradient are 0. For
a single channel, the one-vs-rest losses (all but `softmax_cross_entropy`) treat it as the score of
class 1 against class 0.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import (
  IGNORE_LABEL,
  Array,
  Fraction,
  NonNegativeFloat,
  PositiveFloat,
  PositiveFraction,
  SegjaxError,
  SumCount,
)

DivideBy = Literal['count', 'weight', 'images']


def softmax_cross_entropy(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  divide_by: DivideBy = 'count',
  label_smoothing: Fraction = 0.0,
  hardest: PositiveFraction = 1.0,
) -> SumCount:
  """Cross-entropy of the softmax over the classes: -w log p[label] (U-Net, eq. 1).

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    class_weights: f[C], weight per class (`median_frequency_weights`); None for 1.
    divide_by: 'count', the number of labeled pixels, as in SegNet's release; 'weight', the sum of
      their weights; or 'images', the number of images with a labeled pixel, so that the loss is
      summed over pixels, as in FCN's release.
    label_smoothing: e: the target is 1 - e at the label's class plus e / C at every class (Szegedy
      et al. 2016, section 7).
    hardest: of each image, the fraction of the labeled pixels that count, those with the largest
      loss times weight (online hard example mining; TopK loss); rounded up to whole pixels.
  """
  channels = logits.shape[-1]
  logits = logits.astype(jnp.float32)
  logits -= lax.stop_gradient(logits.max(-1, keepdims=True))
  # Not `_one_hot`: here a single channel is class 0, whose probability is 1.
  at_label = label[..., None] == jnp.arange(channels)
  picked = jnp.sum(jnp.where(at_label, logits, 0), axis=-1)
  if label_smoothing:
    picked = (1 - label_smoothing) * picked + label_smoothing * logits.mean(-1)
  loss = jnp.log(jnp.exp(logits).sum(-1)) - picked
  return _reduce(loss, label, weight, _per_class(class_weights, channels), divide_by, hardest)


def sigmoid_cross_entropy(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  divide_by: DivideBy = 'count',
) -> SumCount:
  """One-vs-rest binary cross-entropy, averaged over the classes.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    class_weights: f[C], weight of the pixels labeled with each class; for a single channel two
      values, class 0 first.
    divide_by: as in `softmax_cross_entropy`.
  """
  return focal(
    logits,
    label,
    weight,
    gamma=0.0,
    alpha=None,
    class_weights=class_weights,
    divide_by=divide_by,
  )


def focal(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  gamma: NonNegativeFloat = 2.0,
  alpha: Fraction | None = 0.25,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  divide_by: DivideBy = 'count',
) -> SumCount:
  """Focal loss, -alpha_t (1 - p_t)^gamma log p_t, averaged over classes (Lin et al. 2017, eq. 5).

  p_t is the sigmoid probability of the correct one-vs-rest decision. The paper divides by the
  number of positive anchors; without anchors, this divides like the cross-entropies.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    gamma: >= 0, focusing parameter; 0 is `sigmoid_cross_entropy` times alpha_t.
    alpha: weight of positives; negatives have 1 - alpha. None for 1 and 1.
    class_weights: as in `sigmoid_cross_entropy`.
    divide_by: as in `softmax_cross_entropy`.
  """
  channels = logits.shape[-1]
  positive = _one_hot(label, channels)
  logits = logits.astype(jnp.float32)
  z = jnp.where(positive, logits, -logits)
  # p_t = sigmoid(z) and 1 - p_t = sigmoid(-z); computed in log space for a finite gradient.
  loss = -jnp.exp(gamma * jax.nn.log_sigmoid(-z)) * jax.nn.log_sigmoid(z)
  if alpha is not None:
    loss *= jnp.where(positive, alpha, 1 - alpha)
  return _reduce(
    loss.mean(-1), label, weight, _per_class(class_weights, max(channels, 2)), divide_by
  )


def dice(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  smooth: PositiveFloat = 1.0,
) -> SumCount:
  """Soft Dice loss of each image: 1 - (2 Σpg + smooth) / (Σp + Σg + smooth), averaged over classes.

  p is the softmax (the sigmoid of a single channel), g is 1 at the label's class, and the sums are
  over the labeled pixels of the image (Milletari et al. 2016, section 3, without the squares).
  The count is the number of images with a labeled pixel.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None, a factor in each of the three sums.
    class_weights: f[C], relative weights in the average over the classes; None for equal ones.
    smooth: > 0, in pixels; the loss of a class that is neither present nor predicted is then 0.
  """
  overlap, predicted, true = _soft_counts(logits, label, weight)
  loss = 1 - (2 * overlap + smooth) / (predicted + true + smooth)
  # An image without a labeled pixel has the loss 1 - smooth / smooth = 0.
  return _average_classes(loss, label, class_weights)


def tversky(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  false_positives: NonNegativeFloat = 0.3,
  false_negatives: NonNegativeFloat = 0.7,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  smooth: PositiveFloat = 1.0,
) -> SumCount:
  """Tversky loss of each image: 1 - (TP + s) / (TP + α FP + β FN + s), averaged over classes.

  TP, FP and FN are soft counts of pixels, with p and g as in `dice` (Salehi et al. 2017, eq. 3).
  α = β = 1/2 is Dice with smooth = 2s, and α = β = 1 the soft IoU (Jaccard) loss. The count is the
  number of images with a labeled pixel.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None, a factor in each of the three sums.
    false_positives: α, their weight; the defaults are the paper's best.
    false_negatives: β, their weight; larger than α for more recall.
    class_weights: as in `dice`.
    smooth: s > 0, in pixels; the loss of a class that is neither present nor predicted is then 0.
  """
  overlap, predicted, true = _soft_counts(logits, label, weight)
  wrong = false_positives * (predicted - overlap) + false_negatives * (true - overlap)
  return _average_classes(1 - (overlap + smooth) / (overlap + wrong + smooth), label, class_weights)


def lovasz(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  class_weights: Sequence[NonNegativeFloat] | None = None,
) -> SumCount:
  """Lovász-Softmax of each image: the IoU loss of each class, made continuous, averaged over the
  classes that are present in the image.

  The pixels' errors |g - p| in descending order, each times what its pixel takes from the IoU
  (Berman et al. 2018, eq. 8, 9, 11 and 12, for single images). p is the softmax. For a
  single channel it is the sigmoid, and class 1 counts in every image. The count is the number of
  images with a labeled pixel.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None: as how many pixels one counts.
    class_weights: f[C], relative weights in the average over the classes; None for equal ones.
  """
  channels = logits.shape[-1]
  flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
  p, g = flat(_probability(logits)), flat(_one_hot(label, channels))
  w = flat(_pixel_weight(label != IGNORE_LABEL, weight)[..., None])
  # Pixels that do not count come last, where they change nothing.
  error = jnp.where(w > 0, jnp.abs(g - p), 0)
  order = jnp.argsort(lax.stop_gradient(error), axis=1, descending=True)
  ordered = lambda x: jnp.take_along_axis(jnp.broadcast_to(x, p.shape), order, axis=1)
  error, inside, outside = ordered(error), ordered(w * g), ordered(w * ~g)
  true = inside.sum(1, keepdims=True)
  # Of the IoU when the pixels so far are wrong.
  overlap, union = true - jnp.cumsum(inside, axis=1), true + jnp.cumsum(outside, axis=1)
  before = union - outside
  # Its two losses of a pixel without a difference of nearly equal numbers; 0 / 0 is 0.
  taken = _ratio(inside, union) + _ratio(_ratio(overlap, before) * outside, union)
  loss = jnp.sum(error * lax.stop_gradient(taken), axis=1)
  present = true[:, 0] > 0
  if channels == 1:  # the IoU with nothing is 0 from the first wrong pixel on
    loss, present = jnp.where(present, loss, error[:, 0]), jnp.ones_like(present)
  return _average_classes(loss, label, class_weights, present)


def median_frequency_weights(
  pixel_counts: Sequence[float], image_pixel_counts: Sequence[float]
) -> np.ndarray:
  """Median-frequency class weights (SegNet, section 3.2; Eigen and Fergus 2015, section 6.3.2).

  The frequency of a class is its fraction of the pixels of the images in which it occurs; its
  weight is the median frequency divided by its frequency.

  Args:
    pixel_counts: [C], number of pixels of each class in the training set.
    image_pixel_counts: [C], number of pixels of all training images in which the class occurs.

  Returns:
    f32[C]; 0 for classes that never occur, which are excluded from the median.
  """
  pixels, image_pixels = np.asarray(pixel_counts, float), np.asarray(image_pixel_counts, float)
  occurs = pixels > 0
  frequency = pixels[occurs] / image_pixels[occurs]
  weights = np.zeros(len(pixels), np.float32)
  weights[occurs] = np.median(frequency) / frequency
  return weights


def natural_weights(
  pixel_counts: Sequence[float], image_pixel_counts: Sequence[float]
) -> np.ndarray:
  """The weights of natural frequency, f32[C] ones: SegNet's "no balancing"."""
  del image_pixel_counts
  return np.ones(len(pixel_counts), np.float32)


def _probability(logits: Array) -> Array:
  """f32[B, H, W, C], the softmax, or the sigmoid of a single channel."""
  logits = logits.astype(jnp.float32)
  return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def _soft_counts(logits: Array, label: Array, weight: Array | None) -> tuple[Array, Array, Array]:
  """Σpg, Σp and Σg over the labeled pixels of each image: f32[B, C] each."""
  p, g = _probability(logits), _one_hot(label, logits.shape[-1])
  w = _pixel_weight(label != IGNORE_LABEL, weight)[..., None]
  return tuple(jnp.sum(w * x, axis=(1, 2)) for x in (jnp.where(g, p, 0), p, g))


def _average_classes(
  loss: Array,
  label: Array,
  class_weights: Sequence[float] | None,
  counted: Array | None = None,
) -> SumCount:
  """The sum over the images of the average of `loss` f32[B, C] over the classes.

  Args:
    loss: 0 for an image without a labeled pixel.
    label: i[B, H, W].
    class_weights: relative weights, or None for equal ones.
    counted: bool[B, C], the classes of an image in the average; None for all.
  """
  weights = _per_class(class_weights, loss.shape[-1])
  weights = jnp.ones(loss.shape[-1]) if weights is None else weights
  weights = jnp.broadcast_to(weights, loss.shape) * (1 if counted is None else counted)
  averages = _ratio(jnp.sum(weights * loss, axis=-1), jnp.sum(weights, axis=-1))
  images = jnp.sum((label != IGNORE_LABEL).any((1, 2)), dtype=jnp.float32)
  return SumCount(jnp.sum(averages), images)


def _ratio(a: Array, b: Array) -> Array:
  """a / b, and 0 where b is 0."""
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _one_hot(label: Array, channels: int) -> Array:
  """bool[B, H, W, C], True at the label's channel."""
  classes = jnp.arange(channels) if channels > 1 else jnp.ones(1, jnp.int32)
  return label[..., None] == classes


def _per_class(class_weights: Sequence[float] | None, classes: int) -> Array | None:
  if class_weights is None:
    return None
  if len(class_weights) != classes:
    raise SegjaxError(
      f'class_weights has {len(class_weights)} values for {classes} classes: set one per class'
    )
  return jnp.asarray(class_weights, jnp.float32)


def _pixel_weight(labeled: Array, weight: Array | None) -> Array:
  """f32[B, H, W], 0 where a pixel is ignored."""
  return jnp.where(labeled, 1.0 if weight is None else weight.astype(jnp.float32), 0.0)


def _reduce(
  loss: Array,
  label: Array,
  weight: Array | None,
  class_weights: Array | None,
  divide_by: DivideBy,
  hardest: float = 1.0,
) -> SumCount:
  """The weighted sum of `loss` f32[B, H, W] over the labeled pixels, and its divisor."""
  labeled = label != IGNORE_LABEL
  w = _pixel_weight(labeled, weight)
  if class_weights is not None:
    w *= class_weights[jnp.where(labeled, label, 0)]
  if hardest < 1:
    labeled = _share_of_hardest(lax.stop_gradient(w * loss), labeled, hardest)
    w *= labeled
  counts = {'count': labeled, 'weight': w, 'images': (labeled > 0).any((1, 2))}
  if divide_by not in counts:
    known = ', '.join(counts)
    raise SegjaxError(f'divide_by is {divide_by!r}: choose from {known}')
  return SumCount(jnp.sum(w * loss), jnp.sum(counts[divide_by], dtype=jnp.float32))


def _share_of_hardest(loss: Array, labeled: Array, fraction: float) -> Array:
  """f32[B, H, W]: 1 for the hardest pixels of each image, 0 for others; equal ones share a place.

  Args:
    loss: f32[B, H, W].
    labeled: bool[B, H, W].
    fraction: of the labeled pixels, rounded up.
  """
  loss = jnp.where(labeled, loss, -jnp.inf)
  ordered = jnp.sort(loss.reshape(len(loss), -1), axis=1, descending=True)
  # A product such as 0.1 * 30 is 3 and a rounding error more, and means 3.
  places = jnp.ceil(fraction * labeled.sum((1, 2)) * (1 - 1e-6)).astype(jnp.int32)
  last = jnp.take_along_axis(ordered, jnp.maximum(places - 1, 0)[:, None], axis=1)[..., None]
  harder, equal = loss > last, labeled & (loss == last)
  left = places - harder.sum((1, 2))
  return harder + equal * _ratio(left, equal.sum((1, 2)))[:, None, None]
