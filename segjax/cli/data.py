"""`segjax data prepare`: prepares a data set for training."""

import argparse

from segjax.data import datasets
from segjax.run import notify

HELP = 'prepare a data set'
EXAMPLE = """examples:
  segjax data prepare penn_fudan
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('action', choices=['prepare'])
  parser.add_argument('name', help='for example scenes, camvid, isbi2012/fold1')
  parser.add_argument('--data_dir', help='directory to write prepared data sets to')
  parser.add_argument('--source', help='directory of the raw files; without it, they are downloaded')
  parser.add_argument('--offline', action='store_true', help='do not download raw files')


def run(args: argparse.Namespace) -> int:
  builder = datasets.load(
    args.name, args.data_dir, args.source, report=notify, download=True, offline=args.offline
  )
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{args.name} {builder.version}: {splits} in {builder.data_path}')
  return 0
