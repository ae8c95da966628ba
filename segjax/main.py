"""The command line interface: dispatches commands and maps errors to exit codes."""

import argparse
import sys
from collections.abc import Sequence

import jax
from absl import flags, logging

import segjax
from segjax.cli import convert, data, evaluate, info, new, predict, table, train
from segjax.training import compile, loop
from segjax.types import SegjaxError

# Each module has HELP, EXAMPLE, `add_arguments(parser)` and `run(args) -> exit code`.
COMMANDS = {
  'new': new,
  'train': train,
  'evaluate': evaluate,
  'predict': predict,
  'data': data,
  'convert': convert,
  'info': info,
  'table': table,
}
# Commands without a config to override.
_WITHOUT_CONFIG = ('convert', 'info')


def make_parser() -> argparse.ArgumentParser:
  """The parser of `segjax`."""
  parser = argparse.ArgumentParser(
    prog='segjax',
    description='Train and evaluate image segmentation networks in JAX.',
    epilog='example:\n  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes\n'
    '  segjax evaluate --workdir=runs/scenes',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=segjax.__version__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = commands.add_parser(
      name,
      help=command.HELP,
      description=command.HELP[0].upper() + command.HELP[1:] + '.',
      epilog=command.EXAMPLE,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    sub.set_defaults(run=command.run)
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
    command.add_arguments(sub)
  return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """The parsed command line; `overrides` holds each `--config.KEY=VALUE` as `(KEY, VALUE)`."""
  parser = make_parser()
  plain, overrides, rest = [], [], iter(argv)
  for word in rest:
    if not word.startswith('--config.'):
      plain.append(word)
      continue
    key, equals, value = word.removeprefix('--config.').partition('=')
    overrides.append((key, value if equals else next(rest, '')))
  args = parser.parse_args(plain)
  if overrides and args.command in _WITHOUT_CONFIG:
    parser.error(f'segjax {args.command} does not accept --config.{overrides[0][0]}')
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Returns:
    The exit code: 0 on success; 2 after an error that the user can fix, printed as one line on
    standard error; 130 after Ctrl-C; 128 plus the signal number if a signal stopped training, after
    its state was saved.
  """
  args = parse_arguments(sys.argv[1:] if argv is None else argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns about intended usage
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['segjax'])  # Grain's worker processes read absl's flags
  try:
    compile.enable_cache()
    if getattr(args, 'distributed', None):
      start_distributed(args.distributed)
    return args.run(args)
  except (SegjaxError, OSError) as e:
    if args.debug:
      raise
    print(f'segjax: {_sentence(e)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('segjax: interrupted', file=sys.stderr)
    return 130
  except loop.StoppedError as e:
    print(
      f'segjax: stopped by {e}; the state is saved: run the same command again to resume',
      file=sys.stderr,
    )
    return 128 + e.signum


def _sentence(error: SegjaxError | OSError) -> str:
  if isinstance(error, SegjaxError):
    return str(error)
  reason = f'{error.filename or "a file"}: {error.strerror or error}'
  return f'{reason}: check the path, its permissions and the disk'


def start_distributed(how: str) -> None:
  """Initializes multi-process JAX.

  Args:
    how: 'auto', or 'HOST:PORT,COUNT,INDEX': the coordinator's address, the number of processes and
      the index of this one.

  Raises:
    SegjaxError: `how` has another form.
  """
  if how == 'auto':
    jax.distributed.initialize()
    return
  try:
    address, count, index = how.split(',')
    count, index = int(count), int(index)
  except ValueError:
    raise SegjaxError(
      f'--distributed={how} must be HOST:PORT,COUNT,INDEX, such as 10.0.0.1:1234,4,0'
    ) from None
  jax.distributed.initialize(address, count, index)


if __name__ == '__main__':
  sys.exit(main())
