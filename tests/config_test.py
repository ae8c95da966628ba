"""Configs: reading, overrides, completion, and error messages."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import pytest

from segjax import config
from segjax.types import AnyFloat, PositiveInt, Range, SegjaxError


@dataclasses.dataclass(frozen=True)
class Part:
  width: PositiveInt = 8
  norm: Literal['batch', 'group'] = 'batch'


@dataclasses.dataclass(frozen=True)
class Thing:
  rate: float = 0.1
  size: tuple[int, int] | None = None
  kind: Literal['a', 'b'] = 'a'
  on: bool = False
  count: int = 1
  pairs: tuple[tuple[str, float], ...] = ()
  part: Part = Part(width=4)
  other: Part | None = None
  made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  name: str = ''
  form: Literal['poly', 'cosine'] | None = None


@dataclasses.dataclass(frozen=True)
class Ranges:
  seed: Annotated[int, Range(0, 2**32 - 1)] = 0
  steps: Annotated[int, Range(0)] = 0
  share: Annotated[float, Range(0, 1, open='high')] | None = None
  any: AnyFloat = 0.0
  size: tuple[PositiveInt, PositiveInt] = (1, 1)
  rates: tuple[Annotated[float, Range(0, open='low')], ...] = ()
  devices: Literal[-1] | PositiveInt = -1
  named: Mapping[str, PositiveInt] = dataclasses.field(default_factory=dict)


class Module(nn.Module):
  classes: PositiveInt
  part: Part = Part()


FILE = 'import ml_collections\ndef get_config({}):\n  return ml_collections.ConfigDict({})\n'


@pytest.fixture
def write(tmp_path):
  """Writes a config file and returns its path."""

  def write(text, name='c.py'):
    (tmp_path / name).write_text(text)
    return tmp_path / name

  return write


def test_read_file_runs_get_config(write):
  assert config.read_file(write(FILE.format('', '{"a": {"b": (1, 2)}}'))) == {'a': {'b': (1, 2)}}


def test_read_file_with_an_argument(write):
  path = write(FILE.format('size', '{"size": size}'))
  assert config.read_file(f'{path}:small') == {'size': 'small'}
  assert config.read_file(f'{path}:') == {'size': ''}
  with pytest.raises(SegjaxError, match=r'c.py needs an argument, size: write .*c.py:ARGUMENT'):
    config.read_file(path)
  path = write(FILE.format("size='large'", '{"size": size}'))
  assert config.read_file(path) == {'size': 'large'}
  path = write(FILE.format('', '{}'))
  with pytest.raises(SegjaxError, match=r'c.py takes no argument: leave out :small'):
    config.read_file(f'{path}:small')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = 1', 'has no get_config'),
    ('raise ValueError("oops")', 'ValueError: oops'),
    ('def get_config(): return 3', 'returned int'),
    ('def get_config(', 'SyntaxError'),
  ],
)
def test_read_file_names_the_broken_file(write, text, message):
  with pytest.raises(SegjaxError, match=message) as e:
    config.read_file(write(text, 'broken.py'))
  assert 'broken.py' in str(e.value)


def test_read_file_missing(tmp_path):
  with pytest.raises(SegjaxError, match='no config file'):
    config.read_file(tmp_path / 'none.py')


START = 'from segjax.config import base_config\n'


def test_a_config_starts_from_another(write):
  write(FILE.format('size="large"', '{"a": {"size": size, "b": 2}}'), 'base.py')
  path = write(
    START
    + 'def get_config():\n'
    + '  config = base_config(__file__, "base.py", "small")\n'
    + '  config.a.b = 3\n'
    + '  return config\n'
  )
  assert config.read_file(path) == {'a': {'size': 'small', 'b': 3}}
  base = config.base_config(str(path), 'base.py')
  assert base.a.size == 'large' and base.a.b == 2, 'the other config stays as it is'


@pytest.mark.parametrize(
  ('base', 'message'),
  [
    ('x = 1', 'base.py has no get_config'),
    (None, 'no config file .*base.py'),
    (START + 'def get_config(): return base_config(__file__, "c.py")', 'c.py from .*base.py from'),
  ],
)
def test_a_base_that_is_wrong_is_named(write, base, message):
  if base is not None:
    write(base, 'base.py')
  path = write(START + 'def get_config(): return base_config(__file__, "base.py")')
  for _ in range(2):  # an error leaves nothing behind
    with pytest.raises(SegjaxError, match=message):
      config.read_file(path)


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


def test_override_with_a_dict_replaces_a_group():
  given = {'data': {'splits': {'train': 0.8, 'val': 0.2}, 'name': 'a'}}
  new = config.override(given, [('data.splits', "{'train': 1.0}")])
  assert new == {'data': {'splits': {'train': 1.0}, 'name': 'a'}}
  assert given['data']['splits'] == {'train': 0.8, 'val': 0.2}


def test_override_keeps_groups_and_values_apart():
  with pytest.raises(SegjaxError, match='config.optim is a group'):
    config.override({'optim': {'ema': 1}}, [('optim', '3')])
  with pytest.raises(SegjaxError, match='config.task is a value'):
    config.override({'task': 'semantic'}, [('task.name', 'x')])


def test_complete_fills_and_converts():
  assert config.complete(Thing, {'rate': 1, 'size': [3, 4]}, 'c') == {
    'rate': 1.0,
    'size': (3, 4),
    'kind': 'a',
    'on': False,
    'count': 1,
    'pairs': (),
    'part': Part(width=4),
    'other': None,
    'made': {},
    'name': '',
    'form': None,
  }
  assert config.complete(Thing, {'size': 'none'}, 'c')['size'] is None
  pairs = config.complete(Thing, {'pairs': [['bias', 2]]}, 'c')['pairs']
  assert pairs == (('bias', 2.0),)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'rats': 1}, 'c.rats is not a key: did you mean rate'),
    ({'zzz': 1}, 'c.zzz is not a key: .* count, form, kind'),
    ({'rate': 'fast'}, "c.rate='fast' has the wrong type: it takes float"),
    ({'rate': True}, 'c.rate=True has the wrong type'),
    ({'size': (1, 2, 3)}, r'c.size=\(1, 2, 3\) has the wrong type: it takes \(int, int\) or none'),
    ({'size': 'ab'}, 'c.size'),
    ({'kind': 'c'}, "c.kind='c' must be one of 'a', 'b'$"),
    ({'kind': 'B'}, r"c.kind='B' must be one of 'a', 'b': did you mean 'b'\?"),
    ({'form': 'linear'}, "c.form='linear' must be one of 'poly', 'cosine' or none$"),
    ({'form': 'Cosinus'}, r"or none: did you mean 'cosine'\?"),
    ({'kind': 3}, "c.kind=3 has the wrong type: it takes one of 'a', 'b'"),
    ({'on': 1}, 'c.on=1 has the wrong type: it takes bool'),
    ({'count': 1.5}, 'c.count=1.5'),
    ({'count': True}, 'c.count=True'),
    ({'count': None}, 'c.count=None'),
    ({'part': 3}, 'c.part=3 has the wrong type: it takes a group of keys'),
    ({'part': {'widht': 3}}, 'c.part.widht is not a key: did you mean width'),
    ({'part': {'width': 0}}, 'c.part.width=0 must be 1 or greater'),
    ({'other': {'norm': 'none'}}, "c.other.norm='none' must be one of"),
    ({'other': 3}, 'c.other=3 has the wrong type: it takes a group of keys or none'),
    ({'made': 3}, 'c.made=3 has the wrong type: it takes a group of keys'),
    (3, 'c=3 has the wrong type: it takes a group of keys'),
    ({'name': 2024}, 'c.name=2024 has the wrong type: it takes str$'),
  ],
)
def test_complete_names_the_key(given, message):
  with pytest.raises(SegjaxError, match=message):
    config.complete(Thing, given, 'c')


def test_text_that_looks_like_a_number_is_quoted_on_a_command_line():
  """Where a command line takes the key: not that of a table or of a cluster's option."""
  with pytest.raises(
    SegjaxError, match='takes str: on a command line, write --config.a.name="\'7\'"'
  ):
    config.complete(Thing, {'name': 7}, 'config.a')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'size': 7}, 'it takes (int, int) or none, such as --config.a.size="(7, 7)"'),
    ({'rates': 0.5}, 'it takes a list of float, such as --config.a.rates="(0.5,)"'),
    ({'size': 'x'}, 'it takes (int, int) or none'),
  ],
)
def test_a_value_for_a_list_shows_how_one_is_written(given, message):
  def function(size: tuple[int, int] | None = None, rates: tuple[float, ...] = ()):
    return size, rates

  with pytest.raises(SegjaxError) as e:
    config.complete(function, given, 'config.a')
  assert str(e.value).endswith(f' has the wrong type: {message}')


