"""`segjax data`: prepares a data set for training, or writes a page that shows it."""

import argparse
import os

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.cli import data_show, options
from segjax.data import datasets
from segjax.experiment import Experiment
from segjax.run import notify
from segjax.types import SegjaxError

EXAMPLE = """examples:
  segjax data prepare penn_fudan
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/
  segjax data prepare --config=my_config.py
  segjax data show scenes
  segjax data show --config=my_config.py --output=my_data.html

With --config, --config.KEY=VALUE overrides any key of it, and the page also shows examples as the
network is trained on them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('action', choices=['prepare', 'show'])
  parser.add_argument('name', nargs='?', help='for example scenes, camvid, isbi2012/fold1')
  parser.add_argument('--config', help='config file whose data set it is')
  parser.add_argument('--data_dir', help='directory to write prepared data sets to')
  parser.add_argument('--source', help='directory of the raw files; prepare downloads by default')
  parser.add_argument('--offline', action='store_true', help='do not download raw files')
  of_prepare = parser.add_argument_group('of prepare')
  of_prepare.add_argument(
    '--workers',
    type=options.count,
    help='number of processes; default: one for each processor, 1 to use this one alone',
  )
  of_prepare.add_argument(
    '--distributed',
    nargs='?',
    const='auto',
    metavar='HOST:PORT,COUNT,INDEX',
    help='for the command line of a cluster, as in segjax train: of all processes that see '
    '--data_dir one prepares, and the others wait for it',
  )
  page = parser.add_argument_group('of show')
  page.add_argument('--output', help='HTML file to write; default: the name of the data set')
  page.add_argument(
    '--task', choices=data_show.TASKS, help='one of those that the data set has annotations for'
  )
  page.add_argument('--split', help='show this split only; default: those to train and evaluate on')
  page.add_argument(
    '--examples',
    type=options.count,
    default=data_show.EXAMPLES,
    help='number of examples of each split to draw (default: %(default)s)',
  )
  page.add_argument(
    '--limit',
    type=options.count,
    default=data_show.LIMIT,
    help='maximum examples of a split to read; 0 for all (default: %(default)s)',
  )


def run(args: argparse.Namespace) -> int:
  if (args.name is None) == (args.config is None):
    raise SegjaxError(f'name a data set or a --config, such as: segjax data {args.action} scenes')
  if args.config is None and args.overrides:
    raise SegjaxError(f'--config.{args.overrides[0][0]} is for a --config: leave it out')
  experiment = None if args.config is None else _read_experiment(args)
  if args.action == 'prepare':
    _prepare(args, experiment)
  else:
    _show(args, experiment)
  return 0


def _read_experiment(args: argparse.Namespace) -> Experiment:
  """That of the config, with its data set in the directories of the command line."""
  places = {'dir': args.data_dir, 'source': args.source}
  overrides = [(f'data.{key}', repr(value)) for key, value in places.items() if value is not None]
  given = config_lib.override(config_lib.read_file(args.config), [*args.overrides, *overrides])
  return run_lib.resolve(given)


def _prepare(args: argparse.Namespace, experiment: Experiment | None) -> None:
  for key in ('output', 'task', 'split'):
    if getattr(args, key) is not None:
      raise SegjaxError(f'--{key} is for segjax data show: leave it out')
  workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
  raw_files = {'download': True, 'offline': args.offline, 'workers': workers}
  if experiment is None:
    name = args.name
    builder = datasets.load(name, args.data_dir, args.source, notify, **raw_files)
  else:
    name, builder = experiment.data.name, run_lib.load_dataset(experiment, **raw_files)[0]
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{name} {builder.version}: {splits} in {builder.data_path}')


def _show(args: argparse.Namespace, experiment: Experiment | None) -> None:
  for key in ('workers', 'distributed'):
    if getattr(args, key) is not None:
      raise SegjaxError(f'--{key} is for segjax data prepare: leave it out')
  if experiment is not None and args.task is not None:
    raise SegjaxError(f'--task={args.task}: the config names its task: leave it out')
  print(f'page: {data_show.show(args, experiment)}')
