"""Measures segjax beside the peers that a user would take, and writes the page.

  python experiments/speed/run.py [--rows=unet_train,nms_8000] [--rounds=7] [--compile]
  python experiments/speed/run.py --growth
  python experiments/speed/run.py --list
  python experiments/speed/run.py --page

Each row runs in a process of its own, where our program and the peers' take turns (ours, peer,
ours, peer); its result is a line of `results.jsonl`. The peers of most rows are torch and
torchvision: `pip install 'segjax[speed]'`. Without them a row says what is missing and measures
ours alone. A row that fails is reported, and leaves the others alone.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The modules of this directory are the package `speed`; the package under test is this checkout's.
sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent)]

from segjax.training import compile as compile_lib  # noqa: E402
from speed import harness, machine, page, results  # noqa: E402
from speed.row import Options  # noqa: E402
from speed.rows import KINDS, ROWS  # noqa: E402


def main() -> None:
  args = parser().parse_args()
  if args.list:
    for kind, rows in KINDS.items():
      print(kind)
      for name, row in rows.items():
        print(f'  {name:28} {row.work}')
  elif args.page:
    (HERE / 'README.md').write_text(page.render(results.read(HERE / 'results.jsonl'), KINDS))
  elif args.child:
    compile_lib.enable_cache()
    found = harness.measure(ROWS[args.child], options(args), args.rounds)
    Path(args.out).write_text(json.dumps({**machine.facts(), **found}))
  else:
    sys.exit(measure_all(args))


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  found.add_argument('--rows', default='*', help='comma-separated names or patterns')
  found.add_argument('--rounds', type=int, default=7)
  found.add_argument('--compile', action='store_true', help='torch.compile too')
  found.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  found.add_argument('--toy', action='store_true', help='at toy size; nothing is recorded')
  found.add_argument('--list', action='store_true', help='the names of all rows')
  found.add_argument('--page', action='store_true', help='write README.md from the results')
  found.add_argument('--out', default=str(HERE / 'results.jsonl'), help='file of the results')
  found.add_argument('--child', default='', help=argparse.SUPPRESS)
  return found


def options(args: argparse.Namespace) -> Options:
  return Options(toy=args.toy, compiled=args.compile, dtype=args.dtype)


def measure_all(args: argparse.Namespace) -> int:
  """Measures the rows that are asked for; returns how many failed."""
  patterns = args.rows.split(',')
  names = [name for name in ROWS if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
  if not names:
    raise SystemExit(f'--rows={args.rows}: no such row, see --list')
  failed = 0
  for name in names:
    load = round(os.getloadavg()[0], 2)
    found = measure_alone(name, args)
    result = {'row': name, 'dtype': args.dtype, 'seed': 0, 'command': command(name, args)}
    result |= {**found, 'load': load}
    failed += 'error' in found
    print(page.describe(name, ROWS[name], result), flush=True)
    if not args.toy and 'error' not in result:
      results.append(Path(args.out), result)
  return failed


def measure_alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Measures a row in a process of its own; an `error` in place of a measurement if it fails."""
  with tempfile.TemporaryDirectory() as directory:
    out = Path(directory) / 'result.json'
    flags = [f for f, on in (('--toy', args.toy), ('--compile', args.compile)) if on]
    child = [f'--child={name}', f'--rounds={args.rounds}', f'--dtype={args.dtype}', f'--out={out}']
    try:
      done = subprocess.run(
        [sys.executable, str(HERE / 'run.py'), *child, *flags],
        stderr=subprocess.PIPE,
        text=True,
        timeout=ROWS[name].limit,
        check=False,
      )
    except subprocess.TimeoutExpired as error:
      return {'error': f'not done after {error.timeout:.0f} s'}
    if out.exists():
      return json.loads(out.read_text())
    sys.stderr.write(done.stderr)
    lines = done.stderr.strip().splitlines() or ['']
    return {'error': f'exit code {done.returncode}: {lines[-1][:300]}'}


def command(name: str, args: argparse.Namespace) -> str:
  """The command that repeats a row."""
  more = [f'--rounds={args.rounds}'] if args.rounds != 7 else []
  more += ['--compile'] if args.compile else []
  more += [f'--dtype={args.dtype}'] if args.dtype != 'float32' else []
  return ' '.join(['python experiments/speed/run.py', f'--rows={name}', *more])


if __name__ == '__main__':
  main()
