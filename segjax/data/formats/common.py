"""What two builders or more need: finding raw files, reading lists, images and labels, PNGs.

Builders hand TFDS encoded bytes or a path for each image feature: an array would make it import
TensorFlow.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax import types

# The value of void in 8-bit label files.
VOID = 255

# PASCAL VOC's classes, which SBD shares, in the order of their index.
VOC_CLASSES = (
  'background',
  'aeroplane',
  'bicycle',
  'bird',
  'boat',
  'bottle',
  'bus',
  'car',
  'cat',
  'chair',
  'cow',
  'diningtable',
  'dog',
  'horse',
  'motorbike',
  'person',
  'pottedplant',
  'sheep',
  'sofa',
  'train',
  'tvmonitor',
)


def stored_void(classes: int) -> int:
  """The value of void in the label files of a data set: 255, or 65,535 of more than 255 classes.

  A batch has `types.IGNORE_LABEL` in its place, whatever the files have.
  """
  return VOID if classes <= VOID else types.IGNORE_LABEL


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
  channels: int = 3,
  features: dict[str, Any] | None = None,
  metadata: dict[str, Any] | None = None,
) -> tfds.core.DatasetInfo:
  """The info of a data set of images with label maps.

  Args:
    builder: whose info it is.
    description: one sentence.
    class_names, palette: the name and the RGB colour of each class index.
    channels: of the images.
    features, metadata: what there is besides `file_name`, `image`, `label`, and the palette.
  """
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(
      {
        'file_name': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, channels)),
        'label': tfds.features.LabeledImage(
          labels=list(class_names),
          shape=(None, None, 1),
          dtype=np.uint8 if len(class_names) <= VOID else np.uint16,
          encoding_format='png',
        ),
        **(features or {}),
      }
    ),
    metadata=tfds.core.MetadataDict(
      palette=[[int(value) for value in color] for color in palette], **(metadata or {})
    ),
  )


def raw_folder(dl_manager: tfds.download.DownloadManager, content: str) -> Path:
  """The folder of raw files, which the user names as `data.source`.

  Args:
    dl_manager: TFDS's download manager; its `manual_dir` is the folder.
    content: what the folder should hold, for the error message.

  Raises:
    SegjaxError: if the folder is missing or empty.
  """
  try:
    return Path(dl_manager.manual_dir)
  except AssertionError as error:
    # TFDS names the folder in the first sentence of its message.
    problem = str(error).partition('. ')[0].replace('Manual directory', 'raw-file folder')
    raise types.SegjaxError(
      f'{problem}: set data.source to the folder that holds {content}'
    ) from error


def find_folder(source: Path, places: Iterable[str], holds: str, content: str) -> Path:
  """The first of some folders below `source` that has a certain file or folder.

  Args:
    source: the folder of raw files.
    places: paths below it, '' for itself, in the order of preference.
    holds: path below the place of what it must have.
    content: what `source` should hold, for the error message.

  Raises:
    SegjaxError: if none of them has it.
  """
  for place in places:
    if (source / place / holds).exists():
      return source / place
  raise types.SegjaxError(
    f'{source} does not hold {content}: set data.source to the folder that does'
  )


def read_list(path: Path, content: str) -> list[str]:
  """The images that a list names: the first word of each line, blank lines aside.

  Args:
    path: a text file.
    content: what the source should hold, for the error message.

  Raises:
    SegjaxError: if the file is missing, names no image, or names one twice.
  """
  try:
    lines = path.read_text().splitlines()
  except FileNotFoundError as error:
    raise types.SegjaxError(
      f'{path} is missing: set data.source to the folder that holds {content}'
    ) from error
  names = [line.split()[0] for line in lines if line.strip()]
  if not names:
    raise types.SegjaxError(f'{path} names no image: fetch the file again')
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise types.SegjaxError(f'{path} names {twice} twice: fetch the file again')
  return names


def read_image(path: Path, mode: str | tuple[str, ...], page: int = 0) -> np.ndarray:
  """Reads an image file, strictly: a truncated file is an error.

  Args:
    path: an image file of any format that Pillow knows.
    mode: the pixel mode, or one of those, that the file must have: 'L' (8-bit grey), 'I;16' (16-bit
      grey), 'P' (palette) or 'RGB' (8 bits a channel).
    page: which page of a file with several, from 0.

  Returns:
    u8[H, W] for 'L' and 'P', whose indices they are; u16[H, W] for 'I;16'; u8[H, W, 3] for 'RGB'.

  Raises:
    SegjaxError: if the file or the page is missing, cannot be decoded or has another mode.
  """
  try:
    with Image.open(path) as image:
      image.seek(page)
      pixels = np.array(image)
  except FileNotFoundError as error:
    raise types.SegjaxError(f'{path} is missing: add it, or mend data.source') from error
  except EOFError as error:
    raise types.SegjaxError(f'{path} has no page {page + 1}: fetch the file again') from error
  except (OSError, SyntaxError, ValueError) as error:
    raise types.SegjaxError(
      f'{path} cannot be decoded as an image: fetch the file again'
    ) from error
  modes = (mode,) if isinstance(mode, str) else mode
  if image.mode not in modes:
    raise types.SegjaxError(
      f'{path} has pixels of mode {image.mode}, not {" or ".join(modes)}: convert it, or fetch the '
      'file again'
    )
  return pixels


def read_label(path: Path) -> np.ndarray:
  """Reads a label map u8[H, W] from a grey file or a palette's indices; errors as `read_image`."""
  return read_image(path, ('L', 'P'))


