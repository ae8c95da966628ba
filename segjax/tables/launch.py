"""Runs jobs of a table outside of this process: scripts, and jobs on a cluster."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from segjax import config as config_lib
from segjax.tables.runs import Job
from segjax.tables.spec import Table
from segjax.types import SegjaxError


def run_script(table: Table, script: Path) -> None:
  """Runs a script that measures its rows and records them.

  Raises:
    SegjaxError: it failed.
  """
  status = subprocess.run([sys.executable, str(script)], cwd=table.root, check=False).returncode
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


def submit(
  table: Table,
  chains: Iterable[Sequence[Job]],
  workdirs: Path,
  arguments: Sequence[str],
  options: Iterable[str],
  notify: Callable[[str], None],
) -> None:
  """Submits one job per chain with submitit, to Slurm if available, else on this host.

  Args:
    table: of the jobs.
    chains: of jobs that start from each other; one cluster job runs a chain in order.
    workdirs: directory of the workdirs, on a file system that jobs share; their logs go there.
    arguments: appended to the command line of each job.
    options: 'KEY=VALUE' for submitit's `update_parameters`.
    notify: called with one line per submitted job.

  Raises:
    SegjaxError: submitit is not installed, or an unknown option.
  """
  try:
    import submitit
  except ImportError:
    raise SegjaxError(
      "--launcher=submitit needs the package submitit: pip install 'segjax[cluster]'"
    ) from None
  folder = workdirs / 'jobs'
  executor = submitit.AutoExecutor(folder=folder)
  pairs = (option.partition('=') for option in options)
  parameters = {key: config_lib.parse_value(value) for key, _, value in pairs}
  try:
    executor.update_parameters(name=table.name, **parameters)
  except (NameError, TypeError) as e:  # raised by submitit for an unknown key
    raise SegjaxError(f'--launcher_option: {e}') from e
  for chain in chains:
    command = chain_command(table, chain, workdirs, arguments)
    job = executor.submit(submitit.helpers.CommandFunction(command))
    notify(f'{", ".join(j.name for j in chain)}: job {job.job_id}, output in {folder}')
