"""Boxes: `[x0, y0, x1, y1]` in pixels, continuous coordinates (no +1).

A box without positive width and height is empty, such as padding. Values and gradients are finite,
also for empty boxes, unless the area overflows float32.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from segjax.types import Array

Weights = tuple[float, float, float, float]

# Maximum log scale of a decoded width or height, exp(MAX_LOG_SCALE) = 62.5, as in torchvision and
# Detectron2.
MAX_LOG_SCALE = math.log(1000 / 16)


def area(boxes: Array) -> Array:
  """Width times height, f32[...] of boxes f32[..., 4]; 0 for an empty box."""
  size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return size[..., 0] * size[..., 1]


def iou(a: Array, b: Array) -> Array:
  """Intersection over union of each pair.

  Args:
    a: f32[N, 4].
    b: f32[M, 4].

  Returns:
    f32[N, M] in 0 to 1; 0 where either box is empty.
  """
  intersection = _intersection(a, b)
  return _ratio(intersection, area(a)[:, None] + area(b) - intersection)


def exceeds(values: Array, threshold: float) -> Array:
  """bool[...], whether values f32[...] are more than `threshold`, as a comparison in float64.

  In float32 the threshold would be rounded too, perhaps up to the value of an exact tie: the IoU
  3 / 10, rounded, is more than 0.3 but equal to 0.3 rounded. The threshold is rounded down instead,
  since no float32 value lies between it and the result. A traced threshold is compared as it is.
  """
  if isinstance(threshold, float):
    down = np.float32(threshold)
    threshold = down if float(down) <= threshold else np.nextafter(down, np.float32(-np.inf))
  return values > threshold


def clip(boxes: Array, size: Sequence | Array) -> Array:
  """Clips boxes to the image.

  Args:
    boxes: f32[..., 4].
    size: (height, width) of the image, numbers or an array [2].

  Returns:
    f32[..., 4]; empty if the box was outside.
  """
  height, width = size[0], size[1]
  return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).astype(boxes.dtype))


def nonempty(boxes: Array, min_size: float) -> Array:
  """bool[...], whether width and height of boxes f32[..., 4] are at least `min_size` > 0.

  torchvision uses 1e-3 for proposals and 1e-2 for detections; Detectron2 keeps all above 0.
  """
  return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(-1)


def flip(boxes: Array, width: float | Array) -> Array:
  """Flips boxes f32[..., 4] horizontally in an image of the given width."""
  x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
  return jnp.stack([width - x1, y0, width - x0, y1], -1)


def scale(boxes: Array, factors: Sequence | Array) -> Array:
  """Scales boxes to a resized image.

  Args:
    boxes: f32[..., 4].
    factors: f32[..., 2], (vertical, horizontal); the two broadcast.

  Returns:
    f32[..., 4].
  """
  return boxes * jnp.tile(jnp.asarray(factors)[..., ::-1], 2).astype(boxes.dtype)


def encode(boxes: Array, anchors: Array, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Array:
  """Box deltas from `anchors` to `boxes`, the regression targets (R-CNN, appendix C).

  Args:
    boxes: f32[..., 4], for example the matched ground truth.
    anchors: f32[..., 4], anchors or proposals; the two broadcast.
    weights: of the four deltas; 1 in the RPN, (10, 10, 5, 5) in the box head.

  Returns:
    f32[..., 4] = weights * (dx / w, dy / h, log width ratio, log height ratio), where dx and dy are
    the center offsets and w and h the anchor size; zeros if either box is empty, where
    torchvision's are infinite or NaN.
  """
  usable = ((area(boxes) > 0) & (area(anchors) > 0))[..., None]
  center, size = _center_and_size(boxes)
  anchor_center, anchor_size = _center_and_size(anchors)
  size, anchor_size = (jnp.where(usable, x, 1) for x in (size, anchor_size))
  weights = jnp.asarray(weights, jnp.float32)
  shift = weights[:2] * (center - anchor_center) / anchor_size
  deltas = jnp.concatenate([shift, weights[2:] * jnp.log(size / anchor_size)], -1)
  return jnp.where(usable, deltas, 0)


def decode(deltas: Array, anchors: Array, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Array:
  """Applies box deltas to anchors, the inverse of `encode`.

  Args:
    deltas: f[..., 4], any float type; the arithmetic is float32.
    anchors: f32[..., 4]; the two broadcast: deltas [R, C, 4] of C classes take anchors [R, 1, 4].
    weights: as in `encode`.

  Returns:
    f32[..., 4], not clipped to the image. Width and height grow at most by a factor of 62.5.
  """
  deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
  center, size = _center_and_size(anchors)
  center = deltas[..., :2] * size + center
  half = 0.5 * (jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * size)
  return jnp.concatenate([center - half, center + half], -1)


def _intersection(a: Array, b: Array) -> Array:
  """f32[N, M], the intersection area of each pair."""
  ax0, ay0, ax1, ay1 = a.T[..., None]
  bx0, by0, bx1, by1 = b.T
  width = jnp.maximum(jnp.minimum(ax1, bx1) - jnp.maximum(ax0, bx0), 0)
  height = jnp.maximum(jnp.minimum(ay1, by1) - jnp.maximum(ay0, by0), 0)
  return width * height


def _ratio(part: Array, whole: Array) -> Array:
  """part / whole, or 0 if part is 0, even if whole is 0."""
  overlaps = part > 0
  return jnp.where(overlaps, part / jnp.where(overlaps, whole, 1), 0)


def _center_and_size(boxes: Array) -> tuple[Array, Array]:
  """f32[..., 2] each, x first."""
  size = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + 0.5 * size, size
