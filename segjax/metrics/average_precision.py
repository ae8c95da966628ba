"""The matching and the averages of COCO's evaluation, for all images of a split at once.

The same rules as `COCOeval.evaluateImg` and `COCOeval.accumulate` of pycocotools, which run them
one class, image, size range, threshold and detection at a time:

- Detections of a class in an image take turns, highest score first; the first 100 count.
- At a threshold, a detection takes the free object of its class and image with the highest IoU of
  at least the threshold; of equal ones the last. If there is none, it may take an ignored object:
  a crowd, which is never used up, or an object outside the size range.
- A detection that takes an ignored object does not count, nor one that takes none and is outside
  the size range. The others are right or wrong.

Only pairs with an IoU of at least the lowest threshold can match. They are few, and all classes and
images take their turn together, at all thresholds and in all size ranges.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = (1, 10, 100)
# Areas in pixels, both ends included: all, small, medium, large.
AREAS = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2


class Detections(NamedTuple):
  """Detections of a split, sorted by class, image and falling score, see `order_detections`.

  Attributes:
    images: i[D], position of the image in the split.
    classes: i[D].
    scores: f[D].
    ranks: i[D], position among the detections of the same class and image.
  """

  images: np.ndarray
  classes: np.ndarray
  scores: np.ndarray
  ranks: np.ndarray


class Objects(NamedTuple):
  """Objects of a split, sorted by class and image.

  Attributes:
    images: i[N], position of the image in the split.
    classes: i[N].
    areas: f[N], in pixels.
    crowd: bool[N].
  """

  images: np.ndarray
  classes: np.ndarray
  areas: np.ndarray
  crowd: np.ndarray


class Pairs(NamedTuple):
  """Detections and objects of the same class and image whose IoU is at least `THRESHOLDS[0]`.

  Attributes:
    detections, objects: i[P], indices.
    ious: f[P].
  """

  detections: np.ndarray
  objects: np.ndarray
  ious: np.ndarray


class Curves(NamedTuple):
  """-1 for classes without objects in the size range.

  Attributes:
    precision: f64[thresholds, recalls, classes, areas], with `MAX_DETECTIONS[-1]` detections.
    recall: f64[thresholds, classes, areas, max detections].
  """

  precision: np.ndarray
  recall: np.ndarray


class Matches(NamedTuple):
  """The detections that have a pair, in increasing order.

  Attributes:
    detections: i[M], indices.
    right, counted: bool[M, thresholds, areas]; not counted are those that are ignored.
  """

  detections: np.ndarray
  right: np.ndarray
  counted: np.ndarray


def order_detections(
  images: np.ndarray, classes: np.ndarray, scores: np.ndarray, most: int = MAX_DETECTIONS[-1]
) -> tuple[np.ndarray, Detections]:
  """Sorts detections and drops those that do not count.

  Args:
    images, classes: i[K].
    scores: f[K]; of equal ones in an image the first comes first.
    most: detections of an image and class that count, by default those that AP and AR consider.

  Returns:
    i[D], the index of each sorted detection; and the sorted detections.
  """
  order = np.lexsort((-scores, images, classes))
  ranks = _ranks(images[order], classes[order])
  kept = ranks < most
  order = order[kept]
  return order, Detections(images[order], classes[order], scores[order], ranks[kept])


def common_groups(detections: Detections, objects: Objects) -> list[tuple[slice, slice]]:
  """The detections and the objects of each class and image that has both."""
  size = 1 + max(detections.images.max(initial=0), objects.images.max(initial=0))
  sides = [
    np.unique(side.classes * size + side.images, return_index=True, return_counts=True)
    for side in (detections, objects)
  ]
  _, *places = np.intersect1d(sides[0][0], sides[1][0], assume_unique=True, return_indices=True)
  rows, columns = (
    [slice(i, i + n) for i, n in zip(first[at].tolist(), count[at].tolist(), strict=True)]
    for (_, first, count), at in zip(sides, places, strict=True)
  )
  return list(zip(rows, columns, strict=True))


def near_pairs(groups: Sequence[tuple[slice, slice]], ious: Sequence[np.ndarray]) -> Pairs:
  """The pairs that can match, from f[detections, objects] of each of `common_groups`."""
  parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
  for (rows, columns), values in zip(groups, ious, strict=True):
    row, column = np.nonzero(values >= THRESHOLDS[0])
    parts.append((rows.start + row, columns.start + column, values[row, column]))
  return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def curves(
  detections: Detections, areas: np.ndarray, objects: Objects, pairs: Pairs, num_classes: int
) -> Curves:
  """Precision and recall of each class.

  Args:
    detections: D sorted ones.
    areas: f[D], their areas in pixels.
    objects: see `Objects`.
    pairs: in any order.
    num_classes: C.
  """
  inside = _inside(areas)
  matches = match(detections, inside, objects, pairs)
  # In a class, images share one order by score; equal scores keep the order of the images.
  order = np.lexsort((-detections.scores, detections.classes))
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  by_place = np.argsort(place[matches.detections])
  matches = Matches(*(field[by_place] for field in matches))
  place, ranks = place[matches.detections], detections.ranks[matches.detections]

  classes = np.arange(num_classes + 1)
  first = np.searchsorted(detections.classes, classes)
  first_match = np.searchsorted(detections.classes[matches.detections], classes)
  counted_objects = np.zeros((num_classes, len(AREAS)), np.int64)
  np.add.at(counted_objects, objects.classes, ~_ignored(objects))

  precision = -np.ones((len(THRESHOLDS), len(RECALLS), num_classes, len(AREAS)))
  recall = -np.ones((len(THRESHOLDS), num_classes, len(AREAS), len(MAX_DETECTIONS)))
  for k in np.flatnonzero(counted_objects.any(1)):
    own = slice(first_match[k], first_match[k + 1])
    matched, right = matches.detections[own], matches.right[own]
    # What would be counted without any match, then what the matches change.
    alone = inside[order[first[k] : first[k + 1]]].cumsum(0)[place[own] - first[k]]
    change = matches.counted[own].astype(np.int64) - inside[matched][:, None]
    counted = alone[:, None] + change.cumsum(0)
    for a in np.flatnonzero(counted_objects[k]):
      total = counted_objects[k, a]
      precision[:, :, k, a] = _precision(right[..., a], counted[..., a], total)
      for m, most in enumerate(MAX_DETECTIONS):
        recall[:, k, a, m] = right[ranks[own] < most, :, a].sum(0) / total
  return Curves(precision, recall)


def match(detections: Detections, inside: np.ndarray, objects: Objects, pairs: Pairs) -> Matches:
  """Matches detections with objects, see the module docstring.

  Args:
    detections: D sorted ones.
    inside: bool[D, areas], whether the area of the detection is in the range.
    objects: see `Objects`.
    pairs: in any order.
  """
  candidates, pair_rows = np.unique(pairs.detections, return_inverse=True)
  turns = _ranks(detections.images[candidates], detections.classes[candidates])
  # By turn and detection; of a detection from the worst object to the best.
  order = np.lexsort((pairs.objects, pairs.ious, pair_rows, turns[pair_rows]))
  rows, things, ious = pair_rows[order], pairs.objects[order], pairs.ious[order]
  ignored = _ignored(objects)
  shape = (len(THRESHOLDS), len(AREAS))
  free = np.ones((len(objects.crowd), *shape), bool)
  right = np.zeros((len(candidates), *shape), bool)
  counted = np.repeat(inside[candidates, None], len(THRESHOLDS), axis=1)

  turn_ends = np.searchsorted(turns[rows], np.arange(turns.max(initial=-1) + 2))
  for begin, end in zip(turn_ends[:-1], turn_ends[1:], strict=True):
    count, thing = end - begin, things[begin:end]
    starts = np.flatnonzero(np.diff(rows[begin:end], prepend=-1))
    possible = free[thing] & (ious[begin:end, None] >= THRESHOLDS)[..., None]
    # Any object that counts is preferred to any ignored one.
    preference = np.arange(count)[:, None] + count * ~ignored[thing]
    best = np.maximum.reduceat(np.where(possible, preference[:, None], -1), starts)
    found, row = best >= 0, rows[begin:end][starts]
    right[row] = best >= count
    counted[row] = np.where(found, best >= count, counted[row])
    taken = thing[best % count]
    used = np.nonzero(found & ~objects.crowd[taken])
    free[(taken[used], *used[1:])] = False
  return Matches(candidates, right, counted)


def _precision(right: np.ndarray, counted: np.ndarray, total: int) -> np.ndarray:
  """The highest precision at each recall or a higher one; 0 where the recall is not reached.

  Args:
    right: bool[M, T], of the detections with a pair, highest score first.
    counted: i[M, T], how many detections count up to each.
    total: number of objects.

  Returns:
    f64[T, recalls].
  """
  found = right.cumsum(0)
  precision = found / (counted + np.spacing(1))
  best = np.maximum.accumulate(precision[::-1])[::-1]
  # The number of objects that a recall requires, by the comparison of floats in pycocotools.
  required = np.searchsorted(np.arange(1, total + 1) / total, RECALLS) + 1
  values = np.zeros((right.shape[1], len(RECALLS)))
  for value, column, reached in zip(values, best.T, found.T, strict=True):
    place = np.searchsorted(reached, required)
    known = place < len(column)
    value[known] = column[place[known]]
  return values


def _ranks(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """The position of each sorted entry among those of the same image and class."""
  place = np.arange(len(images))
  changes = (np.diff(images, prepend=-1) != 0) | (np.diff(classes, prepend=-1) != 0)
  return place - np.maximum.accumulate(np.where(changes, place, 0))


def _inside(areas: np.ndarray) -> np.ndarray:
  """bool[n, areas]: whether f[n] is in each size range."""
  return (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])


def _ignored(objects: Objects) -> np.ndarray:
  """bool[N, areas]: the objects that detections may match but need not."""
  return objects.crowd[:, None] | ~_inside(objects.areas)
