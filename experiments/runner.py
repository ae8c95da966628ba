"""What pages that are measured row by row share: which rows, and a process for each."""

import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def chosen(names: Iterable[str], patterns: str) -> list[str]:
  """The names that match one of the comma-separated patterns, in their order.

  Raises:
    SystemExit: there is none.
  """
  found = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns.split(','))]
  if not found:
    raise SystemExit(f'--rows={patterns}: no such row, see --list')
  return found


def end_children() -> None:
  """From now on SIGTERM raises SystemExit, at which `run` ends what it runs."""
  signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def run(
  command: Sequence[str], *, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess:
  """`subprocess.run`, but what the process has started ends with it if this one is stopped.

  Args:
    command: the words.
    timeout: seconds, after which subprocess.TimeoutExpired is raised; or None.
    options: of `subprocess.Popen`.
  """
  with subprocess.Popen(command, start_new_session=True, **options) as process:
    try:
      out, error = process.communicate(timeout=timeout)
    except BaseException:
      os.killpg(process.pid, signal.SIGKILL)
      raise
  return subprocess.CompletedProcess(command, process.returncode, out, error)


def measure_alone(
  script: str | Path,
  arguments: Sequence[str],
  *,
  environment: Mapping[str, str] | None = None,
  timeout: float | None = None,
) -> Result:
  """What a Python script writes to `--result`, run in a process of its own.

  Args:
    script: its path.
    arguments: besides `--result`.
    environment: of the process; None for that of this one.
    timeout: seconds, or None.

  Returns:
    The result; or, if there is none, `error`, a sentence. What the process says is then printed.
  """
  with tempfile.TemporaryDirectory() as directory:
    out = Path(directory) / 'result.json'
    try:
      done = run(
        [sys.executable, str(script), *arguments, f'--result={out}'],
        env=None if environment is None else dict(environment),
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout,
      )
    except subprocess.TimeoutExpired as error:
      return {'error': f'not done after {error.timeout:.0f} s'}
    if out.exists():
      return json.loads(out.read_text())
  sys.stderr.write(done.stderr)
  lines = done.stderr.strip().splitlines() or ['']
  return {'error': f'exit code {done.returncode}: {lines[-1][:300]}'}
