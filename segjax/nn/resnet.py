"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv
1512.03385, Table 1; and ResNeXt: Xie, Girshick, Dollár, Tu, He, CVPR 2017, arXiv 1611.05431.

Padding is symmetric, as in Caffe and PyTorch: output i of a stage is centered at pixel stride · i.
By default the stride of a bottleneck is in its 3x3 convolution, as in torchvision.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segjax.nn.conv import Conv, make_norm
from segjax.nn.remat import apply_block
from segjax.ops.pooling import max_pool
from segjax.ops.windows import Window
from segjax.types import Fraction, NonNegativeFloat, PositiveInt, Range

Name = Literal['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnext101_32x8d']
Norm = Literal['batch', 'frozen', 'group']

# Stage 1 is the stem: a 7x7 convolution and max pooling, of stride 2 each.
STAGES = (1, 2, 3, 4, 5)
# Stages with stride 2, which can be dilated instead.
HALVING = (3, 4, 5)
HalvingStage = Annotated[int, Range(3, 5)]
FrozenStages = Annotated[int, Range(0, 5)]

# N(0, sqrt(2 / N)) with fan-out N, as in the authors' Torch code.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class ConvSpec(NamedTuple):
  """A same-padded convolution without bias."""

  features: int
  kernel: int = 1
  stride: int = 1
  dilation: int = 1
  groups: int = 1


class Block(NamedTuple):
  """A residual block: `convs` in sequence, plus the projection `shortcut` or the identity."""

  convs: tuple[ConvSpec, ...]
  shortcut: ConvSpec | None


class Variant(NamedTuple):
  """A column of Table 1.

  Attributes:
    block: type of block (Fig. 5).
    blocks: number of blocks in stages 2 to 5.
    groups: of the 3x3 convolutions; ResNeXt's cardinality.
    group_width: channels per group in stage 2.
  """

  block: Literal['basic', 'bottleneck']
  blocks: tuple[int, int, int, int]
  groups: int = 1
  group_width: int = 64


VARIANTS: dict[Name, Variant] = {
  'resnet18': Variant('basic', (2, 2, 2, 2)),
  'resnet34': Variant('basic', (3, 4, 6, 3)),
  'resnet50': Variant('bottleneck', (3, 4, 6, 3)),
  'resnet101': Variant('bottleneck', (3, 4, 23, 3)),
  'resnext101_32x8d': Variant('bottleneck', (3, 4, 23, 3), groups=32, group_width=8),
}


def stage_blocks(
  variant: Variant,
  stage: int,
  *,
  width: int = 64,
  stride_in_1x1: bool = False,
  dilate: tuple[int, ...] = (),
  unstrided: tuple[int, ...] = (),
) -> tuple[Block, ...]:
  """The blocks of a stage, 2 to 5; see `ResNet` for the arguments.

  As in torchvision, the first block of a dilated stage has the dilation of the stage before.
  """
  channels = width * 2 ** (stage - 2)
  before = 2 ** sum(s in dilate for s in range(stage))
  after = 2 * before if stage in dilate else before
  stride = 2 if stage in HALVING and stage not in (*dilate, *unstrided) else 1
  first = _convs(variant, channels, stride, before, stride_in_1x1)
  rest = _convs(variant, channels, 1, after, stride_in_1x1)
  features = first[-1].features
  projects = stage in HALVING or features != width
  return (
    Block(first, ConvSpec(features, stride=stride) if projects else None),
    *(Block(rest, None) for _ in range(variant.blocks[stage - 2] - 1)),
  )


