"""Data sets, checkpoints and trained runs, by config or workdir."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from segjax import config as config_lib
from segjax.data import datasets, instance_pipeline, pipeline
from segjax.program.build import Config, Run, build, complete
from segjax.train import checkpoint, state
from segjax.types import SegjaxError
from segjax.workdir import Workdir


def tell(text: str) -> None:
  """What a person sees, on standard error: of several processes, the first one's words."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def tell_of_process(text: str) -> None:
  """Tells what each process knows of its own part of the batches."""
  process = f'process {jax.process_index()}: ' if jax.process_count() > 1 else ''
  print(process + text, file=sys.stderr, flush=True)


def load_dataset(config: Config) -> tuple[Any, datasets.DatasetSpec]:
  """The data set to train on, prepared where it was not yet, and its spec."""
  data = pipeline.DataConfig(**config['data'])
  builder = datasets.load(data.name, data.dir, data.source, report=tell)
  return builder, datasets.spec(builder, data)


def load_eval_dataset(
  config: Config, class_names: Sequence[str]
) -> tuple[Any, datasets.DatasetSpec]:
  """The data set to evaluate on, which has to have these classes, and its spec."""
  data = config['data']
  if data['eval_name'] is not None:
    config = {**config, 'data': {**data, 'name': data['eval_name'], 'source': data['eval_source']}}
  builder, spec = load_dataset(config)
  if spec.class_names != tuple(class_names):
    key = 'name' if data['eval_name'] is None else 'eval_name'
    raise SegjaxError(
      f'the network has {len(class_names)} other classes than those of {spec.name}: set '
      f'config.data.{key} to a data set with the same'
    )
  return builder, spec


def batches_of(data: pipeline.DataConfig) -> Any:
  """The module that makes the batches of this data."""
  return pipeline if data.instances is None else instance_pipeline


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained run: what it was built from, and the variables of one of its checkpoints."""

  run: Run
  restored: checkpoint.Restored
  variables: Mapping[str, Any]


def load_run(workdir: Workdir, which: checkpoint.Which, overrides: Sequence[Any] = ()) -> Loaded:
  """The run in `workdir`, without its data set.

  Raises:
    SegjaxError: no such workdir or checkpoint, or a damaged one.
  """
  for key, _ in overrides:
    if not key.startswith(('data.', 'eval.', 'mesh.', 'train.pictures')):
      raise SegjaxError(
        f'config.{key} belongs to the training of {workdir.path}: for a trained network only '
        'config.data, config.eval and config.mesh can be set'
      )
  config = complete(config_lib.override(workdir.read_config(), overrides))
  dataset = workdir.read_dataset()
  spec = datasets.DatasetSpec.from_json(dataset['spec'])
  run = build(config, spec, dataset['class_weights'])
  restored = restore(workdir, which)
  return Loaded(run, restored, state.variables_from_arrays(restored.state))


def restore(workdir: Workdir, which: checkpoint.Which) -> checkpoint.Restored:
  """A checkpoint of a workdir, its arrays by name.

  Raises:
    SegjaxError: there is none, or it is damaged.
  """
  checkpoints = open_checkpoints(workdir, complete(workdir.read_config()))
  restored = checkpoints.restore(which)
  checkpoints.close()
  if restored is None:
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: let training reach its first one')
  return restored


def open_checkpoints(workdir: Workdir, config: Config) -> checkpoint.Checkpoints:
  """The checkpoints of a workdir, to read."""
  if not workdir.checkpoints.is_dir():
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: let training reach its first one')
  train_config = config['train']
  return checkpoint.Checkpoints(
    workdir.checkpoints,
    best_metric=train_config['best_metric'],
    best_mode=train_config['best_mode'],
    read_only=True,
    warn=tell,
  )


def is_trained(workdir: Workdir) -> bool:
  """Whether a training has reached its last step."""
  if not workdir.has_checkpoints():
    return False
  config = complete(workdir.read_config())
  checkpoints = open_checkpoints(workdir, config)
  steps = checkpoints.steps()
  checkpoints.close()
  return bool(steps) and steps[-1] >= config['train']['steps']
