"""Configs: read a `get_config()` file, apply overrides, fill in every default, and check every key.

A config names things by module path and gives their constructor arguments. The arguments' names,
types and defaults are the schema: there is no second list of keys to keep in step with the code.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import os
import runpy
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from segjax import resources
from segjax.types import Range, SegjaxError, nearest

_WORDS = {'true': True, 'false': False}


def read_file(path: str | Path) -> dict[str, Any]:
  """Runs a config file and returns what its `get_config()` returns, as plain dicts.

  Args:
    path: of the file, or a name that `segjax.resources.config_path` knows, such as 'unet/scenes'.
      `segnet/camvid.py:small` and `segnet/camvid:small` call `get_config('small')`.

  Raises:
    SegjaxError: the file is missing, fails to run, has no `get_config()`, or that takes no argument
      or needs one.
  """
  name, argument = split_argument(str(path))
  return _run_file(resources.config_path(name), argument).to_dict()


def split_argument(path: str) -> tuple[str, str | None]:
  """The path or name of a config and the argument after its colon, None without one."""
  name, colon, argument = path.rpartition('.py:')
  if colon:
    return f'{name}.py', argument
  name, colon, argument = path.partition(':')
  is_file = path.endswith('.py') or Path(path).is_file()
  return (name, argument) if colon and not is_file else (path, None)


def base_config(file: str, path: str, argument: str | None = None) -> ml_collections.ConfigDict:
  """What another config file's `get_config()` returns, for a config that says what differs.

  Args:
    file: `__file__` of the config that starts from it.
    path: of the other file, relative to the directory of `file`.
    argument: for its `get_config(argument)`; None calls it without.

  Raises:
    SegjaxError: as `read_file`; or the files start from each other.
  """
  return _run_file(Path(file).parent / path, argument)


def choose(choices: Mapping[str, Any], name: str, file: str) -> Any:
  """What a config file has for this name, from its argument.

  Args:
    choices: name -> value.
    name: what the argument says.
    file: `__file__` of the config.

  Raises:
    SegjaxError: there is no such choice, with the nearest one.
  """
  if name not in choices:
    raise SegjaxError(f'{name!r} is no argument of {Path(file).name}{nearest(name, choices)}')
  return choices[name]


# The config files that run now, each started by the one before.
_running: list[Path] = []


def _run_file(path: Path, argument: str | None) -> ml_collections.ConfigDict:
  if not path.is_file():  # of `base_config`
    raise SegjaxError(f'no config file {path}: fix the path in the config that starts from it')
  if path.resolve() in _running:
    files = ' from '.join(map(str, [*_running[_running.index(path.resolve()) :], path]))
    raise SegjaxError(f'configs start from each other, {files}: let one of them stand alone')
  _running.append(path.resolve())
  try:
    get_config = runpy.run_path(str(path)).get('get_config')
    config = get_config and _call(get_config, path, argument)
  except SegjaxError:
    raise
  except Exception as e:
    raise SegjaxError(f'{path} failed to run: {type(e).__name__}: {e}') from e
  finally:
    _running.pop()
  if get_config is None:
    raise SegjaxError(f'{path} has no get_config(): add one that returns a ConfigDict')
  if not isinstance(config, ml_collections.ConfigDict):
    raise SegjaxError(f'get_config() in {path} returned {type(config).__name__}, not a ConfigDict')
  return config


def _call(get_config: Callable[..., Any], path: Path, argument: str | None) -> Any:
  """`get_config(argument)`, or `get_config()` where `argument` is None."""
  words = () if argument is None else (argument,)
  parameters = inspect.signature(get_config).parameters
  try:
    inspect.signature(get_config).bind(*words)
  except TypeError:
    if not parameters:
      raise SegjaxError(f'{path} takes no argument: leave out :{argument}') from None
    names = ', '.join(parameters)
    raise SegjaxError(f'{path} needs an argument, {names}: write {path}:ARGUMENT') from None
  return get_config(*words)


def parse_value(text: str) -> Any:
  """The Python literal that `text` spells, `true` and `false` included, else the text itself."""
  if text.lower() in _WORDS:
    return _WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def override(config: dict[str, Any], overrides: Iterable[tuple[str, str]]) -> dict[str, Any]:
  """A copy of `config` with each `('optim.learning_rate', '0.01')` put in place.

  Keys that the file leaves out may be set too: `complete` knows whether they exist. 'none' takes a
  whole group away, and a dict such as "{'train': 1.0}" takes its place.
  """
  config = plain(config)
  for path, text in overrides:
    *parents, last = path.split('.')
    node = config
    for i, name in enumerate(parents):
      if node.get(name) is None:
        node[name] = {}
      node = node[name]
      if not isinstance(node, dict):
        where = '.'.join(parents[: i + 1])
        raise SegjaxError(f'config.{where} is a value, not a group: config.{path} cannot be set')
    value = parse_value(text)
    if isinstance(node.get(last), dict) and text.lower() != 'none' and not isinstance(value, dict):
      raise SegjaxError(f'config.{path} is a group of keys: set one of {", ".join(node[last])}')
    node[last] = value
  return config


def plain(value: Any) -> Any:
  """A copy with the types of config files: dicts, text for paths, numbers for NumPy's scalars."""
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  if type(value) in (list, tuple):
    return type(value)(map(plain, value))
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  return value.item() if isinstance(value, np.generic) else value


