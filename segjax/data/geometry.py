"""Geometry of a sample: resizing it, and one warp of everything that is annotated on it.

A `Warp` (crop, scale, flips, quarter turns, rotation, shift and elastic displacement) is one map of
sampling positions that is applied once to each array, so that an image is interpolated once, and
labels, masks and weights stay aligned with it to the pixel. The box of an object is that of its
warped mask, unless the warp moves it as it is. A warp by whole pixels is done by slicing, which
gives the same, bit for bit.

Sizes are (height, width) in pixels. Positions are (x, y) in units of pixel centers: the center of
the first pixel is at (0, 0). Boxes are in continuous coordinates, half a pixel further.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from segjax.data import masks as mask_lib
from segjax.data.masks import Masks, Window
from segjax.data.sample import Objects, Sample, Size
from segjax.types import IGNORE_LABEL

_INTERPOLATION = {'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}
# Cubic interpolation between nodes overshoots them by at most this factor, 1.25 on each axis.
_OVERSHOOT = 1.5625
# OpenCV's remap takes and returns arrays of fewer rows and columns than this.
_REMAP_BELOW = 2**15 - 1

# Where the pixels of an output are in the input: positions f32[h, w, 2], or of an exact warp its
# `ranges`.
Where = np.ndarray | tuple[range, range, bool]


# --- resizing -------------------------------------------------------------------------------------


def fit_size(size: Size, box: Size) -> Size:
  """The largest size of `size`'s aspect ratio, to the pixel, that fits into `box`."""
  ratio = min(b / s for s, b in zip(size, box, strict=True))
  height, width = (max(1, min(b, round(s * ratio))) for s, b in zip(size, box, strict=True))
  return height, width


def short_side_size(size: Size, short: int, longest: int) -> Size:
  """`size` scaled so that its shorter side is `short`, or its longer one `longest` if that is less.

  As detectron2's `ResizeShortestEdge`, to the nearest pixel.
  """
  return scaled_size(size, min(short / min(size), longest / max(size)))


def scaled_size(size: Size, scale: float) -> Size:
  """`size` times `scale`, to the nearest pixel, at least 1."""
  height, width = (max(1, int(side * scale + 0.5)) for side in size)
  return height, width


def resize(sample: Sample, size: Size, interpolation: str = 'area') -> Sample:
  """The image by `interpolation`, label and masks by the nearest pixel, boxes in proportion."""
  if sample.size == tuple(size):
    return sample
  return sample.change(
    image=lambda image: resize_image(image, size, interpolation),
    label=lambda label: resize_label(label, size),
    weight=lambda weight: cv2.resize(weight, tuple(size)[::-1], interpolation=cv2.INTER_LINEAR),
    objects=lambda objects: move_objects(objects, size),
  )


