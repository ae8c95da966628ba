"""What the pictures of each task show."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import datasets, instances, pipeline, transforms
from segjax.data.formats import coco as coco_data
from segjax.metrics import coco
from segjax.report import overlays
from segjax.types import Segments


def draw_labels(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  truth: np.ndarray,
  prediction: np.ndarray,
  uncertainty: np.ndarray | None,
) -> dict[str, np.ndarray]:
  """The image, its labels, those predicted, what is wrong, and of samples how sure they are."""
  picture = overlays.denormalize(image, data.mean, data.std)
  panels = overlays.panels(picture, truth, prediction, spec.palette)
  return panels if uncertainty is None else {**panels, 'uncertainty': overlays.heat(uncertainty)}


def draw_objects(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  annotation: Mapping[str, Any],
  detections: Mapping[str, np.ndarray],
  *,
  paste: coco.Paste,
  threshold: float,
) -> dict[str, np.ndarray]:
  """The image inside its padding, its objects, and those found with a score from `threshold` on."""
  picture = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  # At the size of the picture, and not at the image's own.
  inside = {'height': size[0], 'width': size[1], 'scale': (1.0, 1.0)}
  found = coco.image_result(detections, inside, paste if 'masks' in detections else None)
  native = (annotation['height'], annotation['width'])
  truth = instances.decode(annotation['objects'], native)
  truth = instances.resize(instances.Picture(np.zeros((*native, 1), np.uint8), truth), size).objects
  names = [spec.class_names[k] for k in truth.classes]
  drawn = overlays.objects(picture, truth.boxes, spec.palette[truth.classes], names, truth.masks)
  return {
    'image': overlays.objects(picture, (), (), ()),  # as large as the others
    'truth': drawn,
    'prediction': draw_result(spec, threshold, picture, found),
  }


def draw_panoptic(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  native: tuple[int, int],
  truth: Segments,
  prediction: Segments,
) -> dict[str, np.ndarray]:
  """The image inside its padding, at its own size, and its true and its predicted segments."""
  picture = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  picture = transforms.resize_image(picture, native)
  window = np.s_[: native[0], : native[1]]
  return {
    'image': overlays.segments(picture, np.zeros(native, int), (), ()),  # as large as the others
    'truth': draw_segments(spec, picture, truth._replace(ids=truth.ids[window])),
    'prediction': draw_segments(spec, picture, prediction._replace(ids=prediction.ids[window])),
  }


def draw_segments(
  spec: datasets.DatasetSpec, picture: np.ndarray, segments: Segments
) -> np.ndarray:
  """Segments without the batch axis, each with its class."""
  labels = [
    f'{spec.class_names[k]} (crowd)' if crowd else spec.class_names[k]
    for k, crowd in zip(segments.classes, segments.crowd, strict=True)
  ]
  return overlays.segments(picture, segments.ids, spec.palette[segments.classes], labels)


def draw_result(
  spec: datasets.DatasetSpec, threshold: float, picture: np.ndarray, result: coco.ImageResult
) -> np.ndarray:
  """Objects with a score from `threshold` on, the best on top, each with its class and score."""
  shown = np.flatnonzero(result['scores'] >= threshold)
  boxes, classes = result['boxes'][shown], result['classes'][shown]
  masks, size = result['masks'], picture.shape[:2]
  return overlays.objects(
    picture,
    np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    spec.palette[classes],
    [
      f'{spec.class_names[k]} {score:.2f}'
      for k, score in zip(classes, result['scores'][shown], strict=True)
    ],
    None if masks is None else [coco_data.decode_mask(masks[i], size) for i in shown],
  )
