"""`--distributed`: the several processes of a command."""

import argparse
import signal

from segjax import run as run_lib
from segjax.training import distributed
from segjax.training.sharding import MeshConfig
from segjax.workdir import Workdir


def start(args: argparse.Namespace, *, saves: bool = False) -> None:
  """Starts several processes, if `--distributed` asks for them.

  Args:
    args: of a command with a workdir.
    saves: whether the command answers SIGTERM itself, see `segjax.training.loop`.

  Raises:
    SegjaxError: see `distributed.start`.
  """
  if not args.distributed:
    return
  if args.distributed != 'auto':
    distributed.parse(args.distributed)  # before a config, or its absence, is met
  config, workdir = getattr(args, 'config', None), Workdir(args.workdir)
  if (workdir.path / 'manifest.json').is_file():  # an export
    mesh = MeshConfig()
  else:
    mesh = run_lib.read_mesh(workdir, config, args.overrides)
  distributed.start(args.distributed, mesh)
  if not saves:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which JAX has taken
