"""A training run as a job: its name, its command, and the devices that it gets."""

import math
import re
import shlex
from typing import NamedTuple

from segjax.types import SegjaxError

# Exit codes of `segjax train`: a mistake that a restart repeats.
MISTAKE = 2
# 128 plus SIGINT or SIGTERM, which save, or SIGUSR1 or SIGUSR2: somebody stopped it.
STOPPED = (130, 138, 140, 143)
# A process did not connect, was lost or hung; storage or the network failed.
LOST = (69, 74, 75, 76)
# 128 plus SIGABRT, SIGBUS, SIGKILL or SIGSEGV: how a lost one ended.
KILLED = (134, 135, 137, 139)
# The names of pods have at most 63 characters: this one, the replicated job's and two indices.
_LONGEST = 40


class Job(NamedTuple):
  """What runs.

  Attributes:
    name: of the job, a DNS label.
    config: name or path of a config, as the machines of the job see it.
    workdir: of the run, as they see it.
    overrides: `(key, value)` pairs for the config.
  """

  name: str
  config: str
  workdir: str
  overrides: tuple[tuple[str, str], ...] = ()


class Layout(NamedTuple):
  """The processes of a job.

  Attributes:
    processes: number of them.
    devices: GPUs, TPU chips or, without any, CPUs that one of them trains on.
  """

  processes: int
  devices: int


def make_name(text: str) -> str:
  """A DNS label like `text`: lower-case letters, digits and dashes.

  Raises:
    SegjaxError: nothing is left.
  """
  name = re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')[:_LONGEST].strip('-')
  if not name:
    raise SegjaxError(f'{text!r} has no letter or digit for the name of the job: set --name')
  return name


def train_command(job: Job) -> list[str]:
  """The arguments of `segjax`, for one process."""
  overrides = (f'--config.{key}={value}' for key, value in job.overrides)
  return ['train', f'--config={job.config}', f'--workdir={job.workdir}', *overrides]


def split_program(text: str) -> list[str]:
  """The words of `--option program`.

  Raises:
    SegjaxError: a quotation mark or an escape does not end.
  """
  try:
    return shlex.split(text)
  except ValueError as e:
    raise SegjaxError(f'--option program={text}: {e}: fix it') from None


def shell_line(words: list[str], indent: str = '  ') -> str:
  """A command of a shell script, an argument a line."""
  return f' \\\n{indent}'.join(shlex.quote(word) for word in words)


def minutes(hours: float) -> int:
  """Whole minutes, rounded up."""
  return max(math.ceil(hours * 60), 1)
