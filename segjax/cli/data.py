"""`segjax data prepare`: prepares a data set for training."""

import argparse

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.data import datasets
from segjax.run import notify
from segjax.types import SegjaxError

HELP = 'prepare a data set'
EXAMPLE = """examples:
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/
  segjax data prepare --config=my_config.py"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('action', choices=['prepare'])
  parser.add_argument('name', nargs='?', help='for example scenes, camvid, isbi2012/fold1')
  parser.add_argument('--config', help='config file whose data set is prepared')
  parser.add_argument('--data_dir', help='directory to write prepared data sets to')
  parser.add_argument('--source', help='directory to read the raw files from')


def run(args: argparse.Namespace) -> int:
  if (args.name is None) == (args.config is None):
    raise SegjaxError('name a data set or a --config, such as: segjax data prepare scenes')
  if args.config is None:
    if args.overrides:
      raise SegjaxError(f'--config.{args.overrides[0][0]} is for a --config: leave it out')
    name = args.name
    builder = datasets.load(name, args.data_dir, args.source, report=notify)
  else:
    builder, name = _prepare_config(args)
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{name} {builder.version}: {splits} in {builder.data_path}')
  return 0


def _prepare_config(args: argparse.Namespace) -> tuple[datasets.Builder, str]:
  """The prepared data set of a config, and its name."""
  places = {'dir': args.data_dir, 'source': args.source}
  overrides = [(f'data.{key}', value) for key, value in places.items() if value is not None]
  given = config_lib.override(config_lib.read_file(args.config), [*args.overrides, *overrides])
  experiment = run_lib.resolve(given)
  return run_lib.load_dataset(experiment)[0], experiment.data.name
