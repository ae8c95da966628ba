"""`segjax export`: writes a trained network as programs that need no segjax, or as weights."""

import argparse
import re

from segjax import export, storage
from segjax import run as run_lib
from segjax.cli import options
from segjax.run import notify
from segjax.types import SegjaxError
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax export --workdir=runs/scenes --format=stablehlo --output=exported/
  segjax export --workdir=runs/scenes --format=onnx --size=480x640 --batch=1 --output=exported/
  segjax export --workdir=runs/scenes --checkpoint=best --format=safetensors --output=shared/

A program takes images u8[batch, height, width, channels] of their own size and gives the same as
segjax predict: it resizes, pads and normalizes, and maps the result back. manifest.json describes
its inputs and outputs, and has the SHA-256 of each file. segjax.load('exported/') runs it.

Without --size and --batch it takes any number of images of any size, where the network
allows it.

safetensors is no program but the weights with their config: a --workdir for all commands but
segjax train, which starts from it by config.init_from.path."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  parser.add_argument(
    '--format',
    required=True,
    metavar='{stablehlo,onnx,savedmodel,safetensors}',
    help='of the programs, or of the weights',
  )
  parser.add_argument('--output', required=True, help='directory to write, which must not exist')
  parser.add_argument(
    '--size',
    type=_size,
    action='append',
    default=[],
    metavar='HEIGHTxWIDTH',
    help='of the images, once for each size; default: any',
  )
  parser.add_argument('--batch', type=_batch, help='number of images; default: any')
  parser.add_argument(
    '--probability', action='store_true', help='output the probability of each class, too'
  )


def run(args: argparse.Namespace) -> int:
  workdir, output = Workdir(args.workdir), storage.local_path(args.output, '--output')
  loaded = run_lib.load_run(workdir, args.checkpoint, args.overrides)
  if args.format == export.WEIGHTS:
    _check_no_program(args)
    with storage.explained(output):
      export.export_weights(loaded, workdir, output)
    notify(f'the weights of step {loaded.restored.step} are in {output}')
    return 0
  with storage.explained(output):
    plans = export.export_run(
      loaded,
      output,
      args.format,
      sizes=args.size,
      batch=args.batch,
      probability=args.probability,
    )
  for plan in plans:
    notify(f'a program for {plan}')
  notify(f'the export is in {output}')
  return 0


def _check_no_program(args: argparse.Namespace) -> None:
  given = {'--size': args.size, '--batch': args.batch, '--probability': args.probability}
  if named := [name for name, value in given.items() if value]:
    raise SegjaxError(f'{named[0]}: --format={args.format} writes no program: leave it out')


def _size(text: str) -> tuple[int, int]:
  if not (match := re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)):
    raise argparse.ArgumentTypeError(f'{text} must be HEIGHTxWIDTH in pixels, such as 480x640')
  return int(match[1]), int(match[2])


def _batch(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text} must be 1 or more')
  return int(text)
