"""`segjax convert`: converts pretrained weights of other frameworks."""

import argparse

from segjax import storage
from segjax.convert import load
from segjax.run import notify
from segjax.workdir import weights_file

EXAMPLE = f"""examples:
  segjax convert --source=torchvision/vgg16 --weights=vgg16.pth --output=vgg16.safetensors
  segjax convert --source=torchvision/resnet50 --output=resnet50.safetensors

Sources: {', '.join(load.SOURCES)}.
Weights are .safetensors, .bin, .pth, .pt, .pkl or .caffemodel files; their code is not executed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--source', required=True, help='for example torchvision/vgg16')
  parser.add_argument(
    '--weights', help='file to read, or directory of a model of transformers; default: download'
  )
  parser.add_argument('--output', required=True, help='.safetensors file to write')


def run(args: argparse.Namespace) -> int:
  weights = args.weights and weights_file(storage.user_path(args.weights))
  count = load.convert_file(args.source, weights, args.output, notify)
  print(f'{args.output}: {count} arrays; start from it with --config.init_from.path={args.output}')
  print(f'its network takes images as {load.SOURCES[args.source].input}')
  return 0
