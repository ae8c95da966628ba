"""Measures segjax beside the peers that a user would take, and writes the page.

  python experiments/speed/run.py [--rows=unet_train,nms_8000] [--rounds=7] [--compile]
  python experiments/speed/run.py --growth
  python experiments/speed/run.py --list
  python experiments/speed/run.py --page

Each row runs in a process of its own, where our program and the peers' take turns (ours, peer,
ours, peer); its result is a line of `results.jsonl`. The peers of most rows are torch, torchvision
and transformers: `pip install 'segjax[speed]'`. Without them a row says what is missing and
measures ours alone. A row that fails is reported, and leaves the others alone.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:  # run as a script
  # The modules of this directory are the package `speed`; segjax is that of this checkout.
  sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent)]

import lines  # noqa: E402
import runner  # noqa: E402
from segjax.training import compile as compile_lib  # noqa: E402
from speed import growth, harness, machine, page  # noqa: E402
from speed.row import Options  # noqa: E402
from speed.rows import KINDS, ROWS  # noqa: E402

# After which a curve fails.
_GROWTH_SECONDS = 3600.0


def main() -> None:
  args = parser().parse_args()
  if args.list:
    list_rows()
  elif args.page:
    write_page()
  elif args.child:
    compile_lib.enable_cache()
    Path(args.result).write_text(json.dumps({**machine.facts(), **measure_here(args)}))
  else:
    runner.end_children()
    sys.exit(measure_all(args))


def list_rows() -> None:
  for kind, rows in KINDS.items():
    print(kind)
    for name, row in rows.items():
      print(f'  {name:34} {row.work}')
  print('Growth')
  for name, curve in growth.CURVES.items():
    print(f'  {name:34} {curve.work}: {curve.axis}')


def write_page() -> None:
  grown = lines.read(HERE / 'growth.jsonl')
  text = page.render(lines.read(HERE / 'results.jsonl'), grown, KINDS)
  (HERE / 'README.md').write_text(text)
  growth.draw(grown, HERE / 'growth.svg')


def measure_here(args: argparse.Namespace) -> dict[str, Any]:
  """Measures the row or the curve of this process."""
  options = Options(toy=args.toy, compiled=args.compile, dtype=args.dtype)
  if args.growth:
    return growth.measure(args.child, options, args.rounds)
  return harness.measure(ROWS[args.child], options, args.rounds)


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  found.add_argument('--rows', default='*', help='comma-separated names or patterns')
  found.add_argument('--rounds', type=int, default=7)
  found.add_argument('--compile', action='store_true', help='torch.compile too')
  found.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  found.add_argument('--toy', action='store_true', help='at toy size; nothing is recorded')
  found.add_argument('--growth', action='store_true', help='how work grows, in place of the rows')
  found.add_argument('--list', action='store_true', help='the names of all rows')
  found.add_argument('--page', action='store_true', help='write README.md from the results')
  found.add_argument('--out', default='', help='file of the results; default: beside this one')
  # Of the process that measures one row.
  found.add_argument('--child', default='', help=argparse.SUPPRESS)
  found.add_argument('--result', default='', help=argparse.SUPPRESS)
  return found


def measure_all(args: argparse.Namespace) -> int:
  """Measures the rows, or curves, that are asked for; returns how many failed."""
  names = runner.chosen(growth.CURVES if args.growth else ROWS, args.rows)
  out = Path(args.out or HERE / ('growth.jsonl' if args.growth else 'results.jsonl'))
  failed = 0
  for name in names:
    load = round(os.getloadavg()[0], 2)
    result = {'row': name, 'dtype': args.dtype, 'seed': 0, 'command': command(name, args)}
    result = {**measure_alone(name, args), **result, 'load': load}
    print(describe(name, args, result), flush=True)
    if 'error' in result:
      failed += 1
    elif not args.toy:
      lines.append(out, result)
  return failed


def describe(name: str, args: argparse.Namespace, result: dict[str, Any]) -> str:
  """A line for the terminal."""
  if 'error' in result:
    return f'{name}: failed: {result["error"]}'
  if args.growth:
    return f'{name}: {json.dumps({key: result[key] for key in ("values", "seconds", "bytes")})}'
  return page.describe(name, ROWS[name], result)


def measure_alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Measures a row in a process of its own; an `error` in place of a measurement if it fails."""
  flags = [f'--{flag}' for flag in ('toy', 'compile', 'growth') if getattr(args, flag)]
  child = [f'--child={name}', f'--rounds={args.rounds}', f'--dtype={args.dtype}', *flags]
  timeout = _GROWTH_SECONDS if args.growth else ROWS[name].limit
  return runner.measure_alone(HERE / 'run.py', child, timeout=timeout)


def command(name: str, args: argparse.Namespace) -> str:
  """The command that repeats a row."""
  more = ['--growth'] if args.growth else []
  more += [f'--rounds={args.rounds}'] if args.rounds != 7 else []
  more += ['--compile'] if args.compile else []
  more += [f'--dtype={args.dtype}'] if args.dtype != 'float32' else []
  return ' '.join(['python experiments/speed/run.py', f'--rows={name}', *more])


if __name__ == '__main__':
  main()
