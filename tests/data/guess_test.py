"""Which format wins, and what is said where none does."""

import importlib

import pytest

from segjax.data import guess
from segjax.types import SegjaxError


def found(name):
  return guess.Guess(name, '', {}, [], [])


def test_the_first_format_that_knows_the_files(tmp_path):
  asked = []

  def never(*args):
    asked.append(args)

  known = [never, lambda *args: found('a'), lambda *args: found('b')]
  assert guess.guess('instance', tmp_path, None, known).name == 'a'
  assert asked == [('instance', tmp_path, None)]


def test_masks_in_a_folder_come_last():
  """They are what is left where no file names a format."""
  assert guess.FORMATS[-1] == 'folder'
  assert len(set(guess.FORMATS)) == len(guess.FORMATS)


def test_formats_with_the_key_outside_are_asked_with_it():
  builders = {name: f'segjax.data.builders.{name}.builder' for name in guess.FORMATS}
  have = [
    name
    for name, module in builders.items()
    if hasattr(getattr(importlib.import_module(module).Builder, 'Options', None), 'outside')
  ]
  assert have == list(guess._LISTING)
  given = guess.Given(void=(0,))
  of_values = {name: {'given': given} for name in ('hugging_face', 'folder')}
  expected = {name: {'outside': True} for name in have} | of_values
  asked = [getattr(one, 'keywords', None) for one in guess._guessers(outside=True, given=given)]
  assert asked == [expected.get(name) for name in guess.FORMATS]


def test_no_format(tmp_path):
  with pytest.raises(SegjaxError, match=f'^{tmp_path} is in no known format: name .* COCO'):
    guess.guess('semantic', tmp_path, None, [lambda *args: None])


def test_json_that_is_not_coco(tmp_path):
  (tmp_path / 'annotations').mkdir()
  file = tmp_path / 'annotations' / 'instances_default.json'
  file.write_text('{"type": "FeatureCollection", "features": []}')
  for images, labels in ((tmp_path, None), (tmp_path, file), (None, file)):
    with pytest.raises(SegjaxError, match=f'^{file} is GeoJSON, not a file of instances in COCO'):
      guess.guess('instance', images, labels, [lambda *args: None])


def test_paths_that_cannot_be(tmp_path):
  file = tmp_path / 'a.png'
  file.write_bytes(b'')
  for images, labels, message in (
    (tmp_path / 'no', None, '--images=.*/no does not exist'),
    (tmp_path, tmp_path / 'no', '--labels=.*/no does not exist'),
    (file, None, '--images=.*a.png is not a directory'),
    (None, None, 'name your files with --images'),
  ):
    with pytest.raises(SegjaxError, match=message):
      guess.guess('semantic', images, labels, [])
