"""AlexNet's convolutional layers (Krizhevsky, Sutskever, Hinton 2012, section 3.5).

Pooling windows overlap. Local response normalization follows pooling, as in Caffe's reference model
and in FCN's released files; in the paper it precedes pooling.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn.conv import Conv, he_normal, linen_conv, scaled
from segjax.ops.normalize import local_response_norm
from segjax.ops.pooling import max_pool
from segjax.ops.windows import Window


class Layer(NamedTuple):
  """A convolution with bias and ReLU, and the layers that follow it.

  Attributes:
    name: as in Caffe.
    window: of the convolution; the caller sets the padding of the first.
    pooled: whether max pooling by `POOL` follows.
    normed: whether local response normalization follows the pooling, in forms that have it.
  """

  name: str
  window: Window
  pooled: bool = False
  normed: bool = False


LAYERS = (
  Layer('conv1', Window(11, stride=4), pooled=True, normed=True),
  Layer('conv2', Window(5, padding=2), pooled=True, normed=True),
  Layer('conv3', Window(3, padding=1)),
  Layer('conv4', Window(3, padding=1)),
  Layer('conv5', Window(3, padding=1), pooled=True),
)
POOL = Window(3, stride=2)


class Form(NamedTuple):
  """Differences between AlexNet implementations.

  Attributes:
    channels: of each convolution.
    groups: of each convolution.
    local_response: whether it has local response normalization.
    partial: whether pooling keeps a partial last window, see `max_pool`.
  """

  channels: tuple[int, ...]
  groups: tuple[int, ...]
  local_response: bool
  partial: bool


FORMS = {
  'caffe': Form((96, 256, 384, 384, 256), (1, 2, 1, 2, 2), local_response=True, partial=True),
  # Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks".
  'torchvision': Form(
    (64, 192, 384, 256, 256), (1, 1, 1, 1, 1), local_response=False, partial=False
  ),
}


def windows(padding: int) -> tuple[Window, ...]:
  """The windows of all convolution and pooling layers; conv1 pads by `padding`."""
  first, *rest = (
    window
    for layer in LAYERS
    for window in ((layer.window, POOL) if layer.pooled else (layer.window,))
  )
  return (first._replace(padding=padding), *rest)


def encode(image: jax.Array, form: Form, *, width: float, padding: int, dtype: Any) -> jax.Array:
  """f[B, H, W, C] -> f[B, h, w, 256 · width]; the layers belong to the calling module.

  Args:
    image: f[B, H, W, C].
    form: a value of `FORMS`.
    width: multiplier of all channels, rounded up to even numbers.
    padding: zero padding of conv1 on each side.
    dtype: of the convolutions; parameters are float32.

  Raises:
    ValueError: in a form without partial windows, the padded image is below 67 pixels.
  """
  x = image.astype(dtype)
  for layer, channels, groups in zip(LAYERS, form.channels, form.groups, strict=True):
    kernel, stride, pad = layer.window
    x = Conv(
      scaled(channels, width),
      (kernel, kernel),
      strides=stride,
      padding=padding if layer is LAYERS[0] else pad,
      feature_group_count=groups,
      kernel_init=he_normal,
      conv_general_dilated=conv_of_groups,
      dtype=dtype,
      name=layer.name,
    )(x)
    x = nn.relu(x)
    if layer.pooled:
      x = max_pool(x, POOL, partial=form.partial)
    if layer.normed and form.local_response:
      x = local_response_norm(x)
  return x


def conv_of_groups(x, kernel, *args, feature_group_count: int = 1, **kwargs) -> jax.Array:
  """`linen_conv`, with one convolution per group.

  On a CPU it is three to nine times faster for two groups, in the forward and backward pass.
  """
  xs, kernels = (jnp.split(a, feature_group_count, axis=-1) for a in (x, kernel))
  parts = [linen_conv(*p, *args, **kwargs) for p in zip(xs, kernels, strict=True)]
  return jnp.concatenate(parts, axis=-1)
