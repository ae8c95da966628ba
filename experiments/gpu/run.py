"""Runs slots of GPU time one after another, within a number of minutes.

  python experiments/gpu/run.py --slots=a,b --minutes=9 --data=DIR --out=DIR [--pack=FILE.tar.gz]
  python experiments/gpu/run.py --toy --minutes=9 --out=DIR
  python experiments/gpu/run.py --list
  python experiments/gpu/run.py --page

Every step is a process of its own, and leaves its result in the output directory at once. What is
there already is not run again, and a training goes on where it was stopped: run the same command
again. When the minutes are over, the running training saves its state, and what it has learned so
far is evaluated; on SIGTERM it only saves. `--pack` writes all but checkpoints and data to one
file, after each step, for `collect.py`.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

if not __package__:  # run as a script
  sys.path[:1] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
  ]

import lines  # noqa: E402
from gpu import page, toy  # noqa: E402
from gpu.pack import write_pack  # noqa: E402
from gpu.plan import HERE, ROOT, Context, Step  # noqa: E402
from gpu.slots import SLOTS, names  # noqa: E402

# A step is not started with less time left.
LEAST = 30.0
# Between SIGTERM and SIGKILL: to end a step and save.
GRACE = 45.0


class Runner:
  """Runs steps until a deadline.

  Args:
    context: of the run.
    deadline: of `time.monotonic`; may change while a step runs.
    pack: file that is rewritten after each step, or None.
    least: see `LEAST`.
  """

  def __init__(
    self, context: Context, deadline: float, pack: Path | None = None, least: float = LEAST
  ):
    self.deadline = deadline
    self._context, self._pack, self._least = context, pack, least

  def run(self, step: Step) -> str:
    """Runs a step; the outcome is its line of the log."""
    outcome, start = 'stopped by a signal', time.monotonic()
    try:
      outcome = self._outcome(step)
    finally:
      seconds = round(time.monotonic() - start, 1)
      line = {'time': now(), 'step': step.name, 'outcome': outcome, 'seconds': seconds}
      lines.append(self._context.out / 'log.jsonl', line)
      print(f'{step.name}: {outcome} ({seconds:.0f} s)', flush=True)
      if self._pack:
        write_pack(self._context, self._pack)
    return outcome

  def _outcome(self, step: Step) -> str:
    if missing := [path.name for path in step.required if not path.exists()]:
      return f'left out: the data directory has no {", ".join(missing)}'
    if step.done():
      return 'there already'
    if self.deadline - time.monotonic() - step.reserve < self._least:
      return 'left out: no time'
    status = self._execute(step, step.command, lambda: self.deadline - step.reserve)
    if status is not None:
      return 'done' if status == 0 else f'failed with exit code {status}'
    if not step.rescue:
      return 'stopped: no more time'
    latest = max(self.deadline, time.monotonic() + step.reserve / 2)
    status = self._execute(step, step.rescue, lambda: latest)
    outcome = {0: 'evaluated', None: 'not evaluated in time'}
    failed = f'its evaluation failed with exit code {status}'
    return f'stopped: no more time; {outcome.get(status, failed)}'

  def _execute(self, step: Step, command: Sequence[str], end: Callable[[], float]) -> int | None:
    """The exit code of a command, or None if it was stopped at `end`."""
    log = self._context.out / 'logs' / f'{step.name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a', encoding='utf-8') as file:
      file.write(f'$ {" ".join(command)}\n')
      file.flush()
      child = subprocess.Popen(
        command, cwd=ROOT, env=self._environment(step), stdout=file, stderr=subprocess.STDOUT
      )
      try:
        while child.poll() is None and time.monotonic() < end():
          time.sleep(0.1)
        return child.returncode
      finally:  # also where this process is told to stop
        _stop(child)

  def _environment(self, step: Step) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    cache = {
      'JAX_COMPILATION_CACHE_DIR': str(self._context.out / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    }
    # Each process, and each start of a training, notes the commit of the code that it ran.
    commit = {'SEGJAX_COMMIT': self._context.commit} if self._context.commit else {}
    own = {'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'}
    return {**cache, **os.environ, **step.env, **commit, **own}


def _stop(child: subprocess.Popen) -> None:
  """Asks a process to save and end, and ends it if it does not."""
  if child.poll() is not None:
    return
  child.terminate()
  try:
    child.wait(GRACE)
  except subprocess.TimeoutExpired:
    child.kill()
    child.wait()


def main() -> None:
  args = parser().parse_args()
  if args.list:
    for name, slot in SLOTS.items():
      print(f'{slot.letter}  {name:12} {slot.title}')
  elif args.page:
    text = page.render(lines.read(HERE / 'results.jsonl'), SLOTS)
    (HERE / 'README.md').write_text(text, encoding='utf-8')
  else:
    sys.exit(run_all(args))


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  found.add_argument('--slots', default=','.join(SLOTS), help='letters or names; default: all')
  found.add_argument('--minutes', type=float, default=9.0, help='for all slots; default: 9')
  found.add_argument('--out', default='', help='directory for everything that is written')
  found.add_argument('--data', default='', help='directory of the raw data and the weights')
  found.add_argument('--weights', help="what the records call the file of VGG16's weights")
  found.add_argument('--commit', help='of the code, where Git cannot tell')
  found.add_argument('--workers', type=int, default=max(0, min(8, (os.cpu_count() or 1) - 2)))
  found.add_argument('--pack', default='', help='file for everything that travels back')
  found.add_argument('--toy', action='store_true', help='tiny networks on made-up data')
  found.add_argument('--list', action='store_true', help='the slots')
  found.add_argument('--page', action='store_true', help='write README.md from the results')
  return found


def run_all(args: argparse.Namespace) -> int:
  """Runs the slots; returns how many steps failed."""
  try:
    chosen = names(args.slots)
  except ValueError as error:
    raise SystemExit(str(error)) from None
  if not args.out or not (args.data or args.toy):
    raise SystemExit('set --out, and --data or --toy')
  deadline = time.monotonic() + 60 * args.minutes
  context = make_context(args)
  asked = {key: getattr(args, key) for key in ('slots', 'minutes', 'commit', 'toy')}
  lines.append(context.out / 'starts.jsonl', {'time': now(), **asked})
  signal.signal(signal.SIGTERM, _exit)
  pack = Path(args.pack).absolute() if args.pack else None
  runner = Runner(context, deadline, pack, least=0.0 if args.toy else LEAST)
  outcomes = [runner.run(step) for name in chosen for step in SLOTS[name].steps(context)]
  failed = sum(outcome.startswith('failed') for outcome in outcomes)
  print(json.dumps({'steps': len(outcomes), 'failed': failed, 'out': str(context.out)}))
  return min(failed, 1)


def make_context(args: argparse.Namespace) -> Context:
  """Where this run reads and writes; at toy size it makes its data up."""
  out = Path(args.out).absolute()
  data = out / 'toy_data' if args.toy else Path(args.data).absolute()
  if args.toy:
    toy.write_data(data)
  workers = 0 if args.toy else args.workers
  return Context(out, data, args.weights, args.commit, workers, args.toy)


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _exit(signum: int, frame: FrameType | None) -> None:
  """Ends this process after the running step is stopped."""
  raise SystemExit(128 + signum)


if __name__ == '__main__':
  main()
