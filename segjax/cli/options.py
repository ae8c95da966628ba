"""Arguments shared by several commands."""

import argparse

from segjax.training.checkpoint import Which


def add_workdir(parser: argparse.ArgumentParser, help: str = 'directory of the run') -> None:
  parser.add_argument('--workdir', required=True, help=help)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--checkpoint', type=_which, default='latest', help='latest (default), best, or a step'
  )


def add_json(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def add_distributed(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--distributed',
    nargs='?',
    const='auto',
    metavar='HOST:PORT,COUNT,INDEX',
    help='run in several processes: detected by JAX (TPU pods, Slurm, …), or as given',
  )


def _which(text: str) -> Which:
  return int(text) if text.isdigit() else text


def count(text: str) -> int:
  """The `type` of an argument that is 0 or more."""
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text} must be 0 or more')
  return int(text)
