"""Which network, image size and schedule suit a data set and a machine: the rules of `segjax new`.

A recipe is a config without its data set. Its numbers are those of the shipped config that is
nearest in size, which was measured (`experiments/`), changed only where the data ask for it. A rule
says why in the comment that it leaves in the config, so that a reader can disagree.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from segjax.types import SegjaxError, nearest

Size = tuple[int, int]


class Note(NamedTuple):
  """A value of a config, and the comment above it."""

  value: Any
  why: str


class Facts(NamedTuple):
  """What a recipe depends on of the data.

  Attributes:
    task: 'semantic', 'instance' or 'panoptic'.
    classes: in semantic tasks all, else those of things.
    stuff: in panoptic tasks, the classes of stuff.
    channels: of the images, 1 or 3.
    sizes: (height, width) of each image.
    examples: number of training images.
    most_objects: largest number of objects of an image.
    boxes: f64[n, 2], width and height of objects in pixels of their images.
    masks: whether objects have masks.
    rare: names of classes with very few pixels, of semantic tasks.
  """

  task: str
  classes: int
  channels: int
  sizes: Sequence[Size]
  examples: int
  stuff: int = 0
  most_objects: int = 0
  boxes: np.ndarray = np.zeros((0, 2))
  masks: bool = True
  rare: tuple[str, ...] = ()


class Machine(NamedTuple):
  """What a recipe depends on of the machine.

  Attributes:
    accelerator: whether it has a GPU or a TPU.
    memory: bytes of a device that trains.
    devices: that train, each on its part of the batch.
  """

  accelerator: bool
  memory: int
  devices: int = 1


class Scale(NamedTuple):
  """A network and its schedule, for images up to a certain size.

  Attributes:
    why: where the numbers are from.
    longest_side: of the images that the network sees, in pixels.
    short_side: of images with objects; the longer side follows from their shape.
    batch: examples in a step.
    bytes_per_pixel: memory of a training step per pixel of its batch, as XLA reports it.
    epochs: so that few images are not repeated for hours; between `steps`.
    steps: least and most.
    optim: learning rate and weight decay, and more keys of `config.optim`.
    augment: besides flips.
    model: keys of the network.
  """

  why: str
  longest_side: int
  short_side: int
  batch: int
  bytes_per_pixel: int
  epochs: int
  steps: tuple[int, int]
  optim: dict[str, Any]
  augment: dict[str, Any]
  model: dict[str, Any]


_SEMANTIC_AUGMENT = {
  'scale': (0.75, 1.5),
  'brightness': 0.1,
  'contrast': 0.1,
  'saturation': 0.1,
}
_OBJECTS_AUGMENT = {'brightness': 0.2, 'contrast': 0.2, 'saturation': 0.2}
# Of U-Net, XLA reports 119 to 161 bytes per pixel and channel of `width` (64 x 64 to 512 x 512).
_UNET_BYTES = 128

SEMANTIC = (
  Scale(
    why='From scratch, as configs/unet/scenes.py (results: experiments/unet).',
    longest_side=128,
    short_side=128,
    batch=4,
    bytes_per_pixel=16 * _UNET_BYTES,
    epochs=200,
    steps=(400, 1_600),
    optim={'learning_rate': 3e-3, 'weight_decay': 1e-4},
    augment={},
    model={'width': 16, 'dropout': 0.0},
  ),
  Scale(
    why='From scratch, as configs/unet/camvid.py (results: experiments/unet).',
    longest_side=256,
    short_side=256,
    batch=6,
    bytes_per_pixel=16 * _UNET_BYTES,
    epochs=200,
    steps=(400, 1_200),
    optim={'learning_rate': 3e-3, 'weight_decay': 1e-3},
    augment=_SEMANTIC_AUGMENT,
    model={'width': 16, 'dropout': 0.1},
  ),
)
# Not measured: the width of nnU-Net, and the learning rate of configs/unet/oxford_iiit_pet.py.
SEMANTIC_ACCELERATOR = Scale(
  why='A U-Net as wide as that of nnU-Net, from scratch. These numbers were not measured.',
  longest_side=1024,
  short_side=1024,
  batch=16,
  bytes_per_pixel=32 * _UNET_BYTES,
  epochs=200,
  steps=(2_000, 40_000),
  optim={'learning_rate': 1e-3, 'weight_decay': 1e-4},
  augment=_SEMANTIC_AUGMENT,
  model={'width': 32, 'dropout': 0.1},
)

OBJECTS = (
  Scale(
    why='From scratch, as configs/mask_rcnn/scenes_tiny.py (results: experiments/mask_rcnn).',
    longest_side=160,
    short_side=160,
    batch=8,
    bytes_per_pixel=850,
    epochs=200,
    steps=(500, 1_500),
    optim={'learning_rate': 2e-3, 'weight_decay': 1e-4},
    augment={'brightness': 0.1, 'contrast': 0.1},
    model={
      'backbone': {'name': 'resnet18', 'width': 16, 'norm': 'group'},
      'neck': {'features': 48},
      'rpn': {'samples': 128, 'train_proposals': (200, 100), 'test_proposals': (200, 60)},
      'box_head': {'features': 48, 'hidden': 128, 'samples': 48},
      'mask_head': {'features': 48, 'convs': 2},
      'semantic': {'features': 32, 'groups': 4},
    },
  ),
  Scale(
    why='From scratch, as configs/mask_rcnn/penn_fudan_cpu.py (results: experiments/mask_rcnn).',
    longest_side=416,
    short_side=288,
    batch=4,
    bytes_per_pixel=850,
    epochs=200,
    steps=(500, 1_500),
    optim={'learning_rate': 1e-3, 'weight_decay': 0.05},
    augment=_OBJECTS_AUGMENT,
    model={
      'backbone': {'name': 'resnet18', 'width': 32, 'norm': 'group'},
      'neck': {'features': 64},
      'rpn': {'samples': 128, 'train_proposals': (300, 150), 'test_proposals': (300, 100)},
      'box_head': {'features': 64, 'hidden': 256, 'samples': 64},
      'mask_head': {'features': 64, 'convs': 2},
      'semantic': {'features': 64, 'groups': 8},
    },
  ),
)
# Not measured. The published network, with group normalization as it has no pretrained weights
# (arXiv 1811.08883), and the AdamW of penn_fudan_cpu.py at a fifth of its learning rate.
OBJECTS_ACCELERATOR = Scale(
  why='ResNet-50-FPN from scratch, with group normalization. These numbers were not measured. With '
  'fewer than 10,000 images, pretrained weights help (arXiv 1811.08883): see docs/weights.md.',
  longest_side=1344,
  short_side=800,
  batch=8,
  bytes_per_pixel=4_000,
  epochs=100,
  steps=(5_000, 90_000),
  optim={'learning_rate': 2e-4, 'weight_decay': 0.05},
  augment=_OBJECTS_AUGMENT,
  model={
    'backbone': {'name': 'resnet50', 'norm': 'group'},
    'neck': {'features': 256},
    'rpn': {'train_proposals': (2000, 1000), 'test_proposals': (1000, 1000)},
    'box_head': {},
    'mask_head': {},
    'semantic': {'features': 128, 'groups': 32},
  },
)


class Weights(NamedTuple):
  """Published weights that a recipe can start from, of RGB images.

  Attributes:
    tasks: that have a network with them.
    variant: of its encoder.
    origin: what they are.
    network: of the semantic task, a key of `PUBLISHED`.
    whole: whether they are of all layers, trained on other classes, or of the encoder alone.
    backbone: keys of the ResNet of networks that detect.
    terms: a sentence on what they may be used for, where that is not everything.
  """

  tasks: tuple[str, ...]
  variant: str
  origin: str
  network: str = 'fcn.FCNResNet'
  whole: bool = False
  backbone: dict[str, Any] = {}
  terms: str = ''


# By their names in `segjax.convert.load.SOURCES`.
WEIGHTS = {
  **{
    f'torchvision/{variant}': Weights(
      ('semantic', 'instance', 'panoptic'), variant, 'weights of ImageNet for the ResNet'
    )
    for variant in ('resnet18', 'resnet34', 'resnet50', 'resnet101')
  },
  **{
    f'torchvision/{name}_{variant}': Weights(
      ('semantic',), variant, 'weights of COCO for all layers but the scores', network, whole=True
    )
    for name, network in (('deeplabv3', 'deeplab.DeepLabV3'), ('fcn', 'fcn.FCNResNet'))
    for variant in ('resnet50', 'resnet101')
  },
  'torchvision/maskrcnn_resnet50_fpn': Weights(
    ('instance',),
    'resnet50',
    'weights of COCO for all layers but those of the classes',
    whole=True,
    backbone={'bn_epsilon': 0.0},
  ),
  **{
    f'transformers/{kind}_b{i}': Weights(
      ('semantic',),
      f'b{i}',
      origin,
      'segformer.SegFormer',
      whole,
      terms="NVIDIA's are for research and evaluation only.",
    )
    for kind, origin, whole in (
      ('mit', 'weights of ImageNet for its encoder', False),
      ('segformer', 'weights of ADE20K for all layers but the scores', True),
    )
    for i in range(6)
  },
}
WEIGHTS_MEAN, WEIGHTS_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Published(NamedTuple):
  """A semantic network that has published weights.

  Attributes:
    titles: what the network of each variant of its encoder is called.
    bytes_per_pixel: of a training step by the variant, about what XLA reports for two images of
      256 x 256, with the parameters, which do not grow with the images.
    smallest_side: height and width of an image that it needs.
    key: of `config.model`, that is the variant.
    model: more of its keys.
    optim: learning rate and weight decay, and more keys of `config.optim`.
    smallest_batch: images that a step needs.
  """

  titles: dict[str, str]
  bytes_per_pixel: dict[str, int]
  key: str
  model: dict[str, Any]
  optim: dict[str, Any]
  smallest_batch: int = 1
  smallest_side: int = 1


def _on_resnet(name: str, bytes_per_pixel: dict[str, int], smallest_batch: int = 1) -> Published:
  return Published(
    titles={
      variant: f"torchvision's {name} on a {variant.replace('resnet', 'ResNet-')}"
      for variant in bytes_per_pixel
    },
    bytes_per_pixel=bytes_per_pixel,
    key='variant',
    # As batches are small, with the statistics of the weights.
    model={'norm': 'frozen'},
    # Half the rate of configs/fcn/camvid_cpu.py, which also starts from published weights.
    optim={'learning_rate': 1e-4, 'weight_decay': 1e-4},
    smallest_batch=smallest_batch,
  )


# By `config.model.name`.
PUBLISHED = {
  'fcn.FCNResNet': _on_resnet(
    'FCN', {'resnet18': 1_900, 'resnet34': 3_300, 'resnet50': 5_700, 'resnet101': 10_400}
  ),
  'deeplab.DeepLabV3': _on_resnet(
    'DeepLabV3', {'resnet50': 9_000, 'resnet101': 13_500}, smallest_batch=2
  ),
  'segformer.SegFormer': Published(
    titles={f'b{i}': f'SegFormer-B{i}' for i in range(6)},
    # And 700 for the scores of an attention, which grow with the images (b0 of 512 x 512).
    bytes_per_pixel={
      'b0': 2_700,
      'b1': 4_200,
      'b2': 7_700,
      'b3': 10_600,
      'b4': 14_100,
      'b5': 16_700,
    },
    smallest_side=29,
    key='size',
    model={},
    # The paper's, of configs/segformer/ade20k.py.
    optim={
      'learning_rate': 6e-5,
      'weight_decay': 0.01,
      'multipliers': (('^(?!backbone/)', 10.0),),
    },
  ),
}

# Fraction of the memory that a training step may take: on a CPU the rest of the machine's work and
# the data pipeline share it.
_CPU_SHARE, _ACCELERATOR_SHARE = 0.4, 0.8
# Images are not made smaller than this for more of them to fit into memory.
_SMALLEST = 256
# Shapes of images with objects are multiples of the coarsest stride.
_MULTIPLE = 32
# Images whose aspect ratios differ by less look right when they are stretched to one.
_SAME_ASPECT = 1.05
# Images of the same orientation whose aspect ratios differ by less are padded to one shape.
_SIMILAR_ASPECT = 1.6
# Anchors of the five levels of an FPN, as multiples of the smallest.
_ANCHORS = (1, 2, 4, 8, 16)
_HALVES = tuple(1 / k for k in range(2, 9))


def choose_scale(facts: Facts, machine: Machine, weights: Weights | None = None) -> Scale:
  """The scale of the machine: on a CPU, the smallest one that sees the images as they are."""
  semantic = facts.task == 'semantic'
  accelerator = SEMANTIC_ACCELERATOR if semantic else OBJECTS_ACCELERATOR
  scales = SEMANTIC if semantic else OBJECTS
  if weights:
    scale = accelerator if machine.accelerator else scales[-1]
    network = PUBLISHED[weights.network]
    fixed = {'bytes_per_pixel': network.bytes_per_pixel[weights.variant], 'model': {}}
    if not semantic:
      fixed = {'bytes_per_pixel': accelerator.bytes_per_pixel, 'model': accelerator.model}
    return scale._replace(
      why=_weights_reason(weights, semantic),
      epochs=accelerator.epochs // 2,
      steps=(min(scale.steps[0], 1_000), scale.steps[1]),
      optim=network.optim,
      **fixed,
    )
  if machine.accelerator:
    return accelerator
  longest = max(max(size) for size in facts.sizes)
  return next((scale for scale in scales if longest <= scale.longest_side), scales[-1])


def _weights_reason(weights: Weights, semantic: bool) -> str:
  network = f'{weights.variant.replace("resnet", "ResNet-")}-FPN'
  if semantic:
    network = PUBLISHED[weights.network].titles[weights.variant]
  return f'{network}, from {weights.origin}. These numbers were not measured.'


def make_recipe(facts: Facts, machine: Machine, weights: str | None = None) -> dict[str, Any]:
  """A config without its data set, as nested dicts with a `Note` where there is something to say.

  Args:
    facts: of the data.
    machine: that trains.
    weights: a name in `WEIGHTS` to start from; None to start from scratch.

  Raises:
    SegjaxError: there are no images; or the task has no network with these weights.
  """
  if not facts.sizes or not facts.examples:
    raise SegjaxError('there are no training images: add some')
  start = find_weights(weights, facts.task, facts.masks) if weights else None
  scale = choose_scale(facts, machine, start)
  least = PUBLISHED[start.network].smallest_batch if start and facts.task == 'semantic' else 1
  if facts.examples < least:
    raise SegjaxError(
      f'--weights={weights} needs {least} training images in a step, and there is '
      f'{facts.examples}: add images, or start from torchvision/fcn_{start.variant}'
    )
  size = image_sizes(facts, scale)
  batch, why = _batch_size(facts, machine, scale, size)
  while batch < least and scale.longest_side > _SMALLEST:
    scale = scale._replace(longest_side=scale.longest_side // 2)
    size = image_sizes(facts, scale)
    batch, why = _batch_size(facts, machine, scale, size)
  batch = max(batch, least)
  if start and facts.task == 'semantic':
    _check_sides(_shape(size), PUBLISHED[start.network].smallest_side, weights)
  steps = _steps(facts, scale, batch)
  epochs = steps * batch / facts.examples
  if facts.task != 'semantic':
    model = _mask_rcnn(facts, scale, size, start)
  else:
    model = _published(facts, start) if start else _unet(facts, scale, size)
  return {
    'task': facts.task,
    'model': Note(model, scale.why),
    **({'init_from': _init_from(weights, start)} if start else {}),
    **_losses(facts),
    'data': {'size': size},
    'augment': _augment(facts, scale),
    'batch': {'size': Note(batch, why), **_room(facts)},
    'optim': {
      'name': 'adamw',
      'learning_rate': scale.optim['learning_rate'],
      'schedule': 'cosine',
      'warmup_steps': max(steps // (50 if facts.task == 'semantic' else 15), 1),
      **{key: value for key, value in scale.optim.items() if key != 'learning_rate'},
      **({} if facts.task == 'semantic' else {'clip_norm': 5.0}),
    },
    'train': {
      'steps': Note(steps, f'{epochs:.0f} epochs of {facts.examples} images.'),
      'eval_every': steps // 4,
      'checkpoint_every': steps // 4,
      'best_metric': _best_metric(facts),
    },
  }


def _check_sides(shape: Size, smallest: int, weights: str) -> None:
  if min(shape) < smallest:
    height, width = shape
    raise SegjaxError(
      f'--weights={weights} needs images of {smallest} x {smallest} pixels, and these would be '
      f'{height} x {width}: leave it out'
    )


# --- image sizes ----------------------------------------------------------------------------------


def image_sizes(facts: Facts, scale: Scale) -> dict[str, Any]:
  """`config.data.size`: one shape where one will do, as each shape is compiled for itself."""
  objects = facts.task != 'semantic'
  heights, widths = np.array(facts.sizes).T
  aspects = widths / heights
  spread = aspects.max() / aspects.min()
  one_way = (aspects >= 1).all() or (aspects <= 1).all()
  if objects and (len(set(facts.sizes)) > 1 or max(facts.sizes[0]) > scale.longest_side):
    return _short_sides(facts, scale)
  if objects:
    shape = _round_up(heights[0]), _round_up(widths[0])
    return {
      'interpolation': 'bilinear',
      'shapes': Note((shape,), 'All images are of one size: they are padded to multiples of 32.'),
    }
  if spread <= _SAME_ASPECT:
    return {'image_size': _one_size(heights, widths, scale)}
  if spread <= _SIMILAR_ASPECT and one_way:
    shape = _shrunk(heights.max(), widths.max(), scale.longest_side)
    why = 'Images differ in size: they are resized to fit, keeping the aspect ratio, and padded.'
    return {'image_size': Note(shape, why), 'resize': 'fit'}
  return _short_sides(facts, scale)


def _one_size(heights: np.ndarray, widths: np.ndarray, scale: Scale) -> Note:
  middle = int(np.median(heights)), int(np.median(widths))
  shape = _shrunk(*middle, scale.longest_side)
  if len(set(zip(heights.tolist(), widths.tolist(), strict=True))) > 1:
    why = 'Images differ in size but not in aspect ratio: all are resized to this one.'
  elif shape == middle:
    why = 'Height and width of the images as they are.'
  else:
    times = math.prod(middle) / math.prod(shape)
    why = f'Height and width. Full size, {middle}, takes {times:.1f} times the memory and time.'
  return Note(shape, why)


def _shrunk(height: int, width: int, longest: int) -> Size:
  """The size at which the longer side is at most `longest`; by a whole factor if one is near."""
  factor = min(longest / max(height, width), 1.0)
  factor = next((half for half in _HALVES if 0.85 * factor <= half <= factor), factor)
  return max(round(height * factor), 1), max(round(width * factor), 1)


def _short_sides(facts: Facts, scale: Scale) -> dict[str, Any]:
  """Images keep their aspect ratio; upright and lying ones are padded to a shape each."""
  short, long = np.sort(np.array(facts.sizes), axis=1).T
  objects = facts.task != 'semantic'
  largest = min(scale.short_side, max(_round_up(int(np.median(short))), 2 * _MULTIPLE))
  if not objects:  # the longer side is the limit
    ratio = float(np.median(long / short))
    largest = min(largest, max(int(scale.longest_side / ratio) // _MULTIPLE, 1) * _MULTIPLE)
  longest = max(min(scale.longest_side, _round_up(largest * float((long / short).max()))), largest)
  several = objects and largest >= 6 * _MULTIPLE
  sides = tuple(largest - k * _MULTIPLE for k in (2, 1, 0)) if several else (largest,)
  lying = any(height < width for height, width in facts.sizes)
  upright = any(height > width for height, width in facts.sizes)
  shapes = ((largest, longest),) * (lying or not upright) + ((longest, largest),) * upright
  shapes = tuple(dict.fromkeys(shapes))
  drawn = 'one of these, sampled in training' if several else 'this'
  return {
    'short_side': Note(
      sides, f'Images keep their aspect ratio; their shorter side becomes {drawn}.'
    ),
    'longest_side': longest,
    'interpolation': 'bilinear' if objects else 'area',
    'shapes': Note(shapes, 'Images are padded to the smallest of these that fits.'),
  }


def _round_up(value: float) -> int:
  return int(math.ceil(value / _MULTIPLE)) * _MULTIPLE


def _shape(size: dict[str, Any]) -> Size:
  """The largest shape of a batch."""
  plain = {key: value.value if isinstance(value, Note) else value for key, value in size.items()}
  shapes = plain.get('shapes') or (plain['image_size'],)
  return max(shapes, key=math.prod)


# --- networks -------------------------------------------------------------------------------------


def _unet(facts: Facts, scale: Scale, size: dict[str, Any]) -> dict[str, Any]:
  # The coarsest map keeps 4 x 4 pixels at least, as nnU-Net's.
  depth = min(max(int(math.log2(min(_shape(size)) / 4)), 1), 4)
  return {
    'name': 'unet.UNet',
    'classes': facts.classes,
    'width': scale.model['width'],
    **({} if depth == 4 else {'depth': Note(depth, 'Poolings: the images are small.')}),
    'padding': 'same',
    'norm': 'batch',
    'dropout': scale.model['dropout'],
  }


def find_weights(name: str, task: str, masks: bool = True) -> Weights:
  """The entry of `WEIGHTS`.

  Args:
    name: of the weights.
    task: to train for.
    masks: whether objects have masks.

  Raises:
    SegjaxError: they have no network for the task.
  """
  fitting = [
    other
    for other, weights in WEIGHTS.items()
    if task in weights.tasks and (masks or not weights.whole)
  ]
  if name not in fitting:
    boxes = '' if masks else ', of objects without masks'
    raise SegjaxError(
      f'--weights={name} has no network for the task {task}{boxes}{nearest(name, fitting)}'
    )
  return WEIGHTS[name]


def _init_from(name: str, weights: Weights) -> Note:
  why = 'Downloaded when the training starts; path names a file of them instead.'
  if weights.terms:
    why += f' {weights.terms}'
  return Note({'source': name, **({'reset': 'heads'} if weights.whole else {})}, why)


def _published(facts: Facts, weights: Weights) -> dict[str, Any]:
  network = PUBLISHED[weights.network]
  named = {'name': weights.network, 'classes': facts.classes}
  return {**named, network.key: weights.variant, **network.model}


def _mask_rcnn(
  facts: Facts, scale: Scale, size: dict[str, Any], weights: Weights | None
) -> dict[str, Any]:
  panoptic, parts = facts.task == 'panoptic', scale.model
  backbone = parts['backbone']
  if weights:
    # As published: the statistics of the weights; the stem and the first stage are frozen.
    frozen = {'norm': 'frozen', 'frozen_stages': 2}
    backbone = {'name': weights.variant, **frozen, **weights.backbone}
  anchors, roi = _anchors(facts, size), {'roi': {'aligned': True}}
  if weights and weights.whole:  # trained with the default anchors and RoIAlign
    anchors, roi = {}, {}
  most = _most_detections(facts)
  masks = {'mask_head': parts['mask_head']} if facts.masks and parts['mask_head'] else {}
  without = {} if facts.masks else {'masks': Note(False, 'Objects have boxes alone: Faster R-CNN.')}
  return {
    'name': 'panoptic_fpn.PanopticFPN' if panoptic else 'mask_rcnn.MaskRCNN',
    'classes': facts.classes,
    **({'stuff': facts.stuff} if panoptic else {}),
    'backbone': backbone,
    'neck': parts['neck'],
    'rpn': {**anchors, **parts['rpn']},
    **roi,
    'box_head': {
      **parts['box_head'],
      'max_detections': Note(most, f'{_most_objects(facts)}.'),
    },
    **masks,
    **without,
    **({'semantic': parts['semantic']} if panoptic else {}),
  }


def _anchors(facts: Facts, size: dict[str, Any]) -> dict[str, Any]:
  """The anchors: the largest is about as long as the image, and the smallest as small objects."""
  shape = _shape(size)
  base = 2 ** round(math.log2(max(shape) / _ANCHORS[-1]) - 0.25)
  base = min(max(base, 8), 32)
  sides = _sides(facts, shape)
  if len(sides):
    while base > 8 and np.quantile(sides, 0.1) < base / 2:
      base //= 2
  sizes = tuple(float(base * k) for k in _ANCHORS)
  why = 'In pixels, one for each level of the pyramid.'
  if len(sides):
    low, middle, high = np.quantile(sides, (0.1, 0.5, 0.9))
    why = (
      f'In pixels, one for each level of the pyramid. Objects are {low:.0f}, {middle:.0f} and '
      f'{high:.0f} pixels large (10%, 50%, 90%; square root of width times height).'
    )
  return {'anchor_sizes': Note(sizes, why), **_aspect_ratios(facts)}


def _aspect_ratios(facts: Facts) -> dict[str, Any]:
  boxes = facts.boxes[(facts.boxes > 0).all(axis=1)]
  if not len(boxes):
    return {}
  ratio = float(np.median(boxes[:, 1] / boxes[:, 0]))
  why = f'Height / width; the median of the objects is {ratio:.1f}.'
  if ratio > 1.5:
    return {'aspect_ratios': Note((1.0, 2.0, 3.0), why)}
  if ratio < 1 / 1.5:
    return {'aspect_ratios': Note((0.33, 0.5, 1.0), why)}
  return {}


def _sides(facts: Facts, shape: Size) -> np.ndarray:
  """The side of the square of each object's area, as the network sees them."""
  heights, widths = np.array(facts.sizes).T
  factor = max(shape) / np.median(np.maximum(heights, widths))
  sides = np.sqrt(facts.boxes.prod(axis=1)) * factor
  return sides[sides > 0]


