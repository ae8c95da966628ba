"""GoogLeNet's convolutional layers (Szegedy et al. 2015, arXiv 1409.4842, Table 1).

All layers before the average pooling, without the auxiliary classifiers, named as in Caffe's
bvlc_googlenet.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv, he_normal, scaled
from segjax.ops.normalize import local_response_norm
from segjax.ops.pooling import max_pool
from segjax.ops.windows import Window


class Inception(NamedTuple):
  """Channels of the six convolutions of an inception module, in the order of Table 1."""

  one: int
  three_reduce: int
  three: int
  five_reduce: int
  five: int
  pool_proj: int


# Channels of conv1 (7x7), conv2_reduce (1x1) and conv2 (3x3).
STEM = (64, 64, 192)
# Stages 3, 4 and 5, with max pooling before each.
STAGES = (
  {
    'inception_3a': Inception(64, 96, 128, 16, 32, 32),
    'inception_3b': Inception(128, 128, 192, 32, 96, 64),
  },
  {
    'inception_4a': Inception(192, 96, 208, 16, 48, 64),
    'inception_4b': Inception(160, 112, 224, 24, 64, 64),
    'inception_4c': Inception(128, 128, 256, 24, 64, 64),
    'inception_4d': Inception(112, 144, 288, 32, 64, 64),
    'inception_4e': Inception(256, 160, 320, 32, 128, 128),
  },
  {
    'inception_5a': Inception(256, 160, 320, 32, 128, 128),
    'inception_5b': Inception(384, 192, 384, 48, 128, 128),
  },
)
# Max pooling inside an inception module.
SAME_POOL = Window(3, padding=1)


class Form(NamedTuple):
  """Differences between GoogLeNet implementations.

  Attributes:
    five: kernel size of the 5x5 convolutions of the paper.
    pools: kernel sizes of the stride-2 pooling layers, pool1 to pool4.
    local_response: whether local response normalization follows pool1 and conv2.
    batch_norm: whether convolutions have batch normalization instead of a bias.
  """

  five: int
  pools: tuple[int, int, int, int]
  local_response: bool
  batch_norm: bool


FORMS = {
  'caffe': Form(5, (3, 3, 3, 3), local_response=True, batch_norm=False),
  # 3x3 instead of 5x5 is a known bug; the weights were trained with it (pytorch/vision issue 906).
  'torchvision': Form(3, (3, 3, 3, 2), local_response=False, batch_norm=True),
}


def windows(form: Form, padding: int) -> tuple[Window, ...]:
  """The windows of all layers; conv1 pads by `padding`.

  An inception module counts as one window, that of its largest branch.
  """
  pool1, *pools = (Window(kernel, stride=2) for kernel in form.pools)
  module = max(Window(3, padding=1), Window(form.five, padding=form.five // 2))
  stages = (
    window
    for pool, stage in zip(pools, STAGES, strict=True)
    for window in (pool, *(module for _ in stage))
  )
  return (
    Window(7, stride=2, padding=padding),
    pool1,
    Window(1),
    Window(3, padding=1),
    *stages,
  )


def encode(
  image: jax.Array,
  form: Form,
  *,
  width: float,
  padding: int,
  train: bool,
  momentum: float = 0.9,
  dtype: Any,
) -> jax.Array:
  """f[B, H, W, C] -> f[B, h, w, 1024 · width]; the layers belong to the calling module.

  Args:
    image: f[B, H, W, C].
    form: a value of `FORMS`.
    width: multiplier of all channels, rounded up to even numbers.
    padding: zero padding of conv1 on each side.
    train: whether batch normalization uses batch statistics.
    momentum: of its running means and variances; torchvision's is 0.9.
    dtype: of the convolutions; parameters are float32.
  """
  unit = functools.partial(
    conv_relu,
    width=width,
    batch_norm=form.batch_norm,
    train=train,
    momentum=momentum,
    dtype=dtype,
  )
  norm = local_response_norm if form.local_response else lambda x: x
  pool1, *pools = (Window(kernel, stride=2) for kernel in form.pools)
  first, reduce, second = STEM

  x = unit(image.astype(dtype), first, Window(7, stride=2, padding=padding), name='conv1')
  x = norm(max_pool(x, pool1, partial=True))
  x = unit(x, reduce, Window(1), name='conv2_reduce')
  x = norm(unit(x, second, Window(3, padding=1), name='conv2'))
  for pool, stage in zip(pools, STAGES, strict=True):
    x = max_pool(x, pool, partial=True)
    for name, channels in stage.items():
      x = inception(x, channels, Window(form.five, padding=form.five // 2), unit=unit, name=name)
  return x


def inception(
  x: jax.Array, channels: Inception, five: Window, *, unit: Callable[..., jax.Array], name: str
) -> jax.Array:
  """An inception module (Fig. 2b): four parallel branches, concatenated.

  Args:
    x: f[B, H, W, C].
    channels: of the convolutions.
    five: window of the 5x5 convolution of the paper.
    unit: `conv_relu` with the arguments shared by all layers.
    name: prefix of the layer names.
  """
  reduced = unit(x, channels.three_reduce, Window(1), name=f'{name}_3x3_reduce')
  fine = unit(x, channels.five_reduce, Window(1), name=f'{name}_5x5_reduce')
  branches = (
    unit(x, channels.one, Window(1), name=f'{name}_1x1'),
    unit(reduced, channels.three, Window(3, padding=1), name=f'{name}_3x3'),
    unit(fine, channels.five, five, name=f'{name}_5x5'),
    unit(
      max_pool(x, SAME_POOL, partial=True), channels.pool_proj, Window(1), name=f'{name}_pool_proj'
    ),
  )
  return jnp.concatenate(branches, axis=-1)


def conv_relu(
  x: jax.Array,
  channels: int,
  window: Window,
  *,
  width: float,
  batch_norm: bool,
  train: bool,
  momentum: float,
  dtype: Any,
  name: str,
) -> jax.Array:
  """A convolution `name` with bias or batch normalization `name`_bn, and a ReLU."""
  kernel, stride, padding = window
  x = Conv(
    scaled(channels, width),
    (kernel, kernel),
    strides=stride,
    padding=padding,
    use_bias=not batch_norm,
    kernel_init=he_normal,
    dtype=dtype,
    name=name,
  )(x)
  if batch_norm:
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=momentum,
      epsilon=1e-3,  # torchvision's
      dtype=dtype,
      name=f'{name}_bn',
    )(x)
  return nn.relu(x)
