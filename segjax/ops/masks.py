"""Bit-packed masks, and mask targets cropped from them."""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.roi_align import (
  IntOrPair,
  box_samples,
  interpolation_matrices,
  mean_weights,
  sample_bounds,
)
from segjax.types import Array


def pack_masks(masks: Array) -> Array:
  """Packs eight pixels per byte, the first in the highest bit, as `np.packbits(masks, axis=-1)`.

  Args:
    masks: bool[..., H, W].

  Returns:
    u8[..., H, ceil(W / 8)]; the bits beyond W are zeros.
  """
  return jnp.packbits(masks, axis=-1)


def unpack_masks(packed: Array, width: int) -> Array:
  """The inverse of `pack_masks`: u8[..., H, ceil(width / 8)] -> bool[..., H, width]."""
  return jnp.unpackbits(packed, axis=-1, count=width).astype(bool)


def crop_masks(
  packed: Array,
  boxes: Array,
  index: Array,
  *,
  size: IntOrPair,
  width: int,
  aligned: bool,
  threshold: float | None,
  image_size: Array | None = None,
) -> Array:
  """Mask targets: RoIAlign of one mask per box.

  `aligned=False, threshold=None` is torchvision's `project_masks_on_boxes`, with targets between 0
  and 1; `aligned=True, threshold=0.5` is Detectron2's `BitMasks.crop_and_resize`. Both use the
  adaptive number of samples, so that every pixel of the mask counts.

  Args:
    packed: u8[N, H, ceil(width / 8)] from `pack_masks`, or u8[B, N, H, ceil(width / 8)].
    boxes: f32[R, 4], or f32[B, R, 4], in pixels of the masks.
    index: i32[R], or i32[B, R]: the index of the mask of each box.
    size: of the target, an int or (rows, columns) = (P, Q).
    width: W of the masks.
    aligned: whether pixel centers are at index + 0.5, see `roi_align`.
    threshold: targets are True from this average; None returns the averages.
    image_size: i32[2], or i32[B, 2]: rows and columns of the image without its padding, at whose
      border sampling ends as for a mask without padding; None for the size of the mask.

  Returns:
    f32[R, P, Q] without a threshold, bool[R, P, Q] with one; with a leading axis B for batches.

  Raises:
    ValueError: `width` does not match the masks.
  """
  if packed.shape[-1] != -(-width // 8):
    raise ValueError(f'masks of width {width} have {-(-width // 8)} bytes, not {packed.shape[-1]}')

  shape = (packed.shape[-2], width)
  image_size = jnp.asarray(shape if image_size is None else image_size)
  image_size = jnp.broadcast_to(image_size, (*packed.shape[:-3], 2))

  def crop(packed: Array, boxes: Array, index: Array, image_size: Array) -> Array:
    rows, cols = box_samples(
      boxes,
      jnp.broadcast_to(image_size, (boxes.shape[0], 2)),
      output_size=size,
      sampling_ratio=0,
      # Exact for boxes up to the size of the masks.
      max_samples=sample_bounds(shape, size, None),
      aligned=aligned,
      border='zero',
      zero_empty=True,
    )
    return _crop_by_matrices(packed, index, width, rows, cols)

  crops = (crop if packed.ndim == 3 else jax.vmap(crop))(packed, boxes, index, image_size)
  return crops if threshold is None else crops >= threshold


def _crop_by_matrices(packed, index, width, rows, cols) -> Array:
  """Unpacks one mask at a time, and multiplies it with interpolation matrices."""

  def crop(region: tuple) -> Array:
    i, *axes = region
    mask = unpack_masks(packed[i], width).astype(jnp.float32)
    y, x = (
      interpolation_matrices(samples, mean_weights(samples), length).sum(-2)
      for samples, length in zip(axes, mask.shape, strict=True)
    )
    return jnp.einsum('ph,hw,qw->pq', y, mask, x, precision='highest')

  return lax.map(crop, (index, rows, cols))