def arguments(target: Callable[..., Any], *, injected: Sequence[str] = ()) -> dict[str, Any]:
  """Names and defaults of the keyword arguments that a config may give to `target`.

  Args:
    target: a dataclass, a Linen module or a function.
    injected: arguments that the program fills in, so that a config may not.

  Returns:
    `{name: default}`; a required argument's default is `inspect.Parameter.empty`.
  """
  hidden = {'self', *injected}
  known = {
    name: p.default
    for name, p in inspect.signature(target).parameters.items()
    if name not in hidden and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  }
  made = {
    field.name: field.default_factory()
    for field in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
    if field.name in known and field.default_factory is not dataclasses.MISSING
  }
  return {**known, **made}


def complete(
  target: Callable[..., Any], given: Mapping[str, Any], where: str, *, injected: Sequence[str] = ()
) -> dict[str, Any]:
  """`given` with the defaults of `target` filled in, and every key, type and range checked.

  Args:
    target: a dataclass, a Linen module or a function. Its signature is the schema: a number takes
      what `segjax.types.Range` in its annotation says, and a dataclass is a group of keys.
    given: keys and values; of a group a mapping, or nothing for its defaults.
    where: the dotted key of `given`, for errors.
    injected: arguments that the program fills in, so that a config may not.

  Returns:
    The keyword arguments of `target`, in which groups are instances of their dataclass.

  Raises:
    SegjaxError: an unknown key, a missing one, or a value of the wrong type or out of range.
  """
  if not isinstance(given, Mapping):
    raise SegjaxError(f'{where}={given!r} has the wrong type: it takes a group of keys')
  known, hints = arguments(target, injected=injected), type_hints(target)
  for key in given:
    if key not in known:
      raise unknown_key(where, str(key), known)
  full = {}
  for key, default in known.items():
    value = _over(default, given.get(key, default))
    if value is inspect.Parameter.empty:
      raise SegjaxError(f'{where}.{key} is missing: {target.__qualname__} needs it')
    full[key] = check_value(value, hints.get(key, Any), f'{where}.{key}')
  return full


# Keys as transformers, MMSegmentation and PyTorch call them -> ours.
_ELSEWHERE = {
  'lr': ('optim.learning_rate',),
  'ignore_index': ('data.files.void',),
  **dict.fromkeys(
    ('reduce_zero_label', 'reduce_labels', 'do_reduce_labels'),
    ('data.files.void', 'data.files.first'),
  ),
  **dict.fromkeys(('num_labels', 'num_classes'), ('model.classes', 'data.files.classes')),
  'per_device_train_batch_size': ('batch.size',),
}


