"""COCO's average precision and boundary F1 beside public code, on simulated predictions."""

import contextlib
import copy
import functools
import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.metrics import boundary, coco
from segjax.ops.paste_masks import paste_masks, paste_regions
from speed import harness
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
    # Copies, as `loadRes` adds to the entries.
    numbers: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
      for kind, entries in (('bbox', results), ('segm', masks)):
        evaluation = evaluator(api, api.loadRes([dict(entry) for entry in entries]), kind)
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

  def state() -> coco.Columns:
    return metric.merge(*(metric.from_batch(*batch) for batch in batches))

  results = [result for batch in batches for result in coco.image_results(*batch, paste_regions)]

  def score() -> dict[str, Any]:
    return metric.compute(coco.compare(results, coco.KINDS))

  classes = options.pick(80, 3)

  def run() -> dict[str, float]:
    values = metric.compute(state()) if whole else score()
    return {name: value for name, value in values.items() if name != 'per_class'}

  if not options.peers:
    return Work(run)
  programs = _coco_peers(dataset(batches, classes), coco.coco_results(results, range(classes)))
  if package not in programs:
    raise ModuleNotFoundError(f'No module named {package}', name=package)

  def same(found: list, others: Mapping[str, list]) -> str:
    mine = [found[0][f'{kind}_{name}'] for kind in ('box', 'mask') for name in coco.STATS]
    theirs = np.array(others[package][0], float)
    error = np.abs(np.nan_to_num(mine, nan=-1) - theirs).max()
    assert error <= _EXACT, f'the 24 numbers differ by {error:.1e}'
    return f'24 numbers equal to {_EXACT:g}'

  return Work(run, {package: programs[package]}, same)


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
  'boundary_f1': Row('boundary F1, 11 classes, 360 × 480', _boundary),
}
