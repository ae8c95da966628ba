"""Test environment: warnings are errors, four CPU devices, no state of earlier runs.

Most of a test's time is compilation, and most of what it compiles runs once. So programs are
compiled without LLVM's optimization and by XLA's older emitters of fusions, which are faster, and
kept for the other processes of this run (xdist's workers, commands that tests spawn) in a directory
of the run. `SEGJAX_TEST_CACHE=<directory>` keeps them between runs instead, and the trained runs of
the command tests, by a digest of the code, for who runs one file again and again;
`SEGJAX_TEST_OPTIMIZED=1` compiles as for users, which `make test-all` does.
"""

import importlib.metadata
import os
import pathlib
import shutil
import tempfile

_FLAGS = ['--xla_force_host_platform_device_count=4']
if not os.environ.get('SEGJAX_TEST_OPTIMIZED'):
  _FLAGS.append('--xla_backend_optimization_level=0')
  # Later versions do not have the older emitters, and an unknown flag ends the process.
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    # But for programs that split the image height: see `tests/training/step_test.py`.
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
    # Each worker has one core.
    _FLAGS.append('--xla_cpu_parallel_codegen_split_count=1')
# Before anything imports JAX; an own XLA_FLAGS comes last, where it wins.
os.environ['XLA_FLAGS'] = ' '.join([*_FLAGS, os.environ.get('XLA_FLAGS', '')]).strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The workers of xdist inherit the directory of the process that started them.
_STARTED_HERE = 'PYTEST_XDIST_WORKER' not in os.environ
_KEPT = os.environ.get('SEGJAX_TEST_CACHE')
if _STARTED_HERE:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _KEPT or tempfile.mkdtemp(prefix='segjax-test-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import pytest  # noqa: E402

if os.environ.get('SEGJAX_TEST_OPTIMIZED'):
  from segjax.training import compile

  compile._ONCE_OPTIONS = compile._CPU_OPTIONS

ROOT = pathlib.Path(__file__).parent.parent


def pytest_unconfigure() -> None:
  if _STARTED_HERE and not _KEPT:
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
  """The checkout."""
  return ROOT


@pytest.fixture
def server(monkeypatch):
  """A local HTTP server of files; downloads do not wait between attempts or use a proxy."""
  import http_server

  from segjax import download

  monkeypatch.setattr(download, '_WAIT', 0.0)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  monkeypatch.delenv(download.OFFLINE, raising=False)
  with http_server.serve() as running:
    yield running
