"""Networks for semantic segmentation, and ResNet-50-FPN: inference and train steps."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from segjax.models import fcn, segnet, unet
from segjax.nn.fpn import FPN
from segjax.nn.resnet import ResNet
from segjax.nn.vgg import VGG16
from speed import harness, ours
from speed.row import Options, Row, Work

# VGG16's stages at toy size.
_TOY_STAGES = tuple((8, count) for _, count in VGG16)


def _unet(options: Options, *, same: bool) -> tuple[Any, Callable[[], Any]]:
  """Our network and what makes the peer's."""
  width = options.pick(64, 4)
  kind = {'padding': 'same', 'norm': 'batch'} if same else {}
  model = unet.UNet(2, width=width, dropout=0.0, dtype=options.dtype, **kind)
  return model, lambda peers: peers.UNet(2, width, same=same)


def _segnet(options: Options) -> tuple[Any, Callable[[], Any]]:
  stages = options.pick(VGG16, _TOY_STAGES)
  model = segnet.SegNet(11, stages=stages, dtype=options.dtype)
  return model, lambda peers: peers.SegNet(11, stages)


def _segnet_basic(options: Options) -> tuple[Any, Callable[[], Any]]:
  width = options.pick(64, 4)
  model = segnet.SegNetBasic(11, width=width, input_norm='none', dtype=options.dtype)
  return model, lambda peers: peers.SegNetBasic(11, width)


def _fcn(options: Options) -> tuple[Any, Callable[[], Any]]:
  stages, features = options.pick(VGG16, _TOY_STAGES), options.pick(4096, 8)
  model = fcn.FCN(21, stages=stages, fc_features=features, dropout=0.0, dtype=options.dtype)
  return model, lambda peers: peers.FCN8s(21, stages, features)


def _inference(
  network: Callable[[Options], Any], shape: tuple[int, ...], toy: tuple[int, ...], options: Options
) -> Work:
  image = draw_image(options.pick(shape, toy))
  model, their = network(options)
  variables = ours.variables(model, image)
  run, cost = ours.inference(model, variables, image)
  if not options.peers:
    return Work(run, cost=cost)
  from speed import peers

  make = lambda: peers.load(their(peers), variables)
  # Of two values that are equal but for rounding, pooling may keep either, which moves what is
  # unpooled by a pixel.
  share = 0.99 if network in (_segnet, _segnet_basic) else 1.0
  same = functools.partial(_same_outputs, peers.to_numpy, _tolerance(options), share)
  return Work(run, peers.inference(make, image, options), same, cost)


def _training(
  network: Callable[[Options], Any], shape: tuple[int, ...], toy: tuple[int, ...], options: Options
) -> Work:
  model, their = network(options)
  image, label, variables = training_inputs(model, options.pick(shape, toy))
  batch = {'image': image, 'label': label, 'valid': np.ones(len(image), bool)}
  run, cost = ours.training(ours.dense_task(model), variables, batch)
  if not options.peers:
    return Work(run, cost=cost)
  from speed import peers

  make = lambda: peers.load(their(peers), variables)
  programs = peers.training(make, image, peers.cross_entropy(label), options)
  return Work(run, programs, functools.partial(same_losses, 10 * _tolerance(options)), cost)


def training_inputs(model: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Any]:
  """Images of a shape, random labels of the size of the network's output, and variables."""
  image = draw_image(shape)
  variables = ours.variables(model, image)
  size = jax.eval_shape(model.apply, variables, image).shape[:3]
  label = np.random.default_rng(1).integers(0, model.classes, size).astype(np.int32)
  return image, label, variables


class _ResNetFPN(nn.Module):
  """ResNet-50 with frozen norms and its feature pyramid."""

  width: int = 64
  features: int = 256
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, image: jax.Array) -> list[jax.Array]:
    resnet = ResNet('resnet50', width=self.width, norm='frozen', dtype=self.dtype, name='backbone')
    levels = list(resnet(image).values())
    return FPN(self.features, dtype=self.dtype, name='fpn')(levels)