def map_label(raw: np.ndarray, path: Path, classes: int, *, first: int, void: int) -> np.ndarray:
  """Class indices from the values of a raw label map.

  Args:
    raw: [H, W], whole numbers of any type.
    path: where they come from, for the error message.
    classes: how many there are.
    first: the raw value of class 0; the others follow it.
    void: the raw value that becomes `stored_void(classes)`.

  Returns:
    u8[H, W], or u16[H, W] of more than 255 classes.

  Raises:
    SegjaxError: if there is another value.
  """
  is_void = raw == void
  wrong = ((raw < first) | (raw >= first + classes)) & ~is_void
  if wrong.any():
    raise types.SegjaxError(
      f'{path} has the label value {raw[wrong][0]}, which is out of range: classes are {first} to '
      f'{first + classes - 1}, void is {void}'
    )
  dtype = np.uint8 if classes <= VOID else np.uint16
  return np.where(is_void, stored_void(classes), raw.astype(np.int64) - first).astype(dtype)


def rgb_example(
  file_name: str, image_path: Path, label: np.ndarray, label_path: Path
) -> tuple[str, dict[str, Any]]:
  """An example with its key: the RGB image as its file is, byte for byte, and label u8[H, W].

  Raises:
    SegjaxError: if the image cannot be read, is not RGB or not of the label's size.
  """
  image = read_image(image_path, 'RGB')
  check_same_size(image, image_path, label, label_path)
  return file_name, {'file_name': file_name, 'image': image_path, 'label': encode_png(label)}


def check_same_size(
  image: np.ndarray, image_path: Path, label: np.ndarray, label_path: Path
) -> None:
  """Raises a SegjaxError that names both files if image and label differ in height or width."""
  if image.shape[:2] != label.shape[:2]:
    (height, width), (label_height, label_width) = image.shape[:2], label.shape[:2]
    raise types.SegjaxError(
      f'{image_path} is {width}x{height} pixels but its label {label_path} is '
      f'{label_width}x{label_height}: fetch both files again'
    )


def encode_png(pixels: np.ndarray) -> bytes:
  """PNG bytes of u8[H, W], u16[H, W] or RGB u8[H, W, 3]."""
  if pixels.ndim == 3:
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  return cv2.imencode('.png', pixels)[1].tobytes()
