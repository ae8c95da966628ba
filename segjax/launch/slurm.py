"""Slurm: a script for `sbatch`."""

import dataclasses
import sys
from typing import Annotated

from segjax.launch import job as job_lib
from segjax.launch.job import Job, Layout
from segjax.types import NonNegativeInt, PositiveFloat, PositiveInt, Range, SegjaxError


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `segjax launch --cluster=slurm`.

  Attributes:
    nodes: number of machines.
    gpus_per_node: 0 trains on CPUs.
    tasks_per_node: processes of a machine: 1, which uses all of its GPUs, or one for each GPU.
    cpus_per_task: CPU cores of a process; without, the partition's default.
    hours: time limit, after which the job is requeued and resumes.
    grace: seconds before the time limit at which the run is told to save.
    max_restarts: how often the job may start again after a failure of one of its machines.
    sbatch: an option of sbatch, such as --partition=gpu; may be repeated.
    setup: a line of the script before training, such as 'module load cuda'; may be repeated.
    program: the command `segjax` on the machines; default: this one.
  """

  nodes: PositiveInt = 1
  gpus_per_node: NonNegativeInt = 8
  tasks_per_node: PositiveInt = 1
  cpus_per_task: PositiveInt | None = None
  hours: PositiveFloat = 24.0
  grace: Annotated[int, Range(1, 65_535)] = 120
  max_restarts: NonNegativeInt = 10
  sbatch: tuple[str, ...] = ()
  setup: tuple[str, ...] = ()
  program: str | None = None

  def __post_init__(self) -> None:
    if self.gpus_per_node and self.tasks_per_node not in (1, self.gpus_per_node):
      raise SegjaxError(
        f'--option tasks_per_node={self.tasks_per_node} does not suit gpus_per_node='
        f'{self.gpus_per_node}: set it to 1, or to the number of GPUs'
      )
    if self.grace >= 60 * job_lib.minutes(self.hours):
      raise SegjaxError(
        f'--option grace={self.grace} seconds leave no time to train in {self.hours:g} hours: '
        'lower it, or raise hours'
      )


def layout(options: Options) -> Layout:
  """The processes of a job."""
  devices = max(options.gpus_per_node // options.tasks_per_node, 1)
  return Layout(options.nodes * options.tasks_per_node, devices)


def render(job: Job, options: Options) -> str:
  """The script."""
  command = job_lib.split_program(options.program) if options.program else _this_program()
  several = layout(options).processes > 1
  words = [*command, *job_lib.train_command(job), *['--distributed'] * several]
  parts = ['#!/bin/bash', *_directives(job, options), '']
  parts += options.setup
  # A process that waits for one that is gone ends after as long as it takes to save. In Slurm 22.05
  # and some later versions srun does not take the cores of a task from the job.
  srun = ['srun', f'--wait={options.grace}']
  srun += [f'--cpus-per-task={options.cpus_per_task}'] * bool(options.cpus_per_task)
  parts += [f'{" ".join(srun)} {job_lib.shell_line(words)}']
  return '\n'.join([*parts, _requeue(options)])


def _this_program() -> list[str]:
  return [sys.executable, '-m', 'segjax.main']


def _directives(job: Job, options: Options) -> list[str]:
  hours, minutes = divmod(job_lib.minutes(options.hours), 60)
  given = {
    'job-name': job.name,
    'output': f'{job.name}-%j.log',
    'open-mode': 'append',
    'nodes': options.nodes,
    'ntasks-per-node': options.tasks_per_node,
    'gpus-per-node': options.gpus_per_node or None,
    'cpus-per-task': options.cpus_per_task,
    'time': f'{hours}:{minutes:02}:00',
    # To the processes, not to this script: JAX waits for SIGTERM, and all save the same step.
    'signal': f'TERM@{options.grace}',
  }
  lines = [f'--{key}={value}' for key, value in given.items() if value is not None]
  return [f'#SBATCH {line}' for line in [*lines, '--requeue', *options.sbatch]]


def _requeue(options: Options) -> str:
  """The end of the script; a job that its user cancels does not get there, for Slurm ends both."""
  # Of several processes `srun` returns the highest code: that of the lost one.
  lost = job_lib.LOST + (job_lib.KILLED if layout(options).processes > 1 else ())
  stopped, lost = (' | '.join(map(str, codes)) for codes in (job_lib.STOPPED, lost))
  return f"""status=$?
case $status in
  {stopped}) # stopped by a signal
    scontrol requeue "$SLURM_JOB_ID" ;;
  {lost}) # a process, storage or the network failed
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {options.max_restarts} ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit $status
"""
