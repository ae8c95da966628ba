"""The code on the pages: configs are valid, Python is Python, commands and names exist."""

import ast
import re
import shutil

import numpy as np
import pytest

import segjax
from segjax import main as program
from segjax.config import read_file
from segjax.data import datasets
from segjax.experiment import parse
from segjax.models.eomt import EoMT
from segjax.run import build


@pytest.fixture(scope='module')
def pages(root):
  paths = [*sorted((root / 'docs').glob('*.md')), root / 'README.md']
  return {path.name: path.read_text() for path in paths}


def blocks(text, language):
  return re.findall(rf'^```{language}\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def test_python_is_python(pages):
  found = [block for text in pages.values() for block in blocks(text, 'python')]
  assert len(found) >= 5
  for block in found:
    ast.parse(block)


def test_the_config_to_fine_tune_is_valid(pages, root, tmp_path):
  (block,) = (b for b in blocks(pages['fine_tune.md'], 'python') if 'fine_tune.py' in b)
  (tmp_path / 'fine_tune.py').write_text(block)
  shutil.copy(root / 'configs/mask_rcnn/scenes_tiny.py', tmp_path / 'my_config.py')
  own, tuned = (parse(read_file(tmp_path / name)) for name in ('my_config.py', 'fine_tune.py'))
  assert tuned.model.classes == own.model.classes
  assert tuned.model.backbone.name == 'resnet50' and tuned.init_from.reset == 'heads'


@pytest.mark.parametrize(
  ('own', 'classes', 'things'),
  [
    ('unet/scenes', 9, None),
    ('mask_rcnn/scenes_tiny', 5, None),
    ('panoptic_fpn/scenes_tiny', 9, (4, 5, 6, 7, 8)),
  ],
)
def test_the_config_of_eomt_is_valid_for_each_task(pages, tmp_path, own, classes, things):
  (block,) = (b for b in blocks(pages['fine_tune.md'], 'python') if 'eomt.py' in b)
  (tmp_path / 'eomt.py').write_text(block)
  (tmp_path / 'my_config.py').write_text(
    'import ml_collections\nfrom segjax.config import read_file\n'
    f'get_config = lambda: ml_collections.ConfigDict(read_file({own!r}))\n'
  )
  before, tuned = (parse(read_file(tmp_path / name)) for name in ('my_config.py', 'eomt.py'))
  assert (tuned.task, tuned.data.name) == (before.task, before.data.name)
  assert isinstance(tuned.model, EoMT) and tuned.model.classes == classes
  assert tuned.model.grid == (32, 32) and tuned.init_from.source == 'dinov2/small_reg4'
  names, palette = tuple(map(str, range(classes))), np.zeros((classes, 3), np.uint8)
  spec = datasets.DatasetSpec('scenes', '1.0.0', names, palette, 3, {}, things)
  assert build(tuned, spec, {}).task.metrics


def test_keys_of_other_toolkits_have_keys_here(pages):
  rows = [line.split('|')[-2] for line in pages['migrate.md'].splitlines() if line.startswith('|')]
  keys = {key for cell in rows for key in re.findall(r'`([a-z_]+\.[a-z_.]+)', cell)}
  known, group = set(), ''
  for line in pages['config_keys.md'].splitlines():
    if heading := re.match(r'#+ config\.([\w.]+)', line):
      group = heading[1]
    elif row := re.match(r'\| `(\w+)`', line):
      known.add(f'{group}.{row[1]}')
  assert len(keys) > 25
  assert keys - known == {'segjax.load'}


def test_commands_exist(pages):
  commands = {
    f'{name}: {command}'
    for name, text in pages.items()
    for block in blocks(text, '')
    for command in re.findall(r'^(?:srun \S+ )*segjax (\w+)', block, re.MULTILINE)
    if command not in program.COMMANDS
  }
  assert not commands


def test_names_of_the_package_exist(pages):
  names = {n for text in pages.values() for n in re.findall(r'\bsegjax\.(\w+)\(', text)}
  assert {'load', 'train', 'evaluate'} <= names
  assert not [name for name in names if not hasattr(segjax, name)]


def test_configs_named_without_their_path_exist(pages, root):
  named = {n for text in pages.values() for n in re.findall(r'--config=(\w+/\w+)(?![\w/.])', text)}
  assert named
  assert not [name for name in named if not (root / f'configs/{name}.py').is_file()]
