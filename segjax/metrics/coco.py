"""COCO's average precision and recall of boxes and masks, as pycocotools computes them.

Detections are mapped to the original image: boxes are divided by the scale and clipped, masks are
pasted at the original size. AP and AR follow the official evaluation code: IoU 0.50 … 0.95, 101
recall points, at most 100 detections per class and image, size ranges by annotated area (32² and
96² pixels), crowds ignored. pycocotools computes the IoUs, `segjax.metrics.average_precision`
matches and averages, and the tests compare every number with those of pycocotools alone.

Annotations are on the host, in `batch['annotations']`, one dict per image:
  image_id        a number, unique in the split
  height, width   of the original image
  scale           input pixels per original pixel, (y, x)
  objects         list of {'id', 'category': class index from 0, 'bbox': [x, y, width, height] in
                  original pixels, 'area', 'iscrowd', 'rle': {'size': [H, W], 'counts'}}
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as mask_lib

from segjax.metrics import average_precision
from segjax.metrics.average_precision import Curves, Objects
from segjax.metrics.base import Metric
from segjax.ops.paste_masks import paste_regions
from segjax.ops.run_lengths import Region, encode_region
from segjax.types import Detections, SegjaxError

# Kinds of evaluation: by boxes or by masks.
KINDS = ('box', 'mask')
# The twelve values of pycocotools' `COCOeval.stats`, in order.
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
Paste = Callable[[np.ndarray, np.ndarray, tuple[int, int]], Iterable[tuple[Region, np.ndarray]]]
# Boxes f64[n, 4], x, y, width, height; or masks as pycocotools has them.
_Shapes: TypeAlias = np.ndarray | list[Mapping[str, Any]]
# pycocotools' `area` takes at most 255 masks.
_PART = 255


def coco_metrics(
  class_names: Sequence[str],
  kinds: Sequence[str] = ('box', 'mask'),
  paste: Paste = paste_regions,
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
    paste: `(masks f32[K, M, M], boxes f32[K, 4], (height, width)) -> K pairs of a region and
      bool[rows, columns]`, as `segjax.ops.paste_masks.paste_regions`; None for boxes only.

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
    pasted = paste(detections['masks'][valid], boxes.astype(np.float32), size)
    masks = [encode_region(region, values, size) for region, values in pasted]
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
  chosen = [
    k for k in np.argsort(-result['scores'], kind='stable') if result['scores'][k] >= min_score
  ]
  things = result['annotation']['objects']
  crowd = np.array([thing['iscrowd'] for thing in things], bool)
  classes = np.array([thing['category'] for thing in things], int)
  free, hits, wrong = ~crowd, 0, 0
  ious = _ious(_found([result], chosen, kind), _true(things, kind), crowd)
  for row, k in enumerate(chosen):
    near = (ious[row] >= 0.5) & (classes == result['classes'][k])
    if (near & free).any():
      free[np.argmax(np.where(near & free, ious[row], -1))] = False
      hits += 1
    elif not (near & crowd).any():
      wrong += 1
  divisor = 2 * hits + wrong + free.sum()
  return float(2 * hits / divisor) if divisor else float('nan')


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
  curves = _curves(results, kinds, len(class_names))
  summary = {
    f'{kind}_{name}': value
    for kind in kinds
    for name, value in zip(STATS, _stats(curves[kind]), strict=True)
  }
  return {
    **summary,
    'per_class': {
      name: {f'{kind}_ap': _mean(curves[kind].precision[:, :, k, 0]) for kind in kinds}
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


def _curves(
  results: Sequence[ImageResult], kinds: Sequence[str], num_classes: int
) -> dict[str, Curves]:
  ids = [int(result['annotation']['image_id']) for result in results]
  if len(set(ids)) < len(ids):
    raise SegjaxError(
      'two images of the split have the same image_id: make them unique in the data set'
    )
  # As in pycocotools, the id of the image ranks detections of equal score.
  results = [results[i] for i in np.argsort(ids)]
  order, detections = average_precision.order_detections(
    np.repeat(np.arange(len(results)), [len(result['scores']) for result in results]),
    _concatenate([result['classes'] for result in results], np.int64),
    _concatenate([result['scores'] for result in results], np.float64),
  )
  things, objects = _objects(results)
  groups = average_precision.common_groups(detections, objects)
  curves = {}
  for kind in kinds:
    found, true = _found(results, order, kind), _true(things, kind)
    ious = [_ious(found[rows], true[columns], objects.crowd[columns]) for rows, columns in groups]
    pairs = average_precision.near_pairs(groups, ious)
    curves[kind] = average_precision.curves(
      detections, _areas(found, kind), objects, pairs, num_classes
    )
  return curves


def _objects(results: Sequence[ImageResult]) -> tuple[list[Mapping[str, Any]], Objects]:
  """The objects of all images by class and image: as annotated, and as arrays."""
  numbered = [(i, x) for i, result in enumerate(results) for x in result['annotation']['objects']]
  numbered.sort(key=lambda pair: (pair[1]['category'], pair[0]))
  things = [thing for _, thing in numbered]
  return things, Objects(
    images=np.array([i for i, _ in numbered], np.int64),
    classes=np.array([thing['category'] for thing in things], np.int64),
    areas=np.array([thing['area'] for thing in things], np.float64),
    crowd=np.array([thing['iscrowd'] for thing in things], bool),
  )


def _found(results: Sequence[ImageResult], order: Sequence[int], kind: str) -> _Shapes:
  """The boxes or masks of the detections at `order`, which counts over all images."""
  if kind == 'box':
    return _concatenate([result['boxes'] for result in results], np.float64, (4,))[order]
  places = [(result, k) for result in results for k in range(len(result['scores']))]
  return [_rle(*places[i]) for i in order]


def _true(things: Sequence[Mapping[str, Any]], kind: str) -> _Shapes:
  if kind == 'box':
    return np.array([thing['bbox'] for thing in things], np.float64).reshape(-1, 4)
  return [thing['rle'] for thing in things]


def _areas(shapes: _Shapes, kind: str) -> np.ndarray:
  """f64[n], in pixels."""
  if kind == 'box':
    return shapes[:, 2] * shapes[:, 3]
  parts = [mask_lib.area(shapes[i : i + _PART]) for i in range(0, len(shapes), _PART)]
  return _concatenate(parts, np.float64)


def _ious(found: _Shapes, true: _Shapes, crowd: np.ndarray) -> np.ndarray:
  """f64[K, N], the IoU of detections with objects; of a crowd, as COCO has it."""
  if not len(found) or not len(true):
    return np.zeros((len(found), len(true)))
  return mask_lib.iou(found, true, crowd)


def _stats(curves: Curves) -> list[float]:
  """The values of `STATS`."""
  precision, recall = curves
  half, three_quarters = (average_precision.THRESHOLDS.tolist().index(t) for t in (0.5, 0.75))
  return [
    _mean(precision[..., 0]),
    _mean(precision[half, ..., 0]),
    _mean(precision[three_quarters, ..., 0]),
    *(_mean(precision[..., size]) for size in (1, 2, 3)),
    *(_mean(recall[..., 0, most]) for most in (0, 1, 2)),
    *(_mean(recall[..., size, -1]) for size in (1, 2, 3)),
  ]


def _mean(values: np.ndarray) -> float:
  """The mean of what is not -1; NaN if all are."""
  values = values[values > -1]
  return float(values.mean()) if values.size else float('nan')


def _concatenate(
  parts: Sequence[np.ndarray], dtype: type, shape: tuple[int, ...] = ()
) -> np.ndarray:
  """The concatenation of any number of arrays [n, *shape], also of none."""
  return np.concatenate([np.zeros((0, *shape), dtype), *parts]).astype(dtype)


def _rle(result: ImageResult, k: int) -> dict[str, Any]:
  annotation = result['annotation']
  return {'size': [annotation['height'], annotation['width']], 'counts': result['masks'][k]}
