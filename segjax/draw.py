"""Draws the examples of reports and of data pages, and the overlays of `segjax predict`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import geometry, read
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import coco as coco_format
from segjax.data.sample import Objects, Sample
from segjax.metrics import coco
from segjax.report import overlays
from segjax.types import IGNORE_LABEL, Segments

# Larger images are resized to fit before annotations are drawn, so that names can still be read.
_SHOWN = (512, 512)


def draw_labels(
  spec: DatasetSpec,
  image: np.ndarray,
  truth: np.ndarray,
  prediction: np.ndarray,
  uncertainty: np.ndarray | None,
) -> dict[str, np.ndarray]:
  """Panels of a semantic example: image, truth, prediction and errors; uncertainty if given.

  Args:
    spec: of the data set.
    image: u8[H, W, C].
    truth: i[H, W].
    prediction: i[H, W].
    uncertainty: f32[H, W] or None.

  Returns:
    u8[H, W, 3] by title.
  """
  panels = overlays.panels(image, truth, prediction, spec.palette)
  return panels if uncertainty is None else {**panels, 'uncertainty': overlays.heat(uncertainty)}


def draw_objects(
  spec: DatasetSpec,
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
    image: u8[H, W, C], padded.
    size: (height, width) of the image without its padding.
    annotation: an entry of `batch['annotations']`, see `segjax.metrics.coco`.
    detections: fields of `Detections`, without the batch axis.
    paste: see `coco.image_result`.
    threshold: objects with a lower score are not drawn.

  Returns:
    u8[sH, sW, 3] by title, see `overlays.objects`.
  """
  shown = image[: size[0], : size[1]]
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
  image: np.ndarray,
  size: tuple[int, int],
  native: tuple[int, int],
  truth: Segments,
  prediction: Segments,
) -> dict[str, np.ndarray]:
  """Panels of a panoptic example at the original size: image, true and predicted segments.

  Args:
    spec: of the data set.
    image: u8[H, W, C], padded.
    size: (height, width) of the image without its padding.
    native: (height, width) of the original image.
    truth: without the batch axis, ids at the original size, padded.
    prediction: likewise.

  Returns:
    u8[sH, sW, 3] by title, see `overlays.segments`.
  """
  shown = geometry.resize_image(image[: size[0], : size[1]], native)
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


def draw_example(spec: DatasetSpec, example: read.Example) -> dict[str, np.ndarray]:
  """Panels of an example as it is stored: the image alone, and with its annotation.

  Returns:
    u8[H, W, 3] by title.
  """
  wanted = example.reader.config.annotations
  sample = example.sample(train='segments' not in wanted)
  bare = sample._replace(label=None, objects=None, segments=None)
  return {'image': draw_sample(spec, bare), 'annotation': draw_sample(spec, sample)}


def draw_row(spec: DatasetSpec, batch: Mapping[str, Any], row: int, margin: int = 0) -> np.ndarray:
  """Draws an example of a training batch, as the network sees it, with its annotation.

  Args:
    spec: of the data set.
    batch: of `pipeline.train_batches`.
    row: of the batch.
    margin: pixels that images extend beyond their labels on each side.

  Returns:
    u8[H, W, 3], without the padding of images with objects.
  """
  image = batch['image'][row]
  label = batch['label'][row].astype(np.uint16) if 'label' in batch else None
  if 'instances' not in batch:
    inside = np.s_[margin : image.shape[0] - margin, margin : image.shape[1] - margin]
    canvas = _repeat_gray(image)
    canvas[inside] = overlays.overlay(image[inside], label, spec.palette)
    return canvas
  height, width = batch['size'][row]
  boxes, classes, masks, crowd, valid = (field[row] for field in batch['instances'])
  unpacked = np.unpackbits(masks[valid], axis=-1)[:, :height, :width]
  return draw_sample(
    spec,
    Sample(
      image[:height, :width],
      None if label is None else label[:height, :width],
      objects=Objects(boxes[valid], classes[valid], unpacked, crowd[valid]),
    ),
  )


def draw_sample(spec: DatasetSpec, sample: Sample) -> np.ndarray:
  """Draws what a sample has of annotations on its image: segments, else objects, else the label.

  Objects with a label, as panoptic tasks are trained on, are drawn as segments.

  Returns:
    u8[H, W, 3], resized to fit into 512 x 512 if it is larger; small images with objects are
    enlarged, see `overlays.objects`.
  """
  sample = _shrink(sample)
  image, label, _, objects, segments = sample
  if segments is None and objects is not None and label is not None:
    segments = _as_segments(spec, label, objects)
  if segments is not None:
    return draw_segments(spec, image, segments)
  if objects is not None:
    names = [
      f'{spec.class_names[k]} (crowd)' if crowd else spec.class_names[k]
      for k, crowd in zip(objects.classes, objects.crowd, strict=True)
    ]
    colors = spec.palette[objects.classes]
    return overlays.objects(image, objects.boxes, colors, names, objects.masks)
  return _repeat_gray(image) if label is None else overlays.overlay(image, label, spec.palette)


def _shrink(sample: Sample) -> Sample:
  """The sample, its segments too, resized to fit into `_SHOWN` if it is larger."""
  size = geometry.fit_size(sample.size, _SHOWN)
  if size[0] >= sample.size[0]:
    return sample
  resized = geometry.resize(sample, size)
  return resized.change(
    segments=lambda segments: segments._replace(ids=geometry.resize_label(segments.ids, size))
  )


def _as_segments(spec: DatasetSpec, label: np.ndarray, objects: Objects) -> Segments:
  """The segments behind a label map and the things in it, each on top of those before."""
  ids = np.zeros(label.shape, np.int32)
  stuff = [int(k) for k in np.unique(label) if k != IGNORE_LABEL and k not in spec.things]
  for number, k in enumerate(stuff, 1):
    ids[label == k] = number
  for number, mask in enumerate(objects.masks, len(stuff) + 1):
    ids[mask > 0] = number
  things = [spec.things[k] for k in objects.classes]
  crowd = np.array([False] * len(stuff) + objects.crowd.tolist(), bool)
  classes = np.array(stuff + things, np.int32)
  return Segments(ids, classes, crowd=crowd, valid=np.ones(len(classes), bool))


def _repeat_gray(image: np.ndarray) -> np.ndarray:
  """u8[H, W, C] -> u8[H, W, 3], new."""
  return np.repeat(image, 3 // image.shape[2], axis=2)
