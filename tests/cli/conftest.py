"""One small training run per task, shared by all tests of the commands."""

import commands
import pytest

from segjax.training import compile
from segjax.training.log import RunLog


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


def trained(tmp_path_factory, task, *args, **kwargs):
  workdir = tmp_path_factory.mktemp('runs') / task
  entries = COMPILED[workdir] = []
  scalars = RunLog.scalars

  def counted(self, step, split, values):
    scalars(self, step, split, values)
    entries.append((step, split, compile.compilations().programs))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(RunLog, 'scalars', counted)
    assert commands.train(workdir, *args, task=task, **kwargs) == 0
  return workdir


@pytest.fixture
def compiled():
  """`compiled(workdir)`: what `COMPILED` has of the run of a fixture."""
  return COMPILED.__getitem__


@pytest.fixture(scope='session')
def semantic_run(tmp_path_factory, cache):
  """The workdir of a trained U-Net; read-only."""
  return trained(tmp_path_factory, 'semantic', steps=4)


@pytest.fixture(scope='session')
def instance_run(tmp_path_factory, cache):
  """The workdir of a trained Mask R-CNN; read-only."""
  return trained(tmp_path_factory, 'instance')


@pytest.fixture(scope='session')
def panoptic_run(tmp_path_factory, cache):
  """The workdir of a Panoptic FPN, trained long enough to find the sky; read-only."""
  longer = [f'--config.train.{key}=40' for key in ('eval_every', 'checkpoint_every')]
  # Not 1/2, which the covered part of small masks often is exactly: then rounding would decide.
  other = ['--config.optim.learning_rate=0.01', '--config.eval.overlap_threshold=0.55']
  return trained(tmp_path_factory, 'panoptic', *longer, *other, steps=40)
