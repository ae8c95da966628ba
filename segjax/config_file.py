"""Writes config files that read as if a person had written them: what `segjax new` leaves behind.

A config is nested dicts, one for each group. A `Note` around a value puts a comment above it, and a
`Code` is an expression, such as the name of a constant of the file.
"""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.recipes import Note

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Code:
  """An expression that stands in the file as it is."""

  text: str


def render(
  config: Mapping[str, Any],
  *,
  title: str,
  paragraphs: Sequence[str] = (),
  commands: Sequence[str] = (),
  constants: Mapping[str, Any] | None = None,
) -> str:
  """The source of a config file, as `ruff format` would leave it.

  Any text may come from a data set: what could end a comment or the docstring is escaped.

  Args:
    config: groups by name, in the order of the file.
    title: first line of the docstring.
    paragraphs: of the docstring, wrapped.
    commands: shell commands at the end of the docstring.
    constants: values by the names that `Code` may use, with a `Note` for a comment.
  """
  lines = _docstring(title, paragraphs, commands)
  lines += ['', 'import ml_collections', '']
  for name, value in (constants or {}).items():
    lines += _assignment(name, value, 0)
  lines += [''] * bool(constants) + ['', 'def get_config() -> ml_collections.ConfigDict:']
  lines += ['  config = ml_collections.ConfigDict()']
  for name, value in config.items():
    lines += _assignment(f'config.{name}', value, 2)
  return '\n'.join([*lines, '  return config', ''])


def printable(text: str) -> str:
  """`text` on one line, its control characters escaped."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def _docstring(title: str, paragraphs: Sequence[str], commands: Sequence[str]) -> list[str]:
  parts = [_wrap(printable(title), 0, _WIDTH - 3)]
  parts += [_wrap(printable(text), 0) for text in paragraphs]
  parts += [[f'  {printable(command)}' for command in commands]] * bool(commands)
  text = '\n\n'.join('\n'.join(part) for part in parts)
  text = text.replace('\\', '\\\\').replace('"""', '\\"\\"\\"')
  alone = '\n' not in text and not text.endswith('"')
  return [f'"""{text}"""'] if alone else [*f'"""{text}'.split('\n'), '"""']


def _wrap(text: str, indent: int, width: int = _WIDTH) -> list[str]:
  return textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False) or ['']


def _comment(text: str, indent: int) -> list[str]:
  return [f'{" " * indent}# {line}' for line in _wrap(printable(text), indent + 2)]


def _assignment(target: str, value: Any, indent: int) -> list[str]:
  comment, value = _split(value)
  lines = _comment(comment, indent) if comment else []
  return lines + _value(f'{" " * indent}{target} = ', value, '', indent)


def _split(value: Any) -> tuple[str, Any]:
  return (value.why, value.value) if isinstance(value, Note) else ('', value)


def _value(before: str, value: Any, after: str, indent: int) -> list[str]:
  """Lines of a value between two texts: one if it fits, else an item each."""
  flat = _flat(value)
  if flat is not None and len(before) + len(flat) + len(after) <= _WIDTH:
    return [before + flat + after]
  inner = ' ' * (indent + 2)
  if isinstance(value, Mapping):
    lines = [before + '{']
    for key, item in value.items():
      comment, item = _split(item)
      lines += _comment(comment, indent + 2) if comment else []
      lines += _value(f'{inner}{key!r}: ', item, ',', indent + 2)
    return [*lines, ' ' * indent + '}' + after]
  if isinstance(value, tuple | list):
    lines = [before + '(']
    for item in value:
      lines += _value(inner, item, ',', indent + 2)
    return [*lines, ' ' * indent + ')' + after]
  return [before + _scalar(value) + after]


def _flat(value: Any) -> str | None:
  """A value on one line; None where a comment stands in the way."""
  if isinstance(value, Note):
    return None
  if isinstance(value, Code) or not isinstance(value, Mapping | tuple | list):
    return _scalar(value)
  items = value.values() if isinstance(value, Mapping) else value
  flat = [_flat(item) for item in items]
  if None in flat:
    return None
  if isinstance(value, Mapping):
    pairs = (f'{key!r}: {item}' for key, item in zip(value, flat, strict=True))
    return '{' + ', '.join(pairs) + '}'
  return '(' + ', '.join(flat) + (',)' if len(flat) == 1 else ')')


def _scalar(value: Any) -> str:
  if isinstance(value, Code):
    return value.text
  if isinstance(value, bool) or not isinstance(value, int):
    return repr(value)
  return f'{value:_}' if abs(value) >= 10_000 else str(value)
