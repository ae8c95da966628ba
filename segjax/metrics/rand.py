"""Metrics of the ISBI 2012 challenge on neuron boundaries: pixel error, Rand error, V_Rand, V_Info.

The definitions are those of Arganda-Carreras et al. 2015 (Front. Neuroanat. 9:142) and of the
organizers' Fiji scripts (`trainableSegmentation.metrics`):

- The predicted probability of the inside of cells is thresholded at 0, 0.1 … 0.9, and the score of
  the best threshold is reported, with one threshold for all images.
- Segments are the 4-connected components of the inside in each image. Rand and information scores
  only consider pixels inside true cells; a pixel there that is predicted as membrane forms its own
  segment.
- Pixel error and Rand error (the first leaderboard, and U-Net's Table 1) use the components
  directly. V_Rand and V_Info (the second leaderboard) first thin the predicted membranes to lines
  one pixel wide: a watershed grows the predicted components until they meet. The truth is not
  thinned.
- Counts of pixels and pairs are summed over the images before computing F = 2 TP / (truth +
  predicted). V_Info is averaged over the images.

The challenge's test labels are not public: report on which images a score was computed.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from segjax.metrics.base import Metric, crop_padding
from segjax.types import IGNORE_LABEL

THRESHOLDS = tuple(k / 10 for k in range(10))
_SCORES = ('pixel', 'rand', 'v_rand', 'v_info')
# Names of the numbers of `isbi_metrics`.
MEASURES = (
  'v_rand',
  'v_info',
  'rand_error',
  'pixel_error',
  *(f'{name}_threshold' for name in _SCORES),
)


def isbi_metrics(foreground: int = 1) -> Metric:
  """The ISBI 2012 metrics, on the host: pixel_error, rand_error, v_rand, v_info, thresholds.

  The errors are 1 - F of the pixels inside cells, and of the pairs of pixels in the same segment.
  v_rand is F of these pairs after thinning, v_info the information score; higher is better.
  pixel_threshold, rand_threshold, v_rand_threshold and v_info_threshold are the thresholds at which
  each is best, the lowest of ties: above it a pixel is inside a cell.
  Reads `predictions['probability']` f[B, H, W, C], `batch['label']` i[B, H, W], `batch['size']`
  i[B, 2], the height and the width of the image inside its padding, and `batch['valid']` bool[B].
  Pixels of IGNORE_LABEL do not count.

  Args:
    foreground: the class of the inside of cells.
  """

  def from_batch(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    state = {
      'pixel': np.zeros((len(THRESHOLDS), 3), np.int64),
      'rand': np.zeros((len(THRESHOLDS), 3), np.int64),
      'v_rand': np.zeros((len(THRESHOLDS), 3), np.int64),
      'v_info': np.zeros(len(THRESHOLDS)),
      'images': np.zeros((), np.int64),
    }
    for i in np.flatnonzero(batch['valid']):
      label = crop_padding(batch['label'], batch, i)
      probability = crop_padding(predictions['probability'], batch, i)[..., foreground]
      inside, labeled = label == foreground, label != IGNORE_LABEL
      state['images'] += inside.any()
      truth = segments(inside)
      for t, threshold in enumerate(THRESHOLDS):
        predicted = labeled & (probability > threshold)
        state['pixel'][t] += ((inside & predicted).sum(), inside.sum(), predicted.sum())
        parts = segments(probability > threshold)
        state['rand'][t] += pair_counts(truth, parts)
        thinned = thin(parts)
        state['v_rand'][t] += pair_counts(truth, thinned)
        state['v_info'][t] += information_score(truth, thinned)
    return state

  return Metric(
    name='isbi',
    from_batch=from_batch,
    compute=_compute,
    device=False,
    reads=('probability', 'label', 'size', 'valid'),
  )


def _compute(state: Mapping[str, np.ndarray]) -> dict[str, float]:
  images = int(state['images'])
  best = thresholds = dict.fromkeys(_SCORES, float('nan'))
  if images:
    scores = {name: _f_score(state[name]) for name in ('pixel', 'rand', 'v_rand')}
    scores['v_info'] = state['v_info'] / images
    best = {name: float(score.max()) for name, score in scores.items()}
    thresholds = {name: THRESHOLDS[score.argmax()] for name, score in scores.items()}
  return {
    'pixel_error': 1 - best['pixel'],
    'rand_error': 1 - best['rand'],
    'v_rand': best['v_rand'],
    'v_info': best['v_info'],
    **{f'{name}_threshold': thresholds[name] for name in _SCORES},
  }


def _f_score(counts: np.ndarray) -> np.ndarray:
  """F of i64[T, 3], counts in both, in the truth and in the prediction."""
  both, truth, predicted = counts.T
  return 2 * both / (truth + predicted)


def segments(mask: np.ndarray) -> np.ndarray:
  """4-connected components of bool[H, W]: i32[H, W], 1, 2, … and 0 outside the mask."""
  return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]


def thin(parts: np.ndarray) -> np.ndarray:
  """Grows segments i32[H, W] into the background until they meet in lines one pixel wide.

  A watershed on a flat image: each background pixel joins the nearest segment in 4-neighbor steps,
  and stays 0 where two segments meet.
  """
  h, w = parts.shape
  # OpenCV marks the outermost pixels as border, hence the padding.
  markers = np.pad(parts, 1).astype(np.int32)
  cv2.watershed(np.zeros((h + 2, w + 2, 3), np.uint8), markers)
  return np.maximum(markers[1:-1, 1:-1], 0)


def pair_counts(truth: np.ndarray, parts: np.ndarray) -> np.ndarray:
  """Number of ordered pairs of pixels in the same segment, over the pixels with `truth` > 0.

  Pixels with `parts` 0 are singletons, and every pixel pairs with itself, as in the challenge's
  definition (Arganda-Carreras et al. 2015, eq. 3), so that V_Rand = 2 both / (truth + parts).

  Args:
    truth: i[H, W], segments of the ground truth, 0 for pixels to skip.
    parts: i[H, W], segments of the prediction, 0 for membrane.

  Returns:
    i64[3]: pairs in the same segment in both, in the truth, in the prediction.
  """
  both, of_truth, of_parts, alone = _sizes(truth, parts)
  squares = [int(n @ n) for n in (both, of_truth, of_parts)]
  return np.array(squares, np.int64) + np.array([alone, 0, alone])


def information_score(truth: np.ndarray, parts: np.ndarray) -> float:
  """V_Info, 2 I(T; S) / (H(T) + H(S)), over the pixels with `truth` > 0 (eq. 6 ibid.).

  Arguments as in `pair_counts`. 1 if both have the same single segment, 0 without true segments.
  """
  both, of_truth, of_parts, alone = _sizes(truth, parts)
  n = of_truth.sum()
  if not n:
    return 0.0
  h_both, h_truth, h_parts = (-np.sum(k / n * np.log(k / n)) for k in (both, of_truth, of_parts))
  h_alone = alone / n * np.log(n)
  h_both, h_parts = h_both + h_alone, h_parts + h_alone
  if h_truth + h_parts == 0:
    return 1.0
  return float(2 * (h_truth + h_parts - h_both) / (h_truth + h_parts))


def _sizes(truth: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
  """Pixel counts of overlaps, true and predicted segments, and of singletons."""
  look = truth > 0
  t, p = truth[look].astype(np.int64), parts[look]
  of_truth = np.bincount(t)
  assigned = p > 0
  t, p = t[assigned], p[assigned]
  of_parts = np.bincount(p)
  both = np.unique(t * (len(of_parts) + 1) + p, return_counts=True)[1]
  return both, of_truth[of_truth > 0], of_parts[of_parts > 0], int((~assigned).sum())
