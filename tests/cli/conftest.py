"""One small training run per task, shared by all tests of the commands."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil

import commands
import pytest

from segjax.data import datasets
from segjax.training import compile
from segjax.training.log import RunLog

ROOT = pathlib.Path(__file__).parent.parent.parent


def code_digest():
  """Of what decides how a run of a fixture ends."""
  packages = (f'{one.name}=={one.version}' for one in importlib.metadata.distributions())
  found = hashlib.sha256('\n'.join([os.environ['XLA_FLAGS'], *sorted(packages)]).encode())
  files = [
    *ROOT.glob('segjax/**/*.py'),
    *ROOT.glob('configs/**/*.py'),
    *ROOT.glob('tests/helpers/*'),
  ]
  for path in sorted({*files, pathlib.Path(__file__)}):
    if path.is_file():
      found.update(path.read_bytes())
  return found.hexdigest()[:16]


# When the code is imported, which may be edited while the tests run.
_DIGEST = code_digest()


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  """Prepared data and compiled programs of this test run, separate from the user's."""
  path = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path))
    patch.delenv('SEGJAX_DATA_DIR', raising=False)
    yield path


# Workdir -> (step, split, programs compiled until then) of each entry of its log.
COMPILED = {}


@pytest.fixture(scope='session')
def kept(tmp_path_factory):
  """A directory of all workers and, with SEGJAX_TEST_CACHE, of all test runs of this code."""
  if cache := os.environ.get('SEGJAX_TEST_CACHE'):
    return pathlib.Path(cache) / f'runs-{_DIGEST}'
  base = tmp_path_factory.getbasetemp()
  return (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'kept'


def trained(tmp_path_factory, kept, task, *args, **kwargs):
  """A workdir of this worker: trained here, or a copy of what another one has trained."""
  workdir = tmp_path_factory.mktemp('runs') / task
  data, run = datasets.default_data_dir() / 'scenes/tiny', kept / task
  kept.mkdir(parents=True, exist_ok=True)
  with (kept / f'{task}.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not run.exists():
      entries = train_here(workdir, task, *args, **kwargs)
      part = kept / f'{task}.part'
      shutil.rmtree(part, ignore_errors=True)
      shutil.copytree(workdir, part / 'workdir')
      shutil.copytree(data, part / 'data')
      (part / 'compiled.json').write_text(json.dumps(entries))
      part.rename(run)
  if not workdir.exists():
    shutil.copytree(run / 'workdir', workdir)
    if not data.exists():
      shutil.copytree(run / 'data', data)
  COMPILED[workdir] = json.loads((run / 'compiled.json').read_text())
  return workdir


def train_here(workdir, task, *args, **kwargs):
  """Trains; returns the entries of `COMPILED`."""
  entries, scalars = [], RunLog.scalars

  def counted(self, step, split, values):
    scalars(self, step, split, values)
    entries.append((step, split, compile.compilations().programs))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(RunLog, 'scalars', counted)
    assert commands.train(workdir, *args, task=task, **kwargs) == 0
  return entries


@pytest.fixture
def compiled():
  """`compiled(workdir)`: what `COMPILED` has of the run of a fixture."""
  return COMPILED.__getitem__


@pytest.fixture(scope='session')
def semantic_run(tmp_path_factory, cache, kept):
  """The workdir of a trained U-Net; read-only."""
  return trained(tmp_path_factory, kept, 'semantic', steps=4)


@pytest.fixture(scope='session')
def instance_run(tmp_path_factory, cache, kept):
  """The workdir of a trained Mask R-CNN; read-only."""
  return trained(tmp_path_factory, kept, 'instance')


@pytest.fixture(scope='session')
def panoptic_run(tmp_path_factory, cache, kept):
  """The workdir of a Panoptic FPN, trained long enough to find the sky; read-only."""
  longer = [f'--config.train.{key}=40' for key in ('eval_every', 'checkpoint_every')]
  # Not 1/2, which the covered part of small masks often is exactly: then rounding would decide.
  other = ['--config.optim.learning_rate=0.01', '--config.eval.overlap_threshold=0.55']
  return trained(tmp_path_factory, kept, 'panoptic', *longer, *other, steps=40)
