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

Each process pastes, encodes and compares what is in its own images. What is left of them is a few
numbers for each detection and object, `Columns`, which are all that the averages over the split
need: they are merged and travel between processes. Each process then computes the curves of its own
classes, which travel in turn.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as mask_lib

from segjax.metrics import average_precision
from segjax.metrics.average_precision import Curves, Objects, Pairs
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
# What the averages over a split need of some of its images, see `compare`.
Columns: TypeAlias = Mapping[str, np.ndarray]
Paste = Callable[[np.ndarray, np.ndarray, tuple[int, int]], Iterable[tuple[Region, np.ndarray]]]
# Boxes f64[n, 4], x, y, width, height; or masks as pycocotools has them.
_Shapes: TypeAlias = np.ndarray | list[Mapping[str, Any]]
# pycocotools' `area` takes at most 255 masks.
_PART = 255


def measures(*kinds: str) -> tuple[str, ...]:
  """Names of the numbers of `coco_metrics`, such as `mask_ap`."""
  return tuple(f'{kind}_{name}' for kind in kinds for name in STATS)


def coco_metrics(
  class_names: Sequence[str],
  kinds: Sequence[str] = ('box', 'mask'),
  paste: Paste = paste_regions,
  *,
  min_score: float = 0.5,
) -> Metric:
  """COCO AP and AR on the host, see `scores`; its state are the `Columns` of some images.

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
  fields = [name for name in Detections._fields if name != 'masks' or kind == 'mask']

  def image_scores(
    predictions: Mapping[str, np.ndarray], batch: Mapping[str, Any], state: Columns
  ) -> np.ndarray:
    del predictions
    f1 = np.full(len(batch['valid']), np.nan)
    f1[np.flatnonzero(batch['valid'])] = image_f1(state, kind, min_score)
    return f1

  def from_batch(predictions: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> Columns:
    results = image_results(predictions, batch, paste if 'mask' in kinds else None)
    return compare(results, kinds)

  return Metric(
    name='coco',
    from_batch=from_batch,
    compute=lambda state: scores(state, class_names, kinds),
    share=lambda state, index, count: class_curves(state, kinds, len(class_names), index, count),
    join=lambda parts: join_curves(parts, class_names, kinds),
    device=False,
    merge=merge_columns,
    reads=(*fields, 'regions', 'annotations'),
    image_scores=image_scores,
    image_measure='f1',
  )


def image_results(
  predictions: Mapping[str, np.ndarray], batch: Mapping[str, Any], paste: Paste | None
) -> list[ImageResult]:
  """`image_result` of each valid image of a batch; arguments as there and in `coco_metrics`."""
  return [
    image_result(
      {key: value[i] for key, value in predictions.items() if value is not None},
      batch['annotations'][i],
      paste,
    )
    for i in np.flatnonzero(batch['valid'])
  ]


def image_result(
  detections: Mapping[str, np.ndarray], annotation: Mapping[str, Any], paste: Paste | None
) -> ImageResult:
  """The annotations of an image and its valid detections in original pixels.

  Args:
    detections: boxes f32[K, 4] in input pixels, classes i32[K], scores f32[K], valid bool[K] and,
      with `paste`, masks f32[K, M, M]. Where there are `regions` f32[K, 4], boxes in input pixels
      such as the whole image with its padding, masks are logits f32[K, h, w] inside these.
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
  scale = (scale_x, scale_y, scale_x, scale_y)
  boxes = detections['boxes'][valid].astype(np.float64) / scale
  boxes = np.clip(boxes, 0, (size[1], size[0]) * 2)
  masks = None
  if paste is not None:
    masks, filled = detections['masks'][valid], boxes.astype(np.float32)
    if 'regions' in detections:
      filled = (detections['regions'][valid] / scale).astype(np.float32)
      paste = functools.partial(paste_regions, rule='logits', threshold=0.0)
    pasted = paste(masks, filled, size)
    masks = [encode_region(region, values, size) for region, values in pasted]
  return {
    'annotation': annotation,
    'boxes': np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
    'classes': np.array(detections['classes'][valid]),
    'scores': np.array(detections['scores'][valid]),
    'masks': masks,
  }


