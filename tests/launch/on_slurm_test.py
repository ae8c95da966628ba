"""Jobs on a real Slurm: stopped and requeued at random steps, they end as one that was not.

Runs where `SEGJAX_TEST_SLURM` is set, as `make test-slurm` does, for it starts Slurm's daemons.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import slurm_node
import tiny_table

from segjax.tables import results, spec
from segjax.workdir import Workdir

if not os.environ.get('SEGJAX_TEST_SLURM'):
  pytest.skip('starts Slurm on this machine: make test-slurm', allow_module_level=True)
if reason := slurm_node.missing():
  pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 120
# Long enough to be stopped in, with dropout and a checkpoint every 20 steps.
LONG = [
  *(f'--config.train.{key}' for key in ('checkpoint_every=20', 'eval_every=60', 'log_every=1')),
  '--config.model.dropout=0.3',
]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """The environment of Slurm's commands, with the data and programs of this test run."""
  folder = tmp_path_factory.mktemp('slurm')
  with slurm_node.running(folder) as environment, pytest.MonkeyPatch.context() as patch:
    # Two tasks of two devices.
    flags = environment['XLA_FLAGS'].replace('device_count=4', 'device_count=2')
    cache = str(tmp_path_factory.mktemp('cache'))
    for name, value in {**environment, 'XLA_FLAGS': flags, 'XDG_CACHE_HOME': cache}.items():
      patch.setenv(name, value)
    assert commands.run('data', 'prepare', 'scenes/tiny') == 0
    yield dict(os.environ)


def submit(workdir, capfd, *options):
  """The number of a job of two tasks that trains in `workdir`."""
  train = commands.train_args(workdir, *LONG, steps=STEPS)[1:]
  cluster = ('nodes=1', 'tasks_per_node=2', 'gpus_per_node=0', 'grace=30', 'hours=0.5', *options)
  capfd.readouterr()
  chosen = [word for option in cluster for word in ('--option', option)]
  assert commands.run('launch', '--cluster=slurm', *train, *chosen) == 0
  return re.search(r'Submitted batch job (\d+)', capfd.readouterr().out)[1]


def field(environment, job, name):
  text = slurm_node.query(environment, 'scontrol', 'show', 'job', job)
  return re.search(rf'\b{name}=(\S*)', text)[1]


def wait_for_state(environment, job, *states, seconds=300):
  end = time.monotonic() + seconds
  while (state := field(environment, job, 'JobState')) not in states:
    assert time.monotonic() < end, f'{job} is {state}, not {states}'
    time.sleep(0.2)
  return state


def wait_for_step(workdir, step, seconds=300):
  end = time.monotonic() + seconds
  log = workdir / 'metrics.jsonl'
  while not log.exists() or len(log.read_text().splitlines()) < step:
    assert time.monotonic() < end, f'{workdir} does not reach step {step}'
    time.sleep(0.02)


def finish(environment, job):
  """Waits for the end of a job, and returns its log and how often it was requeued."""
  state = wait_for_state(environment, job, 'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT')
  # submitit's files are named by the tasks.
  log = Path(field(environment, job, 'StdErr').replace('%t', '0')).read_text()
  assert state == 'COMPLETED', log
  return log, int(field(environment, job, 'Restarts'))


@pytest.fixture(scope='module')
def undisturbed(environment, tmp_path_factory, request):
  """The workdir of a run of two tasks that nobody stops."""
  folder = tmp_path_factory.mktemp('undisturbed')
  workdir = folder / 'run'
  train = commands.train_args(workdir, *LONG, steps=STEPS)[1:]
  options = ('tasks_per_node=2', 'gpus_per_node=0')
  chosen = [word for option in options for word in ('--option', option)]
  command = [sys.executable, '-m', 'segjax.main', 'launch', '--cluster=slurm', *train, *chosen]
  result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
  _, restarts = finish(environment, re.search(r'job (\d+)', result.stdout)[1])
  assert restarts == 0
  return workdir


def equal(workdir, other, capsys):
  ours, theirs = (commands.info(path, capsys) for path in (workdir, other))
  assert ours['step'] == theirs['step'] == STEPS
  return ours['parameters_sha256'] == theirs['parameters_sha256']


# Each stops a running job in its own way. All of its processes are told, or none.
STOPS = {
  'requeue': lambda job: ['scontrol', 'requeue', job],
  'time limit or preemption': lambda job: ['scancel', '--signal=TERM', job],
}


@pytest.mark.parametrize('how', STOPS)
def test_two_tasks_requeued_at_a_random_step(
  how, environment, undisturbed, tmp_path, monkeypatch, capfd
):
  monkeypatch.chdir(tmp_path)
  workdir, step = tmp_path / 'run', random.randrange(25, STEPS - 30)
  job = submit(workdir, capfd)
  wait_for_step(workdir, step)
  assert slurm_node.query(environment, *STOPS[how](job)) == ''
  log, restarts = finish(environment, job)
  assert restarts == 1, (step, log)
  assert re.search(r'resuming from step [1-9]', log), (step, log)
  if how != 'requeue':
    assert 'the state is saved' in log, (step, log)
  assert equal(workdir, undisturbed, capfd), (step, log)


