"""Regions of interest: cut out of feature maps (Mask R-CNN, §3, RoIAlign), and layers on each."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from segjax.nn.conv import Norm, he_normal, make_norm
from segjax.ops.roi_align import Mode, multilevel_roi_align, roi_pool, roi_warp
from segjax.types import Array, NonNegativeInt, PositiveInt


@dataclasses.dataclass(frozen=True)
class RoIConfig:
  """Keys of `config.model.roi`: how RoIs are cut out of the feature maps.

  Attributes:
    op: the operation (Table 2c); RoIPool and RoIWarp take one map.
    mode: whether a bin is the average or the maximum of its samples, but for RoIPool.
    sampling_ratio: samples per bin and axis of RoIAlign, 0 for the adaptive count.
    max_samples: bounds the adaptive count; None for that of a RoI as large as the map.
    aligned: RoIAlign's half-pixel convention, which Detectron2 has and torchvision has not; with it
      mask targets are 0 or 1, without it shares of a pixel.
  """

  op: Literal['roi_align', 'roi_pool', 'roi_warp'] = 'roi_align'
  mode: Mode = 'avg'
  sampling_ratio: NonNegativeInt = 2
  max_samples: PositiveInt | None = None
  aligned: bool = False


def extract(
  levels: Sequence[Array],
  boxes: Array,
  config: RoIConfig,
  *,
  strides: Sequence[int],
  resolution: int,
) -> Array:
  """The features of each RoI, float32[B, R, P, P, C].

  Args:
    levels: f[B, h, w, C] per level; one for RoIPool and RoIWarp.
    boxes: f32[B, R, 4].
    config: the operation and its arguments.
    strides: of the levels.
    resolution: P.
  """
  levels = [level.astype(jnp.float32) for level in levels]
  sampling = {'sampling_ratio': config.sampling_ratio, 'mode': config.mode}
  if config.op == 'roi_align':
    return multilevel_roi_align(
      levels,
      boxes,
      strides=strides,
      output_size=resolution,
      aligned=config.aligned,
      max_samples=config.max_samples,
      **sampling,
    )
  [level], [stride] = levels, strides
  operation = roi_pool if config.op == 'roi_pool' else functools.partial(roi_warp, **sampling)
  return operation(level, boxes, output_size=resolution, spatial_scale=1 / stride)


def per_roi(apply: Callable[[Array], Array], x: Array) -> Array:
  """`apply` on each RoI: f[B, R, P, Q, C] -> [B, R, …], of f[B', P, Q, C] -> [B', …]."""
  y = apply(x.reshape(-1, *x.shape[2:]))
  return y.reshape(*x.shape[:2], *y.shape[1:])


def conv_layers(
  x: Array, *, count: int, features: int, norm: Norm, valid: Array | None, dtype: Any
) -> Array:
  """`count` 3x3 convolutions of f[B · R, P, Q, C], conv1, conv2, …, each with its …_norm and ReLU.

  The layers are those of the module that calls it.

  Args:
    x: features of RoIs.
    count: of the convolutions.
    features: their channels.
    norm: 'batch' takes the statistics of `valid` RoIs; of all, where none is, which are then
      blank: NaN otherwise.
    valid: bool[B, R], in training; None for the running statistics.
    dtype: type of the computation.
  """
  train = valid is not None
  mask = (valid | ~valid.any()).reshape(-1, 1, 1, 1) if train else None
  for name in (f'conv{i}' for i in range(1, count + 1)):
    layer = nn.Conv(
      features,
      (3, 3),
      use_bias=norm == 'none',
      kernel_init=he_normal,
      dtype=dtype,
      name=name,
    )
    x = make_norm(norm, train=train, dtype=dtype, name=f'{name}_norm')(layer(x), mask=mask)
    x = nn.relu(x)
  return x