def test_complete_makes_groups():
  full = config.complete(Thing, {'part': {'norm': 'group'}, 'other': {'norm': 'group'}}, 'c')
  assert full['part'] == Part(width=4, norm='group'), 'over the default that the key has'
  assert full['other'] == Part(width=8, norm='group'), 'over the defaults of the class'
  for nothing in ({}, None, 'none'):
    assert config.complete(Thing, {'part': nothing}, 'c')['part'].norm == 'batch'
  assert config.complete(Thing, {'other': 'none'}, 'c')['other'] is None
  assert config.as_dict(full)['part'] == {'width': 4, 'norm': 'group'}
  assert config.complete(Thing, config.as_dict(full), 'c') == full


def test_complete_of_a_module():
  injected = ('parent', 'name')
  full = config.complete(Module, {'classes': 3, 'part': {'width': 2}}, 'm', injected=injected)
  assert full == {'classes': 3, 'part': Part(width=2)}
  assert Module(**full).part.width == 2
  with pytest.raises(SegjaxError, match='m.classes=0 must be 1 or greater'):
    config.complete(Module, {'classes': 0}, 'm', injected=injected)
  with pytest.raises(SegjaxError, match='m.classes is missing: Module needs it'):
    config.complete(Module, {}, 'm', injected=injected)


