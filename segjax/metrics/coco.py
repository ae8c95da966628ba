"""COCO's average precision and recall of boxes and masks, as pycocotools computes them.

Detections are mapped to the original image: boxes are divided by the scale and clipped, masks are
pasted at the original size. The official evaluation code then computes AP and AR: IoU 0.50 …
0.95, 101 recall points, at most 100 detections per class and image, size ranges by annotated area
(32² and 96² pixels), crowds ignored.

Annotations are on the host, in `batch['annotations']`, one dict per image:
  image_id        a number, unique in the split
  height, width   of the original image
  scale           input pixels per original pixel, (y, x)
  objects         list of {'id', 'category': class index from 0, 'bbox': [x, y, width, height] in
                  original pixels, 'area', 'iscrowd', 'rle': {'size': [H, W], 'counts'}}
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.metrics.base import Metric
from segjax.ops.paste_masks import paste_masks
from segjax.types import Detections, SegjaxError

# Kinds of evaluation, and their `iouType` in pycocotools.
KINDS = {'box': 'bbox', 'mask': 'segm'}
# The twelve values of `COCOeval.stats`, in order.
STATS = (
  'ap',
  'ap50',
  'ap75',
  'ap_small',
  'ap_medium',
  'ap_large',
  'ar1',
  'ar10',
  'ar100',
  'ar_small',
  'ar_medium',
  'ar_large',
)

# The detections and the annotations of one image, see `image_result`.
ImageResult = Mapping[str, Any]
Paste = Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]


def coco_metrics(
  class_names: Sequence[str],
  kinds: Sequence[str] = ('box', 'mask'),
  paste: Paste = paste_masks,
  *,
  min_score: float = 0.5,
) -> Metric:
  """COCO AP and AR on the host, see `scores`; its state is a list of `image_result`.

  Reads `predictions`, the fields of `segjax.types.Detections` as NumPy arrays by name,
  `batch['valid']` bool[B] and `batch['annotations']`, see the module docstring; entries of padding
  examples may be None.

  Args:
    class_names: one per class index.
    kinds: 'box', 'mask' or both.
    paste: see `image_result`.
    min_score: detections with a lower score do not count in the F1 of an image, see `image_f1`.
  """
  kind = 'mask' if 'mask' in kinds else 'box'

  def image_scores(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, Any], results: list[ImageResult]
  ) -> np.ndarray:
    del predictions
    f1 = np.full(len(batch['valid']), np.nan)
    f1[np.flatnonzero(batch['valid'])] = [image_f1(r, kind, min_score) for r in results]
    return f1

  def from_batch(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, Any]
  ) -> list[ImageResult]:
    return [
      image_result(
        {key: value[i] for key, value in predictions.items() if value is not None},
        batch['annotations'][i],
        paste if 'mask' in kinds else None,
      )
      for i in np.flatnonzero(batch['valid'])
    ]

  return Metric(
    name='coco',
    from_batch=from_batch,
    compute=lambda results: scores(results, class_names, kinds),
    device=False,
    merge=lambda a, b: a + b,
    reads=(*Detections._fields, 'annotations'),
    image_scores=image_scores,
    image_measure='f1',
  )


def image_result(
  detections: Mapping[str, np.ndarray], annotation: Mapping[str, Any], paste: Paste | None
) -> ImageResult:
  """The annotations of an image and its valid detections in original pixels.

  Args:
    detections: boxes f32[K, 4] in input pixels, classes i32[K], scores f32[K], valid bool[K] and,
      with `paste`, masks f32[K, M, M].
    annotation: an entry of `batch['annotations']`.
    paste: `(masks f32[K, M, M], boxes f32[K, 4], (height, width)) -> bool[K, height, width]`, as
      `segjax.ops.paste_masks.paste_masks`; None for boxes only.

  Returns:
    `annotation`; `boxes` f64[K', 4], x, y, width, height; `classes`; `scores`; and `masks`, COCO's
    compressed RLE, or None. They do not reference arrays of the batch.
  """
  valid = np.asarray(detections['valid'])
  size = (annotation['height'], annotation['width'])
  scale_y, scale_x = annotation['scale']
  boxes = detections['boxes'][valid].astype(np.float64) / (scale_x, scale_y, scale_x, scale_y)
  boxes = np.clip(boxes, 0, (size[1], size[0]) * 2)
  masks = None
  if paste is not None:
    # One at a time: all masks of a large image would take hundreds of megabytes.
    pairs = zip(detections['masks'][valid], boxes.astype(np.float32), strict=True)
    masks = [_encode(paste(mask[None], box[None], size)[0]) for mask, box in pairs]
  return {
    'annotation': annotation,
    'boxes': np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
    'classes': np.array(detections['classes'][valid]),
    'scores': np.array(detections['scores'][valid]),
    'masks': masks,
  }


def image_f1(result: ImageResult, kind: str, min_score: float) -> float:
  """The F1 of an image's detections, to rank images: AP is defined for a split only.

  A detection with a score of at least `min_score` matches the object of its class with the highest
  IoU among those that no better detection matched, if that is at least 0.5. One that matches a
  crowd does not count.

  Args:
    result: see `image_result`.
    kind: 'box' or 'mask', what the IoU is of.
    min_score: from 0 to 1.

  Returns:
    2 TP / (2 TP + FP + FN), or NaN if that is 0 / 0.
  """
  truth = _truth(result, kind)
  chosen = [
    k for k in np.argsort(-result['scores'], kind='stable') if result['scores'][k] >= min_score
  ]
  crowd = np.array([thing['iscrowd'] for thing in truth], bool)
  classes = np.array([thing['category_id'] for thing in truth], int)
  free, hits, wrong = ~crowd, 0, 0
  ious = _ious(result, chosen, truth, kind)
  for row, k in enumerate(chosen):
    near = (ious[row] >= 0.5) & (classes == result['classes'][k])
    if (near & free).any():
      free[np.argmax(np.where(near & free, ious[row], -1))] = False
      hits += 1
    elif not (near & crowd).any():
      wrong += 1
  divisor = 2 * hits + wrong + free.sum()
  return float(2 * hits / divisor) if divisor else float('nan')


def _ious(
  result: ImageResult, chosen: Sequence[int], truth: Sequence[Mapping[str, Any]], kind: str
) -> np.ndarray:
  """f64[K, N], the IoU of the chosen detections with the objects; of a crowd, as COCO has it."""
  if not len(chosen) or not truth:
    return np.zeros((len(chosen), len(truth)))
  crowd = [thing['iscrowd'] for thing in truth]
  if kind == 'mask':
    found = [_rle(result, k) for k in chosen]
    return mask_lib.iou(found, [thing['segmentation'] for thing in truth], crowd)
  boxes = np.array([thing['bbox'] for thing in truth], np.float64)
  return mask_lib.iou(np.asarray(result['boxes'], np.float64)[chosen], boxes, crowd)


def scores(
  results: Sequence[ImageResult], class_names: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
  """Evaluates a split.

  Args:
    results: one per image.
    class_names: C names.
    kinds: of `KINDS`.

  Returns:
    For each kind, such as `mask`: `mask_ap` and the other `STATS`, as fractions, averaged over the
    classes that have objects (in the size range), and {name: {'mask_ap'}} in `per_class`. NaN
    without such objects.

  Raises:
    SegjaxError: two images have the same id.
  """
  evaluated = {kind: _evaluate(results, class_names, kind) for kind in kinds}
  summary = {
    f'{kind}_{name}': _known(value)
    for kind, evaluation in evaluated.items()
    for name, value in zip(STATS, evaluation.stats, strict=True)
  }
  return {
    **summary,
    'per_class': {
      name: {f'{kind}_ap': _class_ap(evaluated[kind], k) for kind in kinds}
      for k, name in enumerate(class_names)
    },
  }


def coco_results(
  results: Sequence[ImageResult], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
  """The detections in COCO's results format, for `COCO.loadRes`.

  Args:
    results: the state of the metric.
    category_ids: the data set's id of each class index.

  Returns:
    {'image_id', 'category_id', 'bbox': [x, y, width, height], 'score'} and, with masks,
    'segmentation'. With both, `loadRes` computes the area from the box, also for mask evaluation:
    remove 'bbox' to use the area of the mask, as in `scores`.
  """
  return [
    {
      'image_id': int(result['annotation']['image_id']),
      'category_id': int(category_ids[result['classes'][k]]),
      'bbox': result['boxes'][k].tolist(),
      'score': float(result['scores'][k]),
      **({'segmentation': _rle(result, k)} if result['masks'] is not None else {}),
    }
    for result in results
    for k in range(len(result['scores']))
  ]


def _evaluate(results: Sequence[ImageResult], class_names: Sequence[str], kind: str) -> COCOeval:
  images = [
    {'id': int(a['image_id']), 'height': a['height'], 'width': a['width']}
    for a in (result['annotation'] for result in results)
  ]
  if len({image['id'] for image in images}) < len(images):
    raise SegjaxError(
      'two images of the split have the same image_id: make them unique in the data set'
    )
  truth = [entry for result in results for entry in _truth(result, kind)]
  found = coco_results(results, range(len(class_names)))
  for entry in found:
    entry |= {'area': _area(entry, kind), 'iscrowd': 0}
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
    truth, found = (_index(images, class_names, entries) for entries in (truth, found))
    evaluation = COCOeval(truth, found, KINDS[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation


def _truth(result: ImageResult, kind: str) -> list[dict[str, Any]]:
  """The objects of an image in the format of pycocotools."""
  return [
    {
      'image_id': int(result['annotation']['image_id']),
      'category_id': int(thing['category']),
      'bbox': [float(value) for value in thing['bbox']],
      'area': float(thing['area']),
      'iscrowd': int(thing['iscrowd']),
      **({'segmentation': thing['rle']} if kind == 'mask' else {}),
    }
    for thing in result['annotation']['objects']
  ]


def _area(entry: Mapping[str, Any], kind: str) -> float:
  """The area of the box or the mask, depending on the kind."""
  if kind == 'mask':
    return float(mask_lib.area(entry['segmentation']))
  return entry['bbox'][2] * entry['bbox'][3]


def _index(
  images: list[dict[str, Any]], class_names: Sequence[str], entries: list[dict[str, Any]]
) -> COCO:
  api = COCO()
  api.dataset = {
    'images': images,
    'categories': [{'id': k, 'name': name} for k, name in enumerate(class_names)],
    # From 1: pycocotools never matches an object with id 0.
    'annotations': [{'id': number, **entry} for number, entry in enumerate(entries, start=1)],
  }
  api.createIndex()
  return api


def _class_ap(evaluation: COCOeval, k: int) -> float:
  precision = evaluation.eval['precision'][:, :, k, 0, -1]  # all sizes, 100 detections
  return _known(precision[precision > -1].mean()) if (precision > -1).any() else float('nan')


def _known(value: float) -> float:
  """`value`, or NaN for -1, which pycocotools returns if there is nothing to measure."""
  return float(value) if value > -1 else float('nan')


def _rle(result: ImageResult, k: int) -> dict[str, Any]:
  annotation = result['annotation']
  return {'size': [annotation['height'], annotation['width']], 'counts': result['masks'][k]}


def _encode(mask: np.ndarray) -> str:
  return mask_lib.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
