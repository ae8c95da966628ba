"""Whether a training that was killed and resumed ends with the same parameters, bit for bit.

  python experiments/gpu/resume.py --config=unet/scenes --work=DIR --out=FILE [--deterministic]

Trains three times from the start, each in a process of its own: `straight`, `again` (the same
command) and `resumed`, which is killed (SIGKILL) in the middle between two checkpoints and started
again. Compares the SHA-256 of their parameters. `--deterministic` sets
`XLA_FLAGS=--xla_gpu_deterministic_ops=true`. All of them read the same compiled programs from JAX's
cache: XLA chooses algorithms for a GPU by timing them, so that it may compile others another time.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
  sys.path[:1] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
  ]

import lines  # noqa: E402
import runner  # noqa: E402
from segjax import main as program  # noqa: E402
from segjax.tables import results  # noqa: E402
from segjax.training import log  # noqa: E402
from segjax.workdir import Workdir  # noqa: E402

FLAG = '--xla_gpu_deterministic_ops=true'


def main() -> None:
  args, overrides = parser().parse_known_args()
  if args.workdir:
    sys.exit(train_here(args, overrides))
  runner.end_children()
  compare(args, overrides)


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  found.add_argument('--config', required=True)
  found.add_argument('--steps', type=int, default=400)
  found.add_argument('--deterministic', action='store_true')
  found.add_argument('--work', type=Path, help='directory of the workdirs')
  found.add_argument('--out', type=Path, help='file to which the result is appended')
  # Of the process that trains.
  found.add_argument('--workdir', default='', help=argparse.SUPPRESS)
  found.add_argument('--kill_at', type=int, default=0, help=argparse.SUPPRESS)
  return found


def train_here(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains in this process, which ends where it logs step `kill_at`."""
  if args.kill_at:
    kill_at(args.kill_at)
  every = [f'--config.train.{key}={args.steps // 4}' for key in ('checkpoint_every', 'eval_every')]
  steps = [f'--config.train.steps={args.steps}', *every, '--config.train.log_every=1']
  start = [f'--config={args.config}', f'--workdir={args.workdir}']
  return program.main(['train', *start, *overrides, *steps])


def kill_at(step: int) -> None:
  """From now on this process ends by SIGKILL where it logs a step of training."""
  wrapped = log.RunLog.scalars

  def scalars(self: log.RunLog, now: int, *args: Any) -> None:
    wrapped(self, now, *args)
    if now >= step:
      os.kill(os.getpid(), signal.SIGKILL)

  log.RunLog.scalars = scalars


def compare(args: argparse.Namespace, overrides: list[str]) -> None:
  """Trains three times and writes the result."""
  name = f'{Path(args.config).name}{"_deterministic" if args.deterministic else ""}'
  work = args.work / name
  shutil.rmtree(work, ignore_errors=True)
  # Between the second and the third checkpoint.
  middle = args.steps * 5 // 8
  run = lambda name, kill_at=0: train_in_process(args, overrides, work / name, kill_at)
  for name in ('straight', 'again'):
    if status := run(name):
      raise SystemExit(f'{name}: exit code {status}')
  if (status := run('resumed', middle)) != -signal.SIGKILL:
    raise SystemExit(f'resumed: exit code {status} instead of SIGKILL at step {middle}')
  if status := run('resumed'):
    raise SystemExit(f'resumed: exit code {status}')
  digests = {name: digest(work / name) for name in ('straight', 'again', 'resumed')}
  starts = Workdir(str(work / 'resumed')).read_starts()
  line = {
    'kind': 'resume',
    'config': args.config,
    'steps': args.steps,
    'killed_at': middle,
    'resumed_from': starts[-1]['step'],
    'deterministic': args.deterministic,
    'same_again': digests['again'] == digests['straight'],
    'same_resumed': digests['resumed'] == digests['straight'],
    'digests': digests,
    **results.merge_starts(starts),
    'date': datetime.date.today().isoformat(),
  }
  lines.append(args.out, line)
  print(json.dumps(line))


def train_in_process(
  args: argparse.Namespace, overrides: list[str], workdir: Path, kill_at: int
) -> int:
  """The exit code of a training; negative: the signal that ended it."""
  flags = os.environ.get('XLA_FLAGS', '')
  env = {**os.environ, 'XLA_FLAGS': f'{FLAG} {flags}'.strip() if args.deterministic else flags}
  command = [sys.executable, __file__, f'--config={args.config}', f'--steps={args.steps}']
  command += [f'--workdir={workdir}', f'--kill_at={kill_at}', *overrides]
  return runner.run(command, env=env).returncode


def digest(workdir: Path) -> str:
  """The SHA-256 of the parameters after the last step."""
  command = [sys.executable, '-m', 'segjax.main', 'info', f'--workdir={workdir}', '--json']
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)['parameters_sha256']


if __name__ == '__main__':
  main()