def test_complete_of_a_function():
  def function(x, y: PositiveInt, *, z: str = 'z'):
    return x, y, z

  with pytest.raises(SegjaxError, match='c.y is missing: .*function needs it'):
    config.complete(function, {}, 'c', injected=('x',))
  with pytest.raises(SegjaxError, match='c.x is not a key'):
    config.complete(function, {'x': 1, 'y': 1}, 'c', injected=('x',))
  with pytest.raises(SegjaxError, match='c.y=0 must be 1 or greater'):
    config.complete(function, {'y': 0}, 'c', injected=('x',))
  assert config.complete(function, {'y': 1}, 'c', injected=('x',)) == {'y': 1, 'z': 'z'}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'seed': 99999999999999999999}, 'c.seed=99999999999999999999 must be in [0, 4294967295]'),
    ({'seed': -1}, 'c.seed=-1 must be in [0, 4294967295]'),
    ({'steps': -1}, 'c.steps=-1 must be 0 or greater'),
    ({'steps': 2**31}, 'c.steps=2147483648 must be 2147483647 or less'),
    ({'share': 1.0}, 'c.share=1.0 must be in [0, 1)'),
    ({'share': float('nan')}, 'c.share=nan must be a finite number'),
    ({'any': float('inf')}, 'c.any=inf must be a finite number'),
    ({'any': 10**400}, 'c.any=inf must be a finite number'),
    ({'size': (1, 0)}, 'c.size[1]=0 must be 1 or greater'),
    ({'size': (True, 1)}, 'c.size=(True, 1) has the wrong type: it takes (int, int)'),
    ({'rates': (1, 0)}, 'c.rates[1]=0.0 must be greater than 0'),
    ({'devices': 0}, 'c.devices=0 must be 1 or greater'),
    ({'devices': True}, 'c.devices=True has the wrong type: it takes one of -1 or int'),
    ({'named': {'a': 0}}, 'c.named.a=0 must be 1 or greater'),
  ],
)
def test_numbers_have_ranges(given, message):
  with pytest.raises(SegjaxError) as e:
    config.complete(Ranges, given, 'c')
  assert str(e.value) == message


def test_numbers_in_their_range():
  given = {'seed': 2**32 - 1, 'share': 0, 'any': -3, 'devices': 2, 'rates': [1e-9]}
  full = config.complete(Ranges, given, 'c')
  assert {k: full[k] for k in given} == {
    'seed': 2**32 - 1,
    'share': 0.0,
    'any': -3.0,
    'devices': 2,
    'rates': (1e-9,),
  }
  assert isinstance(full['share'], float) and isinstance(full['any'], float)


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
