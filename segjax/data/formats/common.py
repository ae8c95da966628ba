"""How prepared examples are coded: void and bit depth of label maps, colors, features, PNGs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.types import IGNORE_LABEL

# The value of void in 8-bit label files.
VOID = 255


def stored_void(classes: int) -> int:
  """The value of void in the label files of a data set: 255, or 65,535 of more than 255 classes.

  A batch has `types.IGNORE_LABEL` in its place, whatever the files have.
  """
  return VOID if classes <= VOID else IGNORE_LABEL


def label_dtype(classes: int) -> type[np.unsignedinteger]:
  """Of the label files of a data set: 8 bits, or 16 of more than 255 classes."""
  return np.uint8 if classes <= VOID else np.uint16


def voc_palette(classes: int) -> np.ndarray:
  """PASCAL VOC's color map, uint8[classes, 3]: the bits of the index dealt to R, G, B in turn."""
  index = np.arange(classes)
  palette = np.zeros((classes, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
  return palette


def semantic_info(
  builder: tfds.core.DatasetBuilder,
  *,
  description: str,
  class_names: Sequence[str],
  palette: Iterable[Iterable[int]],
  image: tfds.features.Image | None = None,
  features: Mapping[str, Any] | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> tfds.core.DatasetInfo:
  """The info of a data set of images with label maps.

  Args:
    builder: whose info it is.
    description: one sentence.
    class_names, palette: the name and the RGB color of each class index.
    image: the feature of the image; None for RGB of any size and file format.
    features, metadata: besides `file_name`, `image`, `label`, and the palette.
  """
  image = tfds.features.Image(shape=(None, None, 3)) if image is None else image
  label = tfds.features.LabeledImage(
    labels=list(class_names),
    shape=(*image.shape[:2], 1),
    dtype=label_dtype(len(class_names)),
    encoding_format='png',
  )
  every = {'file_name': tfds.features.Text(), 'image': image, 'label': label}
  colors = [[int(value) for value in color] for color in palette]
  return dataset_info(
    builder, description, every | (features or {}), {'palette': colors, **(metadata or {})}
  )


def dataset_info(
  builder: tfds.core.DatasetBuilder,
  description: str,
  features: Mapping[str, Any],
  metadata: Mapping[str, Any],
) -> tfds.core.DatasetInfo:
  """The info of a data set of these features."""
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(features),
    metadata=tfds.core.MetadataDict(metadata),
  )


def encode_example(name: str, **pixels: np.ndarray) -> dict[str, Any]:
  """An example with the PNG of each array."""
  return {'file_name': name, **{key: encode_png(value) for key, value in pixels.items()}}


def encode_png(pixels: np.ndarray) -> bytes:
  """PNG bytes of u8[H, W], u16[H, W] or RGB u8[H, W, 3]."""
  if pixels.ndim == 3:
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  return cv2.imencode('.png', pixels)[1].tobytes()
