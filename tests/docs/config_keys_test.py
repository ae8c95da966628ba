"""The page of config keys agrees with the code, and explains every key."""

import importlib.util
import re

import pytest

from segjax import config as config_lib
from segjax.experiment import GROUPS


@pytest.fixture(scope='module')
def tool(root):
  """The module docs/tools/config_keys.py."""
  spec = importlib.util.spec_from_file_location('config_keys', root / 'docs/tools/config_keys.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_page_agrees_with_the_code(tool, root):
  written = (root / 'docs/config_keys.md').read_text()
  assert written == tool.page(), 'python docs/tools/config_keys.py > docs/config_keys.md'


def test_every_key_is_explained(tool):
  assert tool.undocumented() == []


def test_every_group_and_every_model_of_a_config_is_on_the_page(tool, root):
  titles = re.findall('^##+ (.*)', tool.page(), re.MULTILINE)
  models = {config_lib.read_file(path)['model']['name'] for path in root.glob('configs/*/*.py')}
  assert models
  assert {f'config.{group}' for group in GROUPS} <= set(titles)
  assert {f"config.model of '{name}'" for name in models} <= set(titles)


@pytest.mark.parametrize(
  ('hint', 'words'),
  [
    ('PositiveInt', 'int, 1 or greater'),
    ('Fraction | None', 'float, in [0, 1] or `none`'),
    ("Literal['a', 'b']", "`'a'`, `'b'`"),
    ('tuple[PositiveInt, PositiveInt]', '2 × (int, 1 or greater)'),
    ('tuple[str, ...]', 'list of str'),
    ('Mapping[str, int]', 'group'),
  ],
)
def test_types_in_words(tool, hint, words):
  from collections.abc import Mapping
  from typing import Literal

  from segjax.types import Fraction, PositiveInt

  names = {'PositiveInt': PositiveInt, 'Fraction': Fraction, 'Literal': Literal, 'Mapping': Mapping}
  assert tool.takes(eval(hint, names)) == words
