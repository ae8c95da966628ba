"""Label maps as pictures: colours, overlays, panels side by side, and palette PNGs.

All of it is NumPy on one image. `label` is i[H, W] with a class index or IGNORE_LABEL at each
pixel, `palette` is u8[C, 3] with the RGB colour of each class, and a picture is u8[H, W, 3].
"""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segjax.types import IGNORE_LABEL

# PASCAL VOC's colour of label 255, which no class among the first 254 of its colour map has.
IGNORE_COLOR = (224, 224, 192)
ERROR_COLOR = (220, 38, 38)
# Pictures with labels are about this large, in pixels.
_READABLE = 512
# How the shades of one colour go: towards white or black, and how far.
_TURNS = ((0, 0.0), (255, 0.45), (0, 0.4), (255, 0.2), (0, 0.2), (255, 0.6))


def colorize(label: npt.ArrayLike, palette: npt.ArrayLike) -> np.ndarray:
  """Draws a label map in the colours of its classes, IGNORE_LABEL in IGNORE_COLOR.

  Returns:
    u8[H, W, 3].

  Raises:
    ValueError: a label is neither a row of the palette nor IGNORE_LABEL.
  """
  return _color_table(palette)[_checked(label, palette)]


def overlay(
  image: npt.ArrayLike,
  label: npt.ArrayLike,
  palette: npt.ArrayLike,
  *,
  alpha: float = 0.5,
  outline: bool = True,
) -> np.ndarray:
  """Tints an image with the colours of its classes.

  Args:
    image: u8[H, W, 3], or u8[H, W, 1] or u8[H, W], which are shown grey.
    label: i[H, W].
    palette: u8[C, 3].
    alpha: weight of the class colour, from 0 (image only) to 1 (colour only).
    outline: draw the pixels along the border between two labels in the full class colour.

  Returns:
    u8[H, W, 3].
  """
  rgb = _rgb(image)
  colors = colorize(label, palette)
  _check_same_size(image=rgb, label=colors)
  picture = np.rint((1 - alpha) * rgb + alpha * colors).astype(np.uint8)
  if outline:
    border = _border(np.asarray(label))
    picture[border] = colors[border]
  return picture


def panels(
  image: npt.ArrayLike,
  truth: npt.ArrayLike,
  prediction: npt.ArrayLike,
  palette: npt.ArrayLike,
) -> dict[str, np.ndarray]:
  """Shows a prediction beside its image and the truth.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    truth: i[H, W].
    prediction: i[H, W].
    palette: u8[C, 3].

  Returns:
    Pictures u8[H, W, 3] by name: `image`, `truth`, `prediction`, and `errors`, the image faded with
    the wrong pixels in ERROR_COLOR. Where the truth is IGNORE_LABEL nothing is wrong.
  """
  rgb, truth, prediction = _rgb(image), np.asarray(truth), np.asarray(prediction)
  _check_same_size(image=rgb, truth=truth, prediction=prediction)
  grey = rgb.mean(axis=-1, keepdims=True)
  errors = np.repeat(np.rint(140 + 0.45 * grey).astype(np.uint8), 3, axis=-1)
  errors[(prediction != truth) & (truth != IGNORE_LABEL)] = ERROR_COLOR
  return {
    'image': rgb,
    'truth': colorize(truth, palette),
    'prediction': colorize(prediction, palette),
    'errors': errors,
  }


def objects(
  image: npt.ArrayLike,
  boxes: npt.ArrayLike,
  colors: npt.ArrayLike,
  labels: Sequence[str],
  masks: Sequence[np.ndarray] | None = None,
  *,
  alpha: float = 0.45,
) -> np.ndarray:
  """Draws objects on an image, the first one on top: mask, outline, box and label.

  A small image is enlarged by a whole factor, so that labels can be read.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    boxes: f[K, 4], x0, y0, x1, y1 in pixels.
    colors: u8[K, 3]. Objects of one colour get different shades of it.
    labels: K texts; an empty one is not drawn.
    masks: K times bool[H, W]; None draws boxes alone.
    alpha: weight of the colour inside a mask.

  Returns:
    u8[sH, sW, 3], s >= 1.
  """
  rgb = _rgb(image)
  factor = max(1, round(_READABLE / max(rgb.shape[:2])))
  picture = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
  boxes, shades = np.asarray(boxes, np.float64).reshape(-1, 4), _shades(colors)
  for k in reversed(range(len(labels))):
    shade = shades[k].tolist()
    if masks is not None:
      mask = np.asarray(masks[k], np.uint8)
      mask = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
      inside = mask > 0
      picture[inside] = np.rint((1 - alpha) * picture[inside] + alpha * shades[k])
      outline, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(picture, outline, -1, shade, 1)
  for k in reversed(range(len(labels))):
    corners = np.rint(boxes[k] * factor).astype(int)
    cv2.rectangle(picture, corners[:2], corners[2:] - 1, shades[k].tolist(), 1)
    if labels[k]:
      _write(picture, labels[k], corners[:2], shades[k])
  return picture


