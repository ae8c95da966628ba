"""Finds the class or function that a config names: one of segjax, or one of the user's own.

A name is `module.attribute` or `path/file.py:attribute`. A module is looked up in the package of
segjax for its kind, if there is one, on Python's path, and in the working directory.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from segjax import storage
from segjax.types import SegjaxError, nearest

_FILE = re.compile(r'(?P<path>.+\.py):(?P<attribute>\w+)')


def is_file(name: str) -> bool:
  """Whether a name is `path/file.py:attribute`."""
  return bool(_FILE.fullmatch(name))


def locate(name: str, where: str, package: str | None = None) -> Any:
  """The class or function of this name.

  Args:
    name: `'unet.UNet'` in `package`, `'my_package.my_module.MyNet'`, or `'my_file.py:MyNet'`.
    where: the config key, for errors.
    package: where a module is looked up first, such as `'segjax.models'`.

  Raises:
    SegjaxError: there is nothing of that name, or importing its module fails.
  """
  if file := _FILE.fullmatch(name):
    path, attribute = file.groups()
    try:
      module = _import_file(storage.absolute(storage.user_path(path)))
    except Exception as e:
      raise _failed(path, where, e) from e
  else:
    path, _, attribute = name.rpartition('.')
    if not path:
      raise SegjaxError(f'{where}={name!r} needs a module and a name, as in module.{name}')
    module = _find_module(path, where, package)
  found = getattr(module, attribute, None)
  if callable(found):
    return found
  shown = path if file else module.__name__
  own = [
    name
    for name, value in vars(module).items()
    if callable(value) and getattr(value, '__module__', None) == module.__name__
  ]
  raise SegjaxError(f'{where}: {shown} has no {attribute}{nearest(attribute, own)}')


def failing(error: SegjaxError) -> Callable[..., Any]:
  """What stands for a function that a trained run had and that cannot be found here."""

  def fail(*args: Any, **kwargs: Any) -> Any:
    raise error

  return fail


def _find_module(name: str, where: str, package: str | None) -> ModuleType:
  for candidate in (f'{package}.{name}', name) if package else (name,):
    if module := _import(candidate, where):
      return module
  # The path gets the working directory only for a module that is there: any other directory in it
  # could be taken for the package of its name.
  top, here = name.partition('.')[0], os.getcwd()
  importlib.invalidate_caches()  # a file may be newer than the list of its directory
  spec = importlib.machinery.PathFinder.find_spec(top, [here])
  if here not in sys.path and spec is not None and spec.loader is not None:
    sys.path.append(here)
    if module := _import(name, where):
      return module
  folder = Path(importlib.import_module(package).__file__).parent if package else None
  known = [path.stem for path in folder.glob('[!_]*.py')] if folder else []
  hint = nearest(name, known)
  if 'did you mean' not in hint:
    hint = ': check the name, or add its directory to PYTHONPATH'
  raise SegjaxError(f'{where}: there is no module {name}{hint}')


def _import(name: str, where: str) -> ModuleType | None:
  """The module, None where there is none.

  Raises:
    SegjaxError: there is one, and importing it fails.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    # A missing import inside the module is an error of it.
    if e.name and (name == e.name or name.startswith(e.name + '.')):
      return None
    raise _failed(name, where, e) from e
  except Exception as e:
    raise _failed(name, where, e) from e


@functools.cache
def _import_file(path: Path) -> ModuleType:
  name = f'segjax_file_{path.stem}_{zlib.crc32(bytes(path))}'  # there may be two of the stem
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  return module


def _failed(module: str, where: str, error: Exception) -> SegjaxError:
  problem = f'{type(error).__name__}: {error}'
  return SegjaxError(f'{where}: cannot import {module} ({problem}): mend it, or name another')
