"""From a set of masks with classes to the result of a task, under `jit`.

The set is what Q queries of a network predict for an image (MaskFormer, arXiv 2107.06278, §3.4;
Mask2Former, arXiv 2112.01527): class logits f32[Q, C + 1], "no object" last, and mask logits
f32[Q, h, w] that cover the image with its padding. Masks are bilinear between their centers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segjax.ops.resize import inside_mask, resize_inside
from segjax.types import Array

# Added to the pixels of a mask when its mean probability is taken, as in the public code.
_EPSILON = 1e-6


class MaskedObjects(NamedTuple):
  """Objects of an image in descending order of score.

  Attributes:
    boxes: f32[K, 4], around the pixels of the masks; zeros without a pixel.
    classes: i32[K].
    scores: f32[K].
    masks: f32[K, h, w], logits.
    valid: bool[K], whether there is a pixel.
  """

  boxes: Array
  classes: Array
  scores: Array
  masks: Array
  valid: Array


def enlarge_masks(masks: Array, size: tuple[int, int]) -> Array:
  """f32[Q, h, w] -> f32[Q, *size], bilinear."""
  return jax.image.resize(masks, (len(masks), *size), 'linear', precision='highest')


def semantic_scores(classes: Array, masks: Array, size: tuple[int, int]) -> Array:
  """f32[*size, C]: the sum over the queries of class probability x mask probability."""
  of_class = jax.nn.softmax(classes)[:, :-1]
  of_mask = jax.nn.sigmoid(enlarge_masks(masks, size))
  return jnp.einsum('qc,qhw->hwc', of_class, of_mask, precision='highest')


def find_objects(
  classes: Array, masks: Array, canvas: tuple[int, int], size: Array, count: int
) -> MaskedObjects:
  """The best pairs of a query and a class, each of them an object.

  Its score is the class probability times the mean mask probability over the object's pixels, those
  of positive logits.

  Args:
    classes: f32[Q, C + 1], logits.
    masks: f32[Q, h, w], logits.
    canvas: (H, W), the image with its padding.
    size: i32[2], its height and width without padding.
    count: K, at most Q · C.
  """
  number = classes.shape[1] - 1
  best, index = jax.lax.top_k(jax.nn.softmax(classes)[:, :-1].reshape(-1), count)
  query, kind = index // number, index % number
  inside = inside_mask(size, canvas)

  def measure(mask: Array) -> tuple[Array, Array]:
    """The mean probability of a mask f32[h, w], and the box around it."""
    logits = enlarge_masks(mask[None], canvas)[0]
    pixels = (logits > 0) & inside
    total = jnp.where(pixels, jax.nn.sigmoid(logits), 0).sum()
    return total / (pixels.sum() + _EPSILON), box_around(pixels)

  # One at a time: K masks of the size of the image are large.
  quality, boxes = jax.lax.map(measure, masks)
  scores = best * quality[query]
  order = jnp.argsort(-scores, stable=True)
  query = query[order]
  found = quality > 0
  return MaskedObjects(
    boxes[query], kind[order].astype(jnp.int32), scores[order], masks[query], found[query]
  )


def box_around(pixels: Array) -> Array:
  """f32[4], around the pixels of bool[H, W]; zeros without one."""
  sides = []
  for axis in (0, 1):
    taken = pixels.any(axis)
    first, last = jnp.argmax(taken), len(taken) - jnp.argmax(taken[::-1])
    sides.append((first, jnp.where(taken.any(), last, 0)))
  (x0, x1), (y0, y1) = sides
  return jnp.stack([x0, y0, x1, y1]).astype(jnp.float32)


def find_segments(
  classes: Array,
  masks: Array,
  canvas: tuple[int, int],
  size: Array,
  native: Array,
  shape: tuple[int, int],
  *,
  things: Sequence[int],
  score_threshold: float | Array,
  mask_threshold: float | Array,
  overlap_threshold: float | Array,
) -> tuple[Array, Array, Array, Array]:
  """Panoptic segments, at the original size of an image.

  Of the queries with a score of more than `score_threshold`, each pixel goes to the one with the
  highest score x mask probability. A query keeps its pixels where its probability is at least
  `mask_threshold`, if it won more than `overlap_threshold` times as many pixels as its mask has.
  Stuff of one class is one segment, that of the first of its queries.

  Args:
    classes: f32[Q, C + 1], logits.
    masks: f32[Q, h, w], logits.
    canvas: (H, W), the input of the network.
    size: i32[2], height and width in it of the image without padding.
    native: i32[2], the original height and width.
    shape: of the result, at least `native`; beyond, it is void.
    things: the other classes are stuff.
    score_threshold, mask_threshold, overlap_threshold: fractions.

  Returns:
    ids i32[*shape], 0 or the index of a query + 1; its class i32[Q]; its score f32[Q]; and whether
    it is a segment, bool[Q].
  """
  number = classes.shape[1] - 1
  probability = jax.nn.softmax(classes)
  score, kind = probability.max(-1), jnp.argmax(probability, -1).astype(jnp.int32)
  usable = (kind < number) & (score > score_threshold)
  large = jnp.moveaxis(enlarge_masks(masks, canvas), 0, -1)[None]
  large = jax.nn.sigmoid(resize_inside(large, size[None], native[None], shape)[0])
  inside = inside_mask(native, shape)

  best = jnp.argmax(jnp.where(usable, score * large, -1), -1)
  sure = (large >= mask_threshold) & inside[..., None]
  own = jnp.take_along_axis(sure, best[..., None], -1)[..., 0]
  won, kept = (
    jnp.bincount(jnp.where(pixels, best, len(score)).ravel(), length=len(score) + 1)[:-1]
    for pixels in (inside, own)
  )
  area = sure.sum((0, 1))
  share = won / jnp.maximum(area, 1).astype(jnp.float32)
  valid = usable & (kept > 0) & (share > overlap_threshold)

  stuff = ~jnp.isin(kind, jnp.asarray(things, jnp.int32))
  same = (kind[:, None] == kind) & valid & stuff
  first = jnp.where(valid & stuff, jnp.argmax(same, 1), jnp.arange(len(score)))
  ids = jnp.where(own & valid[best], first[best] + 1, 0).astype(jnp.int32)
  return ids, jnp.where(valid, kind, 0), score, valid & (first == jnp.arange(len(score)))
