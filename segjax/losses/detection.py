"""Losses of a region proposal network and of the heads on its regions (Mask R-CNN, section 3).

They take what was sampled, R slots an image or several images' in any leading shape `...`:

  positive bool[..., R]  the slot has an object to learn
  valid    bool[..., R]  False for a slot that `segjax.ops.sampling.sample` could not fill; True
                         wherever `positive` is

and return a float32 `SumCount`. A slot that a loss does not count adds nothing, whatever numbers it
holds; where there is nothing to count the sum, the count and the gradient are 0. Logits and deltas
have any float type, the arithmetic is float32.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from segjax.types import Array, NonNegativeFloat, SegjaxError, SumCount

DivideBy = Literal['valid', 'slots']
Activation = Literal['sigmoid', 'softmax']

# What a network outputs in training, such as `segjax.models.mask_rcnn.MaskRCNN`.
Outputs = Mapping[str, Any]

# --- the parts of L = L_cls + L_box + L_mask, and of the RPN's: the names in `config.losses` ------


def rpn_class(outputs: Outputs, *, divide_by: DivideBy = 'valid') -> SumCount:
  """L_cls of the RPN: `objectness_loss` of `outputs['rpn']`."""
  rpn = outputs['rpn']
  return objectness_loss(rpn.logits, rpn.positive, rpn.valid, divide_by=divide_by)


def rpn_box(
  outputs: Outputs, *, beta: NonNegativeFloat = 1 / 9, divide_by: DivideBy = 'valid'
) -> SumCount:
  """L_box of the RPN: `box_loss` of `outputs['rpn']`."""
  rpn = outputs['rpn']
  return box_loss(rpn.deltas, rpn.target, rpn.positive, rpn.valid, beta=beta, divide_by=divide_by)


def box_class(outputs: Outputs) -> SumCount:
  """L_cls: `class_loss` of `outputs['box']`."""
  logits, _, regions = outputs['box']
  return class_loss(logits, regions.classes, regions.positive, regions.valid)


def box_regression(outputs: Outputs, *, beta: NonNegativeFloat = 1 / 9) -> SumCount:
  """L_box: `box_loss` of `outputs['box']`, on the box of the object's class."""
  _, deltas, regions = outputs['box']
  return box_loss(
    deltas, regions.target, regions.positive, regions.valid, regions.classes, beta=beta
  )


def mask(outputs: Outputs, *, activation: Activation = 'sigmoid') -> SumCount:
  """L_mask: `mask_loss` of `outputs['mask']`; masks of one channel are class-agnostic.

  Raises:
    SegjaxError: the network has no mask head.
  """
  if 'mask' not in outputs:
    raise SegjaxError('config.losses.mask: the network has no mask head: set it to none')
  logits, target, regions = outputs['mask']
  agnostic = logits.shape[-1] == (1 if activation == 'sigmoid' else 2)
  classes = None if agnostic else regions.classes
  return mask_loss(logits, target, regions.positive, classes, activation=activation)


# --- each by its definition -----------------------------------------------------------------------


def smooth_l1(difference: Array, beta: float) -> Array:
  """0.5 d² / beta where |d| < beta, else |d| - beta / 2 (Fast R-CNN, eq. 3, with beta 1).

  Args:
    difference: f[...].
    beta: at least 0; 0 is |d|.
  """
  # Not `jnp.abs`, whose gradient at 0 is 1.
  size = difference * jax.lax.stop_gradient(jnp.sign(difference))
  if not beta:
    return size
  return jnp.where(size < beta, 0.5 * difference**2 / beta, size - 0.5 * beta)


def objectness_loss(
  logits: Array, positive: Array, valid: Array, *, divide_by: DivideBy = 'valid'
) -> SumCount:
  """Sigmoid cross-entropy of the sampled anchors, 1 for the positives (Faster R-CNN, eq. 1).

  Args:
    logits: f[..., R].
    positive: bool[..., R].
    valid: bool[..., R].
    divide_by: 'valid', the sampled anchors, as torchvision does; or 'slots', R an image, as
      Detectron2 does, also where fewer were sampled.
  """
  loss = _sigmoid_cross_entropy(_masked(logits, valid), positive)
  return SumCount(jnp.sum(jnp.where(valid, loss, 0)), _count(valid, divide_by))


