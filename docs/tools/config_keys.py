"""Writes docs/config_keys.md: every config key with its type, range, default and meaning.

The signatures that check a config (`segjax.experiment`) and their docstrings are the only source.

  python docs/tools/config_keys.py > docs/config_keys.md
"""

import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import docstring_parser

from segjax import config as config_lib
from segjax import experiment
from segjax.cli import list as listed
from segjax.data import datasets
from segjax.data.weight_map import border_weight_map
from segjax.types import Range, SumCount

TASKS = ('semantic', 'instance', 'panoptic')
# Data sets whose files are described by `config.data.files`.
FORMATS = (
  'folder',
  'coco_instances/custom',
  'coco_panoptic/custom',
  'labelme',
  'yolo',
  'hugging_face',
)

INTRODUCTION = """\
# Config keys

Every key of a config, generated from the code that checks it by `docs/tools/config_keys.py`. Set a
key in a config file, or on the command line with `--config.KEY=VALUE`. A value is a Python literal:
`0.01`, `true`, `none`, `'(256, 256)'`, `"{'train': 0.8, 'val': 0.2}"`. An unknown key, a value of
the wrong type and a number out of range are errors that name the key. `--config.GROUP=none` removes
a group. A run writes all keys, with their defaults, to `config.json` in its workdir.

`config.task` is `semantic`, `instance` or `panoptic`.
"""


class Section(NamedTuple):
  """A table of the page.

  Attributes:
    title: its heading.
    target: the dataclass, Linen module or function whose arguments are the keys.
    hidden: arguments that a config cannot set.
  """

  title: str
  target: Callable[..., Any]
  hidden: Sequence[str] = ()


class Key(NamedTuple):
  """One row: a key, what it takes, its default and its meaning."""

  name: str
  takes: str
  default: str
  meaning: str


def page() -> str:
  """The page in Markdown."""
  parts = [INTRODUCTION]
  for title, text, sections in _chapters():
    parts += [f'## {title}\n', f'{text}\n'] if text else [f'## {title}\n']
    for section in _with_groups(sections):
      heading = [] if section.title == title else [f'### {section.title}\n']
      parts += [*heading, table(keys(section))]
  return '\n'.join(parts)


def _chapters() -> Iterator[tuple[str, str, list[Section]]]:
  modules = {task: experiment.task_module(task) for task in TASKS}
  for name, group in experiment.GROUPS.items():
    target = next(t for t in typing.get_args(group) or (group,) if dataclasses.is_dataclass(t))
    yield f'config.{name}', '', [Section(f'config.{name}', target)]
  weights = Section('config.data.weight_map', border_weight_map, ('label',))
  yield weights.title, 'None by default: all pixels have the same weight.', [weights]
  formats = [
    Section(f'config.data.files of {name}', datasets.options_of(name), ('split',))
    for name in FORMATS
  ]
  yield 'config.data.files', 'See [Your own data](own_data.md) for examples.', formats
  evals = [Section(f'config.eval in {t} tasks', m.EvalConfig) for t, m in modules.items()]
  yield 'config.eval', '', evals
  text = (
    'One group per loss. `scale`, a number of 0 or greater (default 1.0), multiplies its mean; the '
    'total is the sum. `class_weights` may be `median_frequency` or `natural`, which compute the '
    'weights from the training split.'
  )
  yield 'config.losses', text, list(_losses())
  text = (
    '`config.model.name` is one of these, or the module path of your own Linen module; the other '
    'keys are its fields.'
  )
  models = [
    Section(f"config.model of '{name}'", _find(f'segjax.models.{name}'), experiment.LINEN)
    for name in listed.models()
  ]
  yield 'config.model', text, models


def _find(path: str) -> Any:
  module, _, name = path.rpartition('.')
  return getattr(importlib.import_module(module), name)


def _losses() -> Iterator[Section]:
  """The functions that `config.losses` may name: they take what the task gives them."""
  tasks: dict[Any, list[str]] = {}
  inputs = {}
  for task, path, taken in listed.loss_modules():
    losses = importlib.import_module(path)
    for name, function in inspect.getmembers(losses, inspect.isfunction):
      hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters
      given = tuple(parameters)[: len(taken)] == tuple(taken)
      if given and hints.get('return') is SumCount and not name.startswith('_'):
        tasks.setdefault(function, []).append(task)
        inputs[function] = taken
  for function, names in tasks.items():
    title = f'config.losses.{function.__name__} in {" and ".join(names)} tasks'
    yield Section(title, function, inputs[function])


