"""Visualizations: label maps, objects and segments over an image, and label PNGs.

All functions work on one image in NumPy. `label` is i[H, W] with a class index or IGNORE_LABEL per
pixel, `palette` is u8[C, 3] with the RGB color of each class, a visualization is u8[H, W, 3].
"""

import functools
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from segjax.types import IGNORE_LABEL

# PASCAL VOC's color of label 255, which differs from the first 254 classes of its color map.
IGNORE_COLOR = (224, 224, 192)
ERROR_COLOR = (220, 38, 38)
# Void in label PNGs: the highest 8-bit and 16-bit value, as in the files of public data sets.
_VOID_8, _VOID_16 = 255, 65_535
# Approximate size in pixels of visualizations with text.
_READABLE = 512
# Of a font in matplotlib, which has Latin, Greek and Cyrillic letters; in pixels.
_FONT, _FONT_SIZE = 'mpl-data/fonts/ttf/DejaVuSans.ttf', 11
# Height of a line of a legend, in pixels.
_LINE = 18
# Rows of an image that are worked on at once: what is between takes many bytes a pixel.
_STRIP = 64
# Consecutive shades of a color: (0 for black or 255 for white, weight).
_TURNS = ((0, 0.0), (255, 0.45), (0, 0.4), (255, 0.2), (0, 0.2), (255, 0.6))


def colorize(label: npt.ArrayLike, palette: npt.ArrayLike) -> np.ndarray:
  """Shows a label map in the colors of its classes, IGNORE_LABEL in IGNORE_COLOR.

  Returns:
    u8[H, W, 3].

  Raises:
    ValueError: a label is neither a row of the palette nor IGNORE_LABEL.
  """
  count = len(np.asarray(palette))
  colors = _color_table(palette, count + 1, void=count)
  return colors[_with_void(label, palette, void=count)]


def overlay(
  image: npt.ArrayLike,
  label: npt.ArrayLike,
  palette: npt.ArrayLike,
  *,
  alpha: float = 0.5,
  outline: bool = True,
) -> np.ndarray:
  """Tints an image with the colors of its classes.

  Args:
    image: u8[H, W, 3], or grayscale u8[H, W, 1] or u8[H, W].
    label: i[H, W].
    palette: u8[C, 3].
    alpha: weight of the class color, from 0 (image only) to 1 (color only).
    outline: draw the pixels along the border between two labels in the full class color.

  Returns:
    u8[H, W, 3].
  """
  rgb, label = _rgb(image), np.asarray(label)
  canvas, top = np.empty((*label.shape, 3), np.uint8), 0
  for strip in overlay_strips(rgb, label, palette, alpha=alpha, outline=outline):
    canvas[top : top + len(strip)] = strip
    top += len(strip)
  return canvas


def overlay_strips(
  image: Any,
  label: np.ndarray,
  palette: npt.ArrayLike,
  *,
  alpha: float = 0.5,
  outline: bool = True,
) -> Iterator[np.ndarray]:
  """The rows of `overlay`, u8[h, W, 3] from the top: memory is that of a strip.

  Args:
    image: u8[H, W, C], or an object with this shape whose slices are arrays.
    label, palette, alpha, outline: see `overlay`.
  """
  _check_same_size(image=image, label=label)
  for top in range(0, len(label), _STRIP):
    bottom, above = top + _STRIP, max(0, top - 1)
    rgb, colors = _rgb(image[top:bottom]), colorize(label[top:bottom], palette)
    strip = np.rint((1 - alpha) * rgb + alpha * colors).astype(np.uint8)
    if outline:
      border = _border(label[above : bottom + 1])[top - above :][: len(strip)]
      strip[border] = colors[border]
    yield strip