def compare(results: Sequence[ImageResult], kinds: Sequence[str]) -> Columns:
  """Compares the detections of each image with its objects.

  Args:
    results: one per image.
    kinds: of `KINDS`.

  Returns:
    Columns of four tables.
    Images: `image_id` i64[I].
    Detections, image by image: `detection_image` i64[D], row of the image; `class` i64[D]; `score`
    f64[D]; for each kind, such as `mask`, `mask_area` f64[D], in pixels.
    Objects, image by image: `object_image` i64[N], row of the image; `category` i64[N]; `area`
    f64[N]; `crowd` bool[N].
    For each kind, pairs of a detection and an object of the same image and class that may match:
    `mask_detection` and `mask_object` i64[P], rows of the two; `mask_iou` f64[P].
  """
  ids = [int(result['annotation']['image_id']) for result in results]
  images = np.repeat(np.arange(len(results)), [len(result['scores']) for result in results])
  classes = _concatenate([result['classes'] for result in results], np.int64)
  values = _concatenate([result['scores'] for result in results], np.float64)
  numbered = [(i, x) for i, result in enumerate(results) for x in result['annotation']['objects']]
  things = [thing for _, thing in numbered]
  columns = {
    'image_id': np.array(ids, np.int64),
    'detection_image': images,
    'class': classes,
    'score': values,
    'object_image': np.array([i for i, _ in numbered], np.int64),
    'category': np.array([thing['category'] for thing in things], np.int64),
    'area': np.array([thing['area'] for thing in things], np.float64),
    'crowd': np.array([thing['iscrowd'] for thing in things], bool),
  }
  # All: AP takes the first 100 of a class, the F1 of an image each one.
  order, detections = average_precision.order_detections(images, classes, values, len(values))
  places, objects = _order_objects(columns)
  groups = average_precision.common_groups(detections, objects)
  for kind in kinds:
    found, true = _found(results, kind), _true([things[i] for i in places], kind)
    areas, found = _areas(found, kind), _take(found, order)
    ious = [_ious(found[rows], true[at], objects.crowd[at]) for rows, at in groups]
    pairs = average_precision.near_pairs(groups, ious)
    columns |= {
      f'{kind}_area': areas,
      f'{kind}_detection': order[pairs.detections],
      f'{kind}_object': places[pairs.objects],
      f'{kind}_iou': pairs.ious,
    }
  return columns


# Columns with rows of another table -> a column of that table.
_ROWS_OF = {
  'detection_image': 'image_id',
  'object_image': 'image_id',
  **{f'{kind}_detection': 'score' for kind in KINDS},
  **{f'{kind}_object': 'crowd' for kind in KINDS},
}


def merge_columns(*parts: Columns) -> Columns:
  """The columns of the images of all parts, in order."""

  def shifted(name: str) -> list[np.ndarray]:
    if name not in _ROWS_OF:
      return [part[name] for part in parts]
    before = np.cumsum([0, *(len(part[_ROWS_OF[name]]) for part in parts)])
    return [part[name] + first for part, first in zip(parts, before[:-1], strict=True)]

  return {name: np.concatenate(shifted(name)) for name in parts[0]}


def image_f1(columns: Columns, kind: str, min_score: float) -> np.ndarray:
  """The F1 of the detections of each image, to rank images: AP is defined for a split only.

  A detection with a score of at least `min_score` matches the object of its class with the highest
  IoU among those that no better detection matched, if that is at least 0.5. One that matches a
  crowd does not count.

  Args:
    columns: of I images.
    kind: 'box' or 'mask', what the IoU is of.
    min_score: from 0 to 1.

  Returns:
    f64[I], 2 TP / (2 TP + FP + FN), or NaN if that is 0 / 0.
  """
  crowd, values = columns['crowd'], columns['score']
  ious = np.zeros((len(values), len(crowd)))
  ious[columns[f'{kind}_detection'], columns[f'{kind}_object']] = columns[f'{kind}_iou']
  count = len(columns['image_id'])
  hits, wrong, free = np.zeros(count, int), np.zeros(count, int), ~crowd
  for k in np.argsort(-values, kind='stable'):
    near, image = ious[k] >= 0.5, columns['detection_image'][k]
    if values[k] < min_score:
      break
    if (near & free).any():
      free[np.argmax(np.where(near & free, ious[k], -1))] = False
      hits[image] += 1
    elif not (near & crowd).any():
      wrong[image] += 1
  missed = np.bincount(columns['object_image'], free, count)
  divisor = 2 * hits + wrong + missed
  return np.divide(2 * hits, divisor, out=np.full(count, np.nan), where=divisor > 0)


def scores(columns: Columns, class_names: Sequence[str], kinds: Sequence[str]) -> dict[str, Any]:
  """Evaluates a split.

  Args:
    columns: of all its images.
    class_names: C names.
    kinds: of `KINDS`.

  Returns:
    For each kind, such as `mask`: `mask_ap` and the other `STATS`, as fractions, averaged over the
    classes that have objects (in the size range), and {name: {'mask_ap'}} in `per_class`. NaN
    without such objects.

  Raises:
    SegjaxError: two images have the same id.
  """
  return join_curves([class_curves(columns, kinds, len(class_names))], class_names, kinds)


