"""Images with LabelMe's JSON files: a square and a disk on dark ground."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48, 64


def encode(image: np.ndarray, file_format: str = 'PNG') -> bytes:
  """The file of an image."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, file_format)
  return buffer.getvalue()


def shape(label, points, kind='polygon', **kwargs):
  """An entry of `shapes`."""
  return {'label': label, 'points': points, 'shape_type': kind, 'group_id': None, **kwargs}


def mask_shape(label, x, y, mask):
  """An entry of `shapes` that is a mask bool[h, w] at (x, y)."""
  height, width = mask.shape
  encoded = base64.b64encode(encode(np.uint8(mask) * 255)).decode()
  return shape(label, [[x, y], [x + width - 1, y + height - 1]], 'mask', mask=encoded)


def write(path: Path, shapes, *, image_path=None, size=SIZE, image_data=None) -> Path:
  """Writes a JSON file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {
    'version': '5.5.0',
    'flags': {},
    'shapes': shapes,
    'imagePath': image_path or f'{path.stem}.png',
    'imageData': image_data and base64.b64encode(image_data).decode(),
    'imageHeight': size[0],
    'imageWidth': size[1],
  }
  path.write_text(json.dumps(content))
  return path


def draw(rng: np.random.Generator):
  """An image u8[48, 64, 3] with a red square and a green disk, and their shapes."""
  height, width = SIZE
  y, x = np.mgrid[:height, :width] + 0.5
  left, top = (int(value) for value in rng.integers(2, [width // 2 - 16, height - 18]))
  center_x, center_y = rng.integers([width // 2 + 9, 9], [width - 9, height - 9]).tolist()
  image = np.full((height, width, 3), (30, 30, 60), np.uint8)
  image[top : top + 14, left : left + 14] = 220, 40, 40
  image[(x - center_x) ** 2 + (y - center_y) ** 2 < 64] = 40, 220, 40
  corners = [[left, top], [left + 14, top], [left + 14, top + 14], [left, top + 14]]
  disk = [[center_x, center_y], [center_x + 8, center_y]]
  image += rng.integers(0, 20, image.shape, np.uint8)
  return image, [shape('square', corners), shape('disk', disk, 'circle')]


def write_set(root: Path, count: int = 20) -> None:
  """Writes `images/` and `labels/` with a JSON file for each image."""
  rng = np.random.default_rng(0)
  (root / 'images').mkdir(parents=True)
  for number in range(count):
    image, shapes = draw(rng)
    (root / 'images' / f'im{number:02}.png').write_bytes(encode(image))
    write(
      root / 'labels' / f'im{number:02}.json', shapes, image_path=f'../images/im{number:02}.png'
    )