def with_legend(
  drawn: np.ndarray,
  label: npt.ArrayLike,
  palette: npt.ArrayLike,
  class_names: Sequence[str],
) -> np.ndarray:
  """Names the classes of an overlay to its right, the largest first.

  The width depends on the size of the image and on all names, so that the frames of a video keep
  one size. A small image is enlarged by an integer factor, so that the legend can be read.

  Args:
    drawn: u8[H, W, 3], see `overlay`.
    label: i[H, W].
    palette: u8[C, 3].
    class_names: C names.

  Returns:
    u8[sH, sW + legend, 3], s >= 1.
  """
  factor = max(1, round(_READABLE / max(drawn.shape[:2])))
  drawn = cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
  return np.concatenate([drawn, legend(len(drawn), label, palette, class_names)], axis=1)


def legend(
  height: int, label: npt.ArrayLike, palette: npt.ArrayLike, class_names: Sequence[str]
) -> np.ndarray:
  """The legend of `with_legend`, u8[height, w, 3]."""
  widest = max(_text_size(name)[0] for name in (*class_names, f'+ {len(class_names)}'))
  canvas = np.full((height, widest + 3 * _LINE // 2 + 4, 3), 255, np.uint8)
  counts = count_labels(label, len(class_names))
  present = [k for k in np.argsort(-counts, kind='stable') if counts[k]]
  lines = max(1, height // _LINE)
  if len(present) > lines:  # the last line says how many are left out
    present = present[: lines - 1]
  for row, k in enumerate(present):
    top = row * _LINE + 3
    color = np.asarray(palette)[k].tolist()
    cv2.rectangle(canvas, (4, top), (4 + _LINE - 6, top + _LINE - 6), color, -1)
    _put(canvas, class_names[k], (_LINE + 4, top + _LINE - 7), 0)
  if left := int(np.count_nonzero(counts)) - len(present):
    _put(canvas, f'+ {left}', (_LINE + 4, len(present) * _LINE + _LINE - 4), 0)
  return canvas


def count_labels(label: npt.ArrayLike, classes: int) -> np.ndarray:
  """How many pixels of i[H, W] each class has, i64[classes]."""
  counts, label = np.zeros(classes, np.int64), np.asarray(label)
  for top in range(0, len(label), _STRIP):
    counts += np.bincount(label[top : top + _STRIP].ravel(), minlength=classes)[:classes]
  return counts


def panels(
  image: npt.ArrayLike,
  truth: npt.ArrayLike,
  prediction: npt.ArrayLike,
  palette: npt.ArrayLike,
) -> dict[str, np.ndarray]:
  """Panels of an image, its ground truth, its prediction and the errors.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    truth: i[H, W].
    prediction: i[H, W].
    palette: u8[C, 3].

  Returns:
    u8[H, W, 3] by name: `image`, `truth`, `prediction`, and `errors`, the faded image with wrong
    pixels in ERROR_COLOR. Pixels whose truth is IGNORE_LABEL are not errors.
  """
  rgb, truth, prediction = _rgb(image), np.asarray(truth), np.asarray(prediction)
  _check_same_size(image=rgb, truth=truth, prediction=prediction)
  gray = rgb.mean(axis=-1, keepdims=True)
  errors = np.repeat(np.rint(140 + 0.45 * gray).astype(np.uint8), 3, axis=-1)
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

  A small image is enlarged by an integer factor, so that labels can be read.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    boxes: f[K, 4], x0, y0, x1, y1 in pixels.
    colors: u8[K, 3]. Objects of the same color get different shades of it.
    labels: K texts; an empty one is not drawn.
    masks: K arrays bool[H, W]; None draws boxes only.
    alpha: weight of the color inside a mask.

  Returns:
    u8[sH, sW, 3], s >= 1.
  """
  rgb = _rgb(image)
  factor = max(1, round(_READABLE / max(rgb.shape[:2])))
  canvas = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
  boxes, shades = np.asarray(boxes, np.float64).reshape(-1, 4), _shades(colors)
  for k in reversed(range(len(labels))):
    shade = shades[k].tolist()
    if masks is not None:
      mask = np.asarray(masks[k], np.uint8)
      mask = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
      inside = mask > 0
      canvas[inside] = np.rint((1 - alpha) * canvas[inside] + alpha * shades[k])
      outline, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(canvas, outline, -1, shade, 1)
  for k in reversed(range(len(labels))):
    corners = np.rint(boxes[k] * factor).astype(int)
    cv2.rectangle(canvas, corners[:2], corners[2:] - 1, shades[k].tolist(), 1)
    if labels[k]:
      _write(canvas, labels[k], corners[:2], shades[k])
  return canvas


def segments(
  image: npt.ArrayLike,
  ids: npt.ArrayLike,
  colors: npt.ArrayLike,
  labels: Sequence[str],
  *,
  alpha: float = 0.5,
) -> np.ndarray:
  """Tints and outlines the segments of an image, each with its label at its widest point.

  A small image is enlarged by an integer factor, so that labels can be read.

  Args:
    image: u8[H, W, 3], u8[H, W, 1] or u8[H, W].
    ids: i[H, W], from 1 to S; pixels with 0 are not tinted.
    colors: u8[S, 3]. Segments of the same color get different shades of it.
    labels: S texts; an empty one is not drawn.
    alpha: weight of the color inside a segment.

  Returns:
    u8[sH, sW, 3], s >= 1.
  """
  rgb, ids = _rgb(image), np.asarray(ids)
  _check_same_size(image=rgb, ids=ids)
  factor = max(1, round(_READABLE / max(rgb.shape[:2])))
  canvas = np.repeat(np.repeat(rgb, factor, 0), factor, 1)
  ids = np.repeat(np.repeat(ids, factor, 0), factor, 1)
  numbers, counts = np.unique(ids[ids > 0], return_counts=True)
  shades = np.zeros((len(labels) + 1, 3), np.uint8)
  shades[numbers] = _shades(np.asarray(colors)[numbers - 1])
  painted = shades[ids]
  tinted = np.rint((1 - alpha) * canvas + alpha * painted).astype(np.uint8)
  border = _border(ids) & (ids > 0)
  canvas = np.where((ids > 0)[..., None], tinted, canvas)
  canvas[border] = painted[border]
  # Labels of small segments are drawn on top of those of large ones.
  for number in numbers[np.argsort(-counts, kind='stable')]:
    if text := labels[number - 1]:
      inside = np.pad((ids == number).astype(np.uint8), 1)
      depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
      y, x = np.unravel_index(depth.argmax(), depth.shape)
      _write(canvas, text, np.array([x, y]), shades[number], centered=True)
  return canvas


def _shades(colors: npt.ArrayLike) -> np.ndarray:
  """u8[K, 3]: each color, or a lighter or darker shade where it repeats."""
  shades = np.array(colors, np.float64).reshape(-1, 3)
  seen: dict[bytes, int] = {}
  for shade in shades:
    turn = seen[shade.tobytes()] = seen.get(shade.tobytes(), -1) + 1
    towards, share = _TURNS[turn % len(_TURNS)]
    shade += share * (towards - shade)
  return np.rint(shades).astype(np.uint8)


def _write(
  canvas: np.ndarray, text: str, corner: np.ndarray, color: np.ndarray, *, centered: bool = False
) -> None:
  """Draws text with its lower left corner, or its center, at `corner`, moved inside the image."""
  width, height, below = _text_size(text)
  if centered:
    corner = corner + (-width // 2, (height + below) // 2)
  x = int(np.clip(corner[0], 0, max(0, canvas.shape[1] - width - 2)))
  y = int(np.clip(corner[1], height + below, canvas.shape[0]))
  cv2.rectangle(canvas, (x, y - height - below), (x + width + 1, y), color.tolist(), -1)
  # Black or white, whichever contrasts more.
  ink = 0 if color @ (0.299, 0.587, 0.114) > 128 else 255
  _put(canvas, text, (x + 1, y - below // 2 - 1), ink)


def _text_size(text: str) -> tuple[int, int, int]:
  """Width, height, and what is below the baseline, in pixels."""
  return math.ceil(_font().getlength(text)), *_font().getmetrics()


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
  # Importing matplotlib for it would take half a second.
  folder = importlib.util.find_spec('matplotlib').submodule_search_locations[0]
  return ImageFont.truetype(f'{folder}/{_FONT}', _FONT_SIZE)


def _put(canvas: np.ndarray, text: str, corner: tuple[int, int], ink: int) -> None:
  """Writes gray text with the left end of its baseline at `corner`."""
  x, y = corner
  width, height, below = _text_size(text)
  top, left = max(0, y - height), max(0, x)
  part = canvas[top : y + below + 1, left : left + width + 1]
  drawn = Image.fromarray(np.ascontiguousarray(part))
  ImageDraw.Draw(drawn).text((x - left, y - top), text, (ink,) * 3, _font(), anchor='ls')
  part[:] = np.asarray(drawn)


def heat(values: npt.ArrayLike) -> np.ndarray:
  """Heat map u8[H, W, 3] of non-negative f[H, W]: dark blue at 0, yellow at the maximum."""
  values = np.asarray(values, np.float32)
  scaled = np.rint(255 * values / max(values.max(initial=0), np.finfo(np.float32).tiny))
  return cv2.applyColorMap(scaled.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()


def write_label_png(path: str | os.PathLike, label: npt.ArrayLike, palette: npt.ArrayLike) -> None:
  """Writes a PNG whose pixel values are class indices.

  For up to 255 classes: 8 bits, with the class colors as the palette, and 255 for IGNORE_LABEL. For
  more classes: 16 bits without a palette, and 65535 for IGNORE_LABEL.
  """
  label, wide = np.asarray(label), len(np.asarray(palette)) > _VOID_8
  stored = np.empty(label.shape, np.uint16 if wide else np.uint8)
  for top in range(0, len(label), _STRIP):
    rows = slice(top, top + _STRIP)
    stored[rows] = _with_void(label[rows], palette, void=_VOID_16 if wide else _VOID_8)
  image = Image.fromarray(stored)
  if not wide:
    image.putpalette(_color_table(palette, 256, void=_VOID_8).tobytes())
  image.save(path, format='PNG')


def _color_table(palette: npt.ArrayLike, size: int, *, void: int) -> np.ndarray:
  """The color of each value of a label map, u8[size, 3]."""
  table = np.zeros((size, 3), np.uint8)
  palette = np.asarray(palette, np.uint8).reshape(-1, 3)
  table[: len(palette)] = palette
  table[void] = IGNORE_COLOR
  return table


def _with_void(label: npt.ArrayLike, palette: npt.ArrayLike, *, void: int) -> np.ndarray:
  """The label map with `void` for IGNORE_LABEL; checks that every other label has a color."""
  label, count = np.asarray(label), len(np.asarray(palette))
  unknown = (label != IGNORE_LABEL) & ((label < 0) | (label >= count))
  if unknown.any():
    raise ValueError(
      f'label {label[unknown][0]} has no color: the palette has {count} colors, and only '
      f'{IGNORE_LABEL} is ignored'
    )
  return np.where(label == IGNORE_LABEL, void, label)


def _rgb(image: npt.ArrayLike) -> np.ndarray:
  image = np.asarray(image)
  if image.dtype != np.uint8:
    raise ValueError(f'an image must be uint8, got {image.dtype}')
  if image.ndim == 2:
    image = image[:, :, None]
  if image.ndim != 3 or image.shape[2] not in (1, 3):
    raise ValueError(f'an image must be [H, W], [H, W, 1] or [H, W, 3], got {image.shape}')
  return np.broadcast_to(image, (*image.shape[:2], 3))


def _check_same_size(**arrays: Any) -> None:
  sizes = {name: array.shape[:2] for name, array in arrays.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f'sizes differ: {sizes}')


def _border(label: np.ndarray) -> np.ndarray:
  """Pixels with a different label among their four neighbors, bool[H, W]."""
  border = np.zeros(label.shape, bool)
  below = label[1:] != label[:-1]
  right = label[:, 1:] != label[:, :-1]
  border[1:] |= below
  border[:-1] |= below
  border[:, 1:] |= right
  border[:, :-1] |= right
  return border
