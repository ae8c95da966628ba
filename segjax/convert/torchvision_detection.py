"""torchvision's Mask R-CNN and Faster R-CNN with ResNet-50-FPN, v1 and v2.

The files have scores, boxes and masks for the background and for COCO category ids from 1 to 90,
ten of which are unused. `torchvision/maskrcnn_resnet50_fpn` takes the 80 used ones in the order of
their ids, as in `coco_instances`; `…_all` takes all classes of a file, such as a fine-tuned one,
where class i is label i + 1 of the file; `…_body` omits the class-specific head layers, for
training on other classes. The boxes and masks of the background are always dropped, as they are
neither trained nor used.

Files saved before torchvision 0.13, such as the published v1 weights, have different names for some
layers (`RENAMED`). The published v1 weights were trained without an epsilon in batch normalization
and need `config.model.backbone.bn_epsilon=0.0`; other weights may need 1e-5.
"""

from collections.abc import Callable, Iterator

import numpy as np

from segjax.convert.table import Row, Source
from segjax.convert.torchvision import (
  COUNTERS,
  INPUT,
  conv_norm_rows,
  layer_rows,
  oihw_to_hwio,
  resnet_rows,
)
from segjax.nn import resnet

# COCO's category ids: 80 from 1 to 90.
COCO_HOLES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(i for i in range(1, 91) if i not in COCO_HOLES)

# Names before torchvision 0.13 -> current names.
RENAMED = (
  (r'^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$', r'\1.0.\2'),
  (r'^rpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1'),
  *((rf'^(roi_heads\.mask_head)\.mask_fcn{i + 1}\.', rf'\1.{i}.0.') for i in range(4)),
)
# Keys of `config.model` for v2: convolutions instead of fully-connected layers, and batch norm.
V2 = {
  'backbone.norm': 'batch',
  'neck.norm': 'batch',
  'rpn.convs': 2,
  'box_head.convs': 4,
  'box_head.layers': 1,
  'box_head.norm': 'batch',
  'mask_head.norm': 'batch',
}
# Keys of `config.model` for the published v1 weights.
V1 = {'backbone.bn_epsilon': 0.0}

# Resolution of the box head.
_BINS = 7
# Class-specific layers, and layers that Faster R-CNN does not have.
_CLASSES = r'^params/(box/(score|deltas)|mask/score)/'
_MASK = r'^(params|batch_stats)/mask/'

Transform = Callable[[np.ndarray], np.ndarray]


def linear(x: np.ndarray) -> np.ndarray:
  """Converts a fully-connected layer [out, in] to a kernel [in, out]."""
  return x.transpose(1, 0)


def linear_on_bins(x: np.ndarray) -> np.ndarray:
  """The same for a layer on a flattened CHW RoI, to a flattened HWC RoI."""
  x = x.reshape(len(x), -1, _BINS, _BINS)
  return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def iohw_to_hwio(x: np.ndarray) -> np.ndarray:
  """Converts the kernel of a transposed convolution."""
  return x.transpose(2, 3, 0, 1)


def coco_rows(x: np.ndarray) -> np.ndarray:
  """Selects COCO's 80 categories from [91, …], background and ids."""
  if len(x) != 91:
    raise ValueError('not of 91 classes')
  return x[list(COCO_IDS)]


def all_rows(x: np.ndarray) -> np.ndarray:
  """Removes the background: [1 + classes, …] -> [classes, …]."""
  return x[1:]


def class_rows(prefix: str, pick: Transform, *, masks: bool) -> Iterator[Row]:
  """The class-specific layers."""

  def scores(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:1], pick(x)])

  def boxes(x: np.ndarray) -> np.ndarray:
    picked = pick(x.reshape(-1, 4, *x.shape[1:]))
    return picked.reshape(-1, *x.shape[1:])

  box, mask = f'{prefix}.box_predictor', f'{prefix}.mask_predictor.mask_fcn_logits'
  for name, ours, take in (('cls_score', 'score', scores), ('bbox_pred', 'deltas', boxes)):
    kernel = lambda x, take=take: linear(take(x))
    yield Row(f'{box}.{name}.weight', f'params/box/{ours}/kernel', kernel)
    yield Row(f'{box}.{name}.bias', f'params/box/{ours}/bias', take)
  if masks:
    yield Row(f'{mask}.weight', 'params/mask/score/kernel', lambda x: oihw_to_hwio(pick(x)))
    yield Row(f'{mask}.bias', 'params/mask/score/bias', pick)


