"""Distances between surfaces: the 95% Hausdorff distance and the average symmetric one.

As in MedPy 0.5 (`hd95` and `assd`): the surface of a class consists of its pixels with a 4-neighbor
of another class or outside the image. Of the distances from each pixel of the predicted surface to
the nearest of the true one, and the other way round, all together,

  HD95 = the 95th percentile,
  ASSD = the mean.

Others (MONAI) take for HD95 the larger of the two percentiles, which is not smaller.
Distances are in pixels, of the image as it is evaluated. Ignored pixels belong to no class, in the
truth and in the prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from segjax.metrics.base import Metric, crop_padding, mean_known, quotient
from segjax.types import IGNORE_LABEL

# The values of the metric, in the order of `surface_distances`; the smaller, the better.
MEASURES = ('hd95', 'assd')
_PERCENTILE = 95


def surface_metrics(class_names: Sequence[str]) -> Metric:
  """`hd95` and `assd` on the host, and per class in `surface_per_class`.

  Reads `predictions['label']` i[B, H, W], `batch['label']` i[B, H, W], `batch['size']` i[B, 2], the
  height and the width of the image inside its padding, and `batch['valid']` bool[B].
  The value of a class is its mean over the images that have it in the truth and in the prediction,
  `images`; in `one_sided` images it is in one of them only, where no distance is defined: a class
  that is missed costs nothing here, so look at these counts. Values are means over the classes that
  have one; NaN if none has.

  Args:
    class_names: one per class.
  """
  classes = len(class_names)

  def from_batch(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    state = {
      'sum': np.zeros((classes, len(MEASURES))),
      'images': np.zeros(classes, np.int64),
      'one_sided': np.zeros(classes, np.int64),
    }
    for i in np.flatnonzero(batch['valid']):
      prediction = crop_padding(predictions['label'], batch, i)
      label = crop_padding(batch['label'], batch, i)
      known = label != IGNORE_LABEL
      for k in range(classes):
        truth, predicted = label == k, known & (prediction == k)
        there = truth.any(), predicted.any()
        if all(there):
          state['sum'][k] += surface_distances(predicted, truth)
        state['images'][k] += all(there)
        state['one_sided'][k] += any(there) and not all(there)
    return state

  def compute(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    means = quotient(state['sum'], state['images'][:, None])
    counts = {name: state[name] for name in ('images', 'one_sided')}
    return {
      **{name: mean_known(means[:, i]) for i, name in enumerate(MEASURES)},
      'surface_per_class': {
        name: {
          **{measure: float(means[k, i]) for i, measure in enumerate(MEASURES)},
          **{count: int(values[k]) for count, values in counts.items()},
        }
        for k, name in enumerate(class_names)
      },
    }

  return Metric(
    name='surface',
    from_batch=from_batch,
    compute=compute,
    device=False,
    reads=('label', 'size', 'valid'),
  )


def surface_distances(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
  """HD95 and ASSD of two masks bool[H, W] in pixels; each has a pixel at least."""
  window = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
  surfaces = [surface(mask)[window] for mask in (prediction, truth)]
  there, back = (
    ndimage.distance_transform_edt(~other)[one] for one, other in (surfaces, reversed(surfaces))
  )
  both = np.concatenate([there, back])
  return float(np.percentile(both, _PERCENTILE)), float(both.mean())


def surface(mask: np.ndarray) -> np.ndarray:
  """bool[H, W]: the pixels of a mask with a 4-neighbor outside it or outside the image."""
  return mask & ~ndimage.binary_erosion(mask)
