"""Creates the golden files, with PyTorch and torchvision: python tests/convert/golden/make.py

VGG16s of torchvision in which every layer has 2 channels and random weights, and what they make of
one image; small files for the reader; and of the ResNets, AlexNet and GoogLeNet the names and
shapes of their arrays, and what some make of an image with weights of `synthetic`. Written with
torch 2.13.0 and torchvision 0.28.0.
"""

import pathlib
import sys

import numpy as np
import torch
from torchvision.models import AlexNet, GoogLeNet, resnet, segmentation, vgg
from torchvision.models._utils import IntermediateLayerGetter

DIRECTORY = pathlib.Path(__file__).parent
sys.path.append(str(DIRECTORY.parents[1] / 'helpers'))

from synthetic import synthetic  # noqa: E402

# torchvision's configuration D with 2 channels in every layer.
LAYERS = [2 if isinstance(c, int) else c for c in vgg.cfgs['D']]


def tiny_vgg16(batch_norm: bool) -> vgg.VGG:
  """vgg16 or vgg16_bn with random weights, and random running statistics."""
  model = vgg.VGG(vgg.make_layers(LAYERS, batch_norm), num_classes=5)
  model.classifier[0] = torch.nn.Linear(2 * 7 * 7, 3)
  model.classifier[3] = torch.nn.Linear(3, 3)
  model.classifier[6] = torch.nn.Linear(3, 5)
  for name, value in model.state_dict().items():
    if value.is_floating_point():
      value.uniform_(0.5, 1.5) if 'running' in name else value.normal_(0.1, 0.4)
  return model.eval()


RESNETS = {
  **{
    name: getattr(resnet, name)
    for name in ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnext101_32x8d')
  },
  **{
    name: lambda name=name: getattr(segmentation, name)(
      weights=None, weights_backbone=None, aux_loss=True, num_classes=21
    )
    for name in ('fcn_resnet50', 'fcn_resnet101', 'deeplabv3_resnet50', 'deeplabv3_resnet101')
  },
  'deeplabv3_shallow': lambda: shallow_deeplab(),
}
# Where the features of c2, c3, c4 and c5 come from.
STAGES = {f'layer{i}': f'c{i + 1}' for i in (1, 2, 3, 4)}


def shallow_deeplab() -> segmentation.DeepLabV3:
  """torchvision's DeepLabV3, 21 classes, on a ResNet of one bottleneck in each stage."""
  dilation = [False, True, True]
  backbone = resnet.ResNet(resnet.Bottleneck, [1] * 4, replace_stride_with_dilation=dilation)
  return segmentation.deeplabv3._deeplabv3_resnet(backbone, 21, aux=True)


@torch.no_grad()
def resnets() -> dict[str, np.ndarray]:
  """Names and shapes of every network, features of resnet18, and logits of fcn_resnet50 and
  the shallow DeepLabV3."""
  image = torch.randn(1, 3, 45, 38, generator=torch.Generator().manual_seed(0))
  arrays = {'image': image.numpy()}
  for name, make in RESNETS.items():
    with torch.device('meta'):
      shapes = {key: tuple(x.shape) for key, x in make().state_dict().items()}
    arrays[f'{name}/names'] = np.array(list(shapes))
    arrays[f'{name}/shapes'] = np.array(['x'.join(map(str, shape)) for shape in shapes.values()])

  def filled(name: str) -> torch.nn.Module:
    model = RESNETS[name]()
    state = model.state_dict()
    model.load_state_dict({k: torch.tensor(synthetic(k, tuple(x.shape))) for k, x in state.items()})
    return model.eval()

  features = IntermediateLayerGetter(filled('resnet18'), STAGES)(image)
  arrays |= {f'resnet18/{name}': x[:, ::16].numpy() for name, x in features.items()}
  for network in ('fcn_resnet50', 'deeplabv3_shallow'):
    logits = filled(network)(image)
    arrays |= {f'{network}/{name}': x[:, ::4, ::8, ::8].numpy() for name, x in logits.items()}
  return arrays


