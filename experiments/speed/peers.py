"""The peers: the same networks in torch, as a user would write them, with the same weights.

Layers have the names of ours, so that `load` copies variables by name.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from speed import harness, ours
from speed.row import Options, Program

torch.set_num_threads(harness.cores())
LAYOUTS = {'torch NCHW': torch.contiguous_format, 'torch NHWC': torch.channels_last}


# --- networks -------------------------------------------------------------------------------------


class DoubleConv(nn.Module):
  def __init__(self, channels: int, features: int, padding: int, norm: bool):
    super().__init__()
    for i, width in enumerate((channels, features), 1):
      self.add_module(f'conv{i}', nn.Conv2d(width, features, 3, padding=padding, bias=not norm))
      self.add_module(f'norm{i}', nn.BatchNorm2d(features) if norm else nn.Identity())

  def forward(self, x):
    x = F.relu(self.norm1(self.conv1(x)), inplace=True)
    return F.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
  """With batch norm and padding, or as published."""

  def __init__(self, classes: int, width: int, *, same: bool):
    super().__init__()
    options = {'padding': int(same), 'norm': same}
    widths, channels = [width * 2**level for level in range(5)], 1
    for level, features in enumerate(widths):
      self.add_module(f'down{level}', DoubleConv(channels, features, **options))
      channels = features
    for level in reversed(range(4)):
      features = widths[level]
      self.add_module(f'upconv{level}', nn.ConvTranspose2d(channels, features, 2, 2))
      self.add_module(f'up{level}', DoubleConv(2 * features, features, **options))
      channels = features
    self.head = nn.Conv2d(width, classes, 1)

  def forward(self, x):
    skips = []
    for level in range(4):
      x = getattr(self, f'down{level}')(x)
      skips.append(x)
      x = F.max_pool2d(x, 2)
    x = self.down4(x)
    for level in reversed(range(4)):
      x = getattr(self, f'upconv{level}')(x)
      x = torch.cat([_crop_center(skips[level], x.shape[2:]), x], 1)
      x = getattr(self, f'up{level}')(x)
    return self.head(x)


def _crop_center(x, size):
  top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], size, strict=True))
  return x[:, :, top : top + size[0], left : left + size[1]]


class SegNet(nn.Module):
  """On VGG16's encoder, or another with as many channels and convolutions a stage."""

  def __init__(self, classes: int, stages):
    super().__init__()
    self.stages, channels = stages, 3
    for stage, (width, count) in enumerate(stages, 1):
      for i in range(1, count + 1):
        self._add(f'conv{stage}_{i}', channels, width)
        last = stage == i == 1
        self._add(f'conv{stage}_{i}_D', width, classes if last else channels, norm=not last)
        channels = width

  def _add(self, name: str, channels: int, features: int, norm: bool = True) -> None:
    self.add_module(name, nn.Conv2d(channels, features, 3, padding=1))
    if norm:
      self.add_module(f'{name}_bn', nn.BatchNorm2d(features))

  def _unit(self, x, name):
    return F.relu(getattr(self, f'{name}_bn')(getattr(self, name)(x)), inplace=True)

  def forward(self, x):
    pooled = []
    for stage, (_, count) in enumerate(self.stages, 1):
      for i in range(1, count + 1):
        x = self._unit(x, f'conv{stage}_{i}')
      size = x.shape
      x, indices = F.max_pool2d(x, 2, return_indices=True, ceil_mode=True)
      pooled.append((indices, size))
    for stage, (_, count) in reversed(list(enumerate(self.stages, 1))):
      indices, size = pooled[stage - 1]
      x = F.max_unpool2d(x, indices, 2, output_size=size[2:])
      for i in range(count, 0, -1):
        name = f'conv{stage}_{i}_D'
        x = self.conv1_1_D(x) if stage == i == 1 else self._unit(x, name)
    return x


class SegNetBasic(nn.Module):
  def __init__(self, classes: int, width: int):
    super().__init__()
    for stage in range(1, 5):
      for name, channels in (('conv', 3 if stage == 1 else width), ('conv_decode', width)):
        self.add_module(f'{name}{stage}', nn.Conv2d(channels, width, 7, padding=3))
        self.add_module(f'{name}{stage}_bn', nn.BatchNorm2d(width))
    self.conv_classifier = nn.Conv2d(width, classes, 1)

  def _unit(self, x, name):
    return getattr(self, f'{name}_bn')(getattr(self, name)(x))

  def forward(self, x):
    pooled = []
    for stage in range(1, 5):
      x = F.relu(self._unit(x, f'conv{stage}'), inplace=True)
      size = x.shape
      x, indices = F.max_pool2d(x, 2, return_indices=True, ceil_mode=True)
      pooled.append((indices, size))
    for stage in range(4, 0, -1):
      indices, size = pooled[stage - 1]
      x = F.max_unpool2d(x, indices, 2, output_size=size[2:])
      x = self._unit(x, f'conv_decode{stage}')
    return self.conv_classifier(x)


