"""Merges stuff and things into one answer a pixel, under `jit`.

The heuristic of Kirillov et al., "Panoptic segmentation", arXiv 1801.00868, section 7, with the
minimum stuff area of the code that its authors released: instances are laid down by falling score,
each where no other lies yet, and one that is covered too far is left out; what is left goes to the
stuff of the semantic segmentation, unless a class has too few pixels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array, Detections, Segments

# As in `segjax.ops.paste_masks`: no arithmetic on a finite box overflows.
_LIMIT = 1e8


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
  nothing. Masks are pasted one rank at a time, so that B and not B · K of them are held at once.

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
  height, width = label.shape[1:]
  inside = _inside(size, batch, height, width)

  usable = detections.valid & (detections.scores >= score_threshold)
  order = jnp.argsort(jnp.where(usable, -detections.scores, jnp.inf), axis=1, stable=True)
  paste = jax.vmap(
    lambda mask, box: paste_mask_on_device(mask, box, (height, width), threshold=mask_threshold)
  )

  def lay_down(rank: Array, ids: Array) -> Array:
    slot = order[:, rank]
    take = lambda field: jax.vmap(lambda row, i: row[i])(field, slot)
    mask = paste(take(detections.masks), take(detections.boxes)) & inside
    mask &= take(usable)[:, None, None]
    area, left = _pixels(mask), _pixels(mask & (ids == 0))
    # A quotient, as the public code has it: 3 of 10 pixels are not more than 0.3.
    covered = (area - left) / jnp.maximum(area, 1).astype(jnp.float32)
    keep = (covered <= overlap_threshold)[:, None, None]
    return jnp.where(mask & (ids == 0) & keep, slot[:, None, None] + 1, ids)

  ids = jnp.zeros((batch, height, width), jnp.int32)
  if count:
    ids = lax.fori_loop(0, usable.sum(1).max(), lay_down, ids)

  stuff, table = _stuff_table(stuff_classes)
  # Values that the table does not have lead to its last entry, void, as negative ones do.
  known = (label >= 0) & (label < len(stuff_classes))
  place = jnp.asarray(table)[jnp.where(known, label, len(stuff_classes))]
  place = jnp.where(inside & (ids == 0), place, len(stuff))
  areas = jax.vmap(lambda p: jnp.bincount(p.ravel(), length=len(stuff) + 1))(place)
  keep = areas >= stuff_area
  keep = keep.at[:, -1].set(False)
  kept = jax.vmap(lambda row, p: row[p])(keep, place)
  ids = jnp.where(kept, count + 1 + place, ids)

  present = jax.vmap(lambda i: jnp.bincount(i.ravel(), length=count + len(stuff) + 1))(ids)
  things = jnp.asarray(np.array(thing_classes, np.int32))[detections.classes]
  classes = jnp.concatenate(
    [things, jnp.broadcast_to(np.array(stuff, np.int32), (batch, len(stuff)))], axis=1
  )
  valid = present[:, 1:] > 0
  return Segments(ids, jnp.where(valid, classes, 0), jnp.zeros_like(valid), valid)


def paste_mask_on_device(
  mask: Array, box: Array, size: tuple[int, int], *, threshold: float | Array = 0.5
) -> Array:
  """A mask in the image, under `jit`: the rule 'detectron2' of `segjax.ops.paste_masks`.

  That form is NumPy's and touches the pixels around the box alone; this one has static shapes and
  goes over the whole image. Both interpolate across and then along in float32, so that pixels may
  differ only where the probability is the threshold to the last digits.

  Args:
    mask: f32[M, M], probabilities in the frame of the box; zeros lie beyond it.
    box: f32[4], in pixels. One without an area, or with an infinite or NaN coordinate, has none.
    size: (H, W), static.
    threshold: above 0; a pixel is set from it on.

  Returns:
    bool[H, W].
  """
  good = jnp.isfinite(box).all() & (box[2] > box[0]) & (box[3] > box[1])
  x0, y0, x1, y1 = jnp.where(good, jnp.clip(box, -_LIMIT, _LIMIT), jnp.array([0.0, 0, 1, 1]))
  padded = jnp.pad(mask, 1)
  across = _interpolate(padded.T, *_cells(x0, x1, mask.shape[1], size[1])).T
  values = _interpolate(across, *_cells(y0, y1, mask.shape[0], size[0]))
  return (values >= threshold) & good


def _cells(start: Array, end: Array, cells: int, length: int) -> tuple[Array, Array]:
  """Between which cells of the padded mask each pixel of an axis lies.

  Returns:
    before: i32[length], from 0 to M; the cell after it is `before + 1`.
    fraction: f32[length], of the way from the one to the other.
  """
  pixels = jnp.arange(length, dtype=jnp.float32)
  position = (pixels + 0.5 - start) / (end - start) * cells + 0.5
  position = jnp.clip(position, 0, cells + 1)
  before = jnp.minimum(position.astype(jnp.int32), cells)
  return before, position - before


def _interpolate(values: Array, before: Array, fraction: Array) -> Array:
  """f32[n, ...] between two neighbours of f32[cells, ...] each.

  `values[before] + fraction * steps[before]` as a product of matrices, of which all but two terms a
  pixel are zeros: on a CPU a third of the time of the gathers (experiments/panoptic_speed).
  """
  table = jnp.concatenate([values[:-1], values[1:] - values[:-1]])
  chosen = (before[:, None] == jnp.arange(values.shape[0] - 1)).astype(values.dtype)
  weights = jnp.concatenate([chosen, chosen * fraction[:, None]], axis=1)
  return jnp.matmul(weights, table, precision='highest')


def _inside(size: Array | None, batch: int, height: int, width: int) -> Array:
  """bool[B, H, W]: the pixels that are no padding."""
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
