"""torchvision's VGG16 (`torchvision.models.vgg16`, `vgg16_bn`) for FCN and SegNet.

These weights want RGB images, `(x / 255 - mean) / std` with ImageNet's mean (0.485, 0.456, 0.406)
and standard deviation (0.229, 0.224, 0.225): in pixel values of 0 to 255 that is
`config.data.mean = (123.675, 116.28, 103.53)` and `config.data.std = (58.395, 57.12, 57.375)`.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from segjax.convert.table import Row, Source

# Index in torchvision's `features` -> our layer.
VGG16_FEATURES = {
  0: 'conv1_1',
  2: 'conv1_2',
  5: 'conv2_1',
  7: 'conv2_2',
  10: 'conv3_1',
  12: 'conv3_2',
  14: 'conv3_3',
  17: 'conv4_1',
  19: 'conv4_2',
  21: 'conv4_3',
  24: 'conv5_1',
  26: 'conv5_2',
  28: 'conv5_3',
}
# The same of vgg16_bn, where each is followed by its batch normalisation.
VGG16_BN_FEATURES = {
  0: 'conv1_1',
  3: 'conv1_2',
  7: 'conv2_1',
  10: 'conv2_2',
  14: 'conv3_1',
  17: 'conv3_2',
  20: 'conv3_3',
  24: 'conv4_1',
  27: 'conv4_2',
  30: 'conv4_3',
  34: 'conv5_1',
  37: 'conv5_2',
  40: 'conv5_3',
}

_INPUT = 'RGB, (x / 255 - mean) / std, mean 0.485 0.456 0.406, std 0.229 0.224 0.225'
# What is behind the encoder: FCN's scores and upsampling, SegNet's decoder.
_BEHIND = (r'^params/(score|upscore)', r'_D(_bn)?/')
# SegNet's batch normalisation, which vgg16 has not.
_NORM = r'^(params|batch_stats)/conv\d_\d_bn/'
_FC = r'^params/fc[67]/'


def same(x: np.ndarray) -> np.ndarray:
  return x


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
  """A convolution's kernel."""
  return x.transpose(2, 3, 1, 0)


def linear_to_1x1(x: np.ndarray) -> np.ndarray:
  """[out, in] of a fully-connected layer as the kernel [1, 1, in, out]."""
  return x.transpose(1, 0)[None, None]


def linear_to_7x7(x: np.ndarray) -> np.ndarray:
  """[out, C · 7 · 7] of a fully-connected layer on a flattened CHW map as [7, 7, C, out]."""
  return oihw_to_hwio(x.reshape(len(x), -1, 7, 7))


def _layer(key: str, name: str, kernel: Callable[[np.ndarray], np.ndarray]) -> Iterator[Row]:
  yield Row(f'{key}.weight', f'params/{name}/kernel', kernel)
  yield Row(f'{key}.bias', f'params/{name}/bias', same)


def _norm(key: str, name: str) -> Iterator[Row]:
  yield Row(f'{key}.weight', f'params/{name}/scale', same)
  yield Row(f'{key}.bias', f'params/{name}/bias', same)
  yield Row(f'{key}.running_mean', f'batch_stats/{name}/mean', same)
  yield Row(f'{key}.running_var', f'batch_stats/{name}/var', same)


def _features(layers: Mapping[int, str], *, norm: bool) -> Iterator[Row]:
  for index, name in layers.items():
    yield from _layer(f'features.{index}', name, oihw_to_hwio)
    if norm:
      yield from _norm(f'features.{index + 1}', f'{name}_bn')


SOURCES = {
  'torchvision/vgg16': Source(
    rows=(
      *_features(VGG16_FEATURES, norm=False),
      *_layer('classifier.0', 'fc6', linear_to_7x7),
      *_layer('classifier.3', 'fc7', linear_to_1x1),
    ),
    left_out=(r'^classifier\.6\.',),  # ImageNet's 1000 classes
    new=(*_BEHIND, _NORM),
    spare=(_FC,),
    input=_INPUT,
  ),
  # The convolutions alone, of a file that may have the classifier or not.
  'torchvision/vgg16_features': Source(
    rows=tuple(_features(VGG16_FEATURES, norm=False)),
    left_out=(r'^classifier\.[036]\.',),
    new=(*_BEHIND, _NORM, _FC),
    spare=(),
    input=_INPUT,
  ),
  'torchvision/vgg16_bn': Source(
    rows=tuple(_features(VGG16_BN_FEATURES, norm=True)),
    left_out=(r'^classifier\.[036]\.', r'\.num_batches_tracked$'),
    new=_BEHIND,
    spare=(),
    input=_INPUT,
  ),
}
