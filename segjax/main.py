"""The command line interface: dispatches commands and maps errors to exit codes.

Nothing is imported here but the standard library: `segjax --help` and a mistyped command answer at
once, and a command imports its own module when it is chosen.
"""

import argparse
import functools
import gc
import importlib
import os
import select
import signal
import sys
from collections.abc import Container, Sequence
from types import ModuleType
from typing import NamedTuple

import segjax


class Command(NamedTuple):
  """A command of `segjax`.

  Attributes:
    module: has EXAMPLE, `add_arguments(parser)` and `run(args) -> exit code`.
    help: one line for `segjax --help`.
    overrides: whether it has a config, and takes `--config.KEY=VALUE`.
    computes: whether it uses JAX or a data set.
  """

  module: str
  help: str
  overrides: bool = True
  computes: bool = True


COMMANDS = {
  'new': Command('segjax.cli.new', 'write a config for images of your own'),
  'train': Command('segjax.cli.train', 'train a network from a config, or resume a run'),
  'evaluate': Command('segjax.cli.evaluate', 'compute the metrics of a trained network'),
  'compare': Command('segjax.cli.compare', 'compare runs on one HTML page'),
  'predict': Command('segjax.cli.predict', 'run a trained network on image files and videos'),
  'export': Command(
    'segjax.cli.export', 'write a trained network as StableHLO, ONNX, a SavedModel or weights'
  ),
  'data': Command('segjax.cli.data', 'prepare a data set, or write a page that shows it'),
  'convert': Command(
    'segjax.cli.convert', 'convert pretrained weights of another framework', overrides=False
  ),
  'info': Command(
    'segjax.cli.info',
    'show the step, the parameter count and the digests of a run',
    overrides=False,
  ),
  'table': Command(
    'segjax.cli.table', "print a paper's table next to our results, or train the missing rows"
  ),
  'launch': Command(
    'segjax.cli.launch', 'write or submit a training job for Slurm, GKE or TPU VMs', computes=False
  ),
  'list': Command(
    'segjax.cli.list',
    'list configs, models, data sets, pretrained weights, losses, metrics or tables',
    overrides=False,
    computes=False,
  ),
}


def _import(module: str) -> ModuleType:
  """Imports a module; what imports allocate stays, so that collecting garbage is in vain."""
  gc.disable()
  try:
    return importlib.import_module(module)
  finally:
    gc.enable()


def make_parser(loaded: Container[str] = COMMANDS) -> argparse.ArgumentParser:
  """The parser of `segjax`.

  Args:
    loaded: the commands whose modules are imported, so that the parser knows their arguments.
  """
  parser = argparse.ArgumentParser(
    prog='segjax',
    description='Train and evaluate image segmentation networks in JAX.',
    epilog='example:\n  segjax train --config=unet/scenes --workdir=runs/scenes\n'
    '  segjax evaluate --workdir=runs/scenes',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=segjax.__version__)
  parser.add_argument(
    '--print-completion',
    choices=('bash', 'zsh'),
    metavar='SHELL',
    help='print the completion of a shell: eval "$(segjax --print-completion bash)"',
  )
  commands = parser.add_subparsers(dest='command', metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = commands.add_parser(
      name,
      help=command.help,
      description=command.help[0].upper() + command.help[1:] + '.',
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    if name in loaded:
      module = _import(command.module)
      sub.epilog = module.EXAMPLE
      sub.set_defaults(run=module.run)
      sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
      module.add_arguments(sub)
  return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """The parsed command line; `overrides` holds each `--config.KEY=VALUE` as `(KEY, VALUE)`."""
  plain, overrides, rest = [], [], iter(argv)
  for word in rest:
    if not word.startswith('--config.'):
      plain.append(word)
      continue
    key, equals, value = word.removeprefix('--config.').partition('=')
    overrides.append((key, value if equals else next(rest, '')))
  parser = make_parser([word for word in plain if not word.startswith('-')][:1])
  args = parser.parse_args(plain)
  if args.print_completion:
    completion = importlib.import_module('segjax.cli.completion')
    print(completion.script(make_parser(), args.print_completion))
    parser.exit()
  if args.command is None:  # `segjax` alone
    parser.print_help()
    parser.exit()
  if overrides and not COMMANDS[args.command].overrides:
    parser.error(f'segjax {args.command} does not accept --config.{overrides[0][0]}')
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Returns:
    The exit code: 0 on success; the `exit_code` of an error that the user can fix, printed as one
    line on standard error, 2 in general, 74 where storage or the network failed; 130 after Ctrl-C;
    128 plus the signal number if a signal stopped training, after its state was saved.
  """
  args = parse_arguments(sys.argv[1:] if argv is None else argv)
  if getattr(args, 'distributed', None):
    return _import('segjax.training.distributed').run(functools.partial(_run, args))
  return _run(args)[0]


def _run(args: argparse.Namespace) -> tuple[int, str]:
  """Runs a command; the exit code, and the sentence of an error, which is printed."""
  from segjax.types import SegjaxError, StoppedError

  sentence = ''
  try:
    if COMMANDS[args.command].computes:
      _import('segjax.run').start_process()
    code = args.run(args)
    print(end='', flush=True)
  except (SegjaxError, OSError) as e:
    if isinstance(e, BrokenPipeError) and _nobody_reads():
      return 128 + signal.SIGPIPE, ''
    if args.debug:
      raise
    code, sentence = (e.exit_code, str(e)) if isinstance(e, SegjaxError) else _explain(e)
  except KeyboardInterrupt:
    code, sentence = 130, 'interrupted'
  except StoppedError as e:
    code = 128 + e.signum
    _print(f'stopped by {e}; the state is saved: run the same command again to resume')
  if sentence:
    _print(sentence)
  return code, sentence


def _nobody_reads() -> bool:
  """Whether standard output is a pipe that is closed: `segjax table --all | head`."""
  try:
    pipe = sys.stdout.fileno()
  except (AttributeError, OSError, ValueError):  # of a notebook, or there is none
    return False
  poll = select.poll()
  poll.register(pipe, 0)  # a closed one is told in any case
  if not poll.poll(0):
    return False
  # What is still in the buffer is flushed at exit, which would fail, too.
  os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
  return True


def _print(sentence: str) -> None:
  print(f'segjax: {sentence}', file=sys.stderr, flush=True)


def _explain(error: OSError) -> tuple[int, str]:
  """The exit code and the sentence for an error of the system."""
  from segjax.types import OutageError, SegjaxError, is_outage

  reason = error.strerror or str(error) or type(error).__name__
  if is_outage(error):
    place = error.filename or 'the disk, the bucket or the network'
    fix = 'run the same command again, and check the connection if it fails again'
    return OutageError.exit_code, f'{place}: {reason}: {fix}'
  place = error.filename or 'a file'
  fix = 'check the path, its permissions and the disk'
  return SegjaxError.exit_code, f'{place}: {reason}: {fix}'


if __name__ == '__main__':
  sys.exit(main())
