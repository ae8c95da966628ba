"""The provenance of a result: code version and hardware."""

import contextlib
import datetime
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

import segjax

# What decides a result, as Git's patterns, whose * is any path.
_CODE = ('segjax', 'configs', 'experiments/*.py', 'experiments/*/table.toml')


def hardware() -> str:
  """The devices of this process, such as '8 x NVIDIA H100' or '1 x AMD EPYC (2 cores)'."""
  device, name, cores = jax.devices()[0], jax.devices()[0].device_kind, ''
  if device.platform == 'cpu':
    cores = f' ({os.cpu_count()} cores)'
    with contextlib.suppress(OSError):
      found = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())
      name = found[1] if found else name
  return f'{jax.device_count()} x {name}{cores}'


def versions() -> str:
  """Such as 'segjax 0.1.0, jax 0.6.0'."""
  return f'segjax {segjax.__version__}, jax {jax.__version__}'


def provenance() -> dict[str, Any]:
  """Time, commit, hardware and versions of this process, by field of `tables.results.Record`.

  Where Git cannot tell, as in a copy without its directory, the environment variable SEGJAX_COMMIT
  names the commit.
  """
  commit, dirty = code_version(Path(segjax.__file__).parent.parent)
  return {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'commit': commit or os.environ.get('SEGJAX_COMMIT') or None,
    'dirty': dirty,
    'hardware': hardware(),
    'versions': versions(),
  }


def code_version(checkout: Path) -> tuple[str | None, bool | None]:
  """The commit of a checkout, and whether its code or configs have uncommitted changes.

  Code is also what measures in `experiments`, not its results and pages.
  """

  def git(*args: str) -> str:
    command = ['git', '-C', str(checkout), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    if Path(git('rev-parse', '--show-toplevel')) != checkout.resolve():
      return None, None  # installed inside some other repository
    return git('rev-parse', 'HEAD'), bool(git('status', '--porcelain', '--', *_CODE))
  except (OSError, subprocess.CalledProcessError):
    return None, None
