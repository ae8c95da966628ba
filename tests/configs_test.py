"""Every shipped config is complete, builds as shapes, and says how it is used."""

import pathlib

import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import main as program
from segjax.data import datasets

ROOT = pathlib.Path(__file__).parent.parent
# Paths from the checkout, such as configs/unet/scenes.py.
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/*.py'))
# Facts of the real data sets that the configs name: classes and channels.
SPECS = {
  'scenes': (9, 3),
  'camvid': (11, 3),
  'isbi2012': (2, 1),
  'oxford_iiit_pet': (3, 3),
  'cell_tracking/phc_u373': (2, 1),
  'cell_tracking/dic_hela': (2, 1),
  'voc/2011': (21, 3),
  'sbd': (21, 3),
  'nyud': (40, 3),
  'sun_rgbd': (37, 3),
}


def make_spec(name):
  classes, channels = SPECS[name]
  class_names = tuple(f'class {i}' for i in range(classes))
  return datasets.DatasetSpec(
    name, '1.0.0', class_names, np.zeros((classes, 3), np.uint8), channels, {}
  )


def test_a_config_lies_in_the_folder_of_its_paper(root):
  assert len(CONFIGS) == len(list((root / 'configs').rglob('*.py'))) > 0


@pytest.mark.parametrize('path', CONFIGS)
def test_config_is_complete_and_builds(root, path):
  config = program.complete(config_lib.read_file(root / path))
  assert program.complete(config) == config, 'what is frozen reads back as it is'
  spec = make_spec(config['data']['name'])
  rules = {rule: [1.0] * spec.num_classes for rule in program.CLASS_WEIGHTS}
  run = program.build(config, spec, rules)
  size = run.data.crop_size or run.data.image_size or (64, 64)
  if hasattr(run.model, 'output_size'):
    assert tuple(map(run.model.output_size, size)) == size
  padded = [n + 2 * getattr(run.model, 'margin', 0) for n in size]
  batch = {'image': jax.ShapeDtypeStruct((1, *padded, spec.channels), np.float32)}
  variables = jax.eval_shape(run.task.init, jax.random.key(0), batch)
  forward = lambda v, b: run.task.forward(v, b, train=False)
  outputs, _ = jax.eval_shape(forward, variables, batch)
  assert outputs['logits'].shape == (1, *size, spec.num_classes)


@pytest.mark.parametrize('path', CONFIGS)
def test_config_evaluates_on_the_same_classes(root, path):
  data = program.complete(config_lib.read_file(root / path))['data']
  assert SPECS[data['eval_name'] or data['name']] == SPECS[data['name']]


@pytest.mark.parametrize('path', CONFIGS)
def test_config_says_its_command(root, path):
  text = (root / path).read_text()
  assert f'segjax train --config={path} --workdir=' in text
  assert 'arXiv' in text
