"""Semantic segmentation metrics, computed from one confusion matrix over the complete split."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.metrics.base import Metric, mean_known, quotient, widen
from segjax.types import IGNORE_LABEL, Array, Batch

# Names of the numbers of `confusion_metrics`.
MEASURES = (
  'mean_iou',
  'pixel_accuracy',
  'mean_class_accuracy',
  'frequency_weighted_iou',
  'mean_dice',
)


def confusion_metrics(class_names: Sequence[str]) -> Metric:
  """Pixel accuracy, IoU and others (FCN, section 5), on the device; see `scores`.

  Reads `predictions['label']` i[B, H, W], `batch['label']` i[B, H, W] and `batch['valid']` bool[B].
  """
  num_classes = len(class_names)

  def from_batch(predictions: Mapping[str, Array], batch: Batch) -> Array:
    return image_matrices(predictions['label'], batch['label'], num_classes, batch['valid']).sum(0)

  def image_scores(predictions: Mapping[str, Array], batch: Batch, state: Array) -> Array:
    del state
    # The same matrices as in `from_batch`: compiled into one program, they are computed once.
    return image_mean_iou(
      image_matrices(predictions['label'], batch['label'], num_classes, batch['valid'])
    )

  return Metric(
    name='confusion',
    from_batch=from_batch,
    compute=lambda matrix: scores(matrix, class_names),
    device=True,
    image_scores=image_scores,
    image_measure='mean_iou',
    confusion=widen,
  )


def confusion_matrix(
  prediction: Array, label: Array, num_classes: int, valid: Array | None = None
) -> Array:
  """Counts the pixels of each (true class, predicted class).

  Args:
    prediction: i[B, H, W], class indices.
    label: i[B, H, W], class indices; pixels of IGNORE_LABEL are not counted.
    num_classes: C.
    valid: bool[B], the images to count; None for all.

  Returns:
    i32[C, C], rows are true and columns predicted classes; exact below 2^31 pixels per batch.
  """
  return image_matrices(prediction, label, num_classes, valid).sum(0)


def image_matrices(
  prediction: Array, label: Array, num_classes: int, valid: Array | None = None
) -> Array:
  """The confusion matrix of each image, i32[B, C, C]; see `confusion_matrix`."""
  counted = label != IGNORE_LABEL
  if valid is not None:
    counted &= valid[:, None, None]
  bins = num_classes**2
  pair = jnp.where(counted, label.astype(jnp.int32) * num_classes + prediction, bins)
  # Per image, so that a sharded batch is counted without communication.
  counts = jax.vmap(lambda p: jnp.bincount(p.ravel(), length=bins + 1))(pair)
  return counts[:, :bins].reshape(-1, num_classes, num_classes)


def image_mean_iou(matrices: Array) -> Array:
  """The mean IoU of each image over the classes in its truth or prediction.

  Args:
    matrices: i[B, C, C], see `image_matrices`.

  Returns:
    f32[B]; NaN without a labeled pixel.
  """
  hit = jnp.diagonal(matrices, axis1=1, axis2=2)
  union = matrices.sum(2) + matrices.sum(1) - hit
  iou = jnp.where(union > 0, hit / jnp.maximum(union, 1), 0.0)
  return iou.sum(1) / (union > 0).sum(1)


def scores(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
  """Metrics of a confusion matrix n, with t_i true and p_i predicted pixels of class i.

  Args:
    matrix: i[C, C], rows are true classes.
    class_names: C names.

  Returns:
    pixel_accuracy: Σ n_ii / Σ t_i.
    mean_class_accuracy: n_ii / t_i, averaged over the classes in the truth.
    mean_iou: n_ii / (t_i + p_i - n_ii), averaged over the classes in the truth or the prediction.
    frequency_weighted_iou: the same, weighted by t_i.
    mean_dice: 2 n_ii / (t_i + p_i), averaged like mean_iou.
    per_class: {name: {'iou', 'accuracy', 'dice'}}.
    Floats; NaN if the divisor is 0.
  """
  n = widen(matrix)
  hit, truth, predicted = np.diagonal(n), n.sum(1), n.sum(0)
  iou = quotient(hit, truth + predicted - hit)
  accuracy = quotient(hit, truth)
  dice = quotient(2 * hit, truth + predicted)
  present = truth > 0
  return {
    'pixel_accuracy': float(quotient(hit.sum(), n.sum())),
    'mean_class_accuracy': mean_known(accuracy),
    'mean_iou': mean_known(iou),
    'frequency_weighted_iou': float(quotient((truth * iou)[present].sum(), n.sum())),
    'mean_dice': mean_known(dice),
    'per_class': {
      name: {'iou': float(iou[i]), 'accuracy': float(accuracy[i]), 'dice': float(dice[i])}
      for i, name in enumerate(class_names)
    },
  }
