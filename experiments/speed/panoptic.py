"""Panoptic merging and PQ beside the public algorithm, on a simulated scene."""

import contextlib
import functools
import importlib
import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from segjax.data.formats import panoptic as coding
from segjax.metrics import panoptic as panoptic_metric
from segjax.ops import panoptic as panoptic_ops
from segjax.ops.paste_masks import paste_masks
from segjax.types import Detections, Segments
from speed import commands, evaluation, ours
from speed.row import Options, Row, Work

_EXACT = 1e-12
_THINGS, _CLASSES, _DETECTIONS, _SEGMENTS = 80, 133, 100, 64
# The semantic labels: "other", then the stuff.
_STUFF = (None, *range(_THINGS, _CLASSES))
_STUFF_AREA = 4096


def panoptic_scene(above: int) -> tuple[np.ndarray, Detections, Segments]:
  """A semantic label, 100 detections with `above` scores over 0.5, and a similar ground truth."""
  rng = np.random.default_rng(0)
  label = np.kron(rng.choice([5, 9, 17, 30, 48], (6, 8)), np.ones((80, 80), int)).astype(np.int32)
  scores = np.where(np.arange(_DETECTIONS) < above, 0.5, 0.0)
  detections = Detections(
    boxes=evaluation.random_boxes(rng, _DETECTIONS, label.shape).astype(np.float32),
    classes=rng.integers(0, _THINGS, _DETECTIONS).astype(np.int32),
    scores=(scores + np.sort(rng.random(_DETECTIONS))[::-1] / 2).astype(np.float32),
    masks=evaluation.ellipses(rng, _DETECTIONS),
    valid=np.ones(_DETECTIONS, bool),
  )
  # The truth is 40 segments of the merged result, moved.
  found, ids = merge_numpy(label, detections)
  names = list(found)[:40]
  true = np.zeros_like(ids)
  for number, name in enumerate(names, start=1):
    true[6:, 9:][ids[:-6, :-9] == name] = number
  classes = np.zeros(_SEGMENTS, np.int32)
  classes[: len(names)] = [found[name] for name in names]
  valid = np.bincount(true.ravel(), minlength=_SEGMENTS + 1)[1:] > 0
  return label, detections, Segments(true, classes, np.zeros(_SEGMENTS, bool), valid)


def merge_numpy(label: np.ndarray, detections: Detections) -> tuple[dict[int, int], np.ndarray]:
  """{id: class} and the map of ids: masks of the whole image one after another, then the stuff."""
  ids, found = np.zeros(label.shape, np.int32), {}
  for k in np.argsort(-detections.scores, kind='stable'):
    if detections.scores[k] < 0.5:
      break
    box = slice(k, k + 1)
    [mask] = paste_masks(
      detections.masks[box], detections.boxes[box], label.shape, rule='detectron2'
    )
    free = mask & (ids == 0)
    area, left = mask.sum(), free.sum()
    if area and (area - left) / area <= 0.5:
      ids[free] = k + 1
      found[int(k) + 1] = int(detections.classes[k])
  for value in np.unique(label):
    mask = (label == value) & (ids == 0)
    if _STUFF[value] is not None and mask.sum() >= _STUFF_AREA:
      number = _DETECTIONS + int(value)
      ids[mask], found[number] = number, _STUFF[value]
  return found, ids


def quality_numpy(found: Mapping[int, int], ids: np.ndarray, truth: Segments) -> np.ndarray:
  """f64[C, 4], the sum of IoU, TP, FP and FN, by the dictionaries of panopticapi; no crowds."""
  true = {k + 1: int(c) for k, c in enumerate(truth.classes) if truth.valid[k]}
  values, counts = np.unique(truth.ids.astype(np.int64) * 2**24 + ids, return_counts=True)
  pairs = {divmod(int(v), 2**24): int(n) for v, n in zip(values, counts, strict=True)}
  true_area, area = np.bincount(truth.ids.ravel()), np.bincount(ids.ravel())
  stats = np.zeros((_CLASSES, 4))
  matched_true, matched = set(), set()
  for (t, p), shared in pairs.items():
    if t and p and true[t] == found[p]:
      iou = shared / (true_area[t] + area[p] - shared - pairs.get((0, p), 0))
      if iou > 0.5:
        stats[true[t]] += (iou, 1, 0, 0)
        matched_true.add(t)
        matched.add(p)
  for t in true.keys() - matched_true:
    stats[true[t], 3] += 1
  for p in found.keys() - matched:
    if pairs.get((0, p), 0) / area[p] <= 0.5:
      stats[found[p], 2] += 1
  return stats