def _most_detections(facts: Facts) -> int:
  """Twice the objects of the fullest image; COCO's evaluation counts 100."""
  return min(max(4 * math.ceil(facts.most_objects / 2), 20), 100)


def _most_objects(facts: Facts) -> str:
  plural = 's' * (facts.most_objects != 1)
  return f'The fullest image has {facts.most_objects} object{plural}'


def _room(facts: Facts) -> dict[str, Any]:
  """How many objects and segments a batch has room for: a quarter more than were found."""
  if facts.task == 'semantic':
    return {}
  room = max(4 * math.ceil(1.25 * facts.most_objects / 4), 8)
  why = f'N. {_most_objects(facts)}.'
  segments = {'max_segments': room + facts.stuff} if facts.task == 'panoptic' else {}
  return {'max_objects': Note(room, why), **segments}


# --- losses, augmentation, schedule ---------------------------------------------------------------


def _losses(facts: Facts) -> dict[str, Any]:
  if facts.task == 'semantic':
    losses = {'softmax_cross_entropy': {}}
    if facts.rare:
      why = (
        f'Of very few pixels: {", ".join(facts.rare)}. To weigh rare classes more: '
        "{'class_weights': 'median_frequency'}."
      )
      losses = Note(losses, why)
    return {'losses': losses}
  names = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', *['mask'] * facts.masks)
  losses = {name: {} for name in names}
  if facts.task == 'instance':
    return {'losses': losses, 'eval': {'metrics': ('coco' if facts.masks else 'coco_box',)}}
  # In proportion to COCO's 4096 pixels of 640 x 480.
  area = max(float(round(4096 / (640 * 480) * float(np.median(np.prod(facts.sizes, axis=1))))), 1.0)
  return {
    'losses': {**losses, 'semantic': {'scale': 0.5}},
    'eval': {
      'metrics': ('pq', 'coco'),
      'stuff_area': Note(area, 'Smaller segments of stuff become void: 1.3% of an image.'),
    },
  }