def join_curves(
  parts: Sequence[Mapping[str, np.ndarray]], class_names: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
  """`scores`, from the `class_curves` of each share of the classes, in order."""
  curves = {
    kind: Curves(
      *(
        _interleave([part[f'{kind}_{name}'] for part in parts], axis)
        for name, axis in _CLASS_AXIS.items()
      )
    )
    for kind in kinds
  }
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
    results: from `image_results`.
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


# Of the fields of `Curves`.
_CLASS_AXIS = {'precision': 2, 'recall': 1}


def class_curves(
  columns: Columns, kinds: Sequence[str], num_classes: int, index: int = 0, count: int = 1
) -> dict[str, np.ndarray]:
  """The curves of every `count`-th class from the class `index` on.

  Args:
    columns: of all images of a split.
    kinds: of `KINDS`.
    num_classes: C.
    index, count: which classes; all by default.

  Returns:
    For each kind, such as `mask`, `mask_precision` and `mask_recall` as in `Curves`.

  Raises:
    SegjaxError: two images have the same id.
  """
  ids = columns['image_id']
  if len(set(ids.tolist())) < len(ids):
    raise SegjaxError(
      'two images of the split have the same image_id: make them unique in the data set'
    )
  columns = _of_classes(columns, kinds, index, count)
  # As in pycocotools, the id of the image ranks detections of equal score.
  rank = np.argsort(np.argsort(ids))
  columns |= {key: rank[columns[key]] for key in ('detection_image', 'object_image')}
  order, detections = average_precision.order_detections(
    columns['detection_image'], columns['class'], columns['score']
  )
  places, objects = _order_objects(columns)
  # Where each detection and object is now; -1 for a detection that never counts.
  detection, thing = (
    _inverse(now, len(columns[key])) for now, key in ((order, 'score'), (places, 'crowd'))
  )
  arrays = {}
  for kind in kinds:
    found = detection[columns[f'{kind}_detection']]
    pairs = Pairs(found, thing[columns[f'{kind}_object']], columns[f'{kind}_iou'])
    pairs = Pairs(*(field[found >= 0] for field in pairs))
    areas = columns[f'{kind}_area'][order]
    curves = average_precision.curves(
      detections, areas, objects, pairs, len(range(index, num_classes, count))
    )
    arrays |= {f'{kind}_{name}': value for name, value in curves._asdict().items()}
  return arrays


def _of_classes(columns: Columns, kinds: Sequence[str], index: int, count: int) -> Columns:
  """The rows of every `count`-th class from `index` on, numbered from 0, without `image_id`."""
  detection, thing = (columns[key] % count == index for key in ('class', 'category'))
  rows = {
    **dict.fromkeys(('detection_image', 'class', 'score'), detection),
    **dict.fromkeys(('object_image', 'category', 'area', 'crowd'), thing),
  }
  for kind in kinds:
    # A pair is of one class.
    pairs = detection[columns[f'{kind}_detection']]
    rows[f'{kind}_area'] = detection
    rows |= dict.fromkeys((f'{kind}_{name}' for name in ('detection', 'object', 'iou')), pairs)
  own = {name: columns[name][kept] for name, kept in rows.items()}
  # Where each kept row is now.
  places = {'score': np.cumsum(detection) - 1, 'crowd': np.cumsum(thing) - 1}
  own |= {
    name: places[table][own[name]]
    for name, table in _ROWS_OF.items()
    if table in places and name in own
  }
  return own | {name: own[name] // count for name in ('class', 'category')}


def _interleave(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
  """One array, whose entries along an axis are of each part in turn."""
  shape = list(parts[0].shape)
  shape[axis] = sum(part.shape[axis] for part in parts)
  whole = np.empty(shape)
  for i, part in enumerate(parts):
    np.moveaxis(whole, axis, 0)[i :: len(parts)] = np.moveaxis(part, axis, 0)
  return whole


def _order_objects(columns: Columns) -> tuple[np.ndarray, Objects]:
  """The row of each object, sorted by class and image; and the sorted objects."""
  places = np.lexsort((columns['object_image'], columns['category']))
  names = ('object_image', 'category', 'area', 'crowd')
  return places, Objects(*(columns[name][places] for name in names))


def _inverse(order: np.ndarray, count: int) -> np.ndarray:
  """i64[count], where each index is in `order`; -1 if it is not."""
  found = np.full(count, -1)
  found[order] = np.arange(len(order))
  return found


def _found(results: Sequence[ImageResult], kind: str) -> _Shapes:
  """The boxes or masks of all detections, image by image."""
  if kind == 'box':
    return _concatenate([result['boxes'] for result in results], np.float64, (4,))
  return [_rle(result, k) for result in results for k in range(len(result['scores']))]


def _take(shapes: _Shapes, order: np.ndarray) -> _Shapes:
  return shapes[order] if isinstance(shapes, np.ndarray) else [shapes[i] for i in order]


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