class FCN8s(nn.Module):
  """On VGG16, padded by 100; the last upsampling is fixed to bilinear interpolation."""

  def __init__(self, classes: int, stages, fc_features: int):
    super().__init__()
    self.stages, channels = stages, 3
    for stage, (width, count) in enumerate(stages, 1):
      for i in range(1, count + 1):
        padding = 100 if stage == i == 1 else 1
        self.add_module(f'conv{stage}_{i}', nn.Conv2d(channels, width, 3, padding=padding))
        channels = width
    self.fc6 = nn.Conv2d(channels, fc_features, 7)
    self.fc7 = nn.Conv2d(fc_features, fc_features, 1)
    self.score_fr = nn.Conv2d(fc_features, classes, 1)
    self.score_pool4 = nn.Conv2d(stages[3][0], classes, 1)
    self.score_pool3 = nn.Conv2d(stages[2][0], classes, 1)
    self.upscore2 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
    self.upscore_pool4 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
    self.register_buffer('bilinear', _bilinear(16).expand(classes, 1, 16, 16).contiguous())

  def forward(self, image):
    x, pools = image, []
    for stage, (_, count) in enumerate(self.stages, 1):
      for i in range(1, count + 1):
        x = F.relu(getattr(self, f'conv{stage}_{i}')(x), inplace=True)
      x = F.max_pool2d(x, 2, ceil_mode=True)
      pools.append(x)
    x = F.relu(self.fc7(F.relu(self.fc6(x), inplace=True)), inplace=True)
    x = self.upscore2(self.score_fr(x))
    x = x + _crop(self.score_pool4(pools[3]), 5, x.shape[2:])
    x = self.upscore_pool4(x)
    x = x + _crop(self.score_pool3(pools[2]), 9, x.shape[2:])
    x = F.conv_transpose2d(x, self.bilinear, stride=8, groups=len(self.bilinear))
    return _crop(x, 31, image.shape[2:])


def _bilinear(size: int):
  middle = (size - 1) / 2
  line = 1 - (torch.arange(size) - middle).abs() / (size / 2)
  return line[:, None] * line


def _crop(x, offset, size):
  return x[:, :, offset : offset + size[0], offset : offset + size[1]]


# --- weights --------------------------------------------------------------------------------------


def load(model: nn.Module, variables: Mapping[str, Any]) -> nn.Module:
  """Copies our variables into the layers of the same names."""
  arrays = {
    jax.tree_util.keystr(path[1:], simple=True, separator='.'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  state = {}
  for name, tensor in model.state_dict().items():
    layer, _, part = name.rpartition('.')
    if part in ('num_batches_tracked', 'bilinear'):
      state[name] = tensor
      continue
    array = arrays.pop(f'{layer}.{_our_part(model.get_submodule(layer), part)}')
    if array.ndim == 4:
      transposed = isinstance(model.get_submodule(layer), nn.ConvTranspose2d)
      array = array.transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
    state[name] = torch.tensor(np.ascontiguousarray(array))
  assert not arrays, f'not copied: {sorted(arrays)}'
  model.load_state_dict(state)
  return model


def _our_part(layer: nn.Module, part: str) -> str:
  if isinstance(layer, nn.BatchNorm2d):
    names = {'weight': 'scale', 'running_mean': 'mean', 'running_var': 'var'}
  else:
    names = {'weight': 'kernel'}
  return names.get(part, part)


# --- programs -------------------------------------------------------------------------------------


def device() -> str:
  """Where our programs run too."""
  return 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


def finish() -> None:
  """Waits for the device."""
  if device() == 'cuda':
    torch.cuda.synchronize()


@contextlib.contextmanager
def precision(options: Options) -> Iterator[None]:
  """Mixed precision where our network computes in bfloat16."""
  with torch.autocast(device(), torch.bfloat16, enabled=options.dtype == 'bfloat16'):
    yield


def image_tensor(image: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
  """An image batch f[B, H, W, C] in a layout."""
  return torch.as_tensor(image).permute(0, 3, 1, 2).to(device(), memory_format=layout)


def variants(
  make: Callable[[], nn.Module], options: Options
) -> Iterator[tuple[str, nn.Module, torch.memory_format]]:
  """(name, network, layout): both layouts, and compiled ones."""
  for name, layout in LAYOUTS.items():
    yield name, make().to(device(), memory_format=layout), layout
    if options.compiled:
      model = make().to(device(), memory_format=layout)
      yield name.replace('torch', 'torch.compile'), torch.compile(model), layout


def inference(
  make: Callable[[], nn.Module], image: np.ndarray, options: Options
) -> dict[str, Program]:
  """The outputs of a network for an image batch f[B, H, W, C]."""

  def one(model: nn.Module, x: torch.Tensor) -> Program:
    def run() -> torch.Tensor:
      with torch.inference_mode(), precision(options):
        found = model(x)
      finish()
      return found

    return run

  return {
    name: one(model.eval(), image_tensor(image, layout))
    for name, model, layout in variants(make, options)
  }


def training(
  make: Callable[[], nn.Module],
  image: np.ndarray,
  loss: Callable[[torch.Tensor], torch.Tensor],
  options: Options,
) -> dict[str, Program]:
  """A step of SGD with momentum, which goes on from the step before; returns its loss."""
  return {
    name: train_step(model.train(), loss, image_tensor(image, layout), options)
    for name, model, layout in variants(make, options)
  }


def train_step(
  model: nn.Module,
  loss: Callable[[Any], torch.Tensor],
  x: Any,
  options: Options,
  rate: float = ours.RATE,
) -> Program:
  """A step of `loss(model(x))`."""
  parameters = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(parameters, lr=rate, momentum=ours.MOMENTUM)

  def run() -> float:
    optimizer.zero_grad(set_to_none=True)
    with precision(options):
      value = loss(model(x))
    value.backward()
    optimizer.step()
    finish()
    return value.item()

  return run


def cross_entropy(label: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
  """The mean over the pixels of label i[B, H, W]."""
  target = torch.as_tensor(label).long().to(device())
  return lambda logits: F.cross_entropy(logits.float(), target)


def to_numpy(x: torch.Tensor) -> np.ndarray:
  """f[B, C, H, W] -> f32[B, H, W, C]."""
  return x.float().permute(0, 2, 3, 1).cpu().numpy()
