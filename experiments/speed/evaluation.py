"""Metrics beside the public evaluation code, on simulated predictions."""

import contextlib
import copy
import functools
import importlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segjax.data.formats import panoptic as coding
from segjax.metrics import boundary, coco
from segjax.metrics import panoptic as panoptic_metric
from segjax.ops import panoptic as panoptic_ops
from segjax.ops.paste_masks import paste_masks
from segjax.types import Detections, Segments
from speed import harness, ours
from speed.row import Options, Row, Work

_EXACT = 1e-12


# --- COCO's average precision ---------------------------------------------------------------------


def simulated_detections(options: Options) -> tuple[Any, list[tuple[dict, dict]]]:
  """The metric, and batches of one image: 100 detections, of which half are near an object."""
  images, classes, count = options.pick((20, 80, 100), (2, 3, 6))
  rng = np.random.default_rng(0)
  batches = []
  for image_id in range(1, images + 1):
    size = (480, 640)
    truth = random_boxes(rng, rng.integers(1, 15), size)
    labels = rng.integers(0, classes, len(truth))
    near = rng.integers(0, len(truth), count)
    moved = truth[near] + rng.normal(0, 0.06, (count, 4)) * np.tile(extents(truth[near]), 2)
    other = random_boxes(rng, count, size)
    correct = rng.random(count) < 0.5
    boxes = np.where(correct[:, None], moved, other).clip(0, (*size[::-1], *size[::-1]))
    predictions = {
      'boxes': boxes.astype(np.float32)[None],
      'classes': np.where(correct, labels[near], rng.integers(0, classes, count))[None],
      'scores': np.sort(rng.random(count))[::-1].astype(np.float32)[None],
      'masks': ellipses(rng, count)[None],
      'valid': np.ones((1, count), bool),
    }
    annotation = annotate(image_id, size, truth, labels, ellipses(rng, len(truth)))
    batches.append((predictions, {'valid': np.ones(1, bool), 'annotations': [annotation]}))
  return coco.coco_metrics([str(k) for k in range(classes)]), batches


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
  """Boxes f64[count, 4] in an image, with sides of 12 to 300 pixels."""
  extent = np.exp(rng.uniform(np.log(12), np.log(300), (count, 2)))
  corner = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - extent)
  return np.concatenate([corner, corner + extent], -1)


def extents(boxes: np.ndarray) -> np.ndarray:
  """Widths and heights [count, 2]."""
  return boxes[:, 2:] - boxes[:, :2]


def ellipses(rng: np.random.Generator, count: int) -> np.ndarray:
  """Soft masks f32[count, 28, 28]."""
  y, x = np.mgrid[:28, :28] / 27 - 0.5
  radius = rng.uniform(0.3, 0.6, (count, 1, 1))
  return (1 / (1 + np.exp(20 * (np.hypot(y, x) - radius)))).astype(np.float32)


def annotate(
  image_id: int, size: tuple[int, int], boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray
) -> dict[str, Any]:
  """An image's entry of `batch['annotations']`; one object in twenty is a crowd."""
  from pycocotools import mask as mask_lib

  objects = []
  for k, mask in enumerate(paste_masks(masks, boxes.astype(np.float32), size)):
    rle = mask_lib.encode(np.asfortranarray(mask, np.uint8))
    objects.append(
      {
        'id': 100 * image_id + k,
        'category': int(labels[k]),
        'bbox': [*boxes[k, :2], *extents(boxes)[k]],
        'area': float(mask_lib.area(rle)),
        'iscrowd': int((100 * image_id + k) % 20 == 0),
        'rle': {'size': list(size), 'counts': rle['counts'].decode()},
      }
    )
  return {
    'image_id': image_id,
    'height': size[0],
    'width': size[1],
    'scale': (1.0, 1.0),
    'objects': objects,
  }


def dataset(batches: list[tuple[dict, dict]], classes: int) -> dict[str, Any]:
  """The annotations as a file of COCO has them."""
  entries = [batch['annotations'][0] for _, batch in batches]
  return {
    'images': [{'id': e['image_id'], 'height': e['height'], 'width': e['width']} for e in entries],
    'categories': [{'id': k, 'name': str(k)} for k in range(classes)],
    'annotations': [
      {
        **{key: thing[key] for key in ('bbox', 'area', 'iscrowd')},
        'id': thing['id'],
        'image_id': entry['image_id'],
        'category_id': thing['category'],
        'segmentation': thing['rle'],
      }
      for entry in entries
      for thing in entry['objects']
    ],
  }