def unknown_key(where: str, key: str, known: Iterable[str]) -> SegjaxError:
  """The error for a key that a group does not have.

  Args:
    where: the dotted key of the group.
    key: that is given.
    known: the keys of the group.
  """
  if where.partition('.')[0] == 'config' and key in _ELSEWHERE:
    ours = ' and '.join(f'config.{name}' for name in _ELSEWHERE[key])
    return SegjaxError(f'{where}.{key} is not a key: did you mean {ours}?')
  return SegjaxError(f'{where}.{key} is not a key{nearest(key, known)}')


def _over(default: Any, value: Any) -> Any:
  """A group's keys over those of the group that is its default, which need not be the class's."""
  if not dataclasses.is_dataclass(default) or not isinstance(value, Mapping):
    return value
  own = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
  return {**own, **{key: _over(own.get(key), given) for key, given in value.items()}}


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
  """The annotations of the arguments of `target`, with their ranges."""
  function = inspect.isclass(target) and not dataclasses.is_dataclass(target)
  return typing.get_type_hints(target.__init__ if function else target, include_extras=True)


def check_value(value: Any, hint: Any, where: str) -> Any:
  """`value` as `hint` wants it: lists become tuples, integers floats, groups dataclasses.

  Raises:
    SegjaxError: it has another type, or is out of range.
  """
  converted = _convert(value, hint, where)
  if isinstance(converted, _Wrong):
    raise SegjaxError(converted.sentence or _describe_wrong(value, hint, where))
  return converted


def _describe_wrong(value: Any, hint: Any, where: str) -> str:
  """The sentence on a value that `hint` does not take, with how to write one that it does."""
  takes = _spell(hint)
  if choices := [choice for choice in _choices(hint) if type(choice) is type(value)]:
    lower = {str(choice).lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), lower, n=1)
    meant = f': did you mean {lower[close[0]]!r}?' if close and isinstance(value, str) else ''
    return f'{where}={value!r} must be {takes}{meant}'
  sentence = f'{where}={value!r} has the wrong type: it takes {takes}'
  if not where.startswith('config.') or not isinstance(value, str | int | float):
    return sentence
  if not isinstance(value, str) and str in (hint, *typing.get_args(hint)):
    return f'{sentence}: on a command line, write --{where}="\'{value}\'"'
  lists = ((value,) * length for length in (1, 2, 3))
  fits = next((some for some in lists if not isinstance(_convert(some, hint, where), _Wrong)), None)
  return f'{sentence}, such as --{where}="{fits}"' if fits else sentence


def _choices(hint: Any) -> list[Any]:
  """The values that a hint lists, if any."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return list(args)
  if origin is typing.Annotated:
    return _choices(args[0])
  unions = (typing.Union, types.UnionType)
  return [choice for one in args for choice in _choices(one)] if origin in unions else []


# Integers are 32 bits wide where they meet an array; a key that takes larger ones has a range.
_LARGEST = 2**31 - 1


class _Wrong(NamedTuple):
  """No value; with a sentence where the type is right and the number is not."""

  sentence: str = ''


def _convert(value: Any, hint: Any, where: str) -> Any:
  """`value` as `hint` wants it, or `_Wrong`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin is typing.Annotated:
    return _in_range(_convert(value, args[0], where), hint.__metadata__, where)
  if origin in (typing.Union, types.UnionType):
    return _convert_union(value, args, where)
  if origin is typing.Literal:
    # 1 == True: the type has to be the same too.
    same = any(value == a and type(value) is type(a) for a in args)
    return value if same else _Wrong()
  if origin in (tuple, Sequence, list):
    return _convert_sequence(value, origin, args, where)
  if origin in (dict, Mapping) or hint in (dict, Mapping):
    return _convert_mapping(value, args, where)
  if hint is float and type(value) is int:
    return float(value) if abs(value) < 2**1023 else math.inf
  if hint is None or hint is type(None):
    return None if value is None else _Wrong()
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else _make(hint, value, where)
  if not inspect.isclass(hint):
    return value
  # A bool is an int to Python, and no number to a config.
  return (
    value if isinstance(value, hint) and (hint is bool) >= isinstance(value, bool) else _Wrong()
  )