def _resnet_fpn(options: Options) -> Work:
  """Forward and backward of the mean square of all levels, without an optimizer."""
  image = draw_image(options.pick((1, 640, 640, 3), (1, 64, 64, 3)))
  model = _ResNetFPN(*options.pick((64, 256), (4, 8)), dtype=options.dtype)
  peers = None
  if options.peers and not options.toy:
    from speed import torchvision_peers as peers

    theirs = peers.mask_rcnn(80)
    converted = peers.converted(theirs)
    variables = {c: {k: v[k] for k in ('backbone', 'fpn') if k in v} for c, v in converted.items()}
  else:
    variables = ours.variables(model, image)

  def loss(variables: Any, image: Any) -> Any:
    levels = model.apply(variables, image)
    return sum((level.astype('float32') ** 2).mean() for level in levels)

  def both(variables: Any, image: Any) -> Any:
    fixed = {name: value for name, value in variables.items() if name != 'params'}
    apply = lambda params: loss({**fixed, 'params': params}, image)
    return jax.value_and_grad(apply)(variables['params'])

  run, cost = ours.call(both, variables, image)
  if peers is None:
    return Work(run, cost=cost)
  programs = peers.fpn_gradients(theirs, image, options)

  def same(found: list, others: Mapping[str, list]) -> str:
    value, gradients = found[0]
    own = [float(value), float(jax.numpy.linalg.norm(gradients['fpn']['lateral2']['kernel']))]
    for results in others.values():
      said = harness.close(own, results[0], 10 * _tolerance(options), 'loss and a gradient')
    return said

  return Work(run, programs, same, cost)


def same_losses(tolerance: float, found: list, others: Mapping[str, list]) -> str:
  """The losses of two steps, the second of which depends on the first one's gradients."""
  for results in others.values():
    said = harness.close(found, results, tolerance, 'losses of two steps')
  return said


def _same_outputs(
  to_numpy: Callable[[Any], np.ndarray],
  tolerance: float,
  share: float,
  found: list,
  others: Mapping[str, list],
) -> str:
  for results in others.values():
    said = harness.close(found[0], to_numpy(results[0]), tolerance, 'outputs', share)
  return said


def draw_image(shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _tolerance(options: Options) -> float:
  return 1e-4 if options.dtype == 'float32' else 3e-2


def _row(work: str, make: Callable, network: Any, shape: Any, toy: Any, target: Any) -> Row:
  return Row(work, functools.partial(make, network, shape, toy), target)


_SAME = functools.partial(_unet, same=True)
_VALID = functools.partial(_unet, same=False)
_CAMVID, _TOY = (360, 480, 3), (46, 60, 3)
ROWS = {
  'unet_infer': _row(
    'U-Net (31M, batch norm) inference, 2 × 256²',
    *(_inference, _SAME, (2, 256, 256, 1), (2, 32, 32, 1), 0.95),
  ),
  'unet_train': _row(
    'U-Net (31M, batch norm) train step, 2 × 256²',
    *(_training, _SAME, (2, 256, 256, 1), (2, 32, 32, 1), 0.8),
  ),
  'unet_published_infer': _row(
    'published U-Net inference, 572²',
    *(_inference, _VALID, (1, 572, 572, 1), (1, 188, 188, 1), 0.95),
  ),
  'unet_published_train': _row(
    'published U-Net train step, 572²',
    *(_training, _VALID, (1, 572, 572, 1), (1, 188, 188, 1), 0.8),
  ),
  'segnet_infer': _row(
    'SegNet inference, 360 × 480', _inference, _segnet, (1, *_CAMVID), (1, *_TOY), 0.85
  ),
  'segnet_train': _row(
    'SegNet train step, 2 × 360 × 480', _training, _segnet, (2, *_CAMVID), (2, *_TOY), 0.9
  ),
  'segnet_basic_infer': _row(
    'SegNet-Basic inference, 360 × 480', _inference, _segnet_basic, (1, *_CAMVID), (1, *_TOY), None
  ),
  'segnet_basic_train': _row(
    'SegNet-Basic train step, 2 × 360 × 480',
    *(_training, _segnet_basic, (2, *_CAMVID), (2, *_TOY), None),
  ),
  'fcn_infer': _row(
    'FCN-8s (VGG16) inference, 500²', _inference, _fcn, (1, 500, 500, 3), (1, 32, 40, 3), 1.0
  ),
  'fcn_train': _row(
    'FCN-8s (VGG16) train step, 500²', _training, _fcn, (1, 500, 500, 3), (1, 32, 40, 3), None
  ),
  'resnet_fpn': Row('ResNet-50-FPN forward + backward, 640²', _resnet_fpn, 1.1),
}
