"""Weights that are downloaded: the table of addresses, and from a local server to arrays."""

import hashlib
import pathlib
import re

import numpy as np
import pytest

from segjax.convert import addresses, load
from segjax.download import Remote
from segjax.types import SegjaxError

VGG16 = pathlib.Path(__file__).parent / 'golden' / 'vgg16.pth'


def test_names_are_those_of_the_sources():
  assert set(addresses.ADDRESSES) <= set(load.SOURCES)
  without = {name for name in load.SOURCES if addresses.find(name) is None}
  frameworks = {name.partition('/')[0] for name in without}
  assert frameworks == {'caffe', 'torchvision', 'transformers'}
  # Files that only the development version of torchvision writes, and nobody publishes.
  assert {n for n in without if n.startswith('torchvision')} == {
    f'torchvision/{network}_{resnet}_main'
    for network in ('fcn', 'deeplabv3')
    for resnet in ('resnet50', 'resnet101')
  }


def test_addresses_and_digests_have_their_form():
  for name, remote in addresses.ADDRESSES.items():
    framework = name.partition('/')[0]
    if framework == 'torchvision':
      found = re.fullmatch(
        r'https://download\.pytorch\.org/models/[\w-]+-([0-9a-f]{8})\.pth', remote.url
      )
      assert remote.digest == f'sha256:{found.group(1)}'
    elif framework == 'transformers':
      assert re.fullmatch(
        r'https://huggingface\.co/nvidia/(mit|segformer)-b\d[\w-]*/resolve/main/pytorch_model\.bin',
        remote.url,
      )
      assert remote.digest is None
    elif framework == 'eomt':
      assert remote.url.startswith('https://huggingface.co/tue-mps/coco_panoptic_eomt_')
      assert remote.url.endswith('/pytorch_model.bin') and remote.digest is None
    else:
      suffix = '.pth' if framework == 'dinov2' else '.pkl'
      assert remote.url.startswith(f'https://dl.fbaipublicfiles.com/{framework}/')
      assert remote.url.endswith(suffix) and remote.digest is None
  places = [addresses.directory(r) / r.name for r in set(addresses.ADDRESSES.values())]
  assert len(set(places)) == len(places)


def test_sources_of_one_file_share_it():
  file = addresses.find('torchvision/maskrcnn_resnet50_fpn')
  for suffix in ('_all', '_body'):
    assert addresses.find(f'torchvision/maskrcnn_resnet50_fpn{suffix}') is file
  assert addresses.find('torchvision/vgg16') == addresses.find('torchvision/vgg16_features')
  assert 'R_50_FPN_3x' in addresses.find('detectron2/mask_rcnn_R_50_FPN_body').url


def test_the_page_has_every_address(root):
  text = (root / 'docs' / 'weights.md').read_text()
  assert not [r.url for r in addresses.ADDRESSES.values() if r.url not in text]


def test_downloads_where_the_environment_says(server, tmp_path, monkeypatch):
  content = VGG16.read_bytes()
  digest = hashlib.sha256(content).hexdigest()[:8]
  remote = Remote(f'{server.url}/models/vgg16-{digest}.pth', f'sha256:{digest}')
  server.files[f'/models/{remote.name}'] = content
  monkeypatch.setitem(addresses.ADDRESSES, 'torchvision/vgg16', remote)
  monkeypatch.setenv('SEGJAX_WEIGHTS_DIR', str(tmp_path / 'weights'))
  path = addresses.get('torchvision/vgg16')
  host = server.url.removeprefix('http://')
  assert path == tmp_path / 'weights' / host / 'models' / remote.name
  direct, downloaded = (load.read_pretrained(p, 'torchvision/vgg16') for p in (VGG16, path))
  for name, array in direct.arrays.items():
    np.testing.assert_array_equal(downloaded.arrays[name], array)

  output, reports = tmp_path / 'x.safetensors', []
  assert load.convert_file('torchvision/vgg16', None, output, reports.append) == 30
  assert len(server.requests) == 1 and reports == []

  path.write_bytes(content[:-1])
  with pytest.raises(SegjaxError, match=f'has the SHA-256 .*, not {digest}: delete it'):
    addresses.get('torchvision/vgg16')


def test_sources_without_an_address():
  with pytest.raises(SegjaxError, match='caffe/vgg16 has no public address: name its weights'):
    addresses.get('caffe/vgg16')
  with pytest.raises(SegjaxError, match=r'config\.init_from\.path is missing: set it to'):
    load.InitFrom()