def class_loss(logits: Array, classes: Array, positive: Array, valid: Array) -> SumCount:
  """Softmax cross-entropy of the sampled regions; the count is that of the valid ones.

  Args:
    logits: f[..., R, 1 + C], the background first, as torchvision has it; Detectron2 has it last.
    classes: i32[..., R], from 0, of the matched object; read where `positive`.
    positive: bool[..., R].
    valid: bool[..., R].
  """
  label = jnp.where(positive, classes + 1, 0)
  log_p = jax.nn.log_softmax(_masked(logits, valid[..., None]))
  loss = -jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
  return SumCount(jnp.sum(jnp.where(valid, loss, 0)), _count(valid, 'valid'))


def box_loss(
  deltas: Array,
  targets: Array,
  positive: Array,
  valid: Array,
  classes: Array | None = None,
  *,
  beta: float = 1 / 9,
  divide_by: DivideBy = 'valid',
) -> SumCount:
  """Smooth L1 of the positives' deltas, of the RPN and of the box head (Faster R-CNN, eq. 1).

  Args:
    deltas: f[..., R, 4] for one box a slot, class-agnostic as the RPN is; f[..., R, C, 4] for one a
      class, without the background (torchvision has one for it too, which is never trained).
    targets: f32[..., R, 4], of `segjax.ops.boxes.encode`; read where `positive`.
    positive: bool[..., R].
    valid: bool[..., R].
    classes: i32[..., R], from 0, of the matched object; None where deltas have no class axis.
    beta: of `smooth_l1`; Detectron2 has 0.
    divide_by: as in `objectness_loss`: the count is of positives and negatives. In the box head
      Detectron2 too divides by 'valid'.
  """
  if classes is not None:
    deltas = _pick(deltas, classes, positive, axis=-2)
  deltas, targets = (_masked(x, positive[..., None]) for x in (deltas, targets))
  loss = smooth_l1(deltas - targets, beta)
  return SumCount(jnp.sum(loss), _count(valid, divide_by))


def mask_loss(
  logits: Array,
  targets: Array,
  positive: Array,
  classes: Array | None = None,
  *,
  activation: Activation = 'sigmoid',
) -> SumCount:
  """Cross-entropy of the positives' masks, on the channel of the object's class (section 3).

  The count is of pixels, M * M a positive.

  Args:
    logits: f[..., R, M, M, C] for 'sigmoid', f[..., R, M, M, 1 + C] for 'softmax', the background
      first. C is 1 for class-agnostic masks.
    targets: [..., R, M, M], bool, or the share of the pixel that the object covers: torchvision's
      are of RoIAlign, not rounded. Read where `positive`.
    positive: bool[..., R].
    classes: i32[..., R], from 0, of the matched object; None for class-agnostic masks.
    activation: 'sigmoid', each class against the rest and only the object's read; 'softmax', the
      classes and the background compete, as in Table 2b.
  """
  classes = jnp.zeros(positive.shape, jnp.int32) if classes is None else classes
  pixel = positive[..., None, None]
  targets = _masked(targets, pixel)
  if activation == 'sigmoid':
    picked = _pick(logits, classes, positive, axis=-1)
    loss = _sigmoid_cross_entropy(_masked(picked, pixel), targets)
  elif activation == 'softmax':
    log_p = jax.nn.log_softmax(_masked(logits, pixel[..., None]))
    inside = _pick(log_p, classes + 1, positive, axis=-1)
    loss = -(targets * inside + (1 - targets) * log_p[..., 0])
  else:
    raise SegjaxError(f"activation is {activation!r}: a mask's is 'sigmoid' or 'softmax'")
  count = jnp.sum(positive, dtype=jnp.float32) * (targets.shape[-1] * targets.shape[-2])
  return SumCount(jnp.sum(jnp.where(pixel, loss, 0)), count)


def _masked(x: Array, keep: Array) -> Array:
  """x in float32, 0 where it is not kept, so that neither a value nor a gradient there is NaN."""
  return jnp.where(keep, x.astype(jnp.float32), 0)


def _pick(x: Array, classes: Array, positive: Array, axis: int) -> Array:
  """x[..., R, …] at each slot's class along `axis`, which goes; at class 0 where not positive."""
  index = jnp.where(positive, classes, 0)
  index = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
  return jnp.take_along_axis(x, index, axis).squeeze(axis)


def _sigmoid_cross_entropy(logits: Array, target: Array) -> Array:
  """f32[...] of float32 logits; the target is bool or a share in 0 to 1."""
  target = target.astype(jnp.float32)
  return -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)


def _count(valid: Array, divide_by: DivideBy) -> Array:
  counts = {'valid': jnp.sum(valid, dtype=jnp.float32), 'slots': jnp.float32(valid.size)}
  if divide_by not in counts:
    raise SegjaxError(f"divide_by is {divide_by!r}: a loss of regions has 'valid' or 'slots'")
  return counts[divide_by]