def _coco_peers(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
  """The programs of the two packages: the twelve numbers of boxes, and of masks."""
  masks = [{key: value for key, value in entry.items() if key != 'bbox'} for entry in results]

  def evaluate(api: Any, evaluator: Any) -> list[float]:
    numbers: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
      for kind, entries in (('bbox', results), ('segm', masks)):
        evaluation = evaluator(api, api.loadRes(copy.deepcopy(entries)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        numbers += list(evaluation.stats[:12])
    return numbers

  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  with contextlib.redirect_stdout(io.StringIO()):
    api = COCO()
    api.dataset = copy.deepcopy(truth)
    api.createIndex()
  programs = {'pycocotools': lambda: evaluate(api, COCOeval)}
  with contextlib.suppress(ModuleNotFoundError):
    faster = importlib.import_module('faster_coco_eval')
    other = faster.COCO(copy.deepcopy(truth))
    programs['faster-coco-eval'] = lambda: evaluate(other, faster.COCOeval_faster)
  return programs


def _coco(package: str, whole: bool, options: Options) -> Work:
  """Scoring, or with `whole` also the pasting and encoding of the masks on our side alone."""
  metric, batches = simulated_detections(options)

  def state() -> list[Any]:
    return [result for batch in batches for result in metric.from_batch(*batch)]

  ready = state()
  classes = options.pick(80, 3)

  def run() -> dict[str, float]:
    values = metric.compute(state() if whole else ready)
    return {name: value for name, value in values.items() if name != 'per_class'}

  if not options.peers:
    return Work(run)
  programs = _coco_peers(dataset(batches, classes), coco.coco_results(ready, range(classes)))
  if package not in programs:
    raise ModuleNotFoundError(f'No module named {package}', name=package)

  def same(found: list, others: Mapping[str, list]) -> str:
    mine = [found[0][f'{kind}_{name}'] for kind in ('box', 'mask') for name in coco.STATS]
    theirs = np.array(others[package][0], float)
    error = np.abs(np.nan_to_num(mine, nan=-1) - theirs).max()
    assert error <= _EXACT, f'the 24 numbers differ by {error:.1e}'
    return f'24 numbers equal to {_EXACT:g}'

  return Work(run, {package: programs[package]}, same)


# --- panoptic quality -----------------------------------------------------------------------------

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
    boxes=random_boxes(rng, _DETECTIONS, label.shape).astype(np.float32),
    classes=rng.integers(0, _THINGS, _DETECTIONS).astype(np.int32),
    scores=(scores + np.sort(rng.random(_DETECTIONS))[::-1] / 2).astype(np.float32),
    masks=ellipses(rng, _DETECTIONS),
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


_merge = functools.partial(
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
  segments = ours.call(_merge, *_batched((label, detections)))[0]()
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
  directory = tempfile.TemporaryDirectory()
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
    (Path(directory.name) / name_).write_bytes(image)
    entries.append({'file_name': name_, 'image_id': 1, 'segments_info': infos})

  def run(directory: Any = directory) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
      stats = module.pq_compute_single_core(
        0, [entries], directory.name, directory.name, dict.fromkeys(range(_CLASSES))
      )
    return np.array([[s.iou, s.tp, s.fp, s.fn] for s in (stats[c] for c in range(_CLASSES))])

  return {name.partition('.')[0]: run}


def _merging(above: int, options: Options) -> Work:
  """Merging the detections with the semantic label, beside NumPy on masks of the whole image."""
  del options
  label, detections, _ = panoptic_scene(above)
  run, cost = ours.call(_merge, *_batched((label, detections)))

  def same(found: list, others: Mapping[str, list]) -> str:
    differ = int((np.asarray(found[0].ids)[0] != others['NumPy'][0][1]).sum())
    assert differ < 10, f'{differ} pixels differ'
    return f'the same segments but for {differ} pixels'

  return Work(run, {'NumPy': lambda: merge_numpy(label, detections)}, same, cost)


# --- boundary F1 ----------------------------------------------------------------------------------


def _boundary(options: Options) -> Work:
  """BF of eleven classes, beside SciPy's distance transform."""
  rng = np.random.default_rng(0)
  rows, columns = options.pick((18, 24), (2, 3))
  small = rng.integers(0, 11, (rows, columns))
  label = np.kron(small, np.ones((20, 20), int)).astype(np.int32)
  moved = np.roll(label, (3, 5), (0, 1))
  tolerance = 0.0075

  def with_scipy() -> np.ndarray:
    from scipy import ndimage

    reach = tolerance * np.hypot(*label.shape) * (1 + 1e-9)
    f1 = np.zeros(11)
    for k in range(11):
      edges = [
        mask & ~ndimage.binary_erosion(mask, border_value=1) for mask in (label == k, moved == k)
      ]
      if not all(edge.any() for edge in edges):
        continue
      near = [ndimage.distance_transform_edt(~edge) <= reach for edge in edges]
      recall, precision = near[1][edges[0]].mean(), near[0][edges[1]].mean()
      f1[k] = 2 * precision * recall / max(precision + recall, 1e-30)
    return f1

  def same(found: list, others: Mapping[str, list]) -> str:
    return harness.close(found[0][0], others['SciPy'][0], _EXACT, 'F1 of 11 classes')

  run = lambda: boundary.boundary_f1(moved, label, 11, tolerance)
  return Work(run, {'SciPy': with_scipy}, same)


def _coco_row(work: str, package: str, whole: bool, target: float | None) -> Row:
  return Row(work, functools.partial(_coco, package, whole), target)


_SCORING = 'COCO AP, boxes + masks, 20 images × 100 detections'
ROWS = {
  'coco': _coco_row(f'{_SCORING}, beside pycocotools', 'pycocotools', False, 0.2),
  'coco_faster': _coco_row(f'{_SCORING}, beside faster-coco-eval', 'faster-coco-eval', False, None),
  'coco_whole': _coco_row(
    f'{_SCORING}; ours with pasting and encoding the masks', 'pycocotools', True, None
  ),
  'pq': Row('PQ of an image, 480 × 640', _pq),
  'panoptic_merge_10': Row('panoptic merging, 10 instances', functools.partial(_merging, 10)),
  'panoptic_merge_100': Row('panoptic merging, 100 instances', functools.partial(_merging, 100)),
  'boundary_f1': Row('boundary F1, 11 classes, 360 × 480', _boundary),
}
