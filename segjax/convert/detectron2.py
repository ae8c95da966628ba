"""Detectron2's model zoo, and the ImageNet ResNets of Detectron2 and Detectron (`.pkl`).

Their images are BGR, ours RGB: the input channels of the stem are reversed, and `input` documents
mean and std in RGB. Their scores have the background last, ours first; boxes and masks have no
background. Classes are COCO's 80 in the order of their ids, or those of the file.

MSRA's ResNets expect pixels from 0 to 255 minus the mean, without division, and have the stride of
a bottleneck in its first 1x1 convolution. X-101-32x8d expects division by std and has the stride in
the 3x3. `ZOO` and `C4` list other config keys that the networks of the model zoo need. RoIAlign
uses the adaptive number of samples, which `config.model.roi.max_samples` can bound to save time.
(segjax drops boxes thinner than `MIN_SIDE` in `segjax.nn.rpn` and `segjax.nn.box_head`, Detectron2
does not; this is not configurable.)

`detectron2/R-50` is Detectron2's file; `detectron/R-50` is Detectron's file of the same network,
whose norms are stored as scale and shift.

The tables follow the names in Detectron2's code and logs, and are tested on synthetic files, not on
real ones.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.convert.caffe import bgr_oihw_to_rgb_hwio, no_mean
from segjax.convert.table import Row, Source
from segjax.convert.torchvision import layer_rows, oihw_to_hwio, same
from segjax.convert.torchvision_detection import iohw_to_hwio, linear, linear_on_bins
from segjax.nn import resnet

# ImageNet networks: Detectron2's name -> our name.
VARIANTS: dict[str, resnet.Name] = {
  'R-50': 'resnet50',
  'R-101': 'resnet101',
  'X-101-32x8d': 'resnext101_32x8d',
}
# Keys of `config.model` for the model zoo, and additional ones for C4.
ZOO = {'rpn.anchor_style': 'detectron2', 'roi.aligned': True, 'roi.sampling_ratio': 0}
C4 = {
  'feature_maps': 'c4',
  'box_head.resolution': 14,
  'box_head.res5_stride': 2,
  'rpn.test_proposals': (6000, 1000),
}

MEAN = 'config.data.mean=(123.675, 116.28, 103.53)'
STD = {
  'R-50': 'config.data.std=(1.0,)',
  'R-101': 'config.data.std=(1.0,)',
  'X-101-32x8d': 'config.data.std=(58.395, 57.12, 57.375)',
}

_HEAD = r'^(params|batch_stats)/(?!backbone/)'
_CLASSES = r'^params/(box/(score|deltas)|mask/score)/'
_MASK = r'^params/mask/'
# Buffers in older files of the model zoo: anchors and normalization.
_BUFFERS = (r'^pixel_(mean|std)$', r'anchor_generator\.cell_anchors\.\d$')
# In ImageNet files: the classifier, a bias before the stem's norm that Detectron2 also drops, and
# the optimizer state.
_IMAGENET = (r'^(fc1000|pred)_[wb]$', r'^conv1_b$', r'_momentum$')

Transform = Callable[[np.ndarray], np.ndarray]


class Names(NamedTuple):
  """Naming scheme of convolutions without bias and their norms in a file format.

  Attributes:
    stem: name of the stem's convolution.
    stem_norm: name of the stem's norm.
    convs: names of the convolutions of a bottleneck, the shortcut last.
    block: format string of stage, block and convolution.
    kernel: suffix of a kernel.
    norm: our path -> (suffix of the norm's array, transform).
    norm_of: suffix that turns a convolution's name into that of its norm.
  """

  stem: str
  stem_norm: str
  convs: tuple[str, str, str, str]
  block: str
  kernel: str
  norm: dict[str, tuple[str, Transform]]
  norm_of: str


def unit_variance(x: np.ndarray) -> np.ndarray:
  """The running variance of a norm stored as scale and shift."""
  return np.full(x.size, 1 - resnet.ResNet.bn_epsilon)


_CAFFE2 = Names(
  stem='conv1',
  stem_norm='res_conv1_bn',
  convs=('branch2a', 'branch2b', 'branch2c', 'branch1'),
  block='res{}_{}_{}',
  kernel='_w',
  norm={
    'params/{}/scale': ('_gamma', same),
    'params/{}/bias': ('_beta', same),
    'batch_stats/{}/mean': ('_running_mean', same),
    'batch_stats/{}/var': ('_running_var', same),
  },
  norm_of='_bn',
)
# Detectron stores norms as scale and shift.
_AFFINE = _CAFFE2._replace(
  norm={
    'params/{}/scale': ('_s', same),
    'params/{}/bias': ('_b', same),
    'batch_stats/{}/mean': ('_b', no_mean),
    'batch_stats/{}/var': ('_s', unit_variance),
  }
)
_MODEL_ZOO = Names(
  stem='stem.conv1',
  stem_norm='stem.conv1.norm',
  convs=('conv1', 'conv2', 'conv3', 'shortcut'),
  block='res{}.{}.{}',
  kernel='.weight',
  norm={
    'params/{}/scale': ('.weight', same),
    'params/{}/bias': ('.bias', same),
    'batch_stats/{}/mean': ('.running_mean', same),
    'batch_stats/{}/var': ('.running_var', same),
  },
  norm_of='.norm',
)


def resnet_rows(
  variant: resnet.Name, names: Names, *, prefix: str = '', res5: str = ''
) -> Iterator[Row]:
  """The ResNet; `prefix` and, for stage 5, `res5` are prefixes of names in the file."""

  def rows(conv: str, norm: str, ours: str, kernel: Transform) -> Iterator[Row]:
    yield Row(f'{conv}{names.kernel}', f'params/backbone/{ours}/kernel', kernel)
    for path, (key, transform) in names.norm.items():
      yield Row(f'{norm}{key}', path.format(f'backbone/{ours}_norm'), transform)

  yield from rows(prefix + names.stem, prefix + names.stem_norm, 'stem', bgr_oihw_to_rgb_hwio)
  for stage in resnet.STAGES[1:]:
    for i, block in enumerate(resnet.stage_blocks(resnet.VARIANTS[variant], stage)):
      ours = ('conv1', 'conv2', 'conv3', *['shortcut'] * (block.shortcut is not None))
      for conv, layer in zip(names.convs, ours, strict=False):
        key = (res5 if stage == 5 else prefix) + names.block.format(stage, i, conv)
        yield from rows(key, key + names.norm_of, f'res{stage}_{i}_{layer}', oihw_to_hwio)


def background_first(x: np.ndarray) -> np.ndarray:
  """Moves the background of [classes + 1, …] from last to first."""
  return np.roll(x, 1, axis=0)


def head_rows(*, c4: bool, masks: bool) -> Iterator[Row]:
  """All layers after the ResNet."""
  if not c4:
    for level in (2, 3, 4, 5):
      for part in ('lateral', 'output'):
        yield from layer_rows(f'backbone.fpn_{part}{level}', f'fpn/{part}{level}', oihw_to_hwio)
    for theirs, ours, kernel in (('fc1', 'fc6', linear_on_bins), ('fc2', 'fc7', linear)):
      yield from layer_rows(f'roi_heads.box_head.{theirs}', f'box/{ours}', kernel)
  rpn = {'conv': 'conv1', 'objectness_logits': 'objectness', 'anchor_deltas': 'deltas'}
  for theirs, ours in rpn.items():
    yield from layer_rows(f'proposal_generator.rpn_head.{theirs}', f'rpn/{ours}', oihw_to_hwio)
  box = 'roi_heads.box_predictor'
  yield Row(
    f'{box}.cls_score.weight', 'params/box/score/kernel', lambda x: linear(background_first(x))
  )
  yield Row(f'{box}.cls_score.bias', 'params/box/score/bias', background_first)
  yield from layer_rows(f'{box}.bbox_pred', 'box/deltas', linear)
  if masks:
    mask = 'roi_heads.mask_head'
    for i in () if c4 else (1, 2, 3, 4):
      yield from layer_rows(f'{mask}.mask_fcn{i}', f'mask/conv{i}', oihw_to_hwio)
    yield from layer_rows(f'{mask}.deconv', 'mask/upconv', iohw_to_hwio)
    yield from layer_rows(f'{mask}.predictor', 'mask/score', oihw_to_hwio)


def _input(name: str, wanted: Mapping[str, Any]) -> str:
  """Describes the config of a network with the ResNet `name` and the given model keys."""
  backbone = {'name': VARIANTS[name], 'stride_in_1x1': name.startswith('R-')}
  wanted = {**{f'backbone.{key}': value for key, value in backbone.items()}, **wanted}
  keys = [f'config.model.{key}={value}' for key, value in wanted.items()]
  return ', '.join(['RGB, 0 to 255, minus mean, divided by std: ' + MEAN, STD[name], *keys])


def imagenet_source(name: str, names: Names) -> Source:
  """An ImageNet ResNet, for any network whose ResNet is named `backbone`."""
  return Source(
    rows=tuple(resnet_rows(VARIANTS[name], names)),
    left_out=_IMAGENET,
    new=(_HEAD,),
    spare=(),
    input=_input(name, {}),
  )


def zoo_source(name: str, *, c4: bool = False, masks: bool = True) -> Source:
  """A network of the model zoo on the ResNet `name`."""
  wanted = {**ZOO, **(C4 if c4 else {}), 'masks': masks}
  prefixes = ('backbone.', 'roi_heads.') if c4 else ('backbone.bottom_up.',) * 2
  return Source(
    rows=(
      *resnet_rows(VARIANTS[name], _MODEL_ZOO, prefix=prefixes[0], res5=prefixes[1]),
      *head_rows(c4=c4, masks=masks),
    ),
    left_out=_BUFFERS,
    # Faster R-CNN weights can initialize a Mask R-CNN without its mask head, and vice versa.
    new=() if masks else (_MASK,),
    spare=(_MASK,) if masks else (),
    input=f'{_input(name, wanted)}, config.eval.paste=detectron2',
  )


def _zoo() -> Iterator[tuple[str, Source]]:
  for network, masks in (('mask_rcnn', True), ('faster_rcnn', False)):
    for name, maps in (
      ('R-50', 'FPN'),
      ('R-101', 'FPN'),
      ('X-101-32x8d', 'FPN'),
      ('R-50', 'C4'),
      ('R-101', 'C4'),
    ):
      source = zoo_source(name, c4=maps == 'C4', masks=masks)
      full = f'detectron2/{network}_{name.replace("-", "_")}_{maps}'
      yield full, source
      # For training on other classes.
      yield f'{full}_body', source.without(_CLASSES)


SOURCES = {
  **{f'detectron2/{name}': imagenet_source(name, _CAFFE2) for name in VARIANTS},
  **{f'detectron/{name}': imagenet_source(name, _AFFINE) for name in VARIANTS},
  **dict(_zoo()),
}
