"""What two builders or more need: finding raw files, reading images, encoding PNGs.

Builders hand TFDS encoded bytes or a path for each image feature: an array would make it import
TensorFlow.
"""

from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax import types


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


def read_image(path: Path, mode: str, page: int = 0) -> np.ndarray:
  """Reads an image file, strictly: a truncated file is an error.

  Args:
    path: an image file of any format that Pillow knows.
    mode: the pixel mode that the file must have: 'L' (8-bit grey) or 'RGB' (8 bits a channel).
    page: which page of a file with several, from 0.

  Returns:
    u8[H, W] for 'L', u8[H, W, 3] for 'RGB'.

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
  if image.mode != mode:
    raise types.SegjaxError(
      f'{path} has pixels of mode {image.mode}, not {mode}: convert it, or fetch the file again'
    )
  return pixels


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