def segments(
  image: npt.ArrayLike,
  ids: npt.ArrayLike,
  colors: npt.ArrayLike,
  labels: Sequence[str],
  *,
  alpha: float = 0.5,
) -> np.ndarray:
  """Tints and outlines the segments of an image, and writes each one's label where it is widest.

  A small image is enlarged by a whole factor, so that labels can be read.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    ids: i[H, W], from 1 to S; where it is 0 the image is left as it is.
    colors: u8[S, 3]. Segments of one colour get different shades of it.
    labels: S texts; an empty one is not drawn.
    alpha: weight of the colour inside a segment.

  Returns:
    u8[sH, sW, 3], s >= 1.
  """
  rgb, ids = _rgb(image), np.asarray(ids)
  _check_same_size(image=rgb, ids=ids)
  factor = max(1, round(_READABLE / max(rgb.shape[:2])))
  picture = np.repeat(np.repeat(rgb, factor, 0), factor, 1)
  ids = np.repeat(np.repeat(ids, factor, 0), factor, 1)
  numbers, counts = np.unique(ids[ids > 0], return_counts=True)
  shades = np.zeros((len(labels) + 1, 3), np.uint8)
  shades[numbers] = _shades(np.asarray(colors)[numbers - 1])
  painted = shades[ids]
  tinted = np.rint((1 - alpha) * picture + alpha * painted).astype(np.uint8)
  border = _border(ids) & (ids > 0)
  picture = np.where((ids > 0)[..., None], tinted, picture)
  picture[border] = painted[border]
  # The label of a small segment is on top of that of a large one.
  for number in numbers[np.argsort(-counts, kind='stable')]:
    if text := labels[number - 1]:
      inside = np.pad((ids == number).astype(np.uint8), 1)
      depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
      y, x = np.unravel_index(depth.argmax(), depth.shape)
      _write(picture, text, np.array([x, y]), shades[number], centred=True)
  return picture


def _shades(colors: npt.ArrayLike) -> np.ndarray:
  """u8[K, 3]: each colour, and where it comes again a lighter or a darker one."""
  shades = np.array(colors, np.float64).reshape(-1, 3)
  seen: dict[bytes, int] = {}
  for shade in shades:
    turn = seen[shade.tobytes()] = seen.get(shade.tobytes(), -1) + 1
    towards, share = _TURNS[turn % len(_TURNS)]
    shade += share * (towards - shade)
  return np.rint(shades).astype(np.uint8)


def _write(
  picture: np.ndarray, text: str, corner: np.ndarray, color: np.ndarray, *, centred: bool = False
) -> None:
  """A label with its lower left, or centre, there, or inside the picture where there is no room."""
  font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4
  (width, height), below = cv2.getTextSize(text, font, scale, 1)
  if centred:
    corner = corner + (-width // 2, (height + below) // 2)
  x = int(np.clip(corner[0], 0, max(0, picture.shape[1] - width - 2)))
  y = int(np.clip(corner[1], height + below, picture.shape[0]))
  cv2.rectangle(picture, (x, y - height - below), (x + width + 1, y), color.tolist(), -1)
  # Black or white, whichever is further away.
  ink = 0 if color @ (0.299, 0.587, 0.114) > 128 else 255
  cv2.putText(picture, text, (x + 1, y - below // 2 - 1), font, scale, (ink,) * 3, 1, cv2.LINE_AA)


def heat(values: npt.ArrayLike) -> np.ndarray:
  """Draws f[H, W], >= 0, from dark blue at 0 to yellow at its largest value: u8[H, W, 3]."""
  values = np.asarray(values, np.float32)
  scaled = np.rint(255 * values / max(values.max(initial=0), np.finfo(np.float32).tiny))
  return cv2.applyColorMap(scaled.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()


def denormalize(image: npt.ArrayLike, mean: npt.ArrayLike, std: npt.ArrayLike) -> np.ndarray:
  """Undoes `(pixel - mean) / std`.

  Args:
    image: f32[H, W, C], normalised.
    mean: f[C] in pixel units from 0 to 255.
    std: f[C] in the same units.

  Returns:
    u8[H, W, C], rounded and clipped.
  """
  pixels = np.asarray(image, np.float32) * np.asarray(std) + np.asarray(mean)
  return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def write_label_png(path: str | os.PathLike, label: npt.ArrayLike, palette: npt.ArrayLike) -> None:
  """Writes a palette PNG: its pixel values are the labels, its palette shows them in colour."""
  picture = Image.fromarray(_checked(label, palette).astype(np.uint8))
  picture.putpalette(_color_table(palette).tobytes())
  picture.save(path, format='PNG')


def _color_table(palette: npt.ArrayLike) -> np.ndarray:
  """The colour of each 8-bit label, u8[256, 3]."""
  palette = np.asarray(palette, np.uint8)
  table = np.zeros((256, 3), np.uint8)
  table[: len(palette)] = palette
  table[IGNORE_LABEL] = IGNORE_COLOR
  return table


def _checked(label: npt.ArrayLike, palette: npt.ArrayLike) -> np.ndarray:
  label, count = np.asarray(label), len(np.asarray(palette))
  unknown = (label != IGNORE_LABEL) & ((label < 0) | (label >= count))
  if unknown.any():
    raise ValueError(
      f'label {label[unknown][0]} has no colour: the palette has {count} and only'
      f' {IGNORE_LABEL} stands for "ignore"'
    )
  return label


def _rgb(image: npt.ArrayLike) -> np.ndarray:
  image = np.asarray(image)
  if image.dtype != np.uint8:
    raise ValueError(f'a picture is uint8, got {image.dtype}: call denormalize first')
  if image.ndim == 2:
    image = image[:, :, None]
  if image.ndim != 3 or image.shape[2] not in (1, 3):
    raise ValueError(f'an image is [H, W], [H, W, 1] or [H, W, 3], got {image.shape}')
  return np.broadcast_to(image, (*image.shape[:2], 3))


def _check_same_size(**arrays: np.ndarray) -> None:
  sizes = {name: array.shape[:2] for name, array in arrays.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f'sizes differ: {sizes}')


def _border(label: np.ndarray) -> np.ndarray:
  """Pixels with another label among their four neighbours, bool[H, W]."""
  border = np.zeros(label.shape, bool)
  below = label[1:] != label[:-1]
  right = label[:, 1:] != label[:, :-1]
  border[1:] |= below
  border[:-1] |= below
  border[:, 1:] |= right
  border[:, :-1] |= right
  return border