merge = functools.partial(
  panoptic_ops.merge_segments,
  thing_classes=range(_THINGS),
  stuff_classes=_STUFF,
  stuff_area=_STUFF_AREA,
)


def _quality(segments: Segments, truth: Segments) -> dict[str, Any]:
  return panoptic_metric.panoptic_counts(segments, truth, _CLASSES)


def as_stats(counts: Mapping[str, Any]) -> np.ndarray:
  """Our counts as f64[C, 4], see `quality_numpy`."""
  iou = panoptic_metric.add_up(np.asarray(counts['iou']))
  return np.stack([iou, *(np.asarray(counts[key]) for key in ('tp', 'fp', 'fn'))], 1)


def _batched(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.asarray(x)[None], tree)


def _pq(options: Options) -> Work:
  """PQ of an image from its segments; the peers' from the PNG files of truth and prediction."""
  del options
  label, detections, truth = panoptic_scene(10)
  found, ids = merge_numpy(label, detections)
  segments = ours.call(merge, *_batched((label, detections)))[0]()
  run, cost = ours.call(_quality, segments, _batched(truth))
  images = [coding.encode_ids(array) for array in (truth.ids, ids)]

  def through_png() -> np.ndarray:
    decoded = [coding.rgb_to_ids(_decode(image)) for image in images]
    return quality_numpy(found, decoded[1], truth._replace(ids=decoded[0]))

  programs = {'NumPy, as panopticapi': through_png, **_public_pq(found, truth, images)}

  def same(results: list, others: Mapping[str, list]) -> str:
    mine = as_stats(results[0])
    for theirs in others.values():
      assert np.abs(mine - theirs[0]).max() <= _EXACT, 'PQ differs'
    return f'IoU, TP, FP and FN of {_CLASSES} classes equal to {_EXACT:g}'

  return Work(run, programs, same, cost)


def _decode(image: bytes) -> np.ndarray:
  from PIL import Image

  return np.asarray(Image.open(io.BytesIO(image)))


def _public_pq(found: Mapping[int, int], truth: Segments, images: list[bytes]) -> dict[str, Any]:
  """The program of panopticapi or of its copy in cityscapesscripts, if one is installed."""
  for name in (
    'panopticapi.evaluation',
    'cityscapesscripts.evaluation.evalPanopticSemanticLabeling',
  ):
    with contextlib.suppress(ModuleNotFoundError):
      module = importlib.import_module(name)
      break
  else:
    return {}
  directory = commands.scratch()
  area = np.bincount(truth.ids.ravel(), minlength=_SEGMENTS + 1)
  segments = (
    [
      {'id': k + 1, 'category_id': int(c), 'area': int(area[k + 1]), 'iscrowd': 0}
      for k, c in enumerate(truth.classes)
      if truth.valid[k]
    ],
    [{'id': k, 'category_id': c} for k, c in found.items()],
  )
  entries = []
  for name_, image, infos in zip(('truth.png', 'found.png'), images, segments, strict=True):
    (directory / name_).write_bytes(image)
    entries.append({'file_name': name_, 'image_id': 1, 'segments_info': infos})

  def run() -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
      stats = module.pq_compute_single_core(
        0, [entries], directory, directory, dict.fromkeys(range(_CLASSES))
      )
    return np.array([[s.iou, s.tp, s.fp, s.fn] for s in (stats[c] for c in range(_CLASSES))])

  return {name.partition('.')[0]: run}


def _merging(above: int, options: Options) -> Work:
  """Merging the detections with the semantic label, beside NumPy on masks of the whole image."""
  del options
  label, detections, _ = panoptic_scene(above)
  run, cost = ours.call(merge, *_batched((label, detections)))

  def same(found: list, others: Mapping[str, list]) -> str:
    differ = int((np.asarray(found[0].ids)[0] != others['NumPy'][0][1]).sum())
    assert differ < 10, f'{differ} pixels differ'
    return f'the same segments but for {differ} pixels'

  return Work(run, {'NumPy': lambda: merge_numpy(label, detections)}, same, cost)


ROWS = {
  'pq': Row('PQ of an image, 480 × 640', _pq),
  'panoptic_merge_10': Row('panoptic merging, 10 instances', functools.partial(_merging, 10)),
  'panoptic_merge_100': Row('panoptic merging, 100 instances', functools.partial(_merging, 100)),
}
