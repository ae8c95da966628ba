"""Every shipped config builds, and trains for two steps when it is shrunk."""

import numpy as np
import pytest

from segjax import config as config_lib
from segjax import main as program
from segjax.data import datasets

CONFIGS = ['scenes', 'camvid', 'isbi2012', 'isbi2012_cpu', 'oxford_iiit_pet']
# Facts of the real data sets that the configs name.
SPECS = {
  'scenes': (9, 3),
  'camvid': (11, 3),
  'isbi2012': (2, 1),
  'oxford_iiit_pet': (3, 3),
}


def read(root, name):
  return config_lib.read_file(root / f'configs/unet/{name}.py')


def test_all_are_listed(root):
  assert sorted(p.stem for p in (root / 'configs').rglob('*.py')) == sorted(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_complete_and_builds(root, name):
  config = program.complete(read(root, name))
  assert program.complete(config) == config, 'what is frozen reads back as it is'
  classes, channels = SPECS[config['data']['name']]
  spec = datasets.DatasetSpec(
    config['data']['name'],
    '1.0.0',
    tuple(f'class {i}' for i in range(classes)),
    np.zeros((classes, 3), np.uint8),
    channels,
    {},
  )
  run = program.build(config, spec, {})
  if run.data.crop_size:
    assert tuple(map(run.model.output_size, run.data.crop_size)) == run.data.crop_size


@pytest.mark.parametrize('name', CONFIGS)
def test_config_says_its_command(root, name):
  text = (root / f'configs/unet/{name}.py').read_text()
  assert f'segjax train --config=configs/unet/{name}.py --workdir=' in text
  assert 'arXiv' in text
