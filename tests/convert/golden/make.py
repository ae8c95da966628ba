"""Makes the files beside it, with PyTorch and torchvision: python tests/convert/golden/make.py

VGG16s of torchvision in which every layer has 2 channels and random weights, and what they make of
one image; and small files for the reader. Written with torch 2.13.0 and torchvision 0.28.0.
"""

import pathlib

import numpy as np
import torch
from torchvision.models import vgg

FOLDER = pathlib.Path(__file__).parent
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


@torch.no_grad()
def main() -> None:
  torch.manual_seed(0)
  image = torch.randn(1, 3, 32, 32)
  arrays = {'image': image.numpy()}
  for name, batch_norm in (('vgg16', False), ('vgg16_bn', True)):
    model = tiny_vgg16(batch_norm)
    torch.save(
      model.state_dict(), FOLDER / f'{name}.pth', _use_new_zipfile_serialization=batch_norm
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
  torch.save(views, FOLDER / 'views.pth')
  torch.save(views, FOLDER / 'views_legacy.pth', _use_new_zipfile_serialization=False)
  linear = torch.nn.Linear(1, 1)
  torch.save(linear, FOLDER / 'whole_model.pth')
  torch.save({'state_dict': linear.state_dict(), 'epoch': 3}, FOLDER / 'nested.pth')
  np.savez_compressed(FOLDER / 'expected.npz', **arrays)


if __name__ == '__main__':
  main()
