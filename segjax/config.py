"""Configs: read a `get_config()` file, apply overrides, fill in every default, and check every key.

A config names things by module path and gives their constructor arguments. The arguments' names,
types and defaults are the schema: there is no second list of keys to keep in step with the code.
"""

import ast
import dataclasses
import hashlib
import importlib
import inspect
import json
import runpy
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from segjax.types import SegjaxError, nearest

_WORDS = {'true': True, 'false': False}


def read_file(path: str | Path) -> dict[str, Any]:
  """Runs the config file at `path` and returns what its `get_config()` returns, as plain dicts.

  Raises:
    SegjaxError: the file is missing, fails to run, or has no `get_config()`.
  """
  path = Path(path)
  if not path.is_file():
    raise SegjaxError(
      f'there is no config file {path}: give --config a path such as configs/unet/scenes.py'
    )
  try:
    get_config = runpy.run_path(str(path)).get('get_config')
    config = get_config and get_config()
    given = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else None
  except Exception as e:
    raise SegjaxError(f'{path} failed to run: {type(e).__name__}: {e}') from e
  if get_config is None:
    raise SegjaxError(f'{path} has no get_config(): add one that returns a ConfigDict')
  if given is None:
    raise SegjaxError(f'get_config() in {path} returned {type(config).__name__}, not a ConfigDict')
  return given


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
  whole group away.
  """
  config = _copy(config)
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
    if isinstance(node.get(last), dict) and text.lower() != 'none':
      raise SegjaxError(f'config.{path} is a group of keys: set one of {", ".join(node[last])}')
    node[last] = parse_value(text)
  return config


def _copy(value: Any) -> Any:
  return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def locate(name: str, package: str, where: str) -> Any:
  """The object that a config calls `name`: `'unet.UNet'` in `package`, or an absolute module path.

  Args:
    name: `module.attribute`, looked up in `package` first, then as it is.
    package: for example `'segjax.models'`.
    where: the config key, for the error.

  Raises:
    SegjaxError: nothing of that name; the sentence names the nearest right one.
  """
  module_name, _, attribute = name.rpartition('.')
  if not module_name:
    raise SegjaxError(f'{where}={name!r} needs a module and a name, such as unet.UNet')
  for candidate in (f'{package}.{module_name}', module_name):
    try:
      module = importlib.import_module(candidate)
    except ModuleNotFoundError as e:
      # Only the path in the config may be missing; a missing import inside it is a real error.
      if e.name and (candidate == e.name or candidate.startswith(e.name + '.')):
        continue
      raise
    if callable(getattr(module, attribute, None)):
      return getattr(module, attribute)
    known = [
      n
      for n, v in vars(module).items()
      if callable(v) and getattr(v, '__module__', None) == module.__name__
    ]
    raise SegjaxError(f'{where}: {candidate} has no {attribute}{nearest(attribute, known)}')
  folder = Path(importlib.import_module(package).__file__).parent
  modules = [p.stem for p in folder.glob('*.py') if p.stem != '__init__']
  raise SegjaxError(f'{where}: there is no module {module_name}{nearest(module_name, modules)}')


def arguments(target: Callable[..., Any], *, injected: Sequence[str] = ()) -> dict[str, Any]:
  """Names and defaults of the keyword arguments that a config may give to `target`.

  Args:
    target: a dataclass, a Linen module or a function.
    injected: arguments that the program fills in, so that a config may not.

  Returns:
    `{name: default}`; a required argument's default is `inspect.Parameter.empty`.
  """
  hidden = {'self', *injected}
  return {
    name: p.default
    for name, p in inspect.signature(target).parameters.items()
    if name not in hidden and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  }


def complete_arguments(
  target: Callable[..., Any],
  given: Mapping[str, Any],
  where: str,
  *,
  injected: Sequence[str] = (),
) -> dict[str, Any]:
  """`given` with `target`'s defaults filled in and every key and type checked.

  Raises:
    SegjaxError: an unknown key, a missing one, or a value of the wrong type.
  """
  known = arguments(target, injected=injected)
  hints = typing.get_type_hints(target if not inspect.isclass(target) else target.__init__)
  if dataclasses.is_dataclass(target):
    hints = typing.get_type_hints(target)
  if not isinstance(given, Mapping):
    raise SegjaxError(f'{where}={given!r} has the wrong type: it takes a group of keys')
  for key in given:
    if key not in known:
      raise SegjaxError(f'{where}.{key} is not a key{nearest(key, known)}')
  full = {}
  for key, default in known.items():
    value = given.get(key, default)
    if value is inspect.Parameter.empty:
      raise SegjaxError(f'{where}.{key} is missing: {_name(target)} needs it')
    full[key] = check_type(value, hints.get(key, Any), f'{where}.{key}')
  return full


def _name(target: Any) -> str:
  return getattr(target, '__qualname__', str(target))


def check_type(value: Any, hint: Any, where: str) -> Any:
  """`value` as `hint` wants it (lists become tuples, integers floats), or a SegjaxError."""
  converted = _convert(value, hint)
  if converted is _WRONG:
    raise SegjaxError(f'{where}={value!r} has the wrong type: it takes {_spell(hint)}')
  return converted


_WRONG = object()


def _convert(value: Any, hint: Any) -> Any:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (typing.Union, types.UnionType):
    if value == 'none' and type(None) in args:
      return None
    # An exact type wins over a conversion: 1 for `int | float` stays an integer.
    options = sorted(args, key=lambda a: a is not type(value))
    return next((c for a in options if (c := _convert(value, a)) is not _WRONG), _WRONG)
  if origin is typing.Literal:
    return value if value in args else _WRONG
  if origin in (tuple, Sequence, list):
    if isinstance(value, str) or not isinstance(value, Sequence):
      return _WRONG
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
      return _WRONG
    hints = args if fixed else (args[:1] or (Any,)) * len(value)
    items = tuple(_convert(v, h) for v, h in zip(value, hints, strict=True))
    return _WRONG if any(i is _WRONG for i in items) else items
  if origin in (dict, Mapping) or hint in (dict, Mapping):
    return _copy(value) if isinstance(value, Mapping) else _WRONG
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is int and isinstance(value, bool):
    return _WRONG
  if hint is None or hint is type(None):
    return None if value is None else _WRONG
  if dataclasses.is_dataclass(hint):
    return _copy(value) if isinstance(value, Mapping) else _WRONG
  if inspect.isclass(hint):
    return value if isinstance(value, hint) else _WRONG
  return value


def _spell(hint: Any) -> str:
  if typing.get_origin(hint) is typing.Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(hint)))
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return ' or '.join(_spell(a) for a in typing.get_args(hint))
  return 'none' if hint is type(None) else getattr(hint, '__name__', None) or str(hint)


def to_json(config: Mapping[str, Any]) -> str:
  """The config as indented JSON with sorted keys, ending in a newline."""
  return json.dumps(config, indent=2, sort_keys=True) + '\n'


def digest(config: Mapping[str, Any]) -> str:
  """The first 12 hexadecimal digits of the SHA-256 of the config's JSON."""
  return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """`{dotted key: (value in a, value in b)}` where two configs differ; lists equal tuples."""
  flat_a, flat_b = (flatten(json.loads(to_json(c))) for c in (a, b))
  keys = sorted({**flat_a, **flat_b})
  missing = '(not set)'
  pairs = {k: (flat_a.get(k, missing), flat_b.get(k, missing)) for k in keys}
  return {k: (x, y) for k, (x, y) in pairs.items() if x != y}


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A nested mapping as one level, with dotted keys; an empty group keeps its own key."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat
