"""Slurm on this machine: a controller and one node, with everything that they write in a folder.

Needs root, and `munged`, `slurmctld` and `slurmd` of Debian's slurm-wlm; see `make test-slurm`.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')

_CONFIG = """
ClusterName=segjax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credentials have expired, two minutes otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# More CPUs and GPUs than there are: no job uses the GPUs, and the two CPUs are shared.
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:8 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10
"""


def missing() -> str | None:
  """Why Slurm cannot run here; None where it can."""
  absent = [name for name in PROGRAMS if shutil.which(name) is None]
  if absent:
    return f'{", ".join(absent)} not installed: make test-slurm installs them'
  return None if os.geteuid() == 0 else 'only root can start Slurm'


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
  """Starts Slurm, and stops it; yields the environment of its commands."""
  for name in ('state', 'spool'):
    (folder / name).mkdir(parents=True)
  host = socket.gethostname().partition('.')[0]
  config = folder / 'slurm.conf'
  config.write_text(_CONFIG.format(folder=folder, host=host, ports=_free_ports(2)))
  for i in range(8):  # in place of devices, which no job opens
    (folder / f'gpu{i}').touch()
  (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-7]\n')
  key = folder / 'munge.key'
  key.touch(0o400)
  key.write_bytes(secrets.token_bytes(128))
  environment = {**os.environ, 'SLURM_CONF': str(config)}
  with contextlib.ExitStack() as stack:
    names = ('key-file', 'socket', 'pid-file', 'log-file', 'seed-file')
    files = [f'--{n}={folder}/munge.{n.partition("-")[0]}' for n in names]
    _start(stack, ['munged', '--foreground', '--force', *files], environment, folder)
    _wait_until(lambda: (folder / 'munge.socket').exists(), folder)
    _start(stack, ['slurmctld', '-D', '-f', str(config)], environment, folder)
    _start(stack, ['slurmd', '-D', '-f', str(config), '-N', host], environment, folder)
    _wait_until(lambda: 'idle' in query(environment, 'sinfo', '-h', '-o', '%t'), folder)
    yield environment
    query(environment, 'scancel', '--user=root')
    _wait_until(lambda: not query(environment, 'squeue', '-h'), folder)


def query(environment: dict[str, str], *command: str) -> str:
  """What a command of Slurm prints."""
  result = subprocess.run(command, env=environment, capture_output=True, text=True)
  return result.stdout.strip()


def _start(
  stack: contextlib.ExitStack, command: list[str], environment: dict[str, str], folder: Path
) -> None:
  log = stack.enter_context((folder / f'{command[0]}.out').open('w'))
  process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
  stack.callback(process.wait, timeout=60)
  stack.callback(process.terminate)


def _wait_until(condition, folder: Path, seconds: float = 60.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, _logs(folder)
    time.sleep(0.2)


def _logs(folder: Path) -> str:
  files = [*sorted(folder.glob('*.out')), *sorted(folder.glob('*.log'))]
  return '\n'.join(f'{path.name}:\n{path.read_text()[-2000:]}' for path in files)


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for s in sockets:
      s.bind(('127.0.0.1', 0))
    return [s.getsockname()[1] for s in sockets]
