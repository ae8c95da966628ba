"""Configs and tables that come with segjax, by name."""

import pathlib

import pytest

from segjax import config, resources
from segjax.tables import spec
from segjax.types import SegjaxError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A working directory without configs or tables."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_all_configs_and_tables_are_listed(root):
  configs = resources.list_configs()
  assert [resources.config_path(name) for name in configs] == sorted(root.glob('configs/*/*.py'))
  assert {'unet/scenes', 'mask_rcnn/coco_r50_fpn'} <= set(configs)
  assert resources.table_dirs() == sorted(p.parent for p in root.glob('experiments/*/table.toml'))


@pytest.mark.parametrize(
  'name', ['unet/scenes', 'unet/scenes.py', 'configs/unet/scenes.py', './configs/unet/scenes.py']
)
def test_a_config_by_name_from_any_directory(elsewhere, root, name):
  assert resources.config_path(name) == root / 'configs/unet/scenes.py'
  assert config.read_file(name)['model']['name'] == 'unet.UNet'


def test_a_file_comes_before_a_config_of_that_name(elsewhere):
  path = pathlib.Path('unet/scenes.py')
  path.parent.mkdir()
  path.write_text('')
  assert resources.config_path('unet/scenes.py') == path


def test_home_is_expanded(elsewhere, monkeypatch):
  monkeypatch.setenv('HOME', str(elsewhere))
  (elsewhere / 'mine.py').write_text('')
  assert resources.config_path('~/mine.py') == elsewhere / 'mine.py'


@pytest.mark.parametrize(
  ('name', 'nearest'),
  [
    ('unet/scene', 'unet/scenes'),
    ('configs/unet/scnes.py', 'unet/scenes'),
    ('scenes_tiny.py', 'eomt/scenes_tiny'),
    ('segnet/camvid_gpu', 'segnet/camvid_cpu'),
  ],
)
def test_a_wrong_name_says_the_nearest(elsewhere, name, nearest):
  with pytest.raises(SegjaxError) as e:
    resources.config_path(name)
  assert str(e.value) == f'no config file {name}: did you mean {nearest}?'


def test_a_name_that_is_near_to_none(elsewhere):
  with pytest.raises(SegjaxError, match='no config file x.py: set --config to a path, or .* list'):
    resources.config_path('x.py')


@pytest.mark.parametrize(
  ('text', 'parts'),
  [
    ('unet/scenes', ('unet/scenes', None)),
    ('unet/scenes:small', ('unet/scenes', 'small')),
    ('unet/scenes.py:small', ('unet/scenes.py', 'small')),
    ('a:b/c.py', ('a:b/c.py', None)),
    ('a:b/c.py:d.py', ('a:b/c.py', 'd.py')),
    ('unet/scenes:', ('unet/scenes', '')),
  ],
)
def test_the_argument_behind_a_colon(elsewhere, text, parts):
  assert config.split_argument(text) == parts


def test_a_file_whose_name_has_a_colon(elsewhere):
  (elsewhere / 'my:config').write_text('')
  assert config.split_argument('my:config') == ('my:config', None)


def test_a_table_by_name_from_any_directory(elsewhere, root):
  folder = spec.find_table('unet_table1')
  assert folder == root / 'experiments/unet_table1'
  assert spec.read_table(folder).entries
  with pytest.raises(SegjaxError, match='unknown table unet_tabel1: .*did you mean unet_table1?'):
    spec.find_table('unet_tabel1')


def test_what_is_installed(root):
  """In a checkout, nothing that segjax writes to."""
  assert resources.is_installed(root / 'segjax/experiments/unet_table1')
  assert not resources.is_installed(root / 'experiments/unet_table1')
