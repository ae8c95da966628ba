"""Bytes on each device in a train step, from the memory analysis of the compiled program."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segjax import config as config_lib
from segjax import resources
from segjax import run as run_lib
from segjax.data import batch as batch_lib
from segjax.data.datasets import DatasetSpec
from segjax.experiment import parse
from segjax.training import compile, optim, sharding, step
from segjax.training.sharding import MeshConfig

# Images of 512 x 1024 pixels, as Cityscapes at half its size.
SIZE = (512, 1024)
# Row -> (config, overrides, shape, layouts).
_SHARED = [MeshConfig(data, fsdp=fsdp) for data in (1, 2, 4) for fsdp in (False, True)[:data]]
_SPLIT = [MeshConfig(1, space) for space in (1, 2, 4)]
NETWORKS: dict[str, tuple[str, Mapping[str, Any], tuple[int, int], Sequence[MeshConfig]]] = {
  'fsdp_fcn': ('fcn/voc', {'batch.size': 4}, (512, 512), _SHARED),
  'fsdp_mask_rcnn': ('mask_rcnn/coco_r50_fpn', {'batch.size': 4}, (800, 1088), _SHARED),
  'fsdp_panoptic_fpn': ('panoptic_fpn/coco_r50', {'batch.size': 4}, (800, 1088), _SHARED),
  'fsdp_segnet': ('segnet/camvid', {'batch.size': 4}, (360, 480), _SHARED),
  'fsdp_unet': ('unet/camvid', {'batch.size': 4, 'model.width': 64}, (360, 480), _SHARED),
  'space_unet': ('unet/camvid', {'batch.size': 1, 'model.width': 64}, SIZE, _SPLIT),
  'space_segnet': ('segnet/camvid', {'batch.size': 1}, SIZE, _SPLIT),
  'space_segnet_odd': ('segnet/camvid', {'batch.size': 1}, (360, 480), _SPLIT),
  'space_segnet_basic': ('segnet/basic_camvid', {'batch.size': 1}, SIZE, _SPLIT),
  'space_fcn': ('fcn/voc', {'batch.size': 1}, SIZE, _SPLIT),
}


def measure(name: str, cache: str) -> list[dict[str, Any]]:
  """The bytes of each layout."""
  del cache
  config, overrides, shape, layouts = NETWORKS[name]
  run = make_run(config, overrides)
  return [
    {'data': c.data, 'space': c.space, 'fsdp': c.fsdp, **step_bytes(run, shape, c)} for c in layouts
  ]


def make_run(config: str, overrides: Mapping[str, Any]) -> run_lib.Run:
  """A shipped config's run, on a data set that is known by its classes alone."""
  given = config_lib.read_file(str(resources.config_path(config)))
  pairs = [(key, str(value)) for key, value in overrides.items()]
  experiment = parse(config_lib.override(given, pairs))
  model = experiment.model
  count = model.classes + getattr(model, 'stuff', 0)
  things = {'semantic': None}.get(experiment.task, tuple(range(model.classes)))
  names = tuple(map(str, range(count)))
  palette = np.zeros((count, 3), np.uint8)
  spec = DatasetSpec(experiment.data.name, '1.0.0', names, palette, 3, {}, things)
  weights = {loss.rule: [1.0] * count for loss in experiment.losses.values() if loss.rule}
  return run_lib.build(experiment, spec, weights)


def step_bytes(run: run_lib.Run, shape: tuple[int, int], config: MeshConfig) -> dict[str, int]:
  """Compiles the train step of a layout.

  Returns:
    Bytes of a device: `state`, of the run between steps; `arguments`, state and batch; and
    `temporary`, what a step needs in addition.
  """
  mesh = sharding.make_mesh(config)
  optimization = run.experiment.optim
  example = batch_shapes(run, shape)
  optimizer = run_lib.make_optimizer(run, example)
  init = run_lib.init_state(run, optimizer, example)
  state = jax.eval_shape(init, jax.random.key(0))
  places = sharding.state_shardings(state, mesh, fsdp=config.fsdp)
  batch = {
    key: jax.tree.map(
      lambda x, key=key: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, run.task.batch_spec[key])
      ),
      value,
    )
    for key, value in example.items()
    if key in run.task.batch_spec
  }
  task = sharding.gathered(run.task, mesh) if config.fsdp else run.task
  schedule = optim.make_schedule(optimization, run.experiment.train.steps)
  options = {'seed': 0, 'accumulate': optimization.accumulate, 'ema': optimization.ema}
  train_step = step.make_train_step(task, optimizer, schedule, **options)
  outputs = (places, sharding.replicated(mesh))
  compiled = (
    compile.jit(train_step, donate_argnums=0, out_shardings=outputs)
    .lower(sharding.placed(state, places), batch)
    .compile()
  )
  analysis = compiled.memory_analysis()
  own = lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
  return {
    'state': sum(jax.tree.leaves(jax.tree.map(own, state, places))),
    'arguments': analysis.argument_size_in_bytes,
    'temporary': analysis.temp_size_in_bytes,
  }


def batch_shapes(run: run_lib.Run, shape: tuple[int, int]) -> dict[str, Any]:
  """A training batch as shapes."""
  config = run.experiment.input
  margin, count = getattr(run.model, 'margin', 0), config.batch.size
  fields = batch_lib.fields(config, run.spec.channels, shape, train=True, margin=margin)
  one = lambda field: jax.ShapeDtypeStruct((count, *field.shape), field.dtype)
  is_field = lambda node: isinstance(node, batch_lib.Field)
  batch = {key: jax.tree.map(one, field, is_leaf=is_field) for key, field in fields.items()}
  if 'label' in batch:  # as `batch.finish` has it
    label = batch['label']
    batch['label'] = jax.ShapeDtypeStruct(label.shape, np.int32)
  return {**batch, 'valid': jax.ShapeDtypeStruct((count,), bool)}


ROWS = {f'memory_{name}': functools.partial(measure, name) for name in NETWORKS}
