"""Boundary F1 (BF): Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic
segmentation?", BMVC 2013, as SegNet (arXiv 1511.00561, section 3.3) reports it.

The contour of a class consists of its pixels with a 4-neighbor of another class; the image border
is not a contour. Precision is the fraction of the predicted contour within the tolerance of the
true one, recall the fraction of the true contour within the tolerance of the predicted one, and
BF = 2 P R / (P + R), or 0 if both are 0. It is averaged over the classes of an image, and then over
images.

Ignored pixels belong to no class, in the truth and in the prediction: predictions there have no
effect, and both have a contour along them.

SegNet's released script differs: it counts classes of the prediction too (`present='either'`), it
matches the contour pixels one to one, as the BSDS benchmark (`matching='one_to_one'`), and it
counts predictions on ignored pixels. The first two are stricter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from segjax.metrics.base import Metric, crop_padding, quotient
from segjax.types import IGNORE_LABEL

Matching = Literal['any', 'one_to_one']
# Pixels whose partners are looked up at once.
_BLOCK = 4096
# Choices that do not show in names.
_DEFAULTS = ('truth', 'any')
# Types of sets of classes, and the number of classes in a set of the largest.
_SETS, _CLASSES = (np.uint8, np.uint16, np.uint32, np.uint64), 64


def boundary_metrics(
  class_names: Sequence[str],
  tolerance: float = 0.0075,
  present: Literal['truth', 'either'] = 'truth',
  matching: Matching = 'any',
) -> Metric:
  """Boundary F1 on the host: `boundary_f1`, and per class in `boundary_per_class`.

  With other choices than the defaults the names of the metric and of both values end with them, as
  in `boundary_f1_either` and `boundary_f1_either_one_to_one`.

  Reads `predictions['label']` i[B, H, W], `batch['label']` i[B, H, W], `batch['size']` i[B, 2], the
  height and the width of the image inside its padding, and `batch['valid']` bool[B].
  The value of a class is its mean over the images that count it. Images that count no class are
  excluded; NaN if all are.

  Args:
    class_names: one per class.
    tolerance: maximum distance of matching contours, as a fraction of the image diagonal.
    present: count a class in an image if it has a contour in the 'truth', as in the papers, or in
      'either' the truth or the prediction, as in SegNet's released script. A class that fills the
      image has no contour.
    matching: which pixels of a contour match, see `boundary_f1`.
  """
  classes = len(class_names)
  ending = ''.join(f'_{choice}' for choice in (present, matching) if choice not in _DEFAULTS)

  def from_batch(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    state = {
      'class_sum': np.zeros(classes),
      'class_images': np.zeros(classes, np.int64),
      'sum': np.zeros(()),
      'images': np.zeros((), np.int64),
    }
    for i in np.flatnonzero(batch['valid']):
      f1, of_truth, of_prediction = boundary_f1(
        crop_padding(predictions['label'], batch, i),
        crop_padding(batch['label'], batch, i),
        classes,
        tolerance,
        matching,
      )
      counted = of_truth if present == 'truth' else of_truth | of_prediction
      state['class_sum'] += np.where(counted, f1, 0)
      state['class_images'] += counted
      if counted.any():
        state['sum'] += f1[counted].mean()
        state['images'] += 1
    return state

  def compute(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    by_class = quotient(state['class_sum'], state['class_images'])
    return {
      f'boundary_f1{ending}': float(quotient(state['sum'], state['images'])),
      f'boundary_per_class{ending}': {
        name: {'boundary_f1': float(by_class[i])} for i, name in enumerate(class_names)
      },
    }

  return Metric(
    name=f'boundary{ending}',
    from_batch=from_batch,
    compute=compute,
    device=False,
    reads=('label', 'size', 'valid'),
  )


def boundary_f1(
  prediction: np.ndarray,
  label: np.ndarray,
  num_classes: int,
  tolerance: float,
  matching: Matching = 'any',
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """BF of each class in one image.

  Args:
    prediction: i[H, W], class indices.
    label: i[H, W], class indices or IGNORE_LABEL.
    num_classes: C.
    tolerance: as a fraction of the image diagonal, sqrt(H² + W²).
    matching: a pixel of a contour matches if 'any' pixel of the other contour is within the
      tolerance; 'one_to_one': if a pixel of the other contour is its partner, and no other pixel's,
      in the matching with most pairs.

  Returns:
    f1: f64[C], 0 if the class has no contour in the truth or the prediction.
    of_truth, of_prediction: bool[C], whether the class has a contour.
  """
  # The squared tolerance in pixels; the factor compensates rounding of, say, 0.0075 · 2000 = 15.
  reach = int(tolerance**2 * np.square(label.shape).sum() * (1 + 1e-9))
  # Pixels of no class are of the class C.
  truth = np.where(label < num_classes, label, num_classes)
  known = (label != IGNORE_LABEL) & (prediction < num_classes)
  maps = (truth, np.where(known, prediction, num_classes))
  places = [np.flatnonzero(contour(classes) & (classes < num_classes)) for classes in maps]
  on_contour = [classes.ravel()[place] for classes, place in zip(maps, places, strict=True)]
  total = np.stack([np.bincount(classes, minlength=num_classes) for classes in on_contour])
  has_contour = total > 0
  both = np.flatnonzero(has_contour.all(0))
  hits = np.zeros_like(total)
  hits[:, both] = _MATCHINGS[matching](_Contours(places, on_contour, label.shape, reach), both)
  recall, precision = np.nan_to_num(quotient(hits, total))
  f1 = np.nan_to_num(quotient(2 * precision * recall, precision + recall))
  return f1, *has_contour


class _Contours(NamedTuple):
  """The contours of the truth and of the prediction, and when their pixels are near.

  Attributes:
    places: of each of the two, flat indices of the pixels on contours.
    classes: of these pixels.
    size: (H, W).
    reach: the square of the distance in pixels.
  """

  places: Sequence[np.ndarray]
  classes: Sequence[np.ndarray]
  size: tuple[int, int]
  reach: int


def _near(contours: _Contours, counted: np.ndarray) -> np.ndarray:
  """i[2, K]: pixels of the classes `counted` i[K] that are near any of the other contour."""
  places, classes, size, reach = contours
  count = 1 + max(on.max(initial=-1) for on in classes)
  hits = np.zeros((2, count), np.int64)
  for start in range(0, len(counted), _CLASSES):
    bits = _class_bits(counted[start : start + _CLASSES], count)
    for side, other in ((0, 1), (1, 0)):
      sets = np.zeros(size, bits.dtype)
      sets.ravel()[places[other]] = bits[classes[other]]
      near = spread(sets, reach).ravel()[places[side]] & bits[classes[side]]
      hits[side] += np.bincount(classes[side][near > 0], minlength=count)
  return hits[:, counted]


def _one_to_one(contours: _Contours, counted: np.ndarray) -> np.ndarray:
  """As `_near`, of pixels that have a partner in the matching with most pairs."""
  places, classes, size, reach = contours
  pairs = np.zeros(len(counted), np.int64)
  for i, k in enumerate(counted):
    points = (place[on == k] for place, on in zip(places, classes, strict=True))
    pairs[i] = _most_pairs(*points, size, reach)
  return np.stack([pairs, pairs])


def _most_pairs(a: np.ndarray, b: np.ndarray, size: tuple[int, int], reach: int) -> int:
  """The most pairs of near pixels, given as flat indices i[A] and i[B]; each is in one at most.

  It is the maximum flow from a source through the pixels of `a` and their partners to a sink: SciPy
  computes that in milliseconds for contours of 360 x 480 pixels for which its bipartite matching
  takes seconds.
  """
  pad = math.isqrt(reach)
  index = np.full((size[0] + 2 * pad, size[1] + 2 * pad), -1)
  y, x = np.divmod(b, size[1])
  index[y + pad, x + pad] = np.arange(len(b))
  y, x = np.divmod(a, size[1])
  down, right = np.mgrid[-pad : pad + 1, -pad : pad + 1].reshape(2, -1)
  disk = down**2 + right**2 <= reach
  pairs = []
  for first in range(0, len(a), _BLOCK):
    block = slice(first, first + _BLOCK)
    partner = index[y[block, None] + pad + down[disk], x[block, None] + pad + right[disk]]
    row, nth = np.nonzero(partner >= 0)
    pairs.append((first + row, partner[row, nth]))
  of_a, of_b = (np.concatenate(part) for part in zip(*pairs, strict=True))
  # Nodes: the pixels of a, those of b, the source, the sink.
  source, sink = len(a) + len(b), len(a) + len(b) + 1
  in_b = len(a) + np.arange(len(b))
  start = np.concatenate([np.full(len(a), source), of_a, in_b])
  end = np.concatenate([np.arange(len(a)), in_b[of_b], np.full(len(b), sink)])
  graph = sparse.csr_array((np.ones(len(start), np.int32), (start, end)), (sink + 1, sink + 1))
  return csgraph.maximum_flow(graph, source, sink).flow_value


_MATCHINGS = {'any': _near, 'one_to_one': _one_to_one}


def contour(classes: np.ndarray) -> np.ndarray:
  """The pixels bool[H, W] of a map i[H, W] that have a 4-neighbor of another class."""
  edge = np.zeros(classes.shape, bool)
  across, along = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
  edge[1:] |= across
  edge[:-1] |= across
  edge[:, 1:] |= along
  edge[:, :-1] |= along
  return edge


def spread(bits: np.ndarray, reach: int) -> np.ndarray:
  """Joins the bits of all pixels within a distance.

  All classes spread together, in time proportional to the distance, where a distance transform
  would be needed for each class.

  Args:
    bits: u[H, W], a set of classes for each pixel.
    reach: the square of the distance in pixels.

  Returns:
    u[H, W]: the union of the sets of the pixels whose squared distance is at most `reach`.
  """
  height, width = bits.shape
  result, row, half = np.zeros_like(bits), bits.copy(), 0
  # Rows of the disk from the farthest, which is the shortest, to the one in the middle.
  for step in range(min(math.isqrt(reach), height - 1), -1, -1):
    while half < min(math.isqrt(reach - step**2), width - 1):
      half += 1
      row[:, half:] |= bits[:, :-half]
      row[:, :-half] |= bits[:, half:]
    result[step:] |= row[: height - step]
    result[: height - step] |= row[step:]
  return result


def _class_bits(classes: np.ndarray, num_classes: int) -> np.ndarray:
  """u[C + 1]: a bit for each of up to 64 classes, 0 for others."""
  dtype = next(t for t in _SETS if len(classes) <= 8 * np.dtype(t).itemsize)
  bits = np.zeros(num_classes + 1, dtype)
  bits[classes] = np.left_shift(dtype(1), np.arange(len(classes), dtype=dtype))
  return bits