def _augment(facts: Facts, scale: Scale) -> dict[str, Any]:
  gray = {'saturation'} if facts.channels == 1 else set()
  why = (
    'Set it to 0 where left and right differ, as in text. Where images have no top, as under a '
    "microscope or from above, add 'flip_vertical': 0.5 and 'rotate90': True."
  )
  others = {key: value for key, value in scale.augment.items() if key not in gray}
  return {'flip_horizontal': Note(0.5, why), **others}


def _batch_size(
  facts: Facts, machine: Machine, scale: Scale, size: dict[str, Any]
) -> tuple[int, str]:
  """The scale's, but no more than fit into memory or there are examples."""
  share = _ACCELERATOR_SHARE if machine.accelerator else _CPU_SHARE
  needed = scale.bytes_per_pixel * math.prod(_shape(size))
  most = min(scale.batch, machine.devices * max(int(share * machine.memory / needed), 1))
  part = max(min(most, facts.examples) // machine.devices, 1)
  batch = part * machine.devices
  why = f'A step takes about {_gibibytes(part * needed)} of {_gibibytes(machine.memory)} of memory.'
  if batch == facts.examples < most:
    why = 'There are no more training images.'
  if machine.devices > 1:
    why += f' Each of {machine.devices} devices takes {part}.'
  return batch, why


def _gibibytes(count: int) -> str:
  return f'{count / 2**20:.0f} MiB' if count < 2**30 else f'{count / 2**30:.1f} GiB'


def _steps(facts: Facts, scale: Scale, batch: int) -> int:
  least, most = scale.steps
  steps = scale.epochs * facts.examples / batch
  return min(max(math.ceil(steps / 100) * 100, least), most)


def _best_metric(facts: Facts) -> str:
  if facts.task != 'instance':
    return {'semantic': 'mean_iou', 'panoptic': 'pq'}[facts.task]
  return 'mask_ap' if facts.masks else 'box_ap'
