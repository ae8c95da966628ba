"""Files that come with segjax: the configs, and the papers' tables with their results.

They are `configs/` and `experiments/` of the repository. A wheel has them inside the package, as
`segjax/configs/` and `segjax/experiments/`; a checkout, also one that is installed with
`pip install -e`, has them next to it.
"""

import difflib
import importlib.resources
from pathlib import Path

from segjax import storage
from segjax.types import SegjaxError


def directory(name: str) -> Path:
  """The directory `configs` or `experiments`."""
  package = _package()
  installed = package / name
  return installed if installed.is_dir() else package.parent / name


def is_installed(path: Path) -> bool:
  """Whether a file or directory is part of an installed package, which pip owns."""
  return path.resolve().is_relative_to(_package().resolve())


def _package() -> Path:
  return Path(str(importlib.resources.files('segjax')))


def list_configs() -> list[str]:
  """The names of the configs, such as 'unet/scenes', sorted."""
  root = directory('configs')
  return sorted(p.relative_to(root).with_suffix('').as_posix() for p in root.glob('*/*.py'))


def table_dirs() -> list[Path]:
  """The directories of the papers' tables, sorted by name."""
  return sorted(p.parent for p in directory('experiments').glob('*/table.toml'))


def config_path(name: str) -> Path:
  """The file of a config.

  Args:
    name: a path, or the name of a config that comes with segjax: 'unet/scenes', 'unet/scenes.py',
      and, as in the repository, 'configs/unet/scenes.py'. A path to a file comes first.

  Raises:
    SegjaxError: there is no such file; the sentence names the nearest config.
  """
  path = storage.user_path(name)
  if path.is_file():
    return path
  short = name.removeprefix('./').removeprefix('configs/').removesuffix('.py')
  known = list_configs()
  if short in known:
    return directory('configs') / f'{short}.py'
  if close := difflib.get_close_matches(short, known, n=1):
    raise SegjaxError(f'no config file {name}: did you mean {close[0]}?')
  raise SegjaxError(
    f'no config file {name}: set --config to a path, or to a name that `segjax list configs` prints'
  )
