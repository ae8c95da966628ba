import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from segjax.tables import launch, runs, spec
from segjax.types import SegjaxError


@pytest.fixture
def chains(table):
  jobs = runs.plan(table, runs.select(table, ['*.small']), [0, 1], [], lambda job: False)
  return runs.chains(table, jobs)


class FakeExecutor:
  """Records the arguments passed to submitit."""

  def __init__(self, folder, slurm_max_num_timeout):
    assert slurm_max_num_timeout > 10
    self.folder, self.parameters, self.jobs = folder, {}, []
    FakeExecutor.last = self

  def update_parameters(self, **parameters):
    if 'oops' in parameters:
      raise NameError('Unknown argument oops.\nKnown executors: slurm')
    # As in submitit, which asserts the types of what it knows for all executors.
    assert isinstance(parameters.get('mem_gb', 0), int), 'Parameter "mem_gb" expected type'
    self.parameters |= parameters

  def submit(self, function):
    self.jobs.append((function.command, self.parameters['timeout_min']))
    return types.SimpleNamespace(job_id=f'job{len(self.jobs)}')


@pytest.fixture
def submitit(monkeypatch):
  helpers = types.SimpleNamespace(DelayedSubmission=lambda function: function)
  fake = types.SimpleNamespace(AutoExecutor=FakeExecutor, helpers=helpers)
  monkeypatch.setitem(sys.modules, 'submitit', fake)
  monkeypatch.setitem(sys.modules, 'submitit.helpers', helpers)


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
  (first, _), (second, _) = FakeExecutor.last.jobs
  assert first == [
    *(sys.executable, '-m', 'segjax.main', 'table', str(table.folder)),
    *('--run', 'first.small', 'second.small'),
    *('--seeds=0', '--workdirs=w', '--json', '--config.data.source=raw'),
  ]
  assert '--seeds=1' in second
  assert messages[0].startswith('first.small.seed0, second.small.seed0: job job1, output in w')


def test_workdirs_in_a_bucket(table, chains, submitit, monkeypatch):
  monkeypatch.setattr(launch.storage, 'is_bucket', lambda path: str(path).startswith('gs:'))
  launch.submit(table, chains, Path('gs:/bucket/w'), [], [], lambda message: None)
  assert FakeExecutor.last.folder == Path('runs/tiny_table1/jobs')
  assert '--workdirs=gs:/bucket/w' in FakeExecutor.last.jobs[0][0]


def test_a_time_limit_from_the_hours_of_the_recipes(folder, submitit):
  text = (folder / 'table.toml').read_text()
  (folder / 'table.toml').write_text(text.replace("cost = 'seconds.'", "cost = ''\nhours = 0.51"))
  table = spec.read_table(folder)
  jobs = runs.plan(table, table.entries.values(), [0], [], lambda job: False)
  launch.submit(table, runs.chains(table, jobs), Path('w'), [], [], lambda message: None)
  limits = {command[6]: minutes for command, minutes in FakeExecutor.last.jobs}
  assert limits == {'first.small': 62, 'first.measured': 24 * 60}, 'two rows share the first job'


# A command that takes a while to save, and says how often it was told to.
SAVES = """
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
pathlib.Path('ready.tmp').write_text(str(os.getppid()))
os.rename('ready.tmp', 'ready')
while not told:
  time.sleep(0.01)
time.sleep(0.3)
pathlib.Path('told').write_text(str(len(told)))
sys.exit(143)
"""


class Requeued(BaseException):
  """What submitit's handler of SIGUSR2 does: it ends the process, with the job requeued."""


@pytest.fixture
def job(submitit, tmp_path, monkeypatch):
  """A job that runs `SAVES`; SIGUSR2 checkpoints and requeues it, as submitit does."""
  monkeypatch.chdir(tmp_path)
  command = launch.Command([sys.executable, '-c', SAVES])

  def requeue(signum, frame):
    raise Requeued(command.checkpoint())

  old = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
  signal.signal(signal.SIGUSR2, requeue)
  yield command
  if command._process:
    command._process.wait()
  for signum, handler in old.items():
    signal.signal(signum, handler)


