"""Several processes of one program on this machine, which find each other by `jax.distributed`."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Sequence

_TIMEOUT = 1800


def run(command: Callable[[str, int], Sequence[str]], processes: int, devices: int) -> None:
  """Runs processes to their end.

  Args:
    command: `(address, index) -> the command line of a process`.
    processes: their number.
    devices: CPU devices of each.

  Raises:
    RuntimeError: one failed.
  """
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  flags = re.sub(r'device_count=\d+', f'device_count={devices}', os.environ['XLA_FLAGS'])
  started = [
    subprocess.Popen(
      command(address, index),
      env={**os.environ, 'XLA_FLAGS': flags},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(processes)
  ]
  errors = [process.communicate(timeout=_TIMEOUT)[1] for process in started]
  for process, error in zip(started, errors, strict=True):
    if process.returncode:
      raise RuntimeError(error)
