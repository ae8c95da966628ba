"""Patterns of files such as `masks/{name}_mask` or `{split}/masks/{class}/{name}.png`.

  {name}    the image; it may have directories
  {split}   the split, one directory or a part of its name; it is the start of the image's name
  {class}   the name of a class: a file for each class of an image
  {object}  one of an image's objects: a file for each
A pattern without these is a directory: `masks` is `masks/{name}`. One without a suffix finds image
files of any format; `.jpg` finds `.JPG` too.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segjax.data import images
from segjax.types import SegjaxError, nearest

_PLACEHOLDER = re.compile(r'\{(.*?)\}')


class File(NamedTuple):
  """A file that a pattern found.

  Attributes:
    path: of the file.
    name: of its image, `/`-separated, with the split before it.
    label: the class, where the pattern has one.
    object: the object, where the pattern has one.
  """

  path: Path
  name: str
  label: str | None = None
  object: str | None = None


def keys(pattern: str) -> list[str]:
  """The placeholders of a pattern, in their order."""
  return _PLACEHOLDER.findall(pattern)


def check(pattern: str, allowed: Sequence[str], where: str) -> None:
  """Raises a SegjaxError that names the config key `where` if a pattern makes no sense."""
  found = keys(pattern)
  if wrong := [key for key in found if key not in allowed]:
    raise SegjaxError(f'{where}={pattern} has {{{wrong[0]}}}{nearest(wrong[0], allowed)}')
  if found and 'name' not in found:
    raise SegjaxError(f'{where}={pattern} needs {{name}}, the name of the image')


def is_directory(pattern: str) -> bool:
  """Whether a pattern is the path of a directory alone."""
  return not keys(pattern)


def base(pattern: str) -> str:
  """The directory that holds all files of a pattern: what is before the first placeholder."""
  if is_directory(pattern):
    return pattern
  before = pattern[: pattern.index('{')]
  return before.rpartition('/')[0] or ('/' if before.startswith('/') else '.')


def find(
  source: Path, pattern: str, classes: Sequence[str] = (), where: str = 'config.data.files'
) -> list[File]:
  """The files of a pattern, in the order of their names.

  Args:
    source: the directory that the pattern is relative to.
    pattern: see the module.
    classes: that `{class}` may be.
    where: the config key of the pattern, for errors.

  Raises:
    SegjaxError: the directory is missing, or a file is of a class that is not in `classes`.
  """
  root = source / base(pattern)
  if not root.is_dir():
    raise SegjaxError(f'{root} is not a directory: correct {where}, or config.data.source')
  rest = '{name}' if is_directory(pattern) else _after_base(pattern)
  known = _regex(rest, tuple(classes))
  any_class = _regex(rest, ()) if 'class' in keys(rest) else None
  found = []
  for path, relative in walk(root):
    if match := known.fullmatch(relative):
      found.append(_file(path, match))
    elif any_class and (match := any_class.fullmatch(relative)):
      raise SegjaxError(
        f'{path} is of class {match["class"]}, which config.data.files.classes does not list: add '
        'it, or move the file away'
      )
  return found


def _after_base(pattern: str) -> str:
  before = base(pattern)
  return pattern if before == '.' and not pattern.startswith('./') else pattern[len(before) + 1 :]


def walk(root: Path) -> Iterator[tuple[Path, str]]:
  """The image files below a directory, hidden ones aside, and their paths relative to it."""
  for path in images.walk(root):
    yield path, path.relative_to(root).as_posix()


@functools.lru_cache
def _regex(pattern: str, classes: tuple[str, ...]) -> re.Pattern[str]:
  """Of a path below the pattern's base; `classes` is empty for any."""
  longest_first = sorted(classes, key=len, reverse=True)
  any_part = '[^/]+'
  values = {
    'name': '.+',
    'split': any_part,
    'class': '|'.join(map(re.escape, longest_first)) or any_part,
    'object': any_part,
  }
  text, end, seen = '', 0, set()
  for match in _PLACEHOLDER.finditer(pattern):
    key = match[1]
    text += re.escape(pattern[end : match.start()])
    text += f'(?P={key})' if key in seen else f'(?P<{key}>{values[key]})'
    seen.add(key)
    end = match.end()
  last, suffix = pattern[end:], r'\.[^./]+'
  if last.lower().endswith(images.SUFFIXES):
    last, dot, format_ = last.rpartition('.')
    suffix = f'(?i:{re.escape(dot + format_)})'
  return re.compile(text + re.escape(last) + suffix)


def _file(path: Path, match: re.Match[str]) -> File:
  found = match.groupdict()
  name = found['name']
  if 'split' in found:
    name = f'{found["split"]}/{name}'
  return File(path, name, found.get('class'), found.get('object'))