def detection_rows(
  variant: resnet.Name, pick: Transform, *, version: int, masks: bool
) -> Iterator[Row]:
  """All layers of a network.

  Args:
    variant: of the ResNet.
    pick: selects the classes from the rows of the file.
    version: 1 or 2.
    masks: whether it is Mask R-CNN.
  """

  def conv_rows(theirs: str, ours: str) -> Iterator[Row]:
    """A convolution, 0, and in v2 its norm, 1."""
    if version == 1:
      yield from layer_rows(f'{theirs}.0', ours, oihw_to_hwio)
    else:
      yield from conv_norm_rows(f'{theirs}.0', f'{theirs}.1', ours)

  yield from resnet_rows(variant, 'backbone.body.')
  for i in range(4):
    yield from conv_rows(f'backbone.fpn.inner_blocks.{i}', f'fpn/lateral{i + 2}')
    yield from conv_rows(f'backbone.fpn.layer_blocks.{i}', f'fpn/output{i + 2}')
  for i in range(version):
    yield from layer_rows(f'rpn.head.conv.{i}.0', f'rpn/conv{i + 1}', oihw_to_hwio)
  yield from layer_rows('rpn.head.cls_logits', 'rpn/objectness', oihw_to_hwio)
  yield from layer_rows('rpn.head.bbox_pred', 'rpn/deltas', oihw_to_hwio)
  if version == 1:
    yield from layer_rows('roi_heads.box_head.fc6', 'box/fc6', linear_on_bins)
    yield from layer_rows('roi_heads.box_head.fc7', 'box/fc7', linear)
  else:
    for i in range(4):
      yield from conv_rows(f'roi_heads.box_head.{i}', f'box/conv{i + 1}')
    yield from layer_rows('roi_heads.box_head.5', 'box/fc6', linear_on_bins)
  if masks:
    for i in range(4):
      yield from conv_rows(f'roi_heads.mask_head.{i}', f'mask/conv{i + 1}')
    yield from layer_rows('roi_heads.mask_predictor.conv5_mask', 'mask/upconv', iohw_to_hwio)
  yield from class_rows('roi_heads', pick, masks=masks)


def detection_source(
  variant: resnet.Name, pick: Transform, *, version: int, masks: bool, note: str = ''
) -> Source:
  """The table of `detection_rows`; `note` is appended to `input`."""
  wanted = {'backbone.name': variant, **(V1 if version == 1 else V2), 'masks': masks}
  keys = ', '.join(f'config.model.{key}={value}' for key, value in wanted.items())
  return Source(
    rows=tuple(detection_rows(variant, pick, version=version, masks=masks)),
    left_out=(COUNTERS,),
    # Faster R-CNN's weights do for a Mask R-CNN whose mask head is new, and the other way round.
    new=() if masks else (_MASK,),
    spare=(_MASK,) if masks else (),
    input=f'{INPUT}, {keys}{note}',
    renamed=RENAMED,
  )


def _sources() -> Iterator[tuple[str, Source]]:
  for network, masks in (('maskrcnn', True), ('fasterrcnn', False)):
    for version, suffix in ((1, ''), (2, '_v2')):
      name = f'torchvision/{network}_resnet50_fpn{suffix}'
      options = {'version': version, 'masks': masks}
      note = ', config.model.classes=80'
      yield name, detection_source('resnet50', coco_rows, note=note, **options)
      every = detection_source('resnet50', all_rows, **options)
      yield f'{name}_all', every
      yield f'{name}_body', every.without(_CLASSES)


SOURCES = dict(_sources())
