"""Feature pyramid: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv
1612.03144, §3."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv, Norm, make_norm
from segjax.types import Fraction, NonNegativeInt, PositiveInt

# As in torchvision and Detectron2: U(-a, a) with a = sqrt(3 / N) and fan-in N.
uniform_fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')


@dataclasses.dataclass(frozen=True)
class FPNConfig:
  """Keys of `config.model.neck`.

  Attributes:
    features: channels of every level (paper: 256).
    norm: of the convolutions: 'none' (with biases) as in the paper, 'batch' or 'group'.
  """

  features: PositiveInt = 256
  norm: Norm = 'none'


class FPN(nn.Module):
  """Top-down pathway and lateral connections (Fig. 3).

  Layers: lateral2, output2, … by level, each with its …_norm unless norm is 'none'.

  Attributes:
    features: channels of every level (paper: 256).
    first: index of the finest level, whose stride is 2^first.
    extra: whether to append a level of twice the stride, by subsampling the last level, for the
      large anchors of the RPN (§4.1).
    norm: 'none' (with biases) as in the paper, 'batch' or 'group'.
    bn_momentum: with norm 'batch'.
    dtype: computation dtype.
  """

  features: PositiveInt = 256
  first: NonNegativeInt = 2
  extra: bool = True
  norm: Norm = 'none'
  bn_momentum: Fraction = 0.9
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @nn.compact
  def __call__(self, stages: Sequence[jax.Array], *, train: bool = False) -> list[jax.Array]:
    """f[B, h, w, C] per level, sizes halved and rounded up -> f[B, h, w, features] per level."""

    def conv(x: jax.Array, kernel_size: int, name: str) -> jax.Array:
      x = Conv(
        self.features,
        (kernel_size, kernel_size),
        padding=kernel_size // 2,
        use_bias=self.norm == 'none',
        kernel_init=uniform_fan_in,
        dtype=self.dtype,
        name=name,
      )(x)
      options: dict[str, Any] = {'momentum': self.bn_momentum, 'dtype': self.dtype}
      return make_norm(self.norm, train=train, name=f'{name}_norm', **options)(x)

    levels, above = [], None
    for level, x in reversed(list(enumerate(stages, self.first))):
      x = conv(x, 1, f'lateral{level}')
      if above is not None:
        x += upsample_nearest(above, x.shape[1:3])
      above = x
      levels.insert(0, conv(x, 3, f'output{level}'))
    return [*levels, levels[-1][:, ::2, ::2]] if self.extra else levels


def upsample_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Upsamples f[B, h, w, C] by 2 to f[B, *size, C]; `size` is 2h or 2h - 1, 2w or 2w - 1."""
  for axis in (1, 2):
    # The gradient of a stack is a sum of slices, that of `jnp.repeat` a reduction, which is slower.
    shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    x = jnp.stack([x, x], axis + 1).reshape(shape)
  return x[:, : size[0], : size[1]]
