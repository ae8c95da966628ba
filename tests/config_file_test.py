"""Config files that are written read back as what they were written from."""

import subprocess
import sys

import pytest

from segjax import config as config_lib
from segjax.config_file import Code, printable, render
from segjax.recipes import Note

HOSTILE = [
  "it's",
  'say "hello"',
  '"""',
  'back\\slash \\N{DIGIT ONE}',
  'line\nimport os; raise SystemExit',
  'tab\tand\r\n# return',
  'zero\x00 bell\x07',
  'Ünïcode 道路 \u2028 \u202e',
  'long ' * 60,
  '',
]


def written(tmp_path, config, **keys):
  path = tmp_path / 'config.py'
  path.write_text(render(config, **{'title': 'A title.', **keys}), encoding='utf-8')
  return path


def small_config():
  return {
    'task': 'semantic',
    'model': Note({'name': 'unet.UNet', 'classes': Code('len(CLASSES)'), 'depth': 3}, 'Why. ' * 40),
    'losses': {'softmax_cross_entropy': {}},
    'data': {
      'name': 'scenes',
      'files': {'classes': Code('CLASSES'), 'colors': ((1, 2, 3), (4, 5, 6))},
      'size': {'shapes': Note(((32, 64), (64, 32)), 'Two.'), 'crop_size': None},
      'mean': (0.5,),
    },
    'train': {'steps': 10_000, 'flag': True, 'rate': 3e-05, 'long': tuple(range(1000, 1040))},
  }


def test_a_file_reads_back(tmp_path):
  path = written(tmp_path, small_config(), constants={'CLASSES': Note(('a', 'b'), 'Names.')})
  assert config_lib.read_file(path) == {
    'task': 'semantic',
    'model': {'name': 'unet.UNet', 'classes': 2, 'depth': 3},
    'losses': {'softmax_cross_entropy': {}},
    'data': {
      'name': 'scenes',
      'files': {'classes': ('a', 'b'), 'colors': ((1, 2, 3), (4, 5, 6))},
      'size': {'shapes': ((32, 64), (64, 32)), 'crop_size': None},
      'mean': (0.5,),
    },
    'train': {'steps': 10_000, 'flag': True, 'rate': 3e-05, 'long': tuple(range(1000, 1040))},
  }
  lines = path.read_text().splitlines()
  assert "    'steps': 10_000," in lines
  assert lines.index('# Names.') + 1 == lines.index("CLASSES = ('a', 'b')")
  assert max(map(len, lines)) <= 100


@pytest.mark.parametrize('text', HOSTILE)
def test_text_of_a_data_set_is_never_code(tmp_path, text):
  """Wherever it stands: in the docstring, a comment, a value, a key or a constant."""
  names = (text, 'b')
  config = {
    'losses': Note({'x': Note(text, text)}, text),
    'data': {'files': {text or 'k': Code('CLASSES')}, 'text': [text]},
  }
  keys = {'title': text, 'paragraphs': [text, text], 'commands': [f'segjax {text}']}
  path = written(tmp_path, config, constants={'CLASSES': Note(names, text)}, **keys)
  assert config_lib.read_file(path) == {
    'losses': {'x': text},
    'data': {'files': {text or 'k': names}, 'text': (text,)},
  }


@pytest.mark.parametrize('text', ['plain', *HOSTILE])
def test_a_docstring_ends_where_it_should(tmp_path, text):
  path = written(tmp_path, {'task': 'x'}, title=text, paragraphs=[])
  assert config_lib.read_file(path) == {'task': 'x'}


def test_a_file_is_formatted(tmp_path):
  """As `ruff format` would leave it, by the settings of this repository."""
  pytest.importorskip('ruff')
  keys = {'paragraphs': ['Some words. ' * 30], 'commands': ['segjax train --config=a.py']}
  constants = {'CLASSES': tuple(f'class number {i}' for i in range(20)), 'COLORS': ((0, 0, 0),)}
  path = written(tmp_path, small_config(), constants=constants, **keys)
  settings = ['--config', 'line-length=100', '--config', 'indent-width=2']
  settings += ['--config', 'format.quote-style="single"', '--isolated']
  command = [sys.executable, '-m', 'ruff', 'format', '--diff', *settings, str(path)]
  found = subprocess.run(command, capture_output=True, text=True)
  assert found.returncode == 0, found.stdout + found.stderr


def test_printable():
  assert printable('a\nb\x1b[31m') == 'a\\nb\\x1b[31m'
  assert printable('道路 é') == '道路 é'
