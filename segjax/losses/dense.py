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
    class_weights: f[C], weight per class (`median_frequency_weights`); None for 1.
    divide_by: 'count', the number of labeled pixels, as in SegNet's release; 'weight', the sum of
      their weights; or 'images', the number of images with a labeled pixel, so that the loss is
      summed over pixels, as in FCN's release.
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
  channels = logits.shape[-1]
  logits = logits.astype(jnp.float32)
  p = jax.nn.sigmoid(logits) if channels == 1 else jax.nn.softmax(logits)
  g = _one_hot(label, channels)
  labeled = label != IGNORE_LABEL
  w = _pixel_weight(labeled, weight)[..., None]
  overlap = jnp.sum(w * jnp.where(g, p, 0), axis=(1, 2))
  size = jnp.sum(w * (p + g), axis=(1, 2))
  loss = 1 - (2 * overlap + smooth) / (size + smooth)
  loss = jnp.average(loss, axis=-1, weights=_per_class(class_weights, channels))
  # An image without a labeled pixel has the loss 1 - smooth / smooth = 0.
  return SumCount(jnp.sum(loss), jnp.sum(labeled.any((1, 2)), dtype=jnp.float32))


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
) -> SumCount:
  """The weighted sum of `loss` f32[B, H, W] over the labeled pixels, and its divisor."""
  labeled = label != IGNORE_LABEL
  w = _pixel_weight(labeled, weight)
  if class_weights is not None:
    w *= class_weights[jnp.where(labeled, label, 0)]
  counts = {'count': labeled, 'weight': w, 'images': labeled.any((1, 2))}
  if divide_by not in counts:
    known = ', '.join(counts)
    raise SegjaxError(f'divide_by is {divide_by!r}: choose from {known}')
  return SumCount(jnp.sum(w * loss), jnp.sum(counts[divide_by], dtype=jnp.float32))