def send_when_ready(command, *signals):
  """Sends signals to this process and to that of the command, as Slurm does."""

  def send():
    while not Path('ready').exists():
      time.sleep(0.01)
    for signum in signals:
      os.kill(command._process.pid, signum)
      os.kill(os.getpid(), signum)
      time.sleep(0.05)

  threading.Thread(target=send).start()


@pytest.mark.parametrize('signals', [(signal.SIGUSR2,), (signal.SIGTERM, signal.SIGUSR2)])
def test_a_requeued_job_saves_first_and_is_told_once(job, signals):
  send_when_ready(job, *signals)
  with pytest.raises(Requeued) as requeued:
    job()
  assert Path('told').read_text() == '1'
  [again] = requeued.value.args
  assert again is not job and again.command == job.command


@pytest.mark.parametrize(
  ('state', 'error', 'value'), [('RUNNING', Requeued, None), ('CANCELLED', SystemExit, 143)]
)
def test_a_preempted_job_is_requeued_and_a_cancelled_one_is_not(
  job, monkeypatch, state, error, value
):
  squeue = Path('squeue').absolute()
  squeue.write_text(f'#!/bin/sh\n[ "$3" = --jobs=17 ] && echo {state}\n')
  squeue.chmod(0o755)
  monkeypatch.setenv('PATH', f'{squeue.parent}:{os.environ["PATH"]}')
  monkeypatch.setenv('SLURM_JOB_ID', '17')
  send_when_ready(job, signal.SIGTERM)
  with pytest.raises(error) as ended:
    job()
  assert Path('told').read_text() == '1'
  assert value is None or ended.value.code == value


@pytest.mark.parametrize(('code', 'status'), [('', None), ('exit 5', 5), ('kill -9 $$', 137)])
def test_other_ends_of_a_job(job, code, status):
  command = launch.Command(['sh', '-c', code])
  if status is None:
    assert command() is None
    return
  with pytest.raises(SystemExit) as ended:
    command()
  assert ended.value.code == status


# In a process of its own: submitit configures logging, which closes files of pytest.
ON_THIS_HOST = f"""
import os, pathlib, signal, sys, time
import submitit
from segjax.tables import launch
once = {SAVES!r}.replace('told = []', "told = []\\nif pathlib.Path('told').exists(): sys.exit()")
executor = submitit.AutoExecutor(folder='jobs', cluster='local')
executor.update_parameters(timeout_min=5)
running = executor.submit(launch.Command([sys.executable, '-c', once]))
ready = pathlib.Path('ready')
while not ready.exists():
  time.sleep(0.01)
os.kill(int(ready.read_text()), signal.SIGUSR2)
assert running.result() is None
"""


def test_submitit_requeues_a_job_on_this_host(tmp_path):
  if importlib.util.find_spec('submitit') is None:
    pytest.skip('submitit is not installed: make setup')
  subprocess.run([sys.executable, '-c', ON_THIS_HOST], cwd=tmp_path, check=True)
  assert (tmp_path / 'told').read_text() == '1'


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ('oops=1', '^--launcher_option: Unknown argument oops: change it$'),
    ('mem_gb=32GB', '^--launcher_option: Parameter "mem_gb" expected type: change it$'),
    ('slurm_partition', '^--launcher_option slurm_partition must be KEY=VALUE$'),
    ('nodes=2', 'nodes=2: a row trains in one process'),
    ('slurm_nodes=2', 'slurm_nodes=2: a row trains in one process'),
    ('slurm_tasks_per_node=2', 'slurm_tasks_per_node=2: a row trains in one process'),
  ],
)
def test_options_that_are_one_sentence(table, chains, submitit, option, message):
  with pytest.raises(SegjaxError, match=message):
    launch.submit(table, chains, Path('w'), [], [option], print)


def test_without_submitit(table, chains, monkeypatch):
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
