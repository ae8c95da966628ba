"""segjax in subprocesses."""

import os
import socket
import subprocess
import sys


def spawn(args, cache, **env):
  """`python -m segjax.main args`, with the cache directory of the test run."""
  env = {**os.environ, 'XDG_CACHE_HOME': str(cache), 'PYTHONUNBUFFERED': '1', **env}
  return subprocess.Popen(
    [sys.executable, '-m', 'segjax.main', *map(str, args)],
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )


def run_as_two(args, cache):
  """Two processes of two CPU devices each, to their end."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  four = 'device_count=4'
  assert four in os.environ['XLA_FLAGS']
  flags = {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(four, 'device_count=2')}
  processes = [
    spawn([*args, f'--distributed=127.0.0.1:{port},2,{i}'], cache, **flags) for i in (0, 1)
  ]
  for process in processes:
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 0, err
