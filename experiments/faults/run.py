"""Breaks training runs, counts what they lose, and writes the page.

  python experiments/faults/run.py [--rows=sigkill_semantic,nan_*] [--tries=30] [--seed=0]
  python experiments/faults/run.py --rows='soak_*' --minutes=60
  python experiments/faults/run.py --list
  python experiments/faults/run.py --page

Without --rows it runs all, in a few hours. Each result is a line of `results.jsonl`, and README.md
is written anew. The exit code is 1 if a row failed or something was lost.
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:  # run as a script
  # The modules of this directory are the package `faults`; segjax is that of this checkout.
  sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent)]

import lines  # noqa: E402
import runner  # noqa: E402
from faults import page  # noqa: E402
from faults.place import Place  # noqa: E402
from faults.row import Options  # noqa: E402
from faults.rows import KINDS, ROWS  # noqa: E402
from segjax import provenance  # noqa: E402
from segjax import run as run_lib  # noqa: E402

RESULTS = HERE / 'results.jsonl'


def main() -> None:
  args = parser().parse_args()
  if args.list:
    list_rows()
  elif args.page:
    write_page()
  else:
    sys.exit(run_all(args))


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  found.add_argument('--rows', default='*', help='comma-separated names or patterns')
  found.add_argument('--tries', type=int, help="in place of each row's own")
  found.add_argument('--seed', type=int, default=0, help='of the moments and places')
  found.add_argument(
    '--minutes', type=float, default=60.0, help='of processor time, of a soak (default: 60)'
  )
  found.add_argument('--list', action='store_true', help='the names of all rows')
  found.add_argument('--page', action='store_true', help='only write README.md from the results')
  found.add_argument('--keep', help='directory to work in, which stays; for looking into it')
  return found


def list_rows() -> None:
  for kind, rows in KINDS.items():
    print(kind)
    for name, row in rows.items():
      print(f'  {name:24} {row.fault}')


def write_page() -> None:
  (HERE / 'README.md').write_text(page.render(lines.read(RESULTS), KINDS))


def run_all(args: argparse.Namespace) -> int:
  """Runs the rows that are asked for; 1 if one failed or lost something."""
  names = runner.chosen(ROWS, args.rows)
  run_lib.start_process()  # quiet libraries
  bad = False
  with tempfile.TemporaryDirectory(prefix='segjax-faults-') as temporary:
    place = Place(Path(args.keep or temporary).absolute())
    place.root.mkdir(exist_ok=True)
    for name in names:
      if missing := ROWS[name].needs():
        print(f'{name}: skipped: {missing}', flush=True)
        continue
      result = run_row(name, place, args)
      print(page.describe(result), flush=True)
      bad = bad or 'error' in result or bool(result['lost'])
      if 'error' not in result:
        lines.append(RESULTS, result)
        write_page()
  return int(bad)


def run_row(name: str, place: Place, args: argparse.Namespace) -> dict[str, Any]:
  """The result of a row, with an `error` in place of an outcome if it could not be run."""
  row, start = ROWS[name], time.monotonic()
  options = Options(args.tries or row.tries, args.seed, args.minutes)
  try:
    outcome = row.run(place, options).to_json()
  except Exception as error:  # the other rows are left alone
    traceback.print_exc()
    outcome = {'error': f'{type(error).__name__}: {error}'}
  facts = provenance.provenance()
  return {
    'row': name,
    **outcome,
    'command': command(name, args),
    'seconds': round(time.monotonic() - start),
    'date': facts['time'][:10],
    **{key: facts[key] for key in ('commit', 'dirty', 'hardware', 'versions')},
  }


def command(name: str, args: argparse.Namespace) -> str:
  """The command that repeats a row."""
  more = [f'--tries={args.tries}'] if args.tries else []
  more += [f'--seed={args.seed}'] if args.seed else []
  more += [f'--minutes={args.minutes:g}'] if name.startswith('soak') else []
  return ' '.join(['python experiments/faults/run.py', f'--rows={name}', *more])


if __name__ == '__main__':
  main()
