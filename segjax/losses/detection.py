"""Losses of a region proposal network and of the RoI heads (Mask R-CNN, section 3).

They take R sampled anchors or RoIs per image, with any leading shape `...`:

  positive bool[..., R]  matched with an object
  valid    bool[..., R]  False for padding, see `segjax.ops.sampling.sample`; True for positives

and return a float32 `SumCount`. Samples that a loss does not count have no effect, even if they are
NaN. If nothing is counted, sum, count and gradient are 0. Logits and deltas have any float type,
the arithmetic is float32.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from segjax.types import Array, NonNegativeFloat, SegjaxError, SumCount

DivideBy = Literal['valid', 'slots']
Activation = Literal['sigmoid', 'softmax']

# Training outputs of a network such as `segjax.models.mask_rcnn.MaskRCNN`.
Outputs = Mapping[str, Any]

# --- L = L_cls + L_box + L_mask and the losses of the RPN: the names in `config.losses` -----------


def rpn_class(outputs: Outputs, *, divide_by: DivideBy = 'valid') -> SumCount:
  """L_cls of the RPN: cross-entropy of object or background, see `objectness_loss`.

  Args:
    outputs: of the model in training.
    divide_by: 'valid', the number of sampled anchors, as in torchvision; or 'slots', the number per
      image even if fewer were sampled, as in Detectron2.
  """
  rpn = outputs['rpn']
  return objectness_loss(rpn.logits, rpn.positive, rpn.valid, divide_by=divide_by)


def rpn_box(
  outputs: Outputs, *, beta: NonNegativeFloat = 1 / 9, divide_by: DivideBy = 'valid'
) -> SumCount:
  """L_box of the RPN: smooth L1 of the box deltas of positive anchors, see `box_loss`.

  Args:
    outputs: of the model in training.
    beta: at least 0, where the smooth L1 loss turns from quadratic to linear; 0 is the L1 loss.
    divide_by: 'valid', the number of sampled anchors, as in torchvision; or 'slots', the number per
      image even if fewer were sampled, as in Detectron2.
  """
  rpn = outputs['rpn']
  return box_loss(rpn.deltas, rpn.target, rpn.positive, rpn.valid, beta=beta, divide_by=divide_by)


def box_class(outputs: Outputs) -> SumCount:
  """L_cls: cross-entropy of the classes of the sampled RoIs, see `class_loss`."""
  logits, _, regions = outputs['box']
  return class_loss(logits, regions.classes, regions.positive, regions.valid)


def box_regression(outputs: Outputs, *, beta: NonNegativeFloat = 1 / 9) -> SumCount:
  """L_box: smooth L1 of the box deltas of positive RoIs for their class, see `box_loss`.

  Args:
    outputs: of the model in training.
    beta: at least 0, where the smooth L1 loss turns from quadratic to linear; 0 is the L1 loss.
  """
  _, deltas, regions = outputs['box']
  return box_loss(
    deltas, regions.target, regions.positive, regions.valid, regions.classes, beta=beta
  )


def mask(outputs: Outputs, *, activation: Activation = 'sigmoid') -> SumCount:
  """L_mask: cross-entropy of the masks of positive RoIs for their class, see `mask_loss`.

  A single mask channel is class-agnostic.

  Args:
    outputs: of the model in training.
    activation: 'sigmoid', independent per class, or 'softmax' over the classes (Table 2b); as that
      of the mask head.

  Raises:
    SegjaxError: the network has no mask head.
  """
  if 'mask' not in outputs:
    raise SegjaxError('config.losses.mask: the network has no mask head: set it to none')
  logits, target, regions = outputs['mask']
  agnostic = logits.shape[-1] == (1 if activation == 'sigmoid' else 2)
  classes = None if agnostic else regions.classes
  return mask_loss(logits, target, regions.positive, classes, activation=activation)


# --- definitions ----------------------------------------------------------------------------------


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
    divide_by: 'valid', the number of sampled anchors, as in torchvision; or 'slots', R per image
      even if fewer were sampled, as in Detectron2.
  """
  loss = _sigmoid_cross_entropy(_masked(logits, valid), positive)
  return SumCount(jnp.sum(jnp.where(valid, loss, 0)), _count(valid, divide_by))


def class_loss(logits: Array, classes: Array, positive: Array, valid: Array) -> SumCount:
  """Softmax cross-entropy of the sampled RoIs; the count is the number of valid ones.

  Args:
    logits: f[..., R, 1 + C], the background first as in torchvision; in Detectron2 it is last.
    classes: i32[..., R], from 0, of the matched object; only used for positives.
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
  """Smooth L1 loss of the deltas of positives, for the RPN and the box head (Faster R-CNN, eq. 1).

  Args:
    deltas: f[..., R, 4] if class-agnostic, as in the RPN; f[..., R, C, 4] with one box per class,
      without background (torchvision also has one for the background, which is never trained).
    targets: f32[..., R, 4], from `segjax.ops.boxes.encode`; only used for positives.
    positive: bool[..., R].
    valid: bool[..., R].
    classes: i32[..., R], from 0, of the matched object; None if deltas have no class axis.
    beta: of `smooth_l1`; 0 in Detectron2.
    divide_by: as in `objectness_loss`, including negatives. In the box head, Detectron2 also
      divides by 'valid'.
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
  """Cross-entropy of the masks of positives, for the class of the object (section 3).

  The count is the number of pixels, M * M per positive.

  Args:
    logits: f[..., R, M, M, C] for 'sigmoid', f[..., R, M, M, 1 + C] for 'softmax', the background
      first. C is 1 for class-agnostic masks.
    targets: [..., R, M, M], bool, or the fraction of the pixel covered by the object, as from
      torchvision's RoIAlign without rounding. Only used for positives.
    positive: bool[..., R].
    classes: i32[..., R], from 0, of the matched object; None for class-agnostic masks.
    activation: 'sigmoid', one-vs-rest, only for the object's class; 'softmax' over the classes and
      the background, as in Table 2b.
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
    raise SegjaxError(f'activation is {activation!r}: choose from sigmoid, softmax')
  count = jnp.sum(positive, dtype=jnp.float32) * (targets.shape[-1] * targets.shape[-2])
  return SumCount(jnp.sum(jnp.where(pixel, loss, 0)), count)


def _masked(x: Array, keep: Array) -> Array:
  """x in float32, 0 where it is not kept, so that values and gradients there are not NaN."""
  return jnp.where(keep, x.astype(jnp.float32), 0)


def _pick(x: Array, classes: Array, positive: Array, axis: int) -> Array:
  """Selects the class of each sample along `axis` of x[..., R, …]; class 0 for negatives."""
  index = jnp.where(positive, classes, 0)
  index = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
  return jnp.take_along_axis(x, index, axis).squeeze(axis)


def _sigmoid_cross_entropy(logits: Array, target: Array) -> Array:
  """f32[...] from float32 logits; the target is bool or in [0, 1]."""
  target = target.astype(jnp.float32)
  return -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)


def _count(valid: Array, divide_by: DivideBy) -> Array:
  counts = {'valid': jnp.sum(valid, dtype=jnp.float32), 'slots': jnp.float32(valid.size)}
  if divide_by not in counts:
    raise SegjaxError(f'divide_by is {divide_by!r}: choose from valid, slots')
  return counts[divide_by]
