"""The mask head: predicts a mask for each RoI (Mask R-CNN, §3, Mask Representation)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.box_head import SampledRoIs
from segjax.nn.conv import Conv, ConvTranspose, Norm, he_normal
from segjax.nn.roi import conv_layers, per_roi
from segjax.types import Array, Detections, NonNegativeInt, PositiveInt


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
  """Keys of `config.model.mask_head`.

  Attributes:
    features: channels of the convolutions (paper: 256).
    norm: of the 3x3 convolutions: 'none', 'batch' or 'group'.
    resolution: of the RoI features, resolution x resolution; masks have twice the resolution.
    convs: number of 3x3 convolutions; none on 'c4', where res5 precedes the head.
    mlp: channels of fully-connected layers that replace the convolutions; the MLPs of Table 2e are
      (1024, 1024) and (1024, 1024, 1024).
    activation: 'sigmoid', or 'softmax' over the classes and the background (Table 2b).
    class_agnostic: one mask for all classes (§4.1, Class-Specific vs. Class-Agnostic).
  """

  features: PositiveInt = 256
  norm: Norm = 'none'
  resolution: PositiveInt = 14
  convs: NonNegativeInt = 4
  mlp: tuple[PositiveInt, ...] = ()
  activation: Literal['sigmoid', 'softmax'] = 'sigmoid'
  class_agnostic: bool = False

  def channels(self, classes: int) -> int:
    """Number of mask channels: one per class, or one; with 'softmax' the background comes first."""
    return (1 if self.class_agnostic else classes) + (self.activation == 'softmax')


class MaskSamples(NamedTuple):
  """logits f32[B, R', M, M, channels] and target f32[B, R', M, M] of the first R' sampled RoIs.

  They include all positive RoIs. For the channels see `MaskHeadConfig.channels`.
  """

  logits: Array
  target: Array
  rois: SampledRoIs


class MaskHead(nn.Module):
  """Convolutions, a transposed convolution of stride 2, and a mask per channel (Fig. 4).

  Attributes:
    channels: of the masks.
    features: channels of the convolutions.
    convs: number of 3x3 convolutions.
    norm: of the convolutions.
    dtype: computation dtype.
  """

  channels: PositiveInt
  features: PositiveInt = 256
  convs: NonNegativeInt = 4
  norm: Norm = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """f[B, R, P, Q, C] -> logits f32[B, R, 2P, 2Q, channels]; `valid` as in `BoxHead`."""
    return per_roi(lambda x: self._masks(x, valid), x)

  def _masks(self, x: Array, valid: Array | None) -> Array:
    options = {'norm': self.norm, 'valid': valid, 'dtype': self.dtype}
    x = conv_layers(x.astype(self.dtype), count=self.convs, features=self.features, **options)
    x = nn.relu(ConvTranspose(self.features, 2, 2, dtype=self.dtype, name='upconv')(x))
    init = nn.initializers.normal(0.001)
    score = Conv(self.channels, (1, 1), kernel_init=init, dtype=self.dtype, name='score')
    return score(x).astype(jnp.float32)


# A quarter, half or all of the slots of masks are computed, whatever has all positives.
_PARTS = (4, 2, 1)
# With fewer slots the conditional costs more than it saves.
_LEAST_SLOTS = 64


def first_positives(
  samples: Callable[[nn.Module, SampledRoIs], MaskSamples], head: nn.Module, rois: SampledRoIs
) -> MaskSamples:
  """`samples(head, rois)` without most of the work for slots that have no positive RoI.

  In training most of the R' slots can be empty: few proposals overlap an object at first, and an
  image has few objects. The first R' / 4 or R' / 2 slots are computed if they have all positives of
  the batch; the others are then zeros, to which the loss gives no weight.

  Args:
    samples: of rois with any number of slots.
    head: the mask head.
    rois: the first R' sampled RoIs, positives first.
  """
  slots = rois.positive.shape[1]
  if slots < _LEAST_SLOTS or head.is_initializing():
    return samples(head, rois)
  counts = [slots // part for part in _PARTS]

  def branch(count: int) -> Callable[[nn.Module, SampledRoIs], tuple[Array, Array]]:
    def run(head: nn.Module, rois: SampledRoIs) -> tuple[Array, Array]:
      found = samples(head, jax.tree.map(lambda x: x[:, :count], rois))
      rest = lambda x: jnp.pad(x, [(0, 0), (0, slots - count), *[(0, 0)] * (x.ndim - 2)])
      return rest(found.logits), rest(found.target)

    # What the branches keep for the backward pass is kept for all of them: the smaller ones compute
    # it again.
    return nn.remat(run) if count < slots else run

  needed = rois.positive.sum(1).max()
  index = jnp.searchsorted(jnp.array(counts), needed)
  logits, target = nn.switch(index, [branch(count) for count in counts], head, rois)
  return MaskSamples(logits, target, rois)


class MaskMLP(nn.Module):
  """A mask head of fully-connected layers (Table 2e).

  Attributes:
    channels: of the masks.
    hidden: channels of the layers.
    size: M, the side length of the masks.
    dtype: computation dtype.
  """

  channels: PositiveInt
  hidden: tuple[PositiveInt, ...]
  size: PositiveInt
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """f[B, R, P, Q, C] -> logits f32[B, R, M, M, channels]."""
    del valid  # this head has no norm
    x = x.reshape(*x.shape[:2], -1).astype(self.dtype)
    for i, hidden in enumerate(self.hidden, 1):
      layer = nn.Dense(hidden, kernel_init=he_normal, dtype=self.dtype, name=f'fc{i}')
      x = nn.relu(layer(x))
    outputs = self.size**2 * self.channels
    init = nn.initializers.normal(0.001)
    score = nn.Dense(outputs, kernel_init=init, dtype=self.dtype, name='score')
    return score(x).astype(jnp.float32).reshape(*x.shape[:2], self.size, self.size, self.channels)


def with_masks(found: Detections, logits: Array, config: MaskHeadConfig) -> Detections:
  """Adds the mask of its class to each detection, from logits f32[B, K, M, M, channels]."""
  channels = jnp.zeros_like(found.classes) if config.class_agnostic else found.classes
  if config.activation == 'softmax':
    return found._replace(masks=of_class(nn.softmax(logits), channels + 1))
  return found._replace(masks=nn.sigmoid(of_class(logits, channels)))


def of_class(masks: Array, classes: Array) -> Array:
  """Selects the channel of each RoI's class: f[B, R, M, M, C], i32[B, R] -> f[B, R, M, M]."""
  index = classes[:, :, None, None, None]
  return jnp.take_along_axis(masks, index, axis=-1)[..., 0]
