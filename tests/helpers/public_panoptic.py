"""PQ by the public algorithm of panopticapi, rewritten with dictionaries and float64."""

from typing import NamedTuple

import numpy as np


class Labeled(NamedTuple):
  """An image: its map of ids i[H, W], and {id: (class, crowd)} in the order of the file."""

  ids: np.ndarray
  segments: dict[int, tuple[int, bool]]


def public_counts(truth, prediction, stats, crowds='last', forgiven='sum'):
  """Adds an image to {class: [sum of IoU, TP, FP, FN]} as panopticapi's evaluation does."""
  pairs = truth.ids.astype(np.int64) * 2**32 + prediction.ids
  pixels = dict(zip(*(x.tolist() for x in np.unique(pairs, return_counts=True)), strict=True))
  pixels = {divmod(pair, 2**32): count for pair, count in pixels.items()}
  areas = [{}, {}]
  for pair, count in pixels.items():
    for side in (0, 1):
      areas[side][pair[side]] = areas[side].get(pair[side], 0) + count
  matched = [set(), set()]
  for (t, p), shared in pixels.items():
    if t not in truth.segments or p not in prediction.segments or truth.segments[t][1]:
      continue
    if truth.segments[t][0] != prediction.segments[p][0]:
      continue
    iou = shared / (areas[0][t] + areas[1][p] - shared - pixels.get((0, p), 0))
    if iou > 0.5:
      stat = stats.setdefault(truth.segments[t][0], [0.0, 0, 0, 0])
      stat[0], stat[1] = stat[0] + iou, stat[1] + 1
      matched[0].add(t)
      matched[1].add(p)
  regions = {}
  for t, (label, crowd) in truth.segments.items():
    if crowd:
      regions[label] = [*(regions.get(label, []) if crowds == 'all' else []), t]
    elif t not in matched[0]:
      stats.setdefault(label, [0.0, 0, 0, 0])[3] += 1
  for p, (label, _) in prediction.segments.items():
    if p in matched[1]:
      continue
    parts = [pixels.get((0, p), 0), sum(pixels.get((t, p), 0) for t in regions.get(label, []))]
    parts = [sum(parts)] if forgiven == 'sum' else parts
    if not any(part / areas[1][p] > 0.5 for part in parts):
      stats.setdefault(label, [0.0, 0, 0, 0])[2] += 1


def public_averages(stats, isthing):
  """{'': (PQ, SQ, RQ), '_things': …, '_stuff': …} of the averages over classes."""
  averages = {}
  for group, wanted in {'': (0, 1), '_things': (1,), '_stuff': (0,)}.items():
    rows = []
    for label, (iou, tp, fp, fn) in stats.items():
      if isthing[label] in wanted and tp + fp + fn:
        weight = tp + 0.5 * fp + 0.5 * fn
        rows.append((iou / weight, iou / tp if tp else 0, tp / weight))
    averages[group] = np.mean(rows, axis=0) if rows else [np.nan] * 3
  return averages
