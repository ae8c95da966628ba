"""Merges stuff and things into one answer a pixel, under `jit`.

The heuristic of Kirillov et al., "Panoptic segmentation", arXiv 1801.00868, section 7, with the
minimum stuff area of the code that its authors released: instances are laid down by falling score,
each where no other lies yet, and one that is covered too far is left out; what is left goes to the
stuff of the semantic segmentation, unless a class has too few pixels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array, Detections, Segments

# As in `segjax.ops.paste_masks`: no arithmetic on a finite box overflows.
_LIMIT = 1e8
# Masks are pasted in windows of these parts of the image's sides, the smallest that holds the box.
# On a CPU it takes 0.4 of the time of the whole image (experiments/panoptic_speed).
_WINDOWS = (4, 2, 1)


def merge_segments(
  label: Array,
  detections: Detections,
  *,
  thing_classes: Sequence[int],
  stuff_classes: Sequence[int | None],
  size: Array | None = None,
  score_threshold: float | Array = 0.5,
  overlap_threshold: float | Array = 0.5,
  stuff_area: float | Array = 4096,
  mask_threshold: float | Array = 0.5,
) -> Segments:
  """Instances over stuff. Thresholds may be traced: a search over them compiles once.

  An instance takes part if its score is at least `score_threshold` and its mask has a pixel. By
  falling score, the lower index first where scores tie, it is left out if more than
  `overlap_threshold` of its pixels are taken, and else takes the rest. One that is left out covers
  nothing. Masks are pasted one rank at a time, so that B and not B · K of them are held at once,
  and in a window around the largest box of the rank.

  Args:
    label: i32[B, H, W], what the semantic segmentation says; values that `stuff_classes` does not
      have are void. Scores f[B, H, W, C] are taken for the label with the highest.
    detections: with masks; boxes in pixels of the label map.
    thing_classes: class of `Segments` for each class of the detections.
    stuff_classes: class of `Segments` for each value of `label`, or None where it is no stuff (a
      thing, "other").
    size: i32[B, 2], height and width of the images inside their padding, which stays void; None for
      no padding.
    score_threshold: between 0 and 1.
    overlap_threshold: between 0 and 1.
    stuff_area: a stuff class with fewer pixels left than this is void; in pixels.
    mask_threshold: above 0; see `paste_mask_on_device`.

  Returns:
    `Segments` with S = K + the number of stuff classes: segment k + 1 is detection k, and segment
    K + 1 + j the j-th stuff class in the order in which `stuff_classes` first names it. Those that
    have a pixel are valid.

  Raises:
    ValueError: the detections have no masks.
  """
  if detections.masks is None:
    raise ValueError('detections without masks cannot be merged: give the network a mask head')
  if jnp.issubdtype(label.dtype, jnp.floating):
    label = jnp.argmax(label, axis=-1)
  batch, count = detections.scores.shape
  inside = _inside(size, label.shape)
  usable = detections.valid & (detections.scores >= score_threshold)
  ids = _lay_down(detections, usable, inside, overlap_threshold, mask_threshold)
  stuff, table = _stuff_table(stuff_classes)
  ids = _fill(ids, label, inside, table, len(stuff), count + 1, stuff_area)

  present = jax.vmap(lambda i: jnp.bincount(i.ravel(), length=count + len(stuff) + 1))(ids)
  valid = present[:, 1:] > 0
  things = jnp.array(np.array(thing_classes, np.int32))[detections.classes]
  stuff = jnp.broadcast_to(np.array(stuff, np.int32), (batch, len(stuff)))
  classes = jnp.where(valid, jnp.concatenate([things, stuff], axis=1), 0)
  return Segments(ids, classes, jnp.zeros_like(valid), valid)


def _lay_down(
  detections: Detections,
  usable: Array,
  inside: Array,
  overlap_threshold: float | Array,
  mask_threshold: float | Array,
) -> Array:
  """i32[B, H, W]: k + 1 where detection k lies, 0 where none does.

  Args:
    detections: with masks.
    usable: bool[B, K], those that take part.
    inside: bool[B, H, W], the pixels that are no padding.
    overlap_threshold, mask_threshold: as in `merge_segments`.
  """
  height, width = inside.shape[1:]
  order = jnp.argsort(jnp.where(usable, -detections.scores, jnp.inf), axis=1, stable=True)
  first, extent = _reach(detections.boxes, detections.masks.shape[-2:], (height, width))
  windows = [(-(-height // part), -(-width // part)) for part in _WINDOWS]
  # Of each rank, the smallest window that holds its box in every image.
  too_small = (extent[:, :, None] > jnp.array(windows[:-1])).any(-1) & usable[:, :, None]
  choice = jnp.take_along_axis(too_small.sum(-1), order, axis=1).max(0, initial=0)

  def lay_down_one(window: tuple[int, int], rank: Array, ids: Array) -> Array:
    slot = order[:, rank]
    take = lambda field: jax.vmap(lambda row, i: row[i])(field, slot)
    corner = jnp.minimum(take(first), jnp.array([height, width]) - jnp.array(window))
    cut = lambda field: jax.vmap(lambda x, c: lax.dynamic_slice(x, c, window))(field, corner)
    paste = lambda m, b, c: paste_mask_on_device(m, b, window, corner=c, threshold=mask_threshold)
    mask = jax.vmap(paste)(take(detections.masks), take(detections.boxes), corner)
    mask &= cut(inside) & take(usable)[:, None, None]
    part = cut(ids)
    area, left = _pixels(mask), _pixels(mask & (part == 0))
    # A quotient, as the public code has it: 3 of 10 pixels are not more than 0.3.
    covered = (area - left) / jnp.maximum(area, 1).astype(jnp.float32)
    keep = (covered <= overlap_threshold)[:, None, None]
    part = jnp.where(mask & (part == 0) & keep, slot[:, None, None] + 1, part)
    return jax.vmap(lax.dynamic_update_slice)(ids, part, corner)

  ids = jnp.zeros(inside.shape, jnp.int32)
  if not usable.shape[1]:  # nothing to index
    return ids
  forms = [functools.partial(lay_down_one, window) for window in windows]
  step = lambda rank, ids: lax.switch(choice[rank], forms, rank, ids)
  return lax.fori_loop(0, usable.sum(1).max(), step, ids)


def _fill(
  ids: Array,
  label: Array,
  inside: Array,
  table: np.ndarray,
  count: int,
  start: int,
  stuff_area: float | Array,
) -> Array:
  """The free pixels of i32[B, H, W] given to stuff.

  Args:
    ids: 0 where a pixel is free.
    label: i32[B, H, W].
    inside: bool[B, H, W], the pixels that are no padding.
    table: from `_stuff_table`.
    count: of stuff classes.
    start: the id of the first of them.
    stuff_area: as in `merge_segments`.
  """
  # Values that the table does not have lead to its last entry, void; negative ones would wrap.
  known = (label >= 0) & (label < len(table))
  place = jnp.array(table)[jnp.where(known, label, len(table) - 1)]
  place = jnp.where(inside & (ids == 0), place, count)
  areas = jax.vmap(lambda p: jnp.bincount(p.ravel(), length=count + 1))(place)
  keep = (areas >= stuff_area).at[:, count].set(False)
  return jnp.where(jax.vmap(lambda row, p: row[p])(keep, place), start + place, ids)


def paste_mask_on_device(
  mask: Array,
  box: Array,
  size: tuple[int, int],
  *,
  corner: Array | None = None,
  threshold: float | Array = 0.5,
) -> Array:
  """A mask in the image, under `jit`: the rule 'detectron2' of `segjax.ops.paste_masks`.

  That form is NumPy's and touches the pixels around the box alone; this one has static shapes and
  goes over the whole image or a window of it. Both interpolate across and then along in float32, so
  that pixels may differ only where the probability is the threshold to the last digits.

  Args:
    mask: f32[M, M], probabilities in the frame of the box; zeros lie beyond it.
    box: f32[4], in pixels. One without an area, or with an infinite or NaN coordinate, has none.
    size: (H, W) of the image or the window, static.
    corner: i32[2], the window's first row and column; None for the image's.
    threshold: above 0; a pixel is set from it on.

  Returns:
    bool[H, W].
  """
  good = _has_area(box)
  x0, y0, x1, y1 = jnp.where(good, jnp.clip(box, -_LIMIT, _LIMIT), jnp.array([0.0, 0, 1, 1]))
  top, left = (0, 0) if corner is None else corner
  padded = jnp.pad(mask, 1)
  across = _interpolate(padded.T, *_cells(left, size[1], x0, x1, mask.shape[1])).T
  values = _interpolate(across, *_cells(top, size[0], y0, y1, mask.shape[0]))
  return (values >= threshold) & good


def _has_area(box: Array) -> Array:
  """bool[...] of f32[..., 4]: whether it is finite and not empty."""
  x0, y0, x1, y1 = jnp.moveaxis(box, -1, 0)
  return jnp.isfinite(box).all(-1) & (x1 > x0) & (y1 > y0)


def _reach(boxes: Array, cells: tuple[int, int], size: tuple[int, int]) -> tuple[Array, Array]:
  """Which pixels of the image the masks of f32[..., 4] can set: up to a cell beyond their boxes.

  Returns:
    first, extent: i32[..., 2], the first row and column, and how many; zeros of a bad box.
  """
  boxes = jnp.where(_has_area(boxes)[..., None], jnp.clip(boxes, -_LIMIT, _LIMIT), 0)
  start, end = boxes[..., 1::-1], boxes[..., :1:-1]
  cell = (end - start) / jnp.array(cells)
  first, last = (
    jnp.clip(edge, 0, jnp.array(size)).astype(jnp.int32)
    for edge in (jnp.floor(start - cell), jnp.ceil(end + cell))
  )
  return first, last - first


def _cells(
  first: int | Array, length: int, start: Array, end: Array, cells: int
) -> tuple[Array, Array]:
  """Between which cells of the padded mask each of `length` pixels of an axis lies.

  Returns:
    before: i32[length], from 0 to M; the cell after it is `before + 1`.
    fraction: f32[length], of the way from the one to the other.
  """
  pixels = (first + jnp.arange(length)).astype(jnp.float32)
  position = (pixels + 0.5 - start) / (end - start) * cells + 0.5
  position = jnp.clip(position, 0, cells + 1)
  before = jnp.minimum(position.astype(jnp.int32), cells)
  return before, position - before


def _interpolate(values: Array, before: Array, fraction: Array) -> Array:
  """f32[n, ...] between two neighbors of f32[cells, ...] each.

  `values[before] + fraction * steps[before]` as a product of matrices, of which all but two terms a
  pixel are zeros: on a CPU less than half the time of gathers (experiments/panoptic_speed).
  """
  table = jnp.concatenate([values[:-1], values[1:] - values[:-1]])
  chosen = (before[:, None] == jnp.arange(values.shape[0] - 1)).astype(values.dtype)
  weights = jnp.concatenate([chosen, chosen * fraction[:, None]], axis=1)
  return jnp.matmul(weights, table, precision='highest')


def _inside(size: Array | None, shape: tuple[int, ...]) -> Array:
  """bool[B, H, W]: the pixels that are no padding."""
  batch, height, width = shape
  if size is None:
    return jnp.ones((batch, height, width), bool)
  rows = jnp.arange(height)[:, None] < size[:, 0, None, None]
  return rows & (jnp.arange(width) < size[:, 1, None, None])


def _pixels(mask: Array) -> Array:
  return mask.sum((1, 2), dtype=jnp.int32)


def _stuff_table(stuff_classes: Sequence[int | None]) -> tuple[list[int], np.ndarray]:
  """The stuff classes, each once, and the place of each label among them; the last is void's."""
  stuff = list(dict.fromkeys(c for c in stuff_classes if c is not None))
  place = {c: i for i, c in enumerate(stuff)} | {None: len(stuff)}
  return stuff, np.array([place[c] for c in (*stuff_classes, None)], np.int32)