def _convs(
  variant: Variant, channels: int, stride: int, dilation: int, stride_in_1x1: bool
) -> tuple[ConvSpec, ...]:
  if variant.block == 'basic':
    return (ConvSpec(channels, 3, stride, dilation), ConvSpec(channels, 3, dilation=dilation))
  # At least one channel per group, in narrow networks.
  inner = max(1, channels * variant.group_width // 64) * variant.groups
  first, second = (stride, 1) if stride_in_1x1 else (1, stride)
  return (
    ConvSpec(inner, stride=first),
    ConvSpec(inner, 3, second, dilation, variant.groups),
    ConvSpec(4 * channels),
  )


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Keys of `config.model.backbone`.

  Attributes:
    name: a key of `VARIANTS`.
    width: channels of the stem (paper: 64); all other channels scale with it.
    norm: 'frozen' for pretrained weights, 'batch', or 'group', see `ResNet`.
    bn_epsilon: added to the variance; 0 for torchvision's Mask R-CNN v1 weights.
    stride_in_1x1: see `ResNet`; True for the MSRA weights that Detectron2 starts from.
    frozen_stages: number of frozen stages; 2 (stem and res2) in Mask R-CNN's paper.
  """

  name: Name = 'resnet50'
  width: PositiveInt = 64
  norm: Norm = 'frozen'
  bn_epsilon: NonNegativeFloat = 1e-5
  stride_in_1x1: bool = False
  frozen_stages: FrozenStages = 0


class ResNet(nn.Module):
  """The stages of a ResNet, without the final pooling and classifier.

  Stages can be run separately by calling one instance with different `stages`: Mask R-CNN on C4
  runs stages 1 to 4 on the image and stage 5 on each RoI. Layers: stem; then for each block res2_0
  … res5_2 the convolutions res2_0_conv1, …, and res2_0_shortcut if it projects; each with its
  …_norm.

  Attributes:
    variant: a key of `VARIANTS`.
    width: channels of the stem (paper: 64); all other channels scale with it.
    norm: 'batch'; 'frozen', the same variables without updates, see `FrozenBatchNorm`; or 'group',
      see `make_norm`.
    stride_in_1x1: the stride of a bottleneck is in its first 1x1 convolution, as in the paper and
      the MSRA weights that Detectron uses, instead of the 3x3.
    dilate: stages among 3, 4, 5 whose 3x3 convolutions are dilated instead of strided.
    unstrided: stages with neither stride nor dilation, as Mask R-CNN's res5 on 7x7 RoIs.
    frozen_stages: stages up to this one are frozen, and norm 'batch' is 'frozen' in them. Weight
      decay must exclude them, see `frozen_parameters`.
    bn_momentum: of the running means and variances, with norm 'batch'.
    bn_epsilon: added to the variance.
    dtype: computation dtype ('float32' or 'bfloat16'); parameters are float32.
    remat: compute the activations inside each block again in the backward pass instead of keeping
      them.
  """

  variant: Name
  width: PositiveInt = 64
  norm: Norm = 'batch'
  stride_in_1x1: bool = False
  dilate: tuple[HalvingStage, ...] = ()
  unstrided: tuple[HalvingStage, ...] = ()
  frozen_stages: FrozenStages = 0
  bn_momentum: Fraction = 0.9
  bn_epsilon: NonNegativeFloat = 1e-5
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, *, stages: tuple[int, ...] = STAGES, train: bool = False
  ) -> dict[str, jax.Array]:
    """Features of stages 2 to 5, as far as they are in `stages`.

    Args:
      x: f[B, H, W, C], the image, or the features of the stage before the first of `stages`.
      stages: consecutive stages from 1 to 5.
      train: whether norm 'batch' uses batch statistics.

    Returns:
      {'c2': f[B, ceil(H / 4), ceil(W / 4), C2], …, 'c5': …}: strides 4, 8, 16 and 32, or smaller
      with `dilate`.
    """
    x = x.astype(self.dtype)
    features = {}
    for stage in stages:
      frozen = stage <= self.frozen_stages
      unit = functools.partial(
        conv_norm,
        norm='frozen' if frozen and self.norm == 'batch' else self.norm,
        train=train,
        momentum=self.bn_momentum,
        epsilon=self.bn_epsilon,
        dtype=self.dtype,
      )
      # Nothing is kept of frozen stages, which have no gradients.
      x = self._stage(x, stage, unit, remat=self.remat and train and not frozen)
      if frozen:
        x = lax.stop_gradient(x)
      if stage > 1:
        features[f'c{stage}'] = x
    return features

  def _stage(
    self, x: jax.Array, stage: int, unit: Callable[..., jax.Array], *, remat: bool
  ) -> jax.Array:
    if stage == 1:
      return max_pool_3x3(nn.relu(unit(x, ConvSpec(self.width, 7, stride=2), name='stem')))
    blocks = stage_blocks(
      VARIANTS[self.variant],
      stage,
      width=self.width,
      stride_in_1x1=self.stride_in_1x1,
      dilate=self.dilate,
      unstrided=self.unstrided,
    )
    for i, block in enumerate(blocks):
      name = f'res{stage}_{i}'
      apply = lambda _, x, block=block, name=name: residual(x, block, unit=unit, name=name)
      x = apply_block(apply, self, x, remat=remat)
    return x


def frozen_parameters(path: str, norm: Norm, frozen_stages: int) -> tuple[str, ...]:
  """Regular expressions of the frozen parameters of the ResNet at `path`."""
  layers = ('stem', *(f'res{stage}_' for stage in STAGES[1:]))[:frozen_stages]
  return tuple(f'^{path}/{name}' for name in (*layers, *['.*_norm/'] * (norm == 'frozen')))


def residual(x: jax.Array, block: Block, *, unit: Callable[..., jax.Array], name: str) -> jax.Array:
  """A residual block (Fig. 2), with its final ReLU.

  Args:
    x: f[B, H, W, C].
    block: its convolutions.
    unit: `conv_norm` with the arguments shared by all layers.
    name: prefix of the layer names.
  """
  y = x
  for i, conv in enumerate(block.convs, 1):
    y = unit(nn.relu(y) if i > 1 else y, conv, name=f'{name}_conv{i}')
  if block.shortcut is not None:
    x = unit(x, block.shortcut, name=f'{name}_shortcut')
  return nn.relu(x + y)


def coarsest_stride(dilate: tuple[int, ...]) -> int:
  """Input pixels per pixel of stage 5, with `dilate` as of a `ResNet`."""
  return 32 // 2 ** len(set(dilate))


def conv_norm(
  x: jax.Array,
  conv: ConvSpec,
  *,
  norm: Norm,
  train: bool,
  momentum: float,
  dtype: Any,
  name: str,
  epsilon: float = 1e-5,
) -> jax.Array:
  """A convolution named `name` and its norm, named `name`_norm."""
  x = Conv(
    conv.features,
    (conv.kernel, conv.kernel),
    strides=conv.stride,
    padding=conv.dilation * (conv.kernel // 2),
    kernel_dilation=conv.dilation,
    feature_group_count=conv.groups,
    use_bias=False,
    kernel_init=he_normal_fan_out,
    dtype=dtype,
    name=name,
  )(x)
  name = f'{name}_norm'
  if norm == 'frozen':
    return FrozenBatchNorm(dtype, epsilon, name=name)(x)
  options = {'momentum': momentum, 'epsilon': epsilon, 'dtype': dtype}
  return make_norm(norm, train=train, name=name, **options)(x)


class FrozenBatchNorm(nn.Module):
  """Batch normalization with fixed statistics, scale and bias: f[B, H, W, C] -> f[B, H, W, C].

  It has the same variables as `nn.BatchNorm`, so that weights are interchangeable. Gradients are
  stopped, and `config.optim.decay_exclude` by default excludes them from weight decay.

  Attributes:
    dtype: of the output.
    epsilon: added to the variance.
  """

  dtype: Any
  epsilon: NonNegativeFloat = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape).value
    var = self.variable('batch_stats', 'var', jnp.ones, shape).value
    factor = scale * lax.rsqrt(var + self.epsilon)
    factor, shift = lax.stop_gradient((factor, bias - mean * factor))
    return (x * factor + shift).astype(self.dtype)


def max_pool_3x3(x: jax.Array) -> jax.Array:
  """3x3 max pooling of stride 2, padded by 1: f[B, H, W, C] -> f[B, ceil(H/2), ceil(W/2), C]."""
  return max_pool(x, Window(3, stride=2, padding=1), partial=False)