def _make(group: type, value: Any, where: str) -> Any:
  """The dataclass of a group of keys, of its defaults where there are none."""
  value = {} if value in (None, 'none') else value
  return group(**complete(group, value, where)) if isinstance(value, Mapping) else _Wrong()


def _convert_union(value: Any, options: Sequence[Any], where: str) -> Any:
  if value == 'none' and type(None) in options:
    return None
  wrong = _Wrong()
  # An exact type wins over a conversion: 1 for `int | float` stays an integer.
  for option in sorted(options, key=lambda a: _bare(a) is not type(value)):
    converted = _convert(value, option, where)
    if not isinstance(converted, _Wrong):
      return converted
    wrong = converted if converted.sentence else wrong
  return wrong


def _bare(hint: Any) -> Any:
  return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _convert_sequence(value: Any, origin: Any, args: Sequence[Any], where: str) -> Any:
  if isinstance(value, str) or not isinstance(value, Sequence):
    return _Wrong()
  fixed = origin is tuple and args and args[-1] is not Ellipsis
  if fixed and len(args) != len(value):
    return _Wrong()
  hints = args if fixed else (args[:1] or (Any,)) * len(value)
  items = [
    _convert(v, h, f'{where}[{i}]') for i, (v, h) in enumerate(zip(value, hints, strict=True))
  ]
  return next((i for i in items if isinstance(i, _Wrong)), tuple(items))


def _convert_mapping(value: Any, args: Sequence[Any], where: str) -> Any:
  if not isinstance(value, Mapping):
    return _Wrong()
  hint = args[1] if args else Any
  items = {k: _convert(plain(v), hint, f'{where}.{k}') for k, v in value.items()}
  return next((i for i in items.values() if isinstance(i, _Wrong)), items)


def _in_range(value: Any, metadata: Sequence[Any], where: str) -> Any:
  """`value`, or what is wrong where it is a number outside of a `Range` of its annotation."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return value
  for allowed in metadata:
    if not isinstance(allowed, Range):
      continue
    if not math.isfinite(value):
      return _Wrong(f'{where}={value} must be a finite number')
    if value not in allowed:
      return _Wrong(f'{where}={value} must be {allowed}')
    if isinstance(value, int) and allowed.high is None and value > _LARGEST:
      return _Wrong(f'{where}={value} must be {_LARGEST} or less')
  return value


def _spell(hint: Any) -> str:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    return _spell(args[0])
  if origin is typing.Literal:
    return 'one of ' + ', '.join(map(repr, args))
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(map(_spell, args))
  if origin is tuple and args[-1:] == (Ellipsis,):
    return f'a list of {_spell(args[0])}'
  if origin is tuple and args:
    return f'({", ".join(map(_spell, args))})'
  if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
    return 'a group of keys'
  return 'none' if hint is type(None) else getattr(hint, '__name__', None) or str(hint)


def as_dict(values: Mapping[str, Any]) -> dict[str, Any]:
  """`values`, in which groups are dicts again, as JSON has them."""
  return {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}


def to_json(config: Mapping[str, Any]) -> str:
  """The config as indented JSON with sorted keys, ending in a newline."""
  return json.dumps(config, indent=2, sort_keys=True) + '\n'


def digest(config: Mapping[str, Any]) -> str:
  """The first 12 hexadecimal digits of the SHA-256 of the config's JSON."""
  return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """`{dotted key: (value in a, value in b)}` where two configs differ; lists equal tuples."""
  flat_a, flat_b = dotted(a), dotted(b)
  keys = sorted({**flat_a, **flat_b})
  missing = '(not set)'
  pairs = {k: (flat_a.get(k, missing), flat_b.get(k, missing)) for k in keys}
  return {k: (x, y) for k, (x, y) in pairs.items() if x != y}


def dotted(config: Mapping[str, Any]) -> dict[str, Any]:
  """`{dotted key: value}`, with the values that the config's JSON has: lists, not tuples."""
  return flatten(json.loads(to_json(config)))


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A nested mapping as one level, with dotted keys; an empty group keeps its own key."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat
