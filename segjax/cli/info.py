"""`segjax info`: summarizes a run."""

import argparse
import json
from typing import Any

from segjax import run as run_lib
from segjax.cli import options
from segjax.training import checkpoint
from segjax.types import SegjaxError
from segjax.workdir import Workdir

EXAMPLE = """example:
  segjax info --workdir=runs/scenes --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  options.add_json(parser)


def run(args: argparse.Namespace) -> int:
  facts = read_facts(Workdir(args.workdir), args.checkpoint)
  if args.json:
    print(json.dumps(facts))
  else:
    for name, value in facts.items():
      print(f'{name:18} {value}')
  return 0


def read_facts(workdir: Workdir, which: checkpoint.Which) -> dict[str, Any]:
  """Step, parameter count, digests and best metric of a run at a checkpoint, for JSON.

  Raises:
    SegjaxError: the workdir or the checkpoint does not exist.
  """
  experiment = run_lib.read_experiment(workdir)
  checkpoints = run_lib.open_checkpoints(workdir, experiment)
  restored, best, steps = checkpoints.restore(which), checkpoints.best(), checkpoints.steps()
  checkpoints.close()
  if restored is None:
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: train until the first one')
  return {
    'step': restored.step,
    'steps': experiment.train.steps,
    'parameter_count': sum(
      array.size for name, array in restored.state.items() if name.startswith('params.')
    ),
    'parameters_sha256': restored.params_sha256,
    'config_digest': experiment.digest,
    'best_metric': experiment.train.best_metric,
    'best_value': best[1] if best else None,
    'best_step': best[0] if best else None,
    'checkpoints': steps,
  }
