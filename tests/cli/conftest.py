"""One small training for each task in a test run, which all tests of the commands share."""

import commands
import pytest

# Fixtures that train: the tests of one go to one process of pytest-xdist (`--dist loadgroup`).
TRAINED = ('panoptic_run', 'instance_run', 'semantic_run', 'filled')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
  if not config.pluginmanager.hasplugin('xdist'):
    return
  for item in items:
    used = [name for name in TRAINED if name in getattr(item, 'fixturenames', ())]
    if used:
      item.add_marker(pytest.mark.xdist_group(used[0]))


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  """Prepared data and compiled programs of this test run, apart from the user's own."""
  path = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path))
    patch.delenv('SEGJAX_DATA_DIR', raising=False)
    yield path


def trained(tmp_path_factory, task, *args, **kwargs):
  workdir = tmp_path_factory.mktemp('runs') / task
  assert commands.train(workdir, *args, task=task, **kwargs) == 0
  return workdir


@pytest.fixture(scope='session')
def semantic_run(tmp_path_factory, cache):
  """The workdir of a trained U-Net; not to be changed."""
  return trained(tmp_path_factory, 'semantic', steps=4)


@pytest.fixture(scope='session')
def instance_run(tmp_path_factory, cache):
  """The workdir of a trained Mask R-CNN; not to be changed."""
  return trained(tmp_path_factory, 'instance')


@pytest.fixture(scope='session')
def panoptic_run(tmp_path_factory, cache):
  """The workdir of a trained Panoptic FPN, long enough to find the sky; not to be changed."""
  longer = [f'--config.train.{key}=40' for key in ('eval_every', 'checkpoint_every')]
  rate = '--config.optim.learning_rate=0.01'
  return trained(tmp_path_factory, 'panoptic', *longer, rate, steps=40)
