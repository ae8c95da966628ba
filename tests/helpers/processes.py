"""segjax in subprocesses."""

import os
import socket
import subprocess
import sys

PROGRAM = (sys.executable, '-m', 'segjax.main')


def spawn(args, cache, program=PROGRAM, **env):
  """`segjax args`, or another program, with the cache directory of the test run."""
  env = {**os.environ, 'XDG_CACHE_HOME': str(cache), 'PYTHONUNBUFFERED': '1', **env}
  return subprocess.Popen(
    [*map(str, program), *map(str, args)],
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_two(args, cache, each=((), ()), program=PROGRAM):
  """Two processes of two CPU devices each; `each` has arguments of the one and of the other."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  four = 'device_count=4'
  assert four in os.environ['XLA_FLAGS']
  flags = {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(four, 'device_count=2')}
  return [
    spawn([*args, *each[i], f'--distributed=127.0.0.1:{port},2,{i}'], cache, program, **flags)
    for i in (0, 1)
  ]


def run_as_two(args, cache):
  """Two processes of two CPU devices each, to their end."""
  for process in start_two(args, cache):
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 0, err
