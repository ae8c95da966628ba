"""Draws the examples of reports and the overlays of `segjax predict`, for each task."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import geometry, read
from segjax.data.config import DataConfig
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import coco as coco_format
from segjax.data.sample import Objects
from segjax.metrics import coco
from segjax.report import overlays
from segjax.types import Segments


def draw_labels(
  spec: DatasetSpec,
  data: DataConfig,
  image: np.ndarray,
  truth: np.ndarray,
  prediction: np.ndarray,
  uncertainty: np.ndarray | None,
) -> dict[str, np.ndarray]:
  """Panels of a semantic example: image, truth, prediction and errors; uncertainty if given.

  Args:
    spec: of the data set.
    data: for the normalization of images.
    image: f32[H, W, C], normalized.
    truth: i[H, W].
    prediction: i[H, W].
    uncertainty: f32[H, W] or None.

  Returns:
    u8[H, W, 3] by title.
  """
  shown = overlays.denormalize(image, data.mean, data.std)
  panels = overlays.panels(shown, truth, prediction, spec.palette)
  return panels if uncertainty is None else {**panels, 'uncertainty': overlays.heat(uncertainty)}


def draw_objects(
  spec: DatasetSpec,
  data: DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  annotation: Mapping[str, Any],
  detections: Mapping[str, np.ndarray],
  *,
  paste: coco.Paste,
  threshold: float,
) -> dict[str, np.ndarray]:
  """Panels of an instance example: the image without padding, true and detected objects.

  Args:
    spec: of the data set.
    data: for the normalization of images.
    image: f32[H, W, C], normalized and padded.
    size: (height, width) of the image without its padding.
    annotation: an entry of `batch['annotations']`, see `segjax.metrics.coco`.
    detections: fields of `Detections`, without the batch axis.
    paste: see `coco.image_result`.
    threshold: objects with a lower score are not drawn.

  Returns:
    u8[sH, sW, 3] by title, see `overlays.objects`.
  """
  shown = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  # At the input size of the network, not at the original size.
  seen = {'height': size[0], 'width': size[1], 'scale': (1.0, 1.0)}
  found = coco.image_result(detections, seen, paste if 'masks' in detections else None)
  truth = _true_objects(annotation, size)
  names = [spec.class_names[k] for k in truth.classes]
  return {
    'image': overlays.objects(shown, (), (), ()),  # enlarged like the others
    'truth': overlays.objects(shown, truth.boxes, spec.palette[truth.classes], names, truth.masks),
    'prediction': draw_result(spec, threshold, shown, found),
  }


def _true_objects(annotation: Mapping[str, Any], size: tuple[int, int]) -> Objects:
  native = (annotation['height'], annotation['width'])
  objects = read.decode_objects(annotation['objects'], native)
  return geometry.move_objects(objects, size)


def draw_panoptic(
  spec: DatasetSpec,
  data: DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  native: tuple[int, int],
  truth: Segments,
  prediction: Segments,
) -> dict[str, np.ndarray]:
  """Panels of a panoptic example at the original size: image, true and predicted segments.

  Args:
    spec: of the data set.
    data: for the normalization of images.
    image: f32[H, W, C], normalized and padded.
    size: (height, width) of the image without its padding.
    native: (height, width) of the original image.
    truth: without the batch axis, ids at the original size, padded.
    prediction: likewise.

  Returns:
    u8[sH, sW, 3] by title, see `overlays.segments`.
  """
  shown = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  shown = geometry.resize_image(shown, native)
  window = np.s_[: native[0], : native[1]]
  return {
    'image': overlays.segments(shown, np.zeros(native, int), (), ()),  # enlarged like the others
    'truth': draw_segments(spec, shown, truth._replace(ids=truth.ids[window])),
    'prediction': draw_segments(spec, shown, prediction._replace(ids=prediction.ids[window])),
  }


def draw_segments(spec: DatasetSpec, image: np.ndarray, segments: Segments) -> np.ndarray:
  """Draws segments (without the batch axis) and their class names on an image u8[H, W, C]."""
  labels = [
    f'{spec.class_names[k]} (crowd)' if crowd else spec.class_names[k]
    for k, crowd in zip(segments.classes, segments.crowd, strict=True)
  ]
  return overlays.segments(image, segments.ids, spec.palette[segments.classes], labels)


def draw_result(
  spec: DatasetSpec, threshold: float, image: np.ndarray, result: coco.ImageResult
) -> np.ndarray:
  """Draws objects with a score of at least `threshold` on an image u8[H, W, C], best on top."""
  shown = np.flatnonzero(result['scores'] >= threshold)
  boxes, classes = result['boxes'][shown], result['classes'][shown]
  masks, size = result['masks'], image.shape[:2]
  labels = [
    f'{spec.class_names[k]} {score:.2f}'
    for k, score in zip(classes, result['scores'][shown], strict=True)
  ]
  return overlays.objects(
    image,
    np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    spec.palette[classes],
    labels,
    None if masks is None else [coco_format.decode_mask(masks[i], size) for i in shown],
  )
