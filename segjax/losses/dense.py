"""Losses of a label for every pixel, and the class weights they take.

Each loss is called `(logits, label, weight)` and returns a float32 `SumCount`:

  logits f[B, H, W, C]   any float type; the arithmetic is float32
  label  i[B, H, W]      class index; a pixel of IGNORE_LABEL adds nothing to the sum or the count
  weight f[B, H, W]      factor for every pixel (U-Net's border weight map), or None for 1

The keyword arguments are what a config may set. Where every pixel is ignored the sum, the count and
the gradient are 0. Losses of one class against the rest (all but `softmax_cross_entropy`) read a
single channel as the score of class 1 against class 0.
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
) -> SumCount:
  """Cross-entropy of the softmax over the classes: -w log p[label] (U-Net, eq. 1).

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    class_weights: f[C], a factor for the pixels of each class (`median_frequency_weights`); None
      for 1.
    divide_by: 'count', the labelled pixels, as SegNet's release does; 'weight', the sum of their
      weights; or 'images', those with a labelled pixel: the sum over an image's pixels, as FCN's
      release has it.
  """
  channels = logits.shape[-1]
  logits = logits.astype(jnp.float32)
  logits -= lax.stop_gradient(logits.max(-1, keepdims=True))
  picked = jnp.sum(jnp.where(_one_hot(label, channels), logits, 0), axis=-1)
  loss = jnp.log(jnp.exp(logits).sum(-1)) - picked
  return _reduce(loss, label, weight, _per_class(class_weights, channels), divide_by)


def sigmoid_cross_entropy(
  logits: Array,
  label: Array,
  weight: Array | None = None,
  *,
  class_weights: Sequence[NonNegativeFloat] | None = None,
  divide_by: DivideBy = 'count',
) -> SumCount:
  """Binary cross-entropy of each class against the rest, averaged over the classes.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    class_weights: f[C], a factor for the pixels labelled with each class; for a single channel two
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

  p_t is the probability, by the sigmoid, of the right answer for one class against the rest. The
  paper divides by the number of positive anchors; a label map has none, so this divides like the
  cross-entropies.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None.
    gamma: >= 0, how fast easy pixels lose influence; 0 is `sigmoid_cross_entropy`, times alpha_t.
    alpha: alpha_t of the positives, 1 - alpha being that of the negatives; None for 1 and 1.
    class_weights: as in `sigmoid_cross_entropy`.
    divide_by: as in `softmax_cross_entropy`.
  """
  channels = logits.shape[-1]
  positive = _one_hot(label, channels)
  logits = logits.astype(jnp.float32)
  z = jnp.where(positive, logits, -logits)
  # p_t = sigmoid(z) and 1 - p_t = sigmoid(-z), whose power has a finite gradient by its logarithm.
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
  over the image's labelled pixels (Milletari et al. 2016, section 3, without the squares).
  The count is the number of images that have a labelled pixel.

  Args:
    logits: f[B, H, W, C].
    label: i[B, H, W].
    weight: f[B, H, W] or None, a factor in each of the three sums.
    class_weights: f[C], relative weights in the average over the classes; None for equal ones.
    smooth: > 0, in pixels; makes the loss of a class that is neither there nor predicted 0.
  """
  channels = logits.shape[-1]
  logits = logits.astype(jnp.float32)
  p = jax.nn.sigmoid(logits) if channels == 1 else jax.nn.softmax(logits)
  g = _one_hot(label, channels)
  labelled = label != IGNORE_LABEL
  w = _pixel_weight(labelled, weight)[..., None]
  overlap = jnp.sum(w * jnp.where(g, p, 0), axis=(1, 2))
  size = jnp.sum(w * (p + g), axis=(1, 2))
  loss = 1 - (2 * overlap + smooth) / (size + smooth)
  loss = jnp.average(loss, axis=-1, weights=_per_class(class_weights, channels))
  # An image without a labelled pixel has the loss 1 - smooth / smooth = 0.
  return SumCount(jnp.sum(loss), jnp.sum(labelled.any((1, 2)), dtype=jnp.float32))


def median_frequency_weights(
  pixel_counts: Sequence[float], image_pixel_counts: Sequence[float]
) -> np.ndarray:
  """Median-frequency class weights (SegNet, section 3.2; Eigen and Fergus 2015, section 6.3.2).

  The frequency of a class is its share of the pixels of the images in which it occurs; its weight
  is the median of all frequencies divided by its own.

  Args:
    pixel_counts: [C], pixels of each class in the training set.
    image_pixel_counts: [C], pixels of all training images in which the class occurs.

  Returns:
    f32[C]; 0 for a class that never occurs, which the median leaves out.
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


def _one_hot(label: Array, channels: int) -> Array:
  """bool[B, H, W, C], True at the label's channel."""
  classes = jnp.arange(channels) if channels > 1 else jnp.ones(1, jnp.int32)
  return label[..., None] == classes


def _per_class(class_weights: Sequence[float] | None, classes: int) -> Array | None:
  if class_weights is None:
    return None
  if len(class_weights) != classes:
    raise SegjaxError(
      f'class_weights has {len(class_weights)} values for {classes} classes: give one a class'
    )
  return jnp.asarray(class_weights, jnp.float32)


def _pixel_weight(labelled: Array, weight: Array | None) -> Array:
  """f32[B, H, W], 0 where a pixel is ignored."""
  return jnp.where(labelled, 1.0 if weight is None else weight.astype(jnp.float32), 0.0)


def _reduce(
  loss: Array,
  label: Array,
  weight: Array | None,
  class_weights: Array | None,
  divide_by: DivideBy,
) -> SumCount:
  """The weighted sum over the labelled pixels of `loss` f32[B, H, W], and what divides it."""
  labelled = label != IGNORE_LABEL
  w = _pixel_weight(labelled, weight)
  if class_weights is not None:
    w *= class_weights[jnp.where(labelled, label, 0)]
  counts = {'count': labelled, 'weight': w, 'images': labelled.any((1, 2))}
  if divide_by not in counts:
    known = ', '.join(counts)
    raise SegjaxError(f'divide_by is {divide_by!r}: a loss divides by one of {known}')
  return SumCount(jnp.sum(w * loss), jnp.sum(counts[divide_by], dtype=jnp.float32))
