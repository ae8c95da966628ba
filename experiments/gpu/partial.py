"""Evaluates a training that was stopped, and says at which step.

  python experiments/gpu/partial.py --table=DIR --entry=ROW.RECIPE --workdir=DIR --out=FILE \
    [--config.data.source=DIR …]

Evaluates the best checkpoint, or the latest if the training was stopped before it was first
evaluated. The result is a line of FILE and no record of the table, whose row trains longer.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script
  sys.path[:1] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
  ]

import lines  # noqa: E402
from segjax import run as run_lib  # noqa: E402
from segjax.cli.evaluate import evaluate_run  # noqa: E402
from segjax.tables import results, spec  # noqa: E402
from segjax.workdir import Workdir  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in ('table', 'entry', 'workdir', 'out'):
    parser.add_argument(f'--{name}', required=True)
  args, rest = parser.parse_known_args()
  overrides = [tuple(word.removeprefix('--config.').split('=', 1)) for word in rest]
  run_lib.start_process()
  table, workdir = spec.read_table(args.table), Workdir(args.workdir)
  trained = run_lib.read_experiment(workdir)
  best = run_lib.open_checkpoints(workdir, trained).best()
  which = 'best' if best else 'latest'
  evaluated = evaluate_run(workdir, which, table.file.split, overrides)
  line = {
    'table': table.name,
    'entry': args.entry,
    'checkpoint': which,
    'step': evaluated.step,
    'steps': trained.train.steps,
    'split': evaluated.split,
    'metrics': results.keep_metrics(table, evaluated.metrics),
    **results.merge_starts(workdir.read_starts()),
  }
  lines.append(Path(args.out), line)
  print(line)


if __name__ == '__main__':
  main()