def test_a_partition_of_higher_priority_preempts(
  environment, undisturbed, tmp_path, monkeypatch, capfd
):
  """Slurm sends SIGTERM, and SIGKILL after the partition's grace time."""
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / 'run'
  job = submit(workdir, capfd)
  wait_for_step(workdir, 30)
  urgent = ['sbatch', '--partition=high', '--exclusive', '--parsable', '--wrap=sleep 1']
  other = slurm_node.query(environment, *urgent)
  wait_for_state(environment, other, 'COMPLETED')
  log, restarts = finish(environment, job)
  assert restarts == 1 and 'the state is saved' in log, log
  assert equal(workdir, undisturbed, capfd), log


def test_a_cancelled_job_is_not_requeued(environment, tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  job = submit(tmp_path / 'run', capfd)
  wait_for_step(tmp_path / 'run', 20)
  slurm_node.query(environment, 'scancel', job)
  assert wait_for_state(environment, job, 'CANCELLED', 'PENDING', 'COMPLETED') == 'CANCELLED'
  time.sleep(3)
  assert field(environment, job, 'JobState') == 'CANCELLED'


def test_a_mistake_fails_and_is_not_requeued(environment, tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run').write_text('a file in place of the workdir')
  job = submit(tmp_path / 'run', capfd)
  assert wait_for_state(environment, job, 'FAILED', 'COMPLETED') == 'FAILED'
  assert (field(environment, job, 'ExitCode'), field(environment, job, 'Restarts')) == ('2:0', '0')


def test_a_mistake_of_one_task_is_not_requeued(environment, tmp_path, monkeypatch, capfd):
  """The first one cannot lock the workdir; the other one ends with its exit code."""
  monkeypatch.chdir(tmp_path)
  workdir = Workdir(tmp_path / 'run')
  with workdir.lock():
    job = submit(workdir.path, capfd)
    assert wait_for_state(environment, job, 'FAILED', 'COMPLETED') == 'FAILED'
  assert (field(environment, job, 'ExitCode'), field(environment, job, 'Restarts')) == ('2:0', '0')


def process_of(job, task):
  """The number of the process that trains as a task of a job."""
  wanted = {f'SLURM_JOB_ID={job}'.encode(), f'SLURM_PROCID={task}'.encode()}
  for directory in Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      found = (directory / 'environ').read_bytes().split(b'\0')
      if wanted <= set(found) and b'segjax' in (directory / 'cmdline').read_bytes():
        return int(directory.name)
  raise AssertionError(f'task {task} of job {job} does not run')


def test_a_job_of_which_a_task_is_killed_is_requeued(
  environment, undisturbed, tmp_path, monkeypatch, capfd
):
  """As one that is lost: the other one misses it, and `srun` returns the status of the first."""
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / 'run'
  job = submit(workdir, capfd)
  wait_for_step(workdir, 30)
  os.kill(process_of(job, 1), signal.SIGKILL)
  log, restarts = finish(environment, job)
  assert restarts == 1 and 'resuming from step 20' in log, log
  assert equal(workdir, undisturbed, capfd), log


@pytest.mark.parametrize('tasks', [1, 8])
def test_scripts_for_a_node_with_gpus_are_accepted(tasks, environment, capfd):
  train = ['--config=mask_rcnn/coco_r50_fpn', '--workdir=runs/coco']
  options = ['--option', f'tasks_per_node={tasks}', '--dry-run']
  assert commands.run('launch', '--cluster=slurm', *train, *options) == 0
  text = capfd.readouterr().out
  assert '#SBATCH --gpus-per-node=8' in text
  accepted = ['sbatch', '--test-only']
  result = subprocess.run(accepted, env=environment, input=text, capture_output=True, text=True)
  assert result.returncode == 0 and f'using {tasks} processors' in result.stderr, result.stderr


@pytest.mark.parametrize('signal', ['USR2', 'TERM'])
def test_a_row_of_a_table_is_preempted_and_recorded(signal, environment, tmp_path, monkeypatch):
  """submitit requeues at SIGUSR2, of a time limit or a preemption."""
  monkeypatch.chdir(tmp_path)
  folder = tiny_table.write_table(tmp_path)
  config = tmp_path / 'configs/tiny/small.py'
  text = config.read_text()
  for old, new in {'steps': STEPS, 'eval_every': 60, 'checkpoint_every': 60}.items():
    text, count = re.subn(rf"'{old}': \d+", f"'{old}': {new}", text)
    assert count == 1
  config.write_text(text)
  # In a process of its own: submitit configures logging, which closes files of pytest.
  command = [sys.executable, '-m', 'segjax.main', 'table', str(folder), '--run', 'first.small']
  command += ['--launcher=submitit', '--workdirs=runs']
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  job = re.search(r'job (\d+), output in runs/jobs', result.stderr)[1]
  assert field(environment, job, 'TimeLimit') == '1-00:00:00'
  wait_for_step(tmp_path / 'runs/first.small.seed0', 20)
  slurm_node.query(environment, 'scancel', f'--signal={signal}', job)
  log, restarts = finish(environment, job)
  assert restarts == 1 and 'the state is saved' in log, log
  [record] = results.read_results(spec.read_table(folder))
  assert (record.row, record.steps) == ('first', STEPS)
