"""Runs jobs of a table outside of this process: scripts, and jobs on a cluster."""

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from segjax import config as config_lib
from segjax import storage
from segjax.tables.runs import Job
from segjax.tables.spec import Table
from segjax.types import SegjaxError

# Exit codes of a command that was asked to stop: by its training, which saved, or before it.
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
# Time limits that a job may reach; each time, it has trained for as long.
_TIMEOUTS = 100
# Options that would start several processes of a job, and the workdir of a row is locked by one.
_SEVERAL = (
  *('nodes', 'slurm_nodes'),
  *('tasks_per_node', 'slurm_tasks_per_node', 'slurm_ntasks_per_node'),
)
# Ignored signals stay so in the command that takes the shell's place.
_IGNORE = ('sh', '-c', 'trap "" USR1 USR2; exec "$@"', 'sh')


def run_script(table: Table, script: Path) -> None:
  """Runs a script that measures its rows and records them.

  Raises:
    SegjaxError: it failed.
  """
  command, stderr = [sys.executable, str(script)], 2  # the standard output is the table's
  status = subprocess.run(command, cwd=table.root, stdout=stderr, check=False).returncode
  if status:
    raise SegjaxError(f'{script.relative_to(table.root)} failed with exit code {status}: see above')


def chain_command(
  table: Table, chain: Sequence[Job], workdirs: Path, arguments: Iterable[str]
) -> list[str]:
  """The command line that runs a chain of jobs sequentially in its own process."""
  names = [job.entry.name for job in chain]
  seeds = [] if chain[0].seed is None else [f'--seeds={chain[0].seed}']
  return [
    *(sys.executable, '-m', 'segjax.main', 'table', str(table.folder)),
    *('--run', *names),
    *(*seeds, f'--workdirs={workdirs}', '--json', *arguments),
  ]


class Command:
  """A command as a job of submitit, which requeues it when its time is over or it is preempted.

  Slurm sends a signal to all processes of a job: SIGUSR2 (SIGUSR1 of older versions of submitit)
  before the time limit, SIGTERM before a preemption. The first is for submitit, and the command
  ignores it; the second tells the command to save.
  """

  def __init__(self, command: Sequence[str]):
    self.command = list(command)
    self._process: subprocess.Popen[bytes] | None = None
    self._told = False

  def __call__(self) -> None:
    """Runs the command.

    Raises:
      SystemExit: it failed, or it stopped and Slurm does not requeue the job.
    """
    self._told = False
    signal.signal(signal.SIGTERM, self._note)
    self._process = subprocess.Popen([*_IGNORE, *self.command])
    status = self._process.wait()
    if status in _STOPPED and _is_running():
      signal.raise_signal(_requeue_signal())  # submitit calls `checkpoint`, and ends this process
    if status:
      sys.exit(128 - status if status < 0 else status)

  def _note(self, signum: int, frame: FrameType | None) -> None:
    """Slurm told the command itself."""
    del signum, frame
    self._told = True

  def checkpoint(self) -> Any:
    """Stops the command, after it has saved; returns what submitit runs next."""
    from submitit.helpers import DelayedSubmission

    if self._process is not None:
      with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended
        if not self._told:  # a second signal would end it before it has saved
          os.kill(self._process.pid, signal.SIGTERM)
        # Not `wait()`, which this signal may have interrupted, so that it holds its lock.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
    return DelayedSubmission(Command(self.command))


def _requeue_signal() -> signal.Signals:
  """The signal by which submitit requeues a job."""
  return signal.Signals[f'SIG{os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")}']


def _is_running() -> bool:
  """Whether Slurm goes on with this job: it sends SIGTERM where a user cancels one, too."""
  command = ['squeue', '--noheader', '--format=%T', f'--jobs={os.environ.get("SLURM_JOB_ID")}']
  try:
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
  except OSError:  # no Slurm
    return False
  return state == 'RUNNING'


def _parse_option(text: str) -> tuple[str, Any]:
  """A parameter of submitit from 'KEY=VALUE'."""
  key, equals, value = text.partition('=')
  if not equals:
    raise SegjaxError(f'--launcher_option {text} must be KEY=VALUE')
  return key, config_lib.parse_value(value)


def limit_minutes(table: Table, chain: Iterable[Job]) -> int:
  """The time limit of a chain of jobs, from the hours of their recipes."""
  return math.ceil(60 * sum(table.recipes[job.entry.recipe].hours for job in chain))


def submit(
  table: Table,
  chains: Iterable[Sequence[Job]],
  workdirs: Path,
  arguments: Sequence[str],
  options: Iterable[str],
  notify: Callable[[str], None],
) -> None:
  """Submits one job per chain with submitit, to Slurm if available, else on this host.

  A job is saved and requeued when it is preempted or reaches its time limit.

  Args:
    table: of the jobs.
    chains: of jobs that start from each other; one cluster job runs a chain in order.
    workdirs: directory of the workdirs, on a file system that jobs share, or in a bucket; their
      logs go there, or to `runs/`.
    arguments: appended to the command line of each job.
    options: 'KEY=VALUE' for submitit's `update_parameters`; `timeout_min` replaces the hours of the
      recipes.
    notify: called with one line per submitted job.

  Raises:
    SegjaxError: submitit is not installed; an option that is unknown, of the wrong type, or of
      several processes.
  """
  try:
    import submitit
  except ImportError:
    raise SegjaxError(
      "--launcher=submitit needs the package submitit: pip install 'segjax[cluster]'"
    ) from None
  # The jobs' own files, which are not the run's, have to be on a disk.
  folder = Path('runs', table.name) if storage.is_bucket(workdirs) else workdirs
  folder /= 'jobs'
  executor = submitit.AutoExecutor(folder=folder, slurm_max_num_timeout=_TIMEOUTS)
  parameters = dict(map(_parse_option, options))
  for key in _SEVERAL:
    if parameters.get(key, 1) != 1:
      raise SegjaxError(
        f'--launcher_option {key}={parameters[key]}: a row trains in one process, on all GPUs of a '
        'node: leave it out, or train with segjax launch and --record the run'
      )
  try:
    executor.update_parameters(name=table.name, **parameters)
  # Raised by submitit for an unknown key, in several lines, and for a value of the wrong type.
  except (NameError, TypeError, AssertionError, ValueError) as e:
    reason = (str(e).splitlines() or [type(e).__name__])[0].rstrip('.')
    raise SegjaxError(f'--launcher_option: {reason}: change it') from e
  for chain in chains:
    if not parameters.keys() & {'timeout_min', 'slurm_time'}:
      executor.update_parameters(timeout_min=limit_minutes(table, chain))
    job = executor.submit(Command(chain_command(table, chain, workdirs, arguments)))
    notify(f'{", ".join(j.name for j in chain)}: job {job.job_id}, output in {folder}')
