"""How configs name classes and functions."""

import sys

import pytest

from segjax.lookup import locate
from segjax.types import SegjaxError


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The working directory; what is imported from it is forgotten, as is its place in the path."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith(('segjax_test_', 'segjax_file_'))]:
    del sys.modules[name]


def test_in_a_package_then_anywhere():
  from segjax.models.unet import UNet

  assert locate('unet.UNet', 'k', 'segjax.models') is UNet
  assert locate('segjax.models.unet.UNet', 'k') is UNet
  assert locate('collections.Counter', 'k', 'segjax.models').__name__ == 'Counter'


def test_in_the_working_directory(here):
  (here / 'segjax_test_mine.py').write_text('def loss(): return 1')
  assert locate('segjax_test_mine.loss', 'k', 'segjax.losses')() == 1
  (here / 'segjax_test_pkg').mkdir()
  (here / 'segjax_test_pkg/__init__.py').touch()
  (here / 'segjax_test_pkg/nets.py').write_text('def net(): return 2')
  assert locate('segjax_test_pkg.nets.net', 'k')() == 2


def test_a_directory_of_another_kind_is_no_package(here):
  (here / 'segjax_test_runs').mkdir()
  with pytest.raises(SegjaxError, match='there is no module segjax_test_runs'):
    locate('segjax_test_runs.net', 'k')
  assert str(here) not in sys.path


def test_by_file(here):
  for folder in ('a', 'b'):
    (here / folder).mkdir()
    (here / folder / 'mine.py').write_text(f'def name(): return {folder!r}')
  first, second = (locate(f'{folder}/mine.py:name', 'k') for folder in ('a', 'b'))
  assert (first(), second()) == ('a', 'b')
  assert locate('a/mine.py:name', 'another key') is first, 'the file is run once'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('unet.Unet', 'k: segjax.models.unet has no Unet: did you mean UNet'),
    ('unett.UNet', 'k: there is no module unett: did you mean unet'),
    ('nowhere.Net', 'k: there is no module nowhere: check the name, or add .* PYTHONPATH'),
    ('a' * 300 + '.Net', 'k: there is no module a'),
    ('UNet', "k='UNet' needs a module and a name, as in module.UNet"),
    ('segjax_test_old.net', r'k: cannot import segjax_test_old \(ModuleNotFoundError: .*torchh'),
    ('segjax_test_old.py:net', r'k: cannot import segjax_test_old\.py \(ModuleNotFoundError'),
    ('segjax_test_wrong.net', r'k: cannot import segjax_test_wrong \(NameError'),
    ('missing.py:Net', r'k: cannot import missing\.py \(FileNotFoundError'),
    ('segjax_test_fine.py:nett', r'k: segjax_test_fine\.py has no nett: did you mean net'),
  ],
)
def test_what_is_wrong_is_one_sentence(here, name, message):
  (here / 'segjax_test_old.py').write_text('import torchh')
  (here / 'segjax_test_wrong.py').write_text('def net(): pass\nnet(undefined)')
  (here / 'segjax_test_fine.py').write_text('def net(): pass')
  with pytest.raises(SegjaxError, match=message):
    locate(name, 'k', 'segjax.models')
