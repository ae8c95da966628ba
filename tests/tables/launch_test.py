import sys
import types
from pathlib import Path

import pytest

from segjax.tables import launch, runs
from segjax.types import SegjaxError


@pytest.fixture
def chains(table):
  jobs = runs.plan(table, runs.select(table, ['*.small']), [0, 1], [], lambda job: False)
  return runs.chains(table, jobs)


class FakeExecutor:
  """Records the arguments passed to submitit."""

  def __init__(self, folder):
    self.folder, self.parameters, self.jobs = folder, {}, []
    FakeExecutor.last = self

  def update_parameters(self, **parameters):
    if 'oops' in parameters:
      raise NameError('Unknown argument oops')
    self.parameters |= parameters

  def submit(self, function):
    self.jobs.append(function)
    return types.SimpleNamespace(job_id=f'job{len(self.jobs)}')


@pytest.fixture
def submitit(monkeypatch):
  helpers = types.SimpleNamespace(CommandFunction=lambda command: command)
  fake = types.SimpleNamespace(AutoExecutor=FakeExecutor, helpers=helpers)
  monkeypatch.setitem(sys.modules, 'submitit', fake)


def test_a_job_for_each_chain(table, chains, submitit):
  messages = []
  options = ['timeout_min=600', 'slurm_partition=gpu']
  arguments = ['--config.data.source=raw']
  launch.submit(table, chains, Path('w'), arguments, options, messages.append)
  assert FakeExecutor.last.parameters == {
    'name': 'tiny_table1',
    'timeout_min': 600,
    'slurm_partition': 'gpu',
  }
  first, second = FakeExecutor.last.jobs
  assert first == [
    *(sys.executable, '-m', 'segjax.main', 'table', str(table.folder)),
    *('--run', 'first.small', 'second.small'),
    *('--seeds=0', '--workdirs=w', '--json', '--config.data.source=raw'),
  ]
  assert '--seeds=1' in second
  assert messages[0].startswith('first.small.seed0, second.small.seed0: job job1, output in w')


def test_without_submitit_or_with_an_unknown_option(table, chains, submitit, monkeypatch):
  with pytest.raises(SegjaxError, match='Unknown argument oops'):
    launch.submit(table, chains, Path('w'), [], ['oops=1'], print)
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(SegjaxError, match=r"pip install 'segjax\[cluster\]'"):
    launch.submit(table, chains, Path('w'), [], [], print)


def test_script(table):
  script = table.folder / 'measure.py'
  with pytest.raises(SegjaxError, match='tiny_table1/measure.py failed with exit code 3'):
    launch.run_script(table, script)
  script.write_text("import pathlib; pathlib.Path('done').write_text('yes')")
  launch.run_script(table, script)
  assert (table.root / 'done').read_text() == 'yes'
