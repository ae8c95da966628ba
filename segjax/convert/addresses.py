"""Public addresses of weights files, upstream's own.

torchvision's file names end in the first eight digits of the file's SHA-256, which a download must
match. Detectron2, Detectron, EoMT, DINOv2 and SegFormer publish no digest. No address was reached
from the machines that segjax is developed on.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from segjax import download, storage
from segjax.download import Remote
from segjax.types import SegjaxError

_TORCHVISION = 'https://download.pytorch.org/models'
_DETECTRON2 = 'https://dl.fbaipublicfiles.com/detectron2'
_DETECTRON = 'https://dl.fbaipublicfiles.com/detectron'

# Source -> file name. Where torchvision has several (ResNet, ResNeXt), those of its first recipe,
# `IMAGENET1K_V1`, which the papers' results are compared with.
_TORCHVISION_FILES = {
  'vgg16': 'vgg16-397923af.pth',
  'vgg16_features': 'vgg16-397923af.pth',
  'vgg16_bn': 'vgg16_bn-6c64b313.pth',
  'alexnet': 'alexnet-owt-7be5be79.pth',
  'googlenet': 'googlenet-1378be20.pth',
  'resnet18': 'resnet18-f37072fd.pth',
  'resnet34': 'resnet34-b627a593.pth',
  'resnet50': 'resnet50-0676ba61.pth',
  'resnet101': 'resnet101-63fe2227.pth',
  'resnext101_32x8d': 'resnext101_32x8d-8ba56ff5.pth',
  'fcn_resnet50': 'fcn_resnet50_coco-1167a1af.pth',
  'fcn_resnet101': 'fcn_resnet101_coco-7ecb50ca.pth',
  'deeplabv3_resnet50': 'deeplabv3_resnet50_coco-cd0a2569.pth',
  'deeplabv3_resnet101': 'deeplabv3_resnet101_coco-586e9e4e.pth',
  'fasterrcnn_resnet50_fpn': 'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth',
  'fasterrcnn_resnet50_fpn_v2': 'fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth',
  'maskrcnn_resnet50_fpn': 'maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth',
  'maskrcnn_resnet50_fpn_v2': 'maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth',
}
# The 3x schedule, which all networks of the model zoo have. For 1x, name a file.
_ZOO_FILES = {
  'faster_rcnn_R_50_C4': 'COCO-Detection/faster_rcnn_R_50_C4_3x/137849393/model_final_f97cb7.pkl',
  'faster_rcnn_R_50_FPN': 'COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl',
  'faster_rcnn_R_101_C4': 'COCO-Detection/faster_rcnn_R_101_C4_3x/138204752/model_final_298dad.pkl',
  'faster_rcnn_R_101_FPN': (
    'COCO-Detection/faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1.pkl'
  ),
  'faster_rcnn_X_101_32x8d_FPN': (
    'COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088.pkl'
  ),
  'mask_rcnn_R_50_C4': (
    'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x/137849525/model_final_4ce675.pkl'
  ),
  'mask_rcnn_R_50_FPN': (
    'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl'
  ),
  'mask_rcnn_R_101_C4': (
    'COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x/138363239/model_final_a2914c.pkl'
  ),
  'mask_rcnn_R_101_FPN': (
    'COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl'
  ),
  'mask_rcnn_X_101_32x8d_FPN': (
    'COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806.pkl'
  ),
}
_IMAGENET_FILES = {
  'detectron2/R-50': f'{_DETECTRON2}/ImageNetPretrained/MSRA/R-50.pkl',
  'detectron2/R-101': f'{_DETECTRON2}/ImageNetPretrained/MSRA/R-101.pkl',
  'detectron2/X-101-32x8d': f'{_DETECTRON2}/ImageNetPretrained/FAIR/X-101-32x8d.pkl',
  'detectron/R-50': f'{_DETECTRON}/ImageNetPretrained/MSRA/R-50.pkl',
  'detectron/R-101': f'{_DETECTRON}/ImageNetPretrained/MSRA/R-101.pkl',
  'detectron/X-101-32x8d': f'{_DETECTRON}/ImageNetPretrained/20171220/X-101-32x8d.pkl',
}
# Of the model zoo of EoMT, the networks of COCO's panoptic task at 640 x 640.
_EOMT = 'https://huggingface.co/tue-mps/coco_panoptic_eomt_{}/resolve/main/pytorch_model.bin'
_EOMT_FILES = {
  'small': 'small_640_2x',
  'base': 'base_640_2x',
  'large': 'large_640',
  'giant': 'giant_640',
}
_DINOV2 = 'https://dl.fbaipublicfiles.com/dinov2/{0}/{0}{1}_pretrain.pth'
_DINOV2_NAMES = {
  'small': 'dinov2_vits14',
  'base': 'dinov2_vitb14',
  'large': 'dinov2_vitl14',
  'giant': 'dinov2_vitg14',
}


# NVIDIA's: whole networks of ADE20K, and encoders of ImageNet.
_NVIDIA = 'https://huggingface.co/nvidia/{}/resolve/main/pytorch_model.bin'
_SEGFORMER_FILES = {
  **{f'b{i}': f'segformer-b{i}-finetuned-ade-512-512' for i in range(5)},
  'b5': 'segformer-b5-finetuned-ade-640-640',
}


def _torchvision(file: str) -> Remote:
  digest = re.search(r'-([0-9a-f]{8})\.pth$', file).group(1)
  return Remote(f'{_TORCHVISION}/{file}', f'sha256:{digest}')


ADDRESSES: dict[str, Remote] = {
  **{f'torchvision/{name}': _torchvision(file) for name, file in _TORCHVISION_FILES.items()},
  **{f'detectron2/{name}': Remote(f'{_DETECTRON2}/{file}') for name, file in _ZOO_FILES.items()},
  **{name: Remote(url) for name, url in _IMAGENET_FILES.items()},
  **{f'eomt/{size}': Remote(_EOMT.format(file)) for size, file in _EOMT_FILES.items()},
  **{
    f'dinov2/{size}{kind}': Remote(_DINOV2.format(name, kind))
    for size, name in _DINOV2_NAMES.items()
    for kind in ('', '_reg4')
  },
  **{
    f'transformers/segformer_{size}': Remote(_NVIDIA.format(name))
    for size, name in _SEGFORMER_FILES.items()
  },
  **{
    f'transformers/mit_{size}': Remote(_NVIDIA.format(f'mit-{size}')) for size in _SEGFORMER_FILES
  },
}


def find(source: str) -> Remote | None:
  """The file of a name in `segjax.convert.load.SOURCES`; None if it has no public address.

  Sources that differ in the arrays that they take (`…_all`, `…_body`) have the same file.
  """
  return ADDRESSES.get(source) or ADDRESSES.get(re.sub('_(all|body)$', '', source))


def directory(remote: Remote) -> Path:
  """Where a file is kept: below `$SEGJAX_WEIGHTS_DIR`, else the user's cache, as at its address.

  Detectron and Detectron2 have different files of one name.
  """
  named = os.environ.get('SEGJAX_WEIGHTS_DIR')
  root = storage.user_path(named) if named else download.cache_dir() / 'weights'
  parts = urlsplit(remote.url)
  return root / parts.netloc / Path(parts.path).parent.relative_to('/')


def get(source: str, report: Callable[[str], None] | None = None) -> Path:
  """The weights file of a source, downloaded if it was not.

  Args:
    source: a name in `segjax.convert.load.SOURCES`.
    report: called with a line before a download.

  Raises:
    SegjaxError: it has no public address, or cannot be downloaded.
  """
  remote = find(source)
  if remote is None:
    raise SegjaxError(
      f'{source} has no public address: name its weights file with config.init_from.path, or in '
      'segjax convert with --weights'
    )
  return download.fetch(remote, directory(remote), report=report)
