"""What holds for every builder of a published data set."""

import importlib

import pytest

from segjax.data import datasets
from segjax.data.builders import files

PUBLISHED = [
  name
  for name in datasets.own_names()
  if name != 'scenes' and not issubclass(datasets.options_of(name) or object, files.Options)
]


@pytest.mark.parametrize('exists', [False, True])
@pytest.mark.parametrize('name', PUBLISHED)
def test_missing_or_empty_source(refuses, tmp_path, name, exists):
  builder_class = importlib.import_module(f'segjax.data.builders.{name}.builder').Builder
  assert builder_class.name == name
  if exists:
    (tmp_path / 'nowhere').mkdir()
  message = r'nowhere does not exist or is empty: set config\.data\.source to the directory that'
  refuses(builder_class, tmp_path / 'nowhere', message)
