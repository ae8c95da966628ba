"""COCO's average precision and recall of boxes and masks, as pycocotools computes them.

Detections are brought back to the original image: boxes divided by its scale and clipped to it,
masks pasted at its own size. What is then measured is the official evaluation's own code: IoU
0.50 ... 0.95, 101 recall points, at most 100 detections of a class in an image, sizes by the
annotation's area (32² and 96² pixels), crowds neither found nor missed.

Annotations come on the host, as `batch['annotations']`, a dict for each image:
  image_id        a number, unique in the split
  height, width   of the original image
  scale           input pixels for one original pixel, (y, x)
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

# What is measured, and what pycocotools calls it.
KINDS = {'box': 'bbox', 'mask': 'segm'}
# The twelve numbers of `COCOeval.stats`, in its order.
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
) -> Metric:
  """COCO AP and AR on the host, see `scores`; its state is a list of `image_result`.

  Reads `predictions`, the fields of `segjax.types.Detections` as NumPy arrays by name,
  `batch['valid']` bool[B] and `batch['annotations']`, see the module; entries that are not valid
  may be None there.

  Args:
    class_names: one a class index.
    kinds: 'box', 'mask' or both; masks are not looked at without 'mask'.
    paste: as `image_result` has it.
  """

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
  )


def image_result(
  detections: Mapping[str, np.ndarray], annotation: Mapping[str, Any], paste: Paste | None
) -> ImageResult:
  """The valid detections of an image in its original pixels, beside its annotations.

  Args:
    detections: boxes f32[K, 4] in input pixels, classes i32[K], scores f32[K], valid bool[K] and,
      with `paste`, masks f32[K, M, M].
    annotation: an entry of `batch['annotations']`.
    paste: `(masks f32[K, M, M], boxes f32[K, 4], (height, width)) -> bool[K, height, width]`, as
      `segjax.ops.paste_masks.paste_masks`; None for boxes alone.

  Returns:
    `annotation`; `boxes` f64[K', 4], x, y, width, height; `classes`; `scores`; and `masks`, COCO's
    compressed run lengths, or None. They hold no reference to the batch's arrays.
  """
  valid = np.asarray(detections['valid'])
  size = (annotation['height'], annotation['width'])
  scale_y, scale_x = annotation['scale']
  boxes = detections['boxes'][valid].astype(np.float64) / (scale_x, scale_y, scale_x, scale_y)
  boxes = np.clip(boxes, 0, (size[1], size[0]) * 2)
  masks = None
  if paste is not None:
    # One at a time: all masks of a large image at once would take hundreds of megabytes.
    pairs = zip(detections['masks'][valid], boxes.astype(np.float32), strict=True)
    masks = [_encode(paste(mask[None], box[None], size)[0]) for mask, box in pairs]
  return {
    'annotation': annotation,
    'boxes': np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
    'classes': np.array(detections['classes'][valid]),
    'scores': np.array(detections['scores'][valid]),
    'masks': masks,
  }


def scores(
  results: Sequence[ImageResult], class_names: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
  """Evaluates a split.

  Args:
    results: of each image once.
    class_names: C names.
    kinds: of `KINDS`.

  Returns:
    For each kind, such as `mask`: `mask_ap` and the others of `STATS`, as fractions, averaged over
    the classes that have an object (of that size), and {name: {'mask_ap'}} in `per_class`. nan
    where there is no such object.

  Raises:
    SegjaxError: an image comes twice.
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
  """The detections as entries of COCO's results format, for a JSON file that `COCO.loadRes` reads.

  Args:
    results: the state of the metric.
    category_ids: the data set's id of each class index.

  Returns:
    {'image_id', 'category_id', 'bbox': [x, y, width, height], 'score'} and, where there are masks,
    'segmentation'. With both, `loadRes` takes an object's size class from its box, in the
    evaluation of masks too: leave 'bbox' out for that one, and the mask's own area counts, as in
    `scores`.
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
    raise SegjaxError('two images of the split have the same image_id: number them in the data set')
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
  """The objects of an image as pycocotools wants them."""
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
  """Of the box or of the mask, whichever is measured."""
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
    # Numbered from 1: to pycocotools an object 0 is never found.
    'annotations': [{'id': number, **entry} for number, entry in enumerate(entries, start=1)],
  }
  api.createIndex()
  return api


def _class_ap(evaluation: COCOeval, k: int) -> float:
  precision = evaluation.eval['precision'][:, :, k, 0, -1]  # of all sizes, 100 detections
  return _known(precision[precision > -1].mean()) if (precision > -1).any() else float('nan')


def _known(value: float) -> float:
  """-1 is how pycocotools says that there is nothing to measure."""
  return float(value) if value > -1 else float('nan')


def _rle(result: ImageResult, k: int) -> dict[str, Any]:
  annotation = result['annotation']
  return {'size': [annotation['height'], annotation['width']], 'counts': result['masks'][k]}


def _encode(mask: np.ndarray) -> str:
  return mask_lib.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
