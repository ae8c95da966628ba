"""`segjax info`: summarizes a run."""

import argparse
import contextlib
import json
from typing import Any

from segjax import run as run_lib
from segjax.cli import options
from segjax.training import checkpoint, sharding
from segjax.types import SegjaxError
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax info --workdir=runs/scenes --json
  segjax info --workdir=runs/coco --devices=8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  options.add_json(parser)
  parser.add_argument(
    '--devices',
    type=int,
    metavar='N',
    help='show the axis of each array of parameters that config.mesh.fsdp shards over N devices',
  )


def run(args: argparse.Namespace) -> int:
  facts = read_facts(Workdir(args.workdir), args.checkpoint, args.devices)
  if args.json:
    print(json.dumps(facts))
    return 0
  rows = facts.pop('fsdp', [])
  for name, value in facts.items():
    print(f'{name:18} {value}')
  for row in rows:
    shape = 'x'.join(map(str, row['shape']))
    axis = 'replicated' if row['axis'] is None else f'axis {row["axis"]}'
    print(f'{row["name"]:50} {shape:20} {axis:10} {row["own_bytes"]:14,} bytes')
  return 0


def read_facts(
  workdir: Workdir, which: checkpoint.Which, devices: int | None = None
) -> dict[str, Any]:
  """Step, parameter count, digests and best metric of a run at a checkpoint, for JSON.

  Args:
    workdir: of the run.
    which: its checkpoint.
    devices: adds `fsdp`, the rows of `sharding.fsdp_table` for so many devices.

  Raises:
    SegjaxError: the workdir or the checkpoint does not exist.
  """
  experiment = run_lib.read_experiment(workdir)
  restored = run_lib.restore(workdir, which)
  best, steps = None, [restored.step]
  if not workdir.has_weights_alone():
    with contextlib.closing(run_lib.open_checkpoints(workdir, experiment)) as checkpoints:
      best, steps = checkpoints.best(), checkpoints.steps()
  if devices is not None and devices < 1:
    raise SegjaxError(f'--devices={devices} must be 1 or greater')
  params = {name: array for name, array in restored.state.items() if name.startswith('params.')}
  table = [row._asdict() for row in sharding.fsdp_table(params, devices)] if devices else []
  return {
    'step': restored.step,
    'steps': experiment.train.steps,
    'parameter_count': sum(array.size for array in params.values()),
    'parameters_sha256': restored.params_sha256,
    'config_digest': experiment.digest,
    'best_metric': experiment.train.best_metric,
    'best_value': best[1] if best else None,
    'best_step': best[0] if best else None,
    'checkpoints': steps,
    **({'fsdp': table} if devices else {}),
  }
