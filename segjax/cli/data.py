"""`segjax data prepare`: prepares a data set for training."""

import argparse

from segjax.data import datasets
from segjax.run import notify

HELP = 'prepare a data set'
EXAMPLE = """example:
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('action', choices=['prepare'])
  parser.add_argument('name', help='for example scenes, camvid, isbi2012/fold1')
  parser.add_argument('--data_dir', help='directory to write prepared data sets to')
  parser.add_argument('--source', help='directory to read the raw files from')


def run(args: argparse.Namespace) -> int:
  builder = datasets.load(args.name, args.data_dir, args.source, report=notify)
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{args.name} {builder.version}: {splits} in {builder.data_path}')
  return 0
