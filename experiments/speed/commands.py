"""`segjax` as users start it: in a fresh process."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def environment(cache: Path | None = None) -> dict[str, str]:
  """This process's, with the package of this checkout and a directory of compiled programs."""
  found = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
  if cache is not None:
    found['JAX_COMPILATION_CACHE_DIR'] = str(cache)
  return found


def segjax(*args: str, env: Mapping[str, str] | None = None) -> str:
  """Runs a command to its end; returns what it writes.

  Raises:
    RuntimeError: it failed.
  """
  done = subprocess.run(
    line(*args),
    env=env or environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f'segjax {args[0]} failed: {done.stdout[-1000:]}')
  return done.stdout


def line(*args: str) -> list[str]:
  """The command line."""
  return [sys.executable, '-m', 'segjax.main', *args]


def train_arguments(
  config: str, workdir: Path, data: Path, overrides: Mapping[str, object]
) -> list[str]:
  """Of `segjax train` with a shipped config on prepared scenes."""
  given = {'data.dir': data, **overrides}
  return [
    'train',
    f'--config={ROOT / "configs" / config}.py',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in given.items()),
  ]


def scratch() -> Path:
  """A new directory, which is removed when this process ends."""
  path = Path(tempfile.mkdtemp(prefix='segjax-speed-'))
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  return path