def resize_image(image: np.ndarray, size: Size, interpolation: str = 'area') -> np.ndarray:
  """u8[H, W, C] -> u8[h, w, C].

  Args:
    image: of any size.
    size: (h, w).
    interpolation: 'area' averages along an axis that shrinks, and is bilinear along one that grows;
      'bilinear' and 'bicubic' look at 2 and 4 pixels per axis however much it shrinks.
  """
  steps = [(tuple(size), _INTERPOLATION.get(interpolation, cv2.INTER_LINEAR))]
  if interpolation == 'area':
    smaller = tuple(min(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    steps.insert(0, (smaller, cv2.INTER_AREA))
  for target, method in steps:
    if image.shape[:2] != target:
      image = cv2.resize(image, target[::-1], interpolation=method).reshape(*target, -1)
  return image


def resize_label(label: np.ndarray, size: Size) -> np.ndarray:
  """[H, W] -> [h, w]: the nearest pixel center, so that the label stays aligned with the image."""
  if label.shape == tuple(size):
    return label
  # cv2.INTER_NEAREST aligns corners of pixels instead, half a pixel off.
  return cv2.resize(label, tuple(size)[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def pad(array: np.ndarray, size: Size, value: float | np.ndarray) -> np.ndarray:
  """`array` [H, W, ...] in the upper left corner of [h, w, ...], the rest filled with `value`."""
  if array.shape[:2] == tuple(size):
    return array
  out = np.empty((*size, *array.shape[2:]), array.dtype)
  out[...] = value
  out[: array.shape[0], : array.shape[1]] = array
  return out


def pad_sample(sample: Sample, size: Size, color: np.ndarray) -> Sample:
  """A sample without objects in the upper left corner of a larger one, which is void elsewhere."""
  return sample.change(
    image=lambda image: pad(image, size, color),
    label=lambda label: pad(label, size, IGNORE_LABEL),
    weight=lambda weight: pad(weight, size, 0),
  )


# --- warping --------------------------------------------------------------------------------------


class Warp(NamedTuple):
  """Where each pixel of the output is in the input.

  An output pixel at the offset o = (x, y) from the center of the output is sampled at the position
  `center` + `matrix` @ (o + elastic displacement + `shift`).

  Attributes:
    size: of the output, without the margin.
    center: f32[2], the position (x, y) in the input of the output's center.
    matrix: f32[2, 2].
    shift: f32[2], (x, y) in output pixels.
    nodes: f32[2, g, g], displacements in x and y, in output pixels, at the nodes of a grid that
      spans the output and its margin, corners included; None for none.
    margin: pixels that an image extends beyond its label on each side.
  """

  size: Size
  center: np.ndarray
  matrix: np.ndarray
  shift: np.ndarray
  nodes: np.ndarray | None = None
  margin: int = 0

  @property
  def exact(self) -> bool:
    """Whether it flips, turns by right angles and moves by whole pixels, and nothing else."""
    xx, xy, yx, yy = np.abs(self.matrix).ravel().tolist()
    return self.nodes is None and xx == yy and xy == yx and {xx, xy} == {0, 1}

  def positions(self) -> np.ndarray:
    """f32[h + 2·margin, w + 2·margin, 2], the (x, y) of each output pixel in the input."""
    x, y = self._offsets()
    x, y = x + self.shift[0], y + self.shift[1]
    if self.nodes is None:
      out = np.empty((y.shape[0], x.shape[1], 2), np.float32)
      for axis, (of_x, of_y) in enumerate(self.matrix):
        np.add(x * of_x + y * of_y, self.center[axis], out=out[..., axis])
      return out
    # The displacements as `interpolate_nodes` has them, turned with the rest: one product of all.
    grid = self.nodes.shape[-1]
    rows, columns = _cubic_matrix(y.size, grid), _cubic_matrix(x.size, grid)
    left = np.empty((2, y.size, grid + 2), np.float32)
    for axis, (of_x, of_y) in enumerate(self.matrix):
      turned = of_x * self.nodes[0] + of_y * self.nodes[1]
      left[axis, :, :grid] = _product(rows, turned)
      left[axis, :, grid] = of_x
      left[axis, :, grid + 1] = of_y * y[:, 0] + self.center[axis]
    right = np.concatenate([columns.T.copy(), x, np.ones_like(x)])
    return cv2.merge([_product(part, right) for part in left])

  def ranges(self) -> tuple[range, range, bool]:
    """Of an exact warp: input rows, input columns, and whether rows become columns."""
    (xx, xy), (yx, yy) = self.matrix.astype(int).tolist()
    height, width = (side + 2 * self.margin for side in self.size)
    x, y = (1 - width) / 2 + float(self.shift[0]), (1 - height) / 2 + float(self.shift[1])
    column, row = int(self.center[0] + xx * x + xy * y), int(self.center[1] + yx * x + yy * y)
    if xx == 0:
      height, width = width, height
    down, right = yx + yy, xx + xy
    return (
      range(row, row + down * height, down),
      range(column, column + right * width, right),
      xx == 0,
    )

  def _offsets(self) -> tuple[np.ndarray, np.ndarray]:
    """f32[1, W] and f32[H, 1], output pixels from the center; halves are exact in float32."""
    height, width = (side + 2 * self.margin for side in self.size)
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
    return x[None], y[:, None]


def interpolate_nodes(nodes: np.ndarray, size: Size) -> np.ndarray:
  """Displacements of all pixels from those at the nodes of a grid (U-Net, section 3.1).

  Args:
    nodes: f32[2, g, g]; the nodes span the image, with nodes in its corners.
    size: (h, w).

  Returns:
    f32[2, h, w], by bicubic interpolation.
  """
  rows, columns = (_cubic_matrix(n, nodes.shape[-1]) for n in size)
  return np.stack([_product(_product(rows, one), columns.T.copy()) for one in nodes])


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a @ b by NumPy's own loops: BLAS may differ in its last bits with the number of threads."""
  return np.einsum('ik,kj->ij', a, b)


@functools.lru_cache(maxsize=16)
def _cubic_matrix(size: int, nodes: int) -> np.ndarray:
  """f32[size, nodes]: weights of cubic convolution (Keys, a = -1/2) from nodes to pixels."""
  at = np.linspace(0, nodes - 1, size)
  first = np.floor(at).astype(int)
  matrix = np.zeros((size, nodes))
  for step in (-1, 0, 1, 2):
    d = np.abs(at - (first + step))
    near = (1.5 * d - 2.5) * d**2 + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    matrix[np.arange(size), np.clip(first + step, 0, nodes - 1)] += np.where(d <= 1, near, far)
  return matrix.astype(np.float32)


def warp(
  sample: Sample, move: Warp, interpolation: str = 'bilinear', color: np.ndarray | None = None
) -> Sample:
  """Every annotation of a sample, moved by one map.

  Args:
    sample: its segments stay as they are, and objects of another size are first resized to that of
      the image, one mask after the other.
    move: its margin is for the image alone.
    interpolation: of the image, 'bilinear' or 'bicubic'; a weight is bilinear, label and masks are
      nearest.
    color: u8[C], of what is beyond the image; None mirrors image and weight about the centers of
      their border pixels. A label is IGNORE_LABEL there, and no object is.

  Returns:
    A sample of `move.size`. Objects without a pixel left in it are gone.
  """
  inner = move._replace(margin=0)
  if move.exact:
    around, whole = move.ranges(), inner.ranges()
  else:
    m, (height, width) = move.margin, move.size
    around = move.positions()
    whole = around[m : m + height, m : m + width]
  beyond = None if color is None else 0
  return sample.change(
    image=lambda image: _sample(image, around, _INTERPOLATION[interpolation], color),
    label=lambda label: _sample(label, whole, cv2.INTER_NEAREST, IGNORE_LABEL),
    weight=lambda weight: _sample(weight, whole, cv2.INTER_LINEAR, beyond),
    objects=lambda objects: move_objects(objects, sample.size, inner, whole),
  )


def move_objects(
  objects: Objects, size: Size, move: Warp | None = None, where: Where | None = None
) -> Objects:
  """Objects of an image that is resized to `size` and then warped, one mask after the other.

  Args:
    objects: of an image of any size.
    size: that it gets first.
    move: the warp, without a margin; None for none.
    where: of the warp.

  Returns:
    Objects of `move.size`, those of which a pixel is left. Of an exact warp, the box of an object
    that the border does not cut is moved as it is; other boxes are those of the masks. Without a
    warp, all objects with their boxes in proportion.
  """
  masks = Masks.of(objects.masks)
  ratio = [new / old for new, old in zip(size, masks.size, strict=True)]
  boxes = objects.boxes * np.float32([*ratio[::-1]] * 2)
  rows, columns = map(mask_lib.nearest_places, masks.size, size)
  resize = lambda window: mask_lib.select(window, rows, columns)
  if move is None:
    return objects._replace(boxes=boxes, masks=masks.map(resize, size=size))
  if move.exact:
    masks = _move_windows(masks, rows, columns, where)
  else:
    scratch = np.zeros(size, np.uint8)
    warp_one = lambda window: _warp_window(resize(window), scratch, move, where)
    masks = masks.map(warp_one, size=move.size)
  tight = moved = masks.boxes
  if move.exact:
    boxes = _move_boxes(boxes, move).astype(np.float32)
    cut = ((boxes < 0) | (boxes > np.float32([*move.size[::-1]] * 2))).any(1)
    moved = np.where(cut[:, None], tight, boxes)
  left = tight[:, 2] > tight[:, 0]
  return objects._replace(boxes=moved, masks=masks).take(np.flatnonzero(left))


def mask_boxes(masks: Masks | np.ndarray) -> np.ndarray:
  """f32[n, 4], the boxes around the pixels of masks [n, H, W]; zeros where there is none."""
  return Masks.of(masks).boxes


def _move_windows(
  masks: Masks, rows: np.ndarray, columns: np.ndarray, where: tuple[range, range, bool]
) -> Masks:
  """Masks that are resized and then moved by whole pixels, in one step.

  Args:
    masks: n.
    rows, columns: of the masks, for each row and column of the resized ones.
    where: the ranges of an exact warp.
  """
  down, right, turned = where
  rows, columns = mask_lib.places(rows, down), mask_lib.places(columns, right)
  size = len(rows), len(columns)
  moved = masks.map(lambda window: mask_lib.select(window, rows, columns), size=size)
  return moved.map(mask_lib.transpose, size=size[::-1]) if turned else moved


def _warp_window(window: Window, scratch: np.ndarray, move: Warp, where: np.ndarray) -> Window:
  """A mask after a warp that is not exact, which looks no further than its pixels can get.

  Args:
    window: of the mask.
    scratch: u8 of the mask's size, zeros, and so on return.
    move: the warp.
    where: its positions.
  """
  reached = Masks(scratch.shape, [window]).boxes + np.float32([-2, -2, 2, 2])
  x0, y0, x1, y1 = _move_boxes(reached, move)[0]
  reach = 0.0 if move.nodes is None else _OVERSHOOT * float(np.abs(move.nodes).max())
  rows, columns = (
    slice(max(0, int(low - reach)), max(0, int(high + reach) + 1))
    for low, high in ((y0, y1), (x0, x1))
  )
  positions = where[rows, columns]
  if not positions.size:
    return mask_lib.EMPTY
  scratch[window.inside] = window.pixels
  found = _sample(scratch, positions, cv2.INTER_NEAREST, 0)
  scratch[window.inside] = 0
  return Window(rows.start, columns.start, found)


def _move_boxes(boxes: np.ndarray, move: Warp) -> np.ndarray:
  """f64[n, 4], the boxes around f[n, 4] after the warp, but for its elastic displacement."""
  corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]].astype(np.float64)  # [n, 4, (x, y)]
  matrix = move.matrix.astype(np.float64)  # a turn times a factor
  offsets = (corners - 0.5 - move.center) @ matrix / (matrix[0] ** 2).sum() - move.shift
  moved = offsets + np.array(move.size[::-1]) / 2
  return np.concatenate([moved.min(1), moved.max(1)], axis=1)


def _sample(
  array: np.ndarray, where: Where, interpolation: int, fill: float | np.ndarray | None
) -> np.ndarray:
  """[H, W] or [H, W, C] of any dtype; beyond it is `fill`, or where that is None, its mirror."""
  if isinstance(where, tuple):
    rows, columns, turned = where
    out = _take(_take(array, rows, 0, fill), columns, 1, fill)
    return _contiguous(out.swapaxes(0, 1) if turned else out)
  if max(*array.shape[:2], *where.shape[:2]) >= _REMAP_BELOW:
    return _sample_by_parts(array, where, interpolation, fill)
  border = {'borderMode': cv2.BORDER_REFLECT_101}
  if fill is not None:
    value = np.broadcast_to(fill, array.shape[2:]).tolist()
    border = {'borderMode': cv2.BORDER_CONSTANT, 'borderValue': value}
  out = cv2.remap(array, where, None, interpolation, **border)
  return out.reshape(where.shape[:2] + array.shape[2:])


def _sample_by_parts(
  array: np.ndarray, where: np.ndarray, interpolation: int, fill: float | np.ndarray | None
) -> np.ndarray:
  """`_sample` of more rows or columns than OpenCV takes: halves, each of the part that it reads."""
  low = np.floor(where.min((0, 1))).astype(int) - 3  # x, y; bicubic reads two pixels further
  high = np.ceil(where.max((0, 1))).astype(int) + 4
  if max(*(high - low), *where.shape[:2]) < _REMAP_BELOW:
    for axis in np.argsort(array.shape[:2])[::-1]:  # the long one first, which may be a slice
      array = _take(array, range(low[1 - axis], high[1 - axis]), axis, fill)
    return _sample(array, where - low.astype(np.float32), interpolation, fill)
  axis = int(np.argmax(where.shape[:2]))
  halves = np.array_split(where, 2, axis)
  parts = [_sample_by_parts(array, half, interpolation, fill) for half in halves]
  return np.concatenate(parts, axis)


def _contiguous(array: np.ndarray) -> np.ndarray:
  """The array, or a copy of it. NumPy would copy flipped and turned images value by value."""
  if array.flags.c_contiguous or not array.size:
    return np.ascontiguousarray(array)
  shape, turned = array.shape, abs(array.strides[0]) < abs(array.strides[1])
  if turned:
    array = array.swapaxes(0, 1)
  up, left = array.strides[0] < 0, array.strides[1] < 0
  forward = array[:: -1 if up else 1, :: -1 if left else 1]
  if turned:
    up, left, forward = left, up, cv2.transpose(forward)
  if up or left:
    forward = cv2.flip(forward, (1 if left else 0) if up != left else -1)
  return np.ascontiguousarray(forward).reshape(shape)


def _take(
  array: np.ndarray, index: range, axis: int, fill: float | np.ndarray | None
) -> np.ndarray:
  """`array` at consecutive places along an axis, up or down, past its ends as `_sample` says."""
  count, along = array.shape[axis], (slice(None),) * axis
  if min(index[0], index[-1]) >= 0 and max(index[0], index[-1]) < count:
    stop = index.stop if index.stop >= 0 else None
    return array[(*along, slice(index.start, stop, index.step))]
  places = np.array(index)
  if fill is None:
    period = max(1, 2 * (count - 1))
    places = np.abs(places) % period
    return array.take(np.minimum(places, period - places) % count, axis)
  out = np.empty((*array.shape[:axis], len(places), *array.shape[axis + 1 :]), array.dtype)
  out[...] = fill
  inside = (places >= 0) & (places < count)
  out[(*along, inside)] = array[(*along, places[inside])]
  return out