def narrow_alexnet() -> AlexNet:
  """torchvision's with few channels: 2, 6, 12, 8 and 8, and 5 in fc6 and fc7."""
  model = AlexNet(num_classes=4)
  channels = {0: (3, 2), 3: (2, 6), 6: (6, 12), 8: (12, 8), 10: (8, 8)}
  for i, (inputs, outputs) in channels.items():
    c = model.features[i]
    model.features[i] = torch.nn.Conv2d(inputs, outputs, c.kernel_size, c.stride, c.padding)
  for i, (inputs, outputs) in {1: (8 * 36, 5), 4: (5, 5), 6: (5, 4)}.items():
    model.classifier[i] = torch.nn.Linear(inputs, outputs)
  return model


@torch.no_grad()
def encoders() -> dict[str, np.ndarray]:
  """Names and shapes of AlexNet and GoogLeNet, fc7 of the one and features of the other."""
  image = torch.tensor(100 * synthetic('image', (1, 3, 67, 90)))
  makers = {
    'alexnet': AlexNet,
    'narrow_alexnet': narrow_alexnet,
    'googlenet': lambda: GoogLeNet(init_weights=False),
  }
  arrays, models = {}, {}
  for name, make in makers.items():
    with torch.device('meta'):
      models[name] = make()
    shapes = {key: tuple(x.shape) for key, x in models[name].state_dict().items()}
    arrays[f'{name}/names'] = np.array(list(shapes))
    arrays[f'{name}/shapes'] = np.array(['x'.join(map(str, shape)) for shape in shapes.values()])
    if name != 'alexnet':
      state = {key: torch.tensor(synthetic(key, shape)) for key, shape in shapes.items()}
      models[name].load_state_dict(state, assign=True)
      models[name].eval()

  # FCN pads the image by 100 where torchvision's first convolution pads it by 2; 28 + 2 · 98 is
  # torchvision's 224, so that FCN's fc7 sees exactly this.
  model = models['narrow_alexnet']
  padded = torch.nn.functional.pad(image[..., :28, :28], (98,) * 4)
  features = torch.flatten(model.features(padded), 1)
  arrays['narrow_alexnet/fc7'] = model.classifier[:6](features).numpy()
  seen = []
  models['googlenet'].avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
  models['googlenet'](image)
  arrays['googlenet/features'] = seen[0][:, ::4].numpy()
  return arrays


@torch.no_grad()
def main() -> None:
  torch.manual_seed(0)
  image = torch.randn(1, 3, 32, 32)
  arrays = {'image': image.numpy()}
  for name, batch_norm in (('vgg16', False), ('vgg16_bn', True)):
    model = tiny_vgg16(batch_norm)
    torch.save(
      model.state_dict(), DIRECTORY / f'{name}.pth', _use_new_zipfile_serialization=batch_norm
    )
    if batch_norm:
      arrays['vgg16_bn_conv5_3'] = model.features[:42](image).numpy()  # before its ReLU
    else:
      # FCN pads the image by 100 where torchvision's first convolution pads it by 1; 26 + 2 · 99 is
      # torchvision's 224, so that FCN's fc7 sees exactly this.
      padded = torch.nn.functional.pad(image[..., :26, :26], (99,) * 4)
      features = torch.flatten(model.features(padded), 1)
      arrays['vgg16_fc7'] = model.classifier[:6](features).numpy()
  # Views of one storage, other types, and what reading must refuse.
  base = torch.arange(24.0).reshape(4, 6)
  views = {
    'transposed': base.T,
    'part': base[1:3, ::2],
    'half': base.half(),
    'bfloat16': base.bfloat16(),
    'count': torch.tensor(7),
    'parameter': torch.nn.Parameter(base[0]),
    'empty': torch.zeros(0, 3),
  }
  torch.save(views, DIRECTORY / 'views.pth')
  torch.save(views, DIRECTORY / 'views_legacy.pth', _use_new_zipfile_serialization=False)
  linear = torch.nn.Linear(1, 1)
  torch.save(linear, DIRECTORY / 'whole_model.pth')
  torch.save({'state_dict': linear.state_dict(), 'epoch': 3}, DIRECTORY / 'nested.pth')
  np.savez_compressed(DIRECTORY / 'expected.npz', **arrays)
  np.savez_compressed(DIRECTORY / 'resnet.npz', **resnets())
  np.savez_compressed(DIRECTORY / 'encoders.npz', **encoders())


if __name__ == '__main__':
  main()
