"""TPU VMs: one line that starts training on all machines of a slice."""

import dataclasses
import re
import shlex

from segjax.launch import gke
from segjax.launch import job as job_lib
from segjax.launch.job import Job, Layout
from segjax.types import SegjaxError

_TYPE = re.compile(r'(v5litepod|v6e)-([1-9]\d*)')


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `segjax launch --cluster=tpu-vm`.

  Attributes:
    tpu: name of the slice, which exists.
    zone: where it is.
    type: what it is, such as v5litepod-16 or v6e-8.
    directory: to change to, such as that of a virtual environment.
    program: the command `segjax` on the machines.
  """

  tpu: str
  zone: str
  type: str
  directory: str = '.'
  program: str = 'segjax'

  def __post_init__(self) -> None:
    match = _TYPE.fullmatch(self.type)
    chips = {gke.chips(topology) for topology in gke.TPUS['v5e'].topologies}
    if not match or int(match[2]) not in chips:
      raise SegjaxError(
        f'--option type={self.type} is unknown: it must be v5litepod-N or v6e-N, with N one of '
        f'{", ".join(map(str, sorted(chips)))}'
      )


def layout(options: Options) -> Layout:
  """The processes of a job, one a machine."""
  return gke.slice_layout(int(options.type.partition('-')[2]))


def render(job: Job, options: Options) -> str:
  """The command line.

  Raises:
    SegjaxError: the machines would not share the workdir.
  """
  several = layout(options).processes > 1
  if several and '://' not in job.workdir:
    raise SegjaxError(
      f'--workdir={job.workdir} would be on the disk of each machine of {options.tpu}: use a '
      'bucket, such as gs://…'
    )
  command = job_lib.split_program(options.program)
  words = [*command, *job_lib.train_command(job), *['--distributed'] * several]
  # Without, JAX would train on the CPUs of a machine whose chips another process uses.
  remote = f'cd {shlex.quote(options.directory)} && JAX_PLATFORMS=tpu {shlex.join(words)}'
  ssh = [*['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh'], options.tpu, f'--zone={options.zone}']
  return shlex.join([*ssh, '--worker=all', f'--command={remote}']) + '\n'
