"""Configs: reading, overriding, completing, and what a person is told when something is wrong."""

import dataclasses
from typing import Literal

import pytest

from segjax import config
from segjax.types import SegjaxError


@dataclasses.dataclass(frozen=True)
class Thing:
  rate: float = 0.1
  size: tuple[int, int] | None = None
  kind: Literal['a', 'b'] = 'a'
  on: bool = False
  count: int = 1
  pairs: tuple[tuple[str, float], ...] = ()


def test_read_file_runs_get_config(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n  return ml_collections.ConfigDict({"a": {"b": (1, 2)}})\n'
  )
  assert config.read_file(path) == {'a': {'b': (1, 2)}}


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    ('x = 1', 'has no get_config'),
    ('raise ValueError("oops")', 'ValueError: oops'),
    ('def get_config(): return 3', 'returned int'),
    ('def get_config(', 'SyntaxError'),
  ],
)
def test_read_file_names_the_broken_file(tmp_path, text, told):
  path = tmp_path / 'broken.py'
  path.write_text(text)
  with pytest.raises(SegjaxError, match=told) as e:
    config.read_file(path)
  assert 'broken.py' in str(e.value)


def test_read_file_missing(tmp_path):
  with pytest.raises(SegjaxError, match='no config file'):
    config.read_file(tmp_path / 'none.py')


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('1e-3', 1e-3),
    ('3', 3),
    ('(1, 2)', (1, 2)),
    ('true', True),
    ('None', None),
    ('none', 'none'),
    ('camvid', 'camvid'),
    ('isbi2012/fold1', 'isbi2012/fold1'),
    ('/data/x', '/data/x'),
  ],
)
def test_parse_value(text, value):
  assert config.parse_value(text) == value


def test_override_sets_old_and_new_keys_on_a_copy():
  given = {'optim': {'learning_rate': 1.0}, 'model': None}
  new = config.override(
    given, [('optim.learning_rate', '0.5'), ('optim.ema', '0.9'), ('train.steps', '3')]
  )
  assert new == {
    'optim': {'learning_rate': 0.5, 'ema': 0.9},
    'model': None,
    'train': {'steps': 3},
  }
  assert given['optim'] == {'learning_rate': 1.0}


def test_override_none_takes_a_group_away():
  given = {'init_from': {'path': 'a'}, 'losses': {'dice': {'scale': 2}}}
  new = config.override(given, [('init_from', 'none'), ('losses.dice', 'none')])
  assert new == {'init_from': 'none', 'losses': {'dice': 'none'}}
  with pytest.raises(SegjaxError, match='group of keys: set one of path'):
    config.override(given, [('init_from', 'weights.pth')])


def test_override_keeps_groups_and_values_apart():
  with pytest.raises(SegjaxError, match='config.optim is a group'):
    config.override({'optim': {'ema': 1}}, [('optim', '3')])
  with pytest.raises(SegjaxError, match='config.task is a value'):
    config.override({'task': 'semantic'}, [('task.name', 'x')])


def test_complete_arguments_fills_and_converts():
  assert config.complete_arguments(Thing, {'rate': 1, 'size': [3, 4]}, 'c') == {
    'rate': 1.0,
    'size': (3, 4),
    'kind': 'a',
    'on': False,
    'count': 1,
    'pairs': (),
  }
  assert config.complete_arguments(Thing, {'size': 'none'}, 'c')['size'] is None
  pairs = config.complete_arguments(Thing, {'pairs': [['bias', 2]]}, 'c')['pairs']
  assert pairs == (('bias', 2.0),)


@pytest.mark.parametrize(
  ('given', 'told'),
  [
    ({'rats': 1}, 'c.rats is not a key: did you mean rate'),
    ({'zzz': 1}, 'c.zzz is not a key: known are count, kind'),
    ({'rate': 'fast'}, "c.rate='fast' has the wrong type: it takes float"),
    ({'rate': True}, 'c.rate=True has the wrong type'),
    ({'size': (1, 2, 3)}, 'c.size'),
    ({'size': 'ab'}, 'c.size'),
    ({'kind': 'c'}, "c.kind='c' has the wrong type: it takes one of 'a', 'b'"),
    ({'on': 1}, 'c.on=1 has the wrong type: it takes bool'),
    ({'count': 1.5}, 'c.count=1.5'),
    ({'count': True}, 'c.count=True'),
    ({'count': None}, 'c.count=None'),
  ],
)
def test_complete_arguments_names_the_key(given, told):
  with pytest.raises(SegjaxError, match=told):
    config.complete_arguments(Thing, given, 'c')


def test_complete_arguments_of_a_function():
  def function(x, y: int, *, z: str = 'z'):
    return x, y, z

  with pytest.raises(SegjaxError, match='c.y is missing: .*function needs it'):
    config.complete_arguments(function, {}, 'c', injected=('x',))
  with pytest.raises(SegjaxError, match='c.x is not a key'):
    config.complete_arguments(function, {'x': 1, 'y': 1}, 'c', injected=('x',))
  assert config.complete_arguments(function, {'y': 1}, 'c', injected=('x',)) == {'y': 1, 'z': 'z'}


def test_locate():
  from segjax.models.unet import UNet

  assert config.locate('unet.UNet', 'segjax.models', 'k') is UNet
  assert config.locate('collections.Counter', 'segjax.models', 'k').__name__ == 'Counter'
  with pytest.raises(SegjaxError, match='k: segjax.models.unet has no Unet: did you mean UNet'):
    config.locate('unet.Unet', 'segjax.models', 'k')
  with pytest.raises(SegjaxError, match='k: there is no module unett: did you mean unet'):
    config.locate('unett.UNet', 'segjax.models', 'k')
  with pytest.raises(SegjaxError, match='needs a module and a name'):
    config.locate('UNet', 'segjax.models', 'k')


def test_differences_sees_through_json():
  a = {'x': {'size': (1, 2), 'rate': 1.0}}
  assert config.differences(a, {'x': {'size': [1, 2], 'rate': 1.0}}) == {}
  assert config.differences(a, {'x': {'size': [1, 3], 'rate': 1.0}, 'y': 1}) == {
    'x.size': ([1, 2], [1, 3]),
    'y': ('(not set)', 1),
  }


def test_digest_does_not_depend_on_order():
  assert config.digest({'a': 1, 'b': 2}) == config.digest({'b': 2, 'a': 1})
  assert config.digest({'a': 1}) != config.digest({'a': 2})