def _with_groups(sections: Sequence[Section]) -> Iterator[Section]:
  """Each section, followed by those of the groups among its keys that were not shown yet."""
  shown, waiting = set(), list(sections)
  while waiting:
    section = waiting.pop(0)
    yield section
    found = []
    for key, group in _groups(section):
      if group not in shown:
        shown.add(group)
        found.append(Section(_group_title(section, key), group))
    # The groups of a model come after all models, which share them.
    model = section.title.startswith('config.model of')
    waiting = [*waiting, *found] if model else [*found, *waiting]


def _group_title(section: Section, key: str) -> str:
  start = 'config.model' if section.title.startswith('config.model of') else section.title
  return f'{start}.{key}'


def _groups(section: Section) -> Iterator[tuple[str, type]]:
  hints = config_lib.type_hints(section.target)
  for name in config_lib.arguments(section.target, injected=section.hidden):
    hint = hints.get(name)
    if dataclasses.is_dataclass(hint):
      yield name, hint


def keys(section: Section) -> list[Key]:
  """The rows of a section's table; a key that is a group of keys links to its own."""
  hints = config_lib.type_hints(section.target)
  meanings = dict(_meanings(section.target))
  for name, _ in _groups(section):
    title = _group_title(section, name)
    meanings[name] = f'keys of [{title}](#{re.sub("[^a-z0-9_]", "", title)})'
  defaults = config_lib.arguments(section.target, injected=section.hidden)
  return [
    Key(name, takes(hints.get(name, Any)), _spell_default(default), meanings.get(name, ''))
    for name, default in defaults.items()
  ]


def _meanings(target: Callable[..., Any]) -> Iterator[tuple[str, str]]:
  """`(argument, description)` from the docstring of a function, or of a class and its bases."""
  classes = reversed(target.__mro__[:-1]) if inspect.isclass(target) else (target,)
  for documented in classes:
    text = inspect.cleandoc(documented.__doc__ or '')
    for entry in docstring_parser.google.parse(text).params:
      for name in entry.arg_name.split(', '):
        yield name, ' '.join((entry.description or '').split())


def takes(hint: Any) -> str:
  """The type of a key in words, with its range."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    allowed = [str(a) for a in hint.__metadata__ if isinstance(a, Range)]
    return ', '.join([takes(args[0]), *allowed])
  if origin is typing.Literal:
    return ', '.join(f'`{value!r}`' for value in args)
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(map(takes, args))
  if origin is tuple and args and args[-1] is not Ellipsis:
    same = len(args) > 1 and len(set(args)) == 1
    return f'{len(args)} × ({takes(args[0])})' if same else f'({"; ".join(map(takes, args))})'
  if origin in (tuple, list, Sequence):
    return f'list of ({takes(args[0])})' if _long(args[0]) else f'list of {takes(args[0])}'
  if origin in (dict, Mapping) or hint in (dict, Mapping) or dataclasses.is_dataclass(hint):
    return 'group'
  if hint is type(None):
    return '`none`'
  return 'any' if hint is Any else getattr(hint, '__name__', str(hint))


def _long(hint: Any) -> bool:
  return typing.get_origin(hint) is not None


def _spell_default(default: Any) -> str:
  if default is inspect.Parameter.empty:
    return 'required'
  if default is None:
    return '`none`'
  return 'group' if dataclasses.is_dataclass(default) else f'`{default!r}`'


def table(rows: Sequence[Key]) -> str:
  """A Markdown table; a sentence if there are no keys."""
  if not rows:
    return 'No keys other than `scale`.\n'
  lines = [('key', 'takes', 'default', 'meaning'), ('---',) * 4]
  lines += [(f'`{row.name}`', row.takes, row.default, row.meaning) for row in rows]
  cells = [[cell.replace('|', r'\|') for cell in line] for line in lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in cells) + '\n'


def undocumented() -> list[str]:
  """Keys without a description."""
  sections = itertools.chain.from_iterable(_with_groups(s) for _, _, s in _chapters())
  return [
    f'{section.title}: {key.name}'
    for section in sections
    for key in keys(section)
    if not key.meaning
  ]


if __name__ == '__main__':
  sys.stdout.write(page())
