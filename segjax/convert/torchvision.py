"""torchvision's VGG16 (`torchvision.models.vgg16`, `vgg16_bn`) for FCN and SegNet, its ResNets and
`torchvision.models.segmentation.fcn_resnet50` and 101 for FCNResNet, `deeplabv3_resnet50` and 101
for DeepLabV3, its `alexnet` for FCNAlexNet and its `googlenet` for FCNGoogLeNet, the last two with
form 'torchvision'.

These weights expect RGB images, `(x / 255 - mean) / std` with ImageNet's mean (0.485, 0.456, 0.406)
and standard deviation (0.229, 0.224, 0.225). For pixel values from 0 to 255 these are
`config.data.mean = (123.675, 116.28, 103.53)` and `config.data.std = (58.395, 57.12, 57.375)`.

GoogLeNet expects `(x / 255 - 0.5) / 0.5`, a mean and std of 127.5. (torchvision's network converts
from ImageNet's normalization: `transform_input`.)
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from segjax.convert.table import Row, Source
from segjax.nn import googlenet, resnet

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
# The same for vgg16_bn, where batch normalization follows each convolution.
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
# Index in the `features` of torchvision's AlexNet -> our layer.
ALEXNET_FEATURES = {0: 'conv1', 3: 'conv2', 6: 'conv3', 8: 'conv4', 10: 'conv5'}
# torchvision's GoogLeNet: convolution with batch normalization -> our layer.
GOOGLENET_STEM = {'conv1': 'conv1', 'conv2': 'conv2_reduce', 'conv3': 'conv2'}
# The same within an inception module. '5x5' is 3x3 in torchvision.
GOOGLENET_BRANCHES = {
  'branch1': '1x1',
  'branch2.0': '3x3_reduce',
  'branch2.1': '3x3',
  'branch3.0': '5x5_reduce',
  'branch3.1': '5x5',
  'branch4.1': 'pool_proj',
}

INPUT = 'RGB, config.data.mean=(123.675,116.28,103.53), config.data.std=(58.395,57.12,57.375)'
# Layers after the encoder: FCN's scores and upsampling, SegNet's decoder.
_BEHIND = (r'^params/(score|upscore)', r'_D(_bn)?/')
# SegNet's batch normalization, which vgg16 does not have.
_NORM = r'^(params|batch_stats)/conv\d_\d_bn/'
_FC = r'^params/fc[67]/'
_SCORE = r'^params/score_fr/'


def same(x: np.ndarray) -> np.ndarray:
  return x


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
  """Converts a convolution kernel."""
  return x.transpose(2, 3, 1, 0)


def linear_to_1x1(x: np.ndarray) -> np.ndarray:
  """Converts a fully-connected layer [out, in] to a kernel [1, 1, in, out]."""
  return x.transpose(1, 0)[None, None]


def linear_to_6x6(x: np.ndarray) -> np.ndarray:
  """Converts a layer [out, C · 6 · 6] on a flattened CHW map to a kernel [6, 6, C, out]."""
  return oihw_to_hwio(x.reshape(len(x), -1, 6, 6))


def linear_to_7x7(x: np.ndarray) -> np.ndarray:
  """Converts a layer [out, C · 7 · 7] on a flattened CHW map to a kernel [7, 7, C, out]."""
  return oihw_to_hwio(x.reshape(len(x), -1, 7, 7))


def layer_rows(key: str, name: str, kernel: Callable[[np.ndarray], np.ndarray]) -> Iterator[Row]:
  yield Row(f'{key}.weight', f'params/{name}/kernel', kernel)
  yield Row(f'{key}.bias', f'params/{name}/bias', same)


def batch_norm_rows(key: str, name: str) -> Iterator[Row]:
  """Batch normalization."""
  yield Row(f'{key}.weight', f'params/{name}/scale', same)
  yield Row(f'{key}.bias', f'params/{name}/bias', same)
  yield Row(f'{key}.running_mean', f'batch_stats/{name}/mean', same)
  yield Row(f'{key}.running_var', f'batch_stats/{name}/var', same)


def _features(layers: Mapping[int, str], *, norm: bool) -> Iterator[Row]:
  for index, name in layers.items():
    yield from layer_rows(f'features.{index}', name, oihw_to_hwio)
    if norm:
      yield from batch_norm_rows(f'features.{index + 1}', f'{name}_bn')


def _googlenet() -> Iterator[Row]:
  modules = [name for stage in googlenet.STAGES for name in stage]
  layers = GOOGLENET_STEM | {
    f'{name.replace("_", "")}.{theirs}': f'{name}_{ours}'
    for name in modules
    for theirs, ours in GOOGLENET_BRANCHES.items()
  }
  for theirs, ours in layers.items():
    yield Row(f'{theirs}.conv.weight', f'params/{ours}/kernel', oihw_to_hwio)
    yield from batch_norm_rows(f'{theirs}.bn', f'{ours}_bn')


# --- ResNet --------------------------------------------------------------------------------------

# Layers of a network outside the ResNet, which a ResNet file does not have.
_HEAD = r'^(params|batch_stats)/(?!backbone/)'
_AUX_CLASSIFIER = r'^(params|batch_stats)/aux_classifier_'
COUNTERS = r'\.num_batches_tracked$'


def conv_norm_rows(conv: str, norm: str, name: str) -> Iterator[Row]:
  """A convolution without bias and its batch normalization, `name`_norm."""
  yield Row(f'{conv}.weight', f'params/{name}/kernel', oihw_to_hwio)
  yield from batch_norm_rows(norm, f'{name}_norm')


def resnet_rows(variant: resnet.Name, prefix: str = '') -> Iterator[Row]:
  """conv1, layer1 … layer4 -> our stem and stages 2 to 5; `prefix` of names in the file."""
  yield from conv_norm_rows(f'{prefix}conv1', f'{prefix}bn1', 'backbone/stem')
  for stage in resnet.STAGES[1:]:
    for i, block in enumerate(resnet.stage_blocks(resnet.VARIANTS[variant], stage)):
      theirs, ours = f'{prefix}layer{stage - 1}.{i}', f'backbone/res{stage}_{i}'
      for j, _ in enumerate(block.convs, 1):
        yield from conv_norm_rows(f'{theirs}.conv{j}', f'{theirs}.bn{j}', f'{ours}_conv{j}')
      if block.shortcut is not None:
        downsample = f'{theirs}.downsample'
        yield from conv_norm_rows(f'{downsample}.0', f'{downsample}.1', f'{ours}_shortcut')


def _fcn_head(name: str) -> Iterator[Row]:
  """`classifier` or `aux_classifier`: convolution, norm, ReLU, dropout, convolution."""
  yield from conv_norm_rows(f'{name}.0', f'{name}.1', f'{name}_conv')
  yield from layer_rows(f'{name}.4', f'{name}_score', oihw_to_hwio)


def _deeplab_head(name: str) -> Iterator[Row]:
  """`classifier` of DeepLabV3: the pyramid, then convolution, norm, ReLU, convolution."""
  branches = {'convs.0': 'conv', **{f'convs.{i}': f'atrous{i}' for i in (1, 2, 3)}}
  for theirs, ours in {**branches, 'project': 'project'}.items():
    yield from conv_norm_rows(f'{name}.0.{theirs}.0', f'{name}.0.{theirs}.1', f'aspp_{ours}')
  # The pooling is its layer 0.
  yield from conv_norm_rows(f'{name}.0.convs.4.1', f'{name}.0.convs.4.2', 'aspp_pool')
  yield from conv_norm_rows(f'{name}.1', f'{name}.2', f'{name}_conv')
  yield from layer_rows(f'{name}.4', f'{name}_score', oihw_to_hwio)


# The classifiers of torchvision's segmentation networks on a ResNet.
_CLASSIFIERS = {'fcn': _fcn_head, 'deeplabv3': _deeplab_head}


def segmentation_source(network: str, variant: resnet.Name, *, auxiliary: bool) -> Source:
  """A network of `torchvision.models.segmentation`, with or without its auxiliary classifier."""
  return Source(
    rows=(
      *resnet_rows(variant, 'backbone.'),
      *_CLASSIFIERS[network]('classifier'),
      *(_fcn_head('aux_classifier') if auxiliary else ()),
    ),
    left_out=(COUNTERS,) if auxiliary else (COUNTERS, r'^aux_classifier\.'),
    new=() if auxiliary else (_AUX_CLASSIFIER,),
    spare=(_AUX_CLASSIFIER,) if auxiliary else (),
    input=f'{INPUT}, config.model.variant={variant}',
  )


SOURCES = {
  'torchvision/vgg16': Source(
    rows=(
      *_features(VGG16_FEATURES, norm=False),
      *layer_rows('classifier.0', 'fc6', linear_to_7x7),
      *layer_rows('classifier.3', 'fc7', linear_to_1x1),
    ),
    left_out=(r'^classifier\.6\.',),  # ImageNet's 1000 classes
    new=(*_BEHIND, _NORM),
    spare=(_FC,),
    input=INPUT,
  ),
  # Only the convolutions, from a file with or without the classifier.
  'torchvision/vgg16_features': Source(
    rows=tuple(_features(VGG16_FEATURES, norm=False)),
    left_out=(r'^classifier\.[036]\.',),
    new=(*_BEHIND, _NORM, _FC),
    spare=(),
    input=INPUT,
  ),
  'torchvision/vgg16_bn': Source(
    rows=tuple(_features(VGG16_BN_FEATURES, norm=True)),
    left_out=(r'^classifier\.[036]\.', r'\.num_batches_tracked$'),
    new=_BEHIND,
    spare=(),
    input=INPUT,
  ),
  'torchvision/alexnet': Source(
    rows=(
      *_features(ALEXNET_FEATURES, norm=False),
      *layer_rows('classifier.1', 'fc6', linear_to_6x6),
      *layer_rows('classifier.4', 'fc7', linear_to_1x1),
    ),
    left_out=(r'^classifier\.6\.',),  # ImageNet's 1000 classes
    new=(_SCORE,),
    spare=(),
    input=f'{INPUT}, config.model.form=torchvision',
  ),
  'torchvision/googlenet': Source(
    rows=tuple(_googlenet()),
    # ImageNet's 1000 classes, of the network and of its two auxiliary classifiers.
    left_out=(r'^fc\.', r'^aux[12]\.', COUNTERS),
    new=(_SCORE,),
    spare=(),
    input='RGB, config.data.mean=(127.5,), config.data.std=(127.5,), config.model.form=torchvision',
  ),
  # ImageNet weights, for any network whose ResNet is named `backbone`.
  **{
    f'torchvision/{variant}': Source(
      rows=tuple(resnet_rows(variant)),
      left_out=(r'^fc\.', COUNTERS),  # ImageNet's 1000 classes
      new=(_HEAD,),
      spare=(),
      input=f'{INPUT}, config.model.variant={variant}, or in Mask R-CNN config.model.backbone',
    )
    for variant in resnet.VARIANTS
  },
  # Files with the auxiliary classifier, as the published ones; the network may omit it.
  **{
    f'torchvision/{network}_{variant}': segmentation_source(network, variant, auxiliary=True)
    for network in _CLASSIFIERS
    for variant in ('resnet50', 'resnet101')
  },
  # The same without the auxiliary classifier, from a file with or without it.
  **{
    f'torchvision/{network}_{variant}_main': segmentation_source(network, variant, auxiliary=False)
    for network in _CLASSIFIERS
    for variant in ('resnet50', 'resnet101')
  },
}
