"""The wheel: what is in it, and that it trains outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from commands import SMALL

import segjax


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
  """Built from the checkout, without network."""
  folder = tmp_path_factory.mktemp('wheel')
  command = [sys.executable, '-m', 'hatchling', 'build', '--target=wheel', f'--directory={folder}']
  subprocess.run(command, cwd=root, capture_output=True, check=True)
  [path] = folder.iterdir()
  return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """Runs `segjax` as installed from the wheel, with the other packages of this environment."""
  target, elsewhere = tmp_path_factory.mktemp('site'), tmp_path_factory.mktemp('elsewhere')
  pip = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--no-compile']
  subprocess.run([*pip, f'--target={target}', wheel], capture_output=True, check=True)
  env = {**os.environ, 'PYTHONPATH': str(target), 'SEGJAX_DATA_DIR': str(elsewhere / 'data')}

  def run(*args, check=True):
    return subprocess.run(
      [target / 'bin/segjax', *args],
      cwd=elsewhere,
      env=env,
      capture_output=True,
      text=True,
      check=check,
    )

  run.directory, run.target, run.env = elsewhere, target, env
  return run


def test_the_wheel_has_the_files_of_the_checkout(root, wheel):
  command = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
  listed = subprocess.run(
    [*command, 'segjax', 'configs', 'experiments'], cwd=root, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip('not a git repository')
  names = listed.stdout.split()
  wanted = {name if name.startswith('segjax/') else f'segjax/{name}' for name in names}
  assert {'segjax/py.typed', 'segjax/configs/unet/scenes.py'} <= wanted
  content = set(zipfile.ZipFile(wheel).namelist())
  assert wanted <= content
  others = {name.partition('/')[0] for name in content - wanted}
  assert others == {f'segjax-{segjax.__version__}.dist-info'}, 'files that are not in the checkout'


def test_every_extra_that_the_code_and_the_pages_name_exists(root, wheel):
  with zipfile.ZipFile(wheel) as archive:
    [path] = [name for name in archive.namelist() if name.endswith('.dist-info/METADATA')]
    metadata = archive.read(path).decode()
  extras = set(re.findall(r'^Provides-Extra: (\S+)$', metadata, re.MULTILINE))
  assert {'cuda12', 'cuda13', 'tpu', 'cluster', 'export', 'dev'} <= extras
  pages = [*root.glob('*.md'), *root.rglob('docs/**/*.md'), *root.rglob('segjax/**/*.py')]
  text = '\n'.join(page.read_text(encoding='utf-8') for page in [*pages, root / 'Dockerfile'])
  named = re.findall(r'(?:segjax|pip install (?:-e )?[\'"]?\.)\[([a-z0-9,]+)\]', text)
  named += re.findall(r'EXTRAS=([a-z0-9,]+)', text)
  assert 'hf' in named
  assert {extra for names in named for extra in names.split(',')} <= extras


def test_the_citation_is_of_this_version(root):
  citation = yaml.safe_load((root / 'CITATION.cff').read_text())
  assert (citation['title'].partition(':')[0], citation['license']) == ('segjax', 'Apache-2.0')
  assert citation['version'] == segjax.__version__


@pytest.mark.slow
def test_installed_elsewhere_it_lists_trains_and_evaluates(installed, root):
  code = 'import segjax; print(segjax.__file__)'
  where = subprocess.run(
    [sys.executable, '-c', code],
    cwd=installed.directory,
    env=installed.env,
    capture_output=True,
    text=True,
    check=True,
  )
  assert Path(where.stdout.strip()).is_relative_to(installed.target), 'not the checkout'
  listed = installed('list', 'configs').stdout
  assert len(listed.splitlines()) == len(list(root.glob('configs/*/*.py')))
  assert '6 of 6 rows measured' in installed('list', 'tables').stdout
  train = ['train', '--config=unet/scenes', '--workdir=run', *SMALL['semantic']]
  installed(*train, '--config.train.steps=2')
  assert '"step": 2' in installed('evaluate', '--workdir=run', '--json').stdout
  assert (installed.directory / 'run/report.html').is_file()


@pytest.mark.slow
def test_installed_tables_are_read_only(installed, root):
  page = root / 'experiments/segnet_table6/README.md'
  assert installed('table', 'segnet_table6').stdout == page.read_text(encoding='utf-8')
  failed = installed('table', 'segnet_table6', '--run', check=False)
  assert failed.returncode == 2
  assert 'is part of the installed package' in failed.stderr


@pytest.mark.slow
def test_a_wrong_config_says_the_nearest(installed):
  failed = installed('train', '--config=configs/unet/scene.py', '--workdir=new', check=False)
  assert failed.returncode == 2
  sentence = 'segjax: no config file configs/unet/scene.py: did you mean unet/scenes?'
  assert failed.stderr.strip() == sentence
  assert not (installed.directory / 'new').exists()


def test_the_dockerfile_passes_its_linter(root):
  hadolint = shutil.which('hadolint', path=str(Path(sys.executable).parent))
  assert hadolint, 'make setup installs it'
  result = subprocess.run([hadolint, 'Dockerfile'], cwd=root, capture_output=True, text=True)
  assert (result.returncode, result.stdout) == (0, '')
