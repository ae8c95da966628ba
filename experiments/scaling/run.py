"""Measures how segjax scales over devices and processes, and writes the page.

  python experiments/scaling/run.py [--rows='memory_*'] [--cache=DIRECTORY]
  python experiments/scaling/run.py --list
  python experiments/scaling/run.py --page

Everything runs on the CPU, as four devices of one process or as several processes on this machine.
Each row runs in a process of its own; its result is a line of `results.jsonl`.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:  # run as a script
  # The modules of this directory are the package `scaling`; segjax is that of this checkout.
  sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent)]

import lines  # noqa: E402
import runner  # noqa: E402
from scaling import bounds, evaluation, layouts, memory, page  # noqa: E402
from segjax import provenance  # noqa: E402

# Row -> the function that measures it: `cache directory -> plain JSON values`.
ROWS = {**layouts.ROWS, **memory.ROWS, **evaluation.ROWS}
# Programs run a few times or not at all, so they are compiled without LLVM's optimization.
FLAGS = '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0'


def main() -> None:
  args = parser().parse_args()
  if args.list:
    print('\n'.join(ROWS))
  elif args.page:
    results, speed = page.read(HERE / 'results.jsonl'), bounds.read_speed(HERE.parent.parent)
    (HERE / 'README.md').write_text(page.render(results, speed))
  elif args.child:
    found = {'row': args.child, **provenance.provenance(), 'values': ROWS[args.child](args.cache)}
    Path(args.result).write_text(json.dumps(found))
  else:
    runner.end_children()
    sys.exit(measure_all(args))


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  found.add_argument('--rows', default='*', help='comma-separated names or patterns')
  found.add_argument('--list', action='store_true', help='the names of all rows')
  found.add_argument('--page', action='store_true', help='write README.md from the results')
  found.add_argument('--cache', default='', help='keeps prepared data and programs between calls')
  # Of the process that measures one row.
  found.add_argument('--child', default='', help=argparse.SUPPRESS)
  found.add_argument('--result', default='', help=argparse.SUPPRESS)
  return found


def measure_all(args: argparse.Namespace) -> int:
  """Measures the rows that are asked for; returns how many failed."""
  failed = 0
  with tempfile.TemporaryDirectory() as temporary:
    for name in runner.chosen(ROWS, args.rows):
      result = measure_alone(name, Path(args.cache or temporary))
      print(f'{name}: {result.get("error", "done")}', flush=True)
      if 'error' in result:
        failed += 1
      else:
        lines.append(HERE / 'results.jsonl', result)
  return failed


def measure_alone(name: str, cache: Path) -> dict[str, Any]:
  """Measures a row in a process of its own; an `error` in place of its values if it fails."""
  cache = cache.resolve()
  cache.mkdir(parents=True, exist_ok=True)
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{FLAGS} {os.environ.get("XLA_FLAGS", "")}',
    'XDG_CACHE_HOME': str(cache),
  }
  child = [f'--child={name}', f'--cache={cache}']
  return runner.measure_alone(__file__, child, environment=environment)


if __name__ == '__main__':
  main()
