"""RoI feature extraction (Mask R-CNN, §3, RoIAlign), and layers applied to each RoI."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from segjax.nn.conv import Conv, Norm, he_normal, make_norm
from segjax.ops.roi_align import Mode, multilevel_roi_align, roi_pool, roi_warp
from segjax.types import Array, NonNegativeInt, PositiveInt


@dataclasses.dataclass(frozen=True)
class RoIConfig:
  """Keys of `config.model.roi`: how RoI features are extracted.

  Attributes:
    op: the operation (Table 2c); RoIPool and RoIWarp need a single feature map.
    mode: average or maximum of the samples of a bin; RoIPool always takes the maximum.
    sampling_ratio: samples per bin and axis of RoIAlign and RoIWarp; 0 is adaptive.
    max_samples: upper bound of the adaptive number per axis; larger RoIs are sampled more coarsely.
      None allows a RoI as large as the finest map: exact, as RoIs are clipped to the image.
    aligned: half-pixel offset of RoIAlign, as in Detectron2 but not torchvision's default. With it
      mask targets are binary, without it fractional.
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
  """The features f32[B, R, P, P, C] of each RoI.

  Args:
    levels: f[B, h, w, C] per level; a single one for RoIPool and RoIWarp.
    boxes: f32[B, R, 4].
    config: the operation and its arguments.
    strides: of the levels.
    resolution: P.
  """
  levels = [level.astype(jnp.float32) for level in levels]
  sampling = {
    'sampling_ratio': config.sampling_ratio,
    'mode': config.mode,
    'max_samples': config.max_samples,
  }
  if config.op == 'roi_align':
    return multilevel_roi_align(
      levels,
      boxes,
      strides=strides,
      output_size=resolution,
      aligned=config.aligned,
      **sampling,
    )
  [level], [stride] = levels, strides
  operation = roi_pool if config.op == 'roi_pool' else functools.partial(roi_warp, **sampling)
  return operation(level, boxes, output_size=resolution, spatial_scale=1 / stride)


def per_roi(apply: Callable[[Array], Array], x: Array) -> Array:
  """Applies f[B', P, Q, C] -> [B', …] to each RoI: f[B, R, P, Q, C] -> [B, R, …]."""
  y = apply(x.reshape(-1, *x.shape[2:]))
  return y.reshape(*x.shape[:2], *y.shape[1:])


def conv_layers(
  x: Array, *, count: int, features: int, norm: Norm, valid: Array | None, dtype: Any
) -> Array:
  """3x3 convolutions conv1, conv2, … on f[B · R, P, Q, C], each with its …_norm and a ReLU.

  The layers belong to the calling module.

  Args:
    x: RoI features.
    count: number of convolutions.
    features: channels of the convolutions.
    norm: 'batch' computes the statistics over `valid` RoIs; over all, if none is valid, to avoid
      NaN.
    valid: bool[B, R], in training; None uses the running statistics.
    dtype: computation dtype.
  """
  train = valid is not None
  mask = (valid | ~valid.any()).reshape(-1, 1, 1, 1) if train else None
  for name in (f'conv{i}' for i in range(1, count + 1)):
    layer = Conv(
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
