"""The command line: the only place where data, models, tasks, training and reports meet."""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from rich.console import Console

import segjax
from segjax import config as config_lib
from segjax import merge, predict
from segjax.convert import load as weights_lib
from segjax.data import coco as coco_data
from segjax.data import datasets, instance_pipeline, instances, pipeline, transforms
from segjax.data.transforms import Augment
from segjax.data.weight_map import border_weight_map
from segjax.losses import dense
from segjax.metrics import coco
from segjax.ops.paste_masks import paste_masks
from segjax.ops.windows import view
from segjax.report import console, curves, html, overlays, values
from segjax.tables import launch, page, results, runs
from segjax.tables import spec as spec_lib
from segjax.tasks.base import Task
from segjax.train import checkpoint, compile, evaluate, log, loop, optim, sharding, state, step
from segjax.types import SegjaxError, Segments, SumCount, nearest
from segjax.workdir import Workdir

Config = dict[str, Any]

# Rules that `class_weights` of a loss may name instead of numbers.
CLASS_WEIGHTS = {
  'median_frequency': dense.median_frequency_weights,
  'natural': dense.natural_weights,
}
# Fields that Linen gives every module.
LINEN = ('parent', 'name')
# Arguments of a task that are the program's to fill in.
INJECTED = ('model', 'class_names', 'things', 'losses', 'draw')


def complete(given: Mapping[str, Any]) -> Config:
  """The whole config: every key of every part, with its default where `given` says nothing.

  Raises:
    SegjaxError: a key that no part knows (with the nearest right one), a value of the wrong type.
  """
  groups = ('task', 'model', 'losses', 'eval', 'data', 'optim', 'train', 'mesh', 'init_from')
  for key in given:
    if key not in groups:
      raise SegjaxError(f'config.{key} is not a key{nearest(key, groups)}')
  for key in ('task', 'model', 'data'):
    if key not in given:
      raise SegjaxError(f'config.{key} is missing: see configs/unet/scenes.py for an example')
  for key, value in given.items():
    optional = key == 'init_from' and value in (None, 'none')
    if key != 'task' and not optional and not isinstance(value, Mapping):
      raise SegjaxError(f'config.{key}={value!r} has the wrong type: it takes a group of keys')
  fill = config_lib.complete_arguments
  data = fill(pipeline.DataConfig, given['data'], 'config.data')
  init_from = given.get('init_from')
  init_from = None if init_from == 'none' else init_from
  data['augment'] = fill(Augment, data['augment'] or {}, 'config.data.augment')
  if data['weight_map'] is not None:
    where = 'config.data.weight_map'
    data['weight_map'] = fill(border_weight_map, data['weight_map'], where, injected=('label',))
  _check_task(given, data)
  return {
    'task': given['task'],
    'model': _complete_model(given['model'], 'config.model'),
    'losses': {
      name: _complete_loss(name, kw, _task_module(given))
      for name, kw in given.get('losses', {}).items()
      if kw not in (None, 'none')  # how an override takes a loss away
    },
    'eval': fill(_task_factory(given), given.get('eval', {}), 'config.eval', injected=INJECTED),
    'data': data,
    'optim': fill(optim.OptimConfig, given.get('optim', {}), 'config.optim'),
    'train': fill(loop.TrainConfig, given.get('train', {}), 'config.train'),
    'mesh': fill(sharding.MeshConfig, given.get('mesh', {}), 'config.mesh'),
    'init_from': init_from and fill(weights_lib.InitFrom, init_from, 'config.init_from'),
  }


def _complete_model(given: Mapping[str, Any], where: str) -> Config:
  """A network's name and arguments, and those of the networks that it is made of."""
  if not isinstance(given, Mapping):
    raise SegjaxError(f'{where}={given!r} has the wrong type: it takes a group of keys')
  given = dict(given)
  name = config_lib.check_type(given.pop('name', None), str, f'{where}.name')
  model_class = config_lib.locate(name, 'segjax.models', f'{where}.name')
  full = config_lib.complete_arguments(model_class, given, where, injected=LINEN)
  for part in getattr(model_class, 'parts', ()):
    full[part] = _complete_model(full[part], f'{where}.{part}')
  return {'name': name, **full}


def _make_model(args: Mapping[str, Any]) -> Any:
  """The Linen module of a complete `config.model`."""
  args = dict(args)
  model_class = config_lib.locate(args.pop('name'), 'segjax.models', 'config.model.name')
  for part in getattr(model_class, 'parts', ()):
    args[part] = _make_model(args[part])
  return model_class(**args)


def _task_factory(config: Mapping[str, Any]) -> Callable[..., Task]:
  return config_lib.locate(f'{config["task"]}.make_task', 'segjax.tasks', 'config.task')


def _task_module(config: Mapping[str, Any]) -> Any:
  """The module of a config's task, which says where its losses are."""
  return importlib.import_module(_task_factory(config).__module__)


def _loss_function(name: str, task: Any) -> Callable[..., SumCount]:
  package, _, module = task.LOSSES.rpartition('.')
  return config_lib.locate(f'{module}.{name}', package, 'config.losses')


def _complete_loss(name: str, kwargs: Mapping[str, Any], task: Any) -> Config:
  where = f'config.losses.{name}'
  if not isinstance(kwargs, Mapping):
    raise SegjaxError(f'{where}={kwargs!r} has the wrong type: it takes a group of keys, or none')
  kwargs = dict(kwargs)
  scale = config_lib.check_type(kwargs.pop('scale', 1.0), float, f'{where}.scale')
  rule = kwargs.get('class_weights')
  rule = rule if isinstance(rule, str) and rule != 'none' else None
  if rule:
    del kwargs['class_weights']
    if rule not in CLASS_WEIGHTS:
      hint = nearest(rule, CLASS_WEIGHTS)
      raise SegjaxError(f'{where}.class_weights={rule!r} is no rule{hint}')
  full = config_lib.complete_arguments(
    _loss_function(name, task), kwargs, where, injected=task.LOSS_INPUTS
  )
  return {'scale': scale, **full, **({'class_weights': rule} if rule else {})}


@dataclasses.dataclass(frozen=True)
class Run:
  """A config brought to life.

  Attributes:
    config: complete.
    model: the Linen module.
    task: the task around it.
    spec: classes, colours and channels of the data set.
    data: `config.data` as its dataclass.
  """

  config: Config
  model: Any
  task: Task
  spec: datasets.DatasetSpec
  data: pipeline.DataConfig


def build(
  config: Config, spec: datasets.DatasetSpec, class_weights: Mapping[str, Sequence[float]]
) -> Run:
  """The model and the task of `config` for the data set `spec`.

  Args:
    config: complete.
    spec: of the data set.
    class_weights: weights for each rule that a loss of the config names, see `find_class_weights`.
  """
  data = pipeline.DataConfig(**config['data'])
  _check_classes(config['model'], spec, data)
  model = _make_model(config['model'])
  accumulate = optim.OptimConfig(**config['optim']).accumulate
  if data.batch_size % accumulate:
    raise SegjaxError(
      f'config.optim.accumulate={accumulate} does not divide config.data.batch_size='
      f'{data.batch_size}: choose one that does'
    )
  if not config['losses'] and config['train']['steps']:
    raise SegjaxError('config.losses is empty: name a loss, such as softmax_cross_entropy')
  activation = config['losses'].get('mask', {}).get('activation')
  if activation not in (None, getattr(model, 'mask_activation', activation)):
    raise SegjaxError(
      f'config.losses.mask.activation={activation!r} but config.model.mask_activation='
      f'{model.mask_activation!r}: set both to the same'
    )
  module = _task_module(config)
  draw = _draw if data.instances is None else _draw_objects
  task = _task_factory(config)(
    model=model,
    class_names=spec.class_names,
    losses={n: _bind_loss(n, kw, class_weights, module) for n, kw in config['losses'].items()},
    draw=functools.partial(draw if data.segments is None else _draw_panoptic, spec, data),
    **({} if data.segments is None else {'things': spec.things}),
    **config['eval'],
  )
  return Run(config, model, task, spec, data)


def _check_task(given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
  """Raises a SegjaxError where the batches would not hold what the task learns from."""
  wanted = _task_module(given).DATA_KEYS
  for key in ('instances', 'segments'):
    if (key in wanted) != (data[key] is not None):
      mend = 'set it to a number' if key in wanted else 'leave it out'
      raise SegjaxError(
        f'config.data.{key}={data[key]} does not fit config.task={given["task"]!r}: {mend}'
      )


def _check_classes(
  model_args: Mapping[str, Any], spec: datasets.DatasetSpec, data: pipeline.DataConfig
) -> None:
  """Raises a SegjaxError where a network has other numbers of classes than the data set."""
  expected = {'classes': (spec.num_classes, 'classes')}
  if data.segments is not None:
    things = len(spec.things)
    of_things = (things, 'classes of things')
    expected = {'classes': of_things, 'stuff': (spec.num_classes - things, 'classes of stuff')}
    if 'semantic' in model_args:
      whole = (spec.num_classes, 'classes')
      expected = {'semantic.classes': whole, 'instance.classes': of_things}
  flat = config_lib.flatten(model_args)
  for key, (number, what) in expected.items():
    if flat.get(key) != number:
      raise SegjaxError(
        f'config.model.{key}={flat.get(key)} but the data set {spec.name} has {number} {what}: set '
        f'config.model.{key}={number}'
      )


def _draw(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  truth: np.ndarray,
  prediction: np.ndarray,
  uncertainty: np.ndarray | None,
) -> dict[str, np.ndarray]:
  picture = overlays.denormalize(image, data.mean, data.std)
  panels = overlays.panels(picture, truth, prediction, spec.palette)
  return panels if uncertainty is None else {**panels, 'uncertainty': overlays.heat(uncertainty)}


def _draw_objects(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  annotation: Mapping[str, Any],
  detections: Mapping[str, np.ndarray],
  *,
  paste: coco.Paste,
  threshold: float,
) -> dict[str, np.ndarray]:
  """The image inside its padding, its objects, and those found with a score from `threshold` on."""
  picture = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  # At the size of the picture, and not at the image's own.
  inside = {'height': size[0], 'width': size[1], 'scale': (1.0, 1.0)}
  found = coco.image_result(detections, inside, paste if 'masks' in detections else None)
  native = (annotation['height'], annotation['width'])
  truth = instances.decode(annotation['objects'], native)
  truth = instances.resize(instances.Picture(np.zeros((*native, 1), np.uint8), truth), size).objects
  names = [spec.class_names[k] for k in truth.classes]
  drawn = overlays.objects(picture, truth.boxes, spec.palette[truth.classes], names, truth.masks)
  return {
    'image': overlays.objects(picture, (), (), ()),  # as large as the others
    'truth': drawn,
    'prediction': _draw_result(spec, threshold, picture, found),
  }


def _draw_panoptic(
  spec: datasets.DatasetSpec,
  data: pipeline.DataConfig,
  image: np.ndarray,
  size: tuple[int, int],
  native: tuple[int, int],
  truth: Segments,
  prediction: Segments,
) -> dict[str, np.ndarray]:
  """The image inside its padding, at its own size, and its true and its predicted segments."""
  picture = overlays.denormalize(image[: size[0], : size[1]], data.mean, data.std)
  picture = transforms.resize_image(picture, native)
  window = np.s_[: native[0], : native[1]]
  return {
    'image': overlays.segments(picture, np.zeros(native, int), (), ()),  # as large as the others
    'truth': _draw_segments(spec, picture, truth._replace(ids=truth.ids[window])),
    'prediction': _draw_segments(spec, picture, prediction._replace(ids=prediction.ids[window])),
  }


def _draw_segments(
  spec: datasets.DatasetSpec, picture: np.ndarray, segments: Segments
) -> np.ndarray:
  labels = [
    f'{spec.class_names[k]} (crowd)' if crowd else spec.class_names[k]
    for k, crowd in zip(segments.classes, segments.crowd, strict=True)
  ]
  return overlays.segments(picture, segments.ids, spec.palette[segments.classes], labels)


def _draw_result(
  spec: datasets.DatasetSpec, threshold: float, picture: np.ndarray, result: coco.ImageResult
) -> np.ndarray:
  """Objects with a score from `threshold` on, the best on top, each with its class and score."""
  shown = np.flatnonzero(result['scores'] >= threshold)
  boxes, classes = result['boxes'][shown], result['classes'][shown]
  masks, size = result['masks'], picture.shape[:2]
  return overlays.objects(
    picture,
    np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    spec.palette[classes],
    [
      f'{spec.class_names[k]} {score:.2f}'
      for k, score in zip(classes, result['scores'][shown], strict=True)
    ],
    None if masks is None else [coco_data.decode_mask(masks[i], size) for i in shown],
  )


def _bind_loss(
  name: str, kwargs: Mapping[str, Any], class_weights: Mapping[str, Sequence[float]], task: Any
) -> Callable[..., SumCount]:
  kwargs = dict(kwargs)
  scale = kwargs.pop('scale')
  if isinstance(kwargs.get('class_weights'), str):
    kwargs['class_weights'] = class_weights[kwargs['class_weights']]
  if kwargs.get('class_weights') is not None:
    kwargs['class_weights'] = np.asarray(kwargs['class_weights'], np.float32)
  function = functools.partial(_loss_function(name, task), **kwargs)

  def scaled(*args: Any) -> SumCount:
    total, count = function(*args)
    return SumCount(total * scale, count)

  return scaled


def find_class_weights(
  config: Config, count: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[float]]:
  """The weights behind each rule, such as 'median_frequency', that a loss of `config` names.

  Args:
    config: complete.
    count: counts the labels of the training split: pixels of each class, and pixels of the images
      in which each class occurs. Called only where a rule is named.
  """
  named = {
    kw['class_weights']
    for kw in config['losses'].values()
    if isinstance(kw.get('class_weights'), str)
  }
  counts = count() if named else ()
  return {rule: np.asarray(CLASS_WEIGHTS[rule](*counts)).tolist() for rule in named}


# --- training and evaluation ---------------------------------------------------------------------


def load_dataset(config: Config) -> tuple[Any, datasets.DatasetSpec]:
  """The data set to train on, prepared where it was not yet, and its spec."""
  data = pipeline.DataConfig(**config['data'])
  builder = datasets.load(data.name, data.dir, data.source, report=_tell)
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


def _progress(total: int, start: int) -> console.TrainProgress:
  """What the person sees: of several processes, the first one's."""
  stream = sys.stderr if jax.process_index() == 0 else io.StringIO()
  return console.TrainProgress(total, start, stream)


def _tell(text: str) -> None:
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def _tell_of_process(text: str) -> None:
  """Tells what each process knows of its own part of the batches."""
  process = f'process {jax.process_index()}: ' if jax.process_count() > 1 else ''
  print(process + text, file=sys.stderr, flush=True)


def _batches_of(data: pipeline.DataConfig) -> Any:
  """The module that makes the batches of this data."""
  return pipeline if data.instances is None else instance_pipeline


def make_evaluator(
  run: Run,
  dataset: tuple[Any, datasets.DatasetSpec],
  split: str,
  mesh: jax.sharding.Mesh,
  pictures: int,
) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], list]]:
  """`variables -> (metrics, named pictures)` on a split; compiles once a shape."""
  builder, spec = dataset
  put = functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec)
  eval_step = compile.jit(step.make_eval_step(run.task))

  def evaluator(variables: Mapping[str, Any]) -> tuple[dict[str, Any], list]:
    batches = _batches_of(run.data).eval_batches(
      builder,
      run.data,
      spec,
      split=split,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    return evaluate.evaluate(eval_step, variables, batches, run.task, put, pictures=pictures)

  return evaluator


def make_statistics(
  run: Run, builder: Any, mesh: jax.sharding.Mesh
) -> Callable[[state.TrainState], state.TrainState]:
  """`state -> state` with the statistics of batch normalisation over the training split."""
  if run.task.batch_statistics is None:
    raise SegjaxError(
      f'config.train.recompute_batch_norm: the task {run.config["task"]} does not offer it: leave '
      "it out, or take config.model.norm='frozen' or 'group'"
    )
  data = dataclasses.replace(run.data, augment=None, workers=0)
  examples = datasets.count_examples(builder, data.train_split, run.spec.name)
  count = max(examples // data.batch_size, 1)
  batch_statistics = compile.jit(run.task.batch_statistics, out_shardings=sharding.replicated(mesh))
  seed = run.config['train']['seed']

  def recompute(current: state.TrainState) -> state.TrainState:
    batches = pipeline.train_batches(
      builder,
      data,
      run.spec,
      seed=seed,
      margin=getattr(run.model, 'margin', 0),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
      put = (
        sharding.put_batch(batch, mesh=mesh, spec=run.task.batch_spec)
        for batch, _ in itertools.islice(batches, count)
      )
      return evaluate.recompute_statistics(batch_statistics, current, put, seed=seed)

  return recompute


def _optimizer_and_init(run: Run, batch: Mapping[str, Any]):
  """The optimiser of a run, and `key -> TrainState`, for batches shaped like `batch`."""
  config = optim.OptimConfig(**run.config['optim'])
  params = jax.eval_shape(run.task.init, jax.random.key(0), batch)['params']
  frozen = getattr(run.model, 'frozen_parameters', ())
  optimizer = optim.make_optimizer(config, run.config['train']['steps'], params, frozen)
  init = functools.partial(
    state.init_state, run.task, optimizer, batch=batch, ema=config.ema is not None
  )
  return optimizer, init


def train(args: argparse.Namespace) -> int:
  """`segjax train`."""
  workdir = Workdir(args.workdir)
  given = config_lib.read_file(args.config) if args.config else workdir.read_config()
  given = config_lib.override(given, args.overrides)
  parts = merge.named_runs(given)
  if parts:
    configs = {part: complete(Workdir(path).read_config()) for part, path in parts.items()}
    given = merge.merged_config(given, configs)
  config = complete(given)
  first = jax.process_index() == 0
  with workdir.lock() if first else contextlib.nullcontext():
    # Only what has trained binds: a start that failed may be mended by another config.
    known = None
    if workdir.has_checkpoints():
      workdir.check_config(complete(workdir.read_config()), config)
      known = workdir.read_dataset()
    builder, spec = load_dataset(config)
    if parts:
      theirs = {part: Workdir(path).read_dataset() for part, path in parts.items()}
      names = {part: content['spec']['class_names'] for part, content in theirs.items()}
      merge.check_classes(spec.class_names, spec.things, names, parts)
    dataset = {'spec': spec.to_json(), 'class_weights': known and known['class_weights']}
    # Read back, so that what older runs did not write does not count.
    if known and datasets.DatasetSpec.from_json(known['spec']).to_json() != dataset['spec']:
      raise SegjaxError(
        f'{builder.data_path} is not what {workdir.path} was trained on: take another --workdir, '
        'or prepare the same data again'
      )
    if not known:
      data = pipeline.DataConfig(**config['data'])
      dataset['class_weights'] = find_class_weights(
        config, lambda: pipeline.count_labels(builder, data, spec)
      )
    run = build(config, spec, dataset['class_weights'])
    if first:
      workdir.write_config(config)
      workdir.write_dataset(dataset)
    return _train(run, builder, workdir)


def _train(run: Run, builder: Any, workdir: Workdir) -> int:
  first = jax.process_index() == 0
  config = loop.TrainConfig(**run.config['train'])
  mesh = sharding.make_mesh(sharding.MeshConfig(**run.config['mesh']))
  if mesh.shape['space'] > 1 and not any('space' in spec for spec in run.task.batch_spec.values()):
    raise SegjaxError(
      f'config.mesh.space={mesh.shape["space"]}: the task {run.config["task"]} does not split an '
      'image: set it to 1'
    )
  # What only one kind of data has: unpadded networks' margin, and objects without a place.
  own = {'margin': getattr(run.model, 'margin', 0)} if run.data.instances is None else {}
  make_batches = functools.partial(
    _batches_of(run.data).train_batches,
    builder,
    spec=run.spec,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **own,
  )
  # One example for its shapes: no worker process starts for that.
  with contextlib.closing(make_batches(dataclasses.replace(run.data, workers=0))) as first_batches:
    example, _ = next(first_batches)
  optimizer, init = _optimizer_and_init(run, example)
  checkpoints = checkpoint.Checkpoints(
    workdir.checkpoints,
    keep=config.keep,
    best_metric=config.best_metric,
    best_mode=config.best_mode,
    warn=_tell,
  )
  key = jax.random.key(config.seed)
  restored = checkpoints.restore('latest', jax.eval_shape(init, key))
  if restored is None:
    current = compile.jit(init, once=True, out_shardings=sharding.replicated(mesh))(key)
    if run.config['init_from']:
      current = sharding.put_replicated(start_from(current, run.config['init_from']), mesh)
  else:
    current = sharding.put_replicated(restored.state, mesh)
  start = int(current.step)
  _tell(
    f'{workdir.path}: {"going on" if start else "starting"} at step {start} of {config.steps}, '
    f'{size(current.params):,} parameters, '
    f'{hardware()}'
  )
  if first:
    workdir.note_start({'step': start, **provenance()})
  optim_config = optim.OptimConfig(**run.config['optim'])
  train_step = compile.jit(
    step.make_train_step(
      run.task,
      optimizer,
      optim.make_schedule(optim_config, config.steps),
      seed=config.seed,
      accumulate=optim_config.accumulate,
      ema=optim_config.ema,
    ),
    donate_argnums=0,
    out_shardings=sharding.replicated(mesh),
  )
  eval_dataset = load_eval_dataset(run.config, run.spec.class_names)
  datasets.count_examples(eval_dataset[0], run.data.eval_split, eval_dataset[1].name)
  evaluator = make_evaluator(run, eval_dataset, run.data.eval_split, mesh, config.pictures)
  put = functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec)
  report = {} if run.data.instances is None else {'report': _tell_of_process}
  batches = pipeline.prefetch_to_device(
    make_batches(run.data, start_step=start, **report), lambda pair: (put(pair[0]), pair[1])
  )
  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    stack.callback(batches.close)
    run_log = log.RunLog(workdir.path, start_step=start) if first else None
    if run_log:
      stack.callback(run_log.close)
    progress = stack.enter_context(_progress(config.steps, start))

    def evaluate_now(current: state.TrainState, now: int) -> dict[str, Any]:
      metrics, pictures = evaluator(state.eval_variables(current))
      if run_log:
        run_log.scalars(now, run.data.eval_split, metrics)
        run_log.pictures(now, run.data.eval_split, pictures)
        write_report(
          workdir, run, metrics, pictures, run.data.eval_split, now, size(current.params)
        )
      value = metrics.get(config.best_metric)
      if not isinstance(value, float):
        numbers = [k for k, v in metrics.items() if isinstance(v, float)]
        hint = nearest(config.best_metric, numbers)
        raise SegjaxError(f'config.train.best_metric={config.best_metric} is no metric{hint}')
      progress.message(
        f'step {now}: {run.data.eval_split} {config.best_metric}={value:.4f}'
        + (f' loss={metrics["loss"]:.4f}' if 'loss' in metrics else '')
      )
      return metrics

    loop.run(
      current,
      train_step,
      batches,
      config,
      batch_size=run.data.batch_size,
      checkpoints=checkpoints,
      log=run_log,
      progress=progress,
      evaluate=evaluate_now,
      evaluated=restored is None or restored.metrics is not None,
      **({'refresh': make_statistics(run, builder, mesh)} if config.recompute_batch_norm else {}),
    )
  _tell(f'done: {config.steps} steps; look at {workdir.report}')
  return 0


def hardware() -> str:
  """The devices of this run, such as '8 x NVIDIA H100' or '1 x AMD EPYC (2 cores)'."""
  device, name, cores = jax.devices()[0], jax.devices()[0].device_kind, ''
  if device.platform == 'cpu':
    cores = f' ({os.cpu_count()} cores)'
    with contextlib.suppress(OSError):
      found = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())
      name = found[1] if found else name
  return f'{jax.device_count()} x {name}{cores}'


def versions() -> str:
  return f'segjax {segjax.__version__}, jax {jax.__version__}'


def provenance() -> dict[str, Any]:
  """What runs now, and where: keys of a table's record."""
  commit, dirty = code_version(Path(segjax.__file__).parent.parent)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  return {
    'time': now,
    'commit': commit,
    'dirty': dirty,
    'hardware': hardware(),
    'versions': versions(),
  }


def code_version(checkout: Path) -> tuple[str | None, bool | None]:
  """The commit of a checkout, and whether its code or configs have changes that are in none."""

  def git(*args: str) -> str:
    command = ['git', '-C', str(checkout), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    if Path(git('rev-parse', '--show-toplevel')) != checkout.resolve():
      return None, None  # installed inside some other repository
    return git('rev-parse', 'HEAD'), bool(git('status', '--porcelain', 'segjax', 'configs'))
  except (OSError, subprocess.CalledProcessError):
    return None, None


def start_from(current: state.TrainState, init_from: Mapping[str, Any]) -> state.TrainState:
  """A new state with the weights that `config.init_from` names in place of its own."""
  given = weights_lib.InitFrom(**init_from)
  if isinstance(given.path, Mapping):
    parts = {part: _read_start(path, given) for part, path in given.path.items()}
    pretrained = weights_lib.as_parts(parts)
  else:
    pretrained = _read_start(given.path, given)
  params, model_state, report = weights_lib.load_into(
    current.params, current.model_state, pretrained
  )
  _tell(str(report))
  ema = None if current.ema is None else params
  return dataclasses.replace(current, params=params, model_state=model_state, ema=ema)


def _read_start(path: str, given: weights_lib.InitFrom) -> weights_lib.Pretrained:
  """The arrays of a workdir or a file to start from."""
  if not Path(path).is_dir():
    return weights_lib.read_pretrained(path, given.source)
  restored = restore(Workdir(path), given.checkpoint)
  variables = state.variables_from_arrays(restored.state)
  return weights_lib.Pretrained(path, weights_lib.flat_paths(variables))


def size(params: Any) -> int:
  """The number of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))


def write_report(
  workdir: Workdir,
  run: Run,
  metrics: Mapping[str, Any],
  pictures: Sequence[tuple[str, Mapping[str, np.ndarray]]],
  split: str,
  step_now: int,
  parameters: int,
) -> None:
  """Writes `report.html` from the log of the workdir and one evaluation."""
  records = curves.read_log(workdir.log)
  colors = dict(zip(run.spec.class_names, run.spec.palette.tolist(), strict=True))
  mode, best_metric = run.config['train']['best_mode'], run.config['train']['best_metric']
  scored = [
    (r[best_metric], r['step'])
    for r in records
    if r['split'] == run.data.eval_split and r.get(best_metric) is not None
  ]
  # The first of equals, as the checkpoints have it.
  best = (max if mode == 'max' else min)(scored, key=lambda pair: pair[0], default=None)
  summary = {
    'model': f'{run.config["model"]["name"]}, {parameters:,} parameters',
    'data set': f'{run.spec.name} {run.spec.version}, split {split}',
    'step': f'{step_now} of {run.config["train"]["steps"]}',
    'best': f'{best_metric} {best[0]:.4f} at step {best[1]}' if best else '',
    'hardware': hardware(),
    'written': datetime.datetime.now().isoformat(' ', 'minutes'),
    'versions': versions(),
    'config digest': config_lib.digest(run.config),
    'command': f'segjax evaluate --workdir={shlex.quote(str(workdir.path))} --split={split}',
  }
  _, tables = values.split_metrics(metrics)
  sections = [
    html.metrics_section('Metrics', metrics),
    *(
      html.table_section(name.replace('_', ' ').capitalize(), table, colors)
      for name, table in tables.items()
    ),
    html.curves_section('Curves', records),
    html.pictures_section('Pictures', pictures, colors),
    html.text_section('Config', config_lib.to_json(run.config)),
  ]
  html.write_report(workdir.report, title=workdir.path.name, summary=summary, sections=sections)


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
    warn=_tell,
  )


class Evaluated(NamedTuple):
  """An evaluation of a trained run; `run.spec` is that of the data set evaluated on."""

  run: Run
  split: str
  step: int
  parameters: int
  metrics: dict[str, Any]
  pictures: list[tuple[str, Mapping[str, np.ndarray]]]


def evaluate_run(
  workdir: Workdir,
  which: checkpoint.Which,
  split: str | None = None,
  overrides: Sequence[Any] = (),
) -> Evaluated:
  """Evaluates a checkpoint of a workdir on a split, by default the config's."""
  loaded, run, dataset, mesh = _load_to_evaluate(workdir, which, overrides)
  split = split or run.data.eval_split
  evaluator = make_evaluator(run, dataset, split, mesh, run.config['train']['pictures'])
  metrics, pictures = evaluator(sharding.put_replicated(loaded.variables, mesh))
  parameters = size(loaded.variables['params'])
  return Evaluated(run, split, loaded.restored.step, parameters, metrics, pictures)


def _load_to_evaluate(
  workdir: Workdir, which: checkpoint.Which, overrides: Sequence[Any]
) -> tuple[Loaded, Run, tuple[Any, datasets.DatasetSpec], jax.sharding.Mesh]:
  """A trained run, the run on the data set to evaluate on, that data set, and the mesh."""
  loaded = load_run(workdir, which, overrides)
  dataset = load_eval_dataset(loaded.run.config, loaded.run.spec.class_names)
  run = dataclasses.replace(loaded.run, spec=dataset[1])
  mesh = sharding.make_mesh(sharding.MeshConfig(**run.config['mesh']))
  return loaded, run, dataset, mesh


def tune_run(
  workdir: Workdir,
  which: checkpoint.Which,
  split: str | None = None,
  overrides: Sequence[Any] = (),
) -> dict[str, Any]:
  """Tries thresholds of `config.eval` on a split.

  Returns:
    `step`, `split` and `measure`; `own` and `best`, each of the keys with their values and the
    measure; `tried`, a list of such.

  Raises:
    SegjaxError: the task has none.
  """
  loaded, run, (builder, spec), mesh = _load_to_evaluate(workdir, which, overrides)
  tuning, split = run.task.tuning, split or run.data.eval_split
  if tuning is None:
    raise SegjaxError(
      f'--tune: the task {run.config["task"]} has no thresholds to choose: leave it out'
    )
  batches = _batches_of(run.data).eval_batches(
    builder,
    run.data,
    spec,
    split=split,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  measured = evaluate.tune(
    compile.jit(step.make_tune_step(run.task)),
    sharding.put_replicated(loaded.variables, mesh),
    batches,
    run.task,
    functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec),
  )
  tried = [
    {**dict(zip(tuning.names, setting, strict=True)), tuning.measure: metrics[tuning.measure]}
    for setting, metrics in zip(tuning.settings, measured, strict=True)
  ]
  # The first of equals; one that measures nothing is the worst.
  best = max(tried, key=lambda entry: np.nan_to_num(entry[tuning.measure], nan=-np.inf))
  facts = {'step': loaded.restored.step, 'split': split, 'measure': tuning.measure}
  return {**facts, 'own': tried[0], 'best': best, 'tried': tried}


def _tune_command(args: argparse.Namespace) -> None:
  found = tune_run(Workdir(args.workdir), args.checkpoint, args.split, args.overrides)
  if jax.process_index() != 0:
    return
  if args.json:
    print(json.dumps(log.no_nan(found)))
    return
  measure, own, best = found['measure'], found['own'], found['best']
  chosen = {key: f'{value:g}' for key, value in best.items() if key != measure}
  print(
    f'{found["split"]} at step {found["step"]}, {len(found["tried"])} settings tried: best '
    f'{measure}={best[measure]:.4f}, with the own one {own[measure]:.4f}'
  )
  print('set it by ' + ' '.join(f'--config.eval.{key}={value}' for key, value in chosen.items()))


def evaluate_command(args: argparse.Namespace) -> int:
  """`segjax evaluate`."""
  if args.tune:
    _tune_command(args)
    return 0
  workdir = Workdir(args.workdir)
  run, split, now, parameters, metrics, pictures = evaluate_run(
    workdir, args.checkpoint, args.split, args.overrides
  )
  if jax.process_index() == 0:
    write_report(workdir, run, metrics, pictures, split, now, parameters)
    if args.json:
      print(json.dumps(log.no_nan({'step': now, 'split': split, **metrics})))
    else:
      Console().print(console.metrics_table(metrics))
      print(f'{split} at step {now}; report: {workdir.report}')
  return 0


# --- predict, data, info -------------------------------------------------------------------------


def predict_command(args: argparse.Namespace) -> int:
  """`segjax predict`: files for each image, see `segjax.predict`."""
  paths, output = predict.find_images(args.images), Path(args.output)
  loaded = load_run(Workdir(args.workdir), args.checkpoint, args.overrides)
  run = loaded.run
  network = predict.Network(run.task, loaded.variables, run.spec, run.data)
  if run.data.instances is None:
    predict.write_labels(network, paths, output, _tell)
    return 0
  if run.data.segments is not None:
    draw = functools.partial(_draw_segments, run.spec)
    predict.write_segments(network, paths, output, _tell, draw=draw)
    return 0
  evaluation = run.config['eval']
  paste = functools.partial(paste_masks, rule=evaluation['paste'])
  predict.write_objects(
    network,
    paths,
    output,
    _tell,
    paste=paste if getattr(run.model, 'masks', True) else None,
    draw=functools.partial(_draw_result, run.spec, evaluation['draw_threshold']),
  )
  return 0


def data_command(args: argparse.Namespace) -> int:
  """`segjax data prepare`."""
  builder = datasets.load(args.name, args.data_dir, args.source, report=_tell)
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{args.name} {builder.version}: {splits} in {builder.data_path}')
  return 0


def convert(args: argparse.Namespace) -> int:
  """`segjax convert`."""
  count = weights_lib.convert_file(args.source, args.weights, args.output)
  wants = weights_lib.SOURCES[args.source].input
  print(f'{args.output}: {count} arrays; start from it with --config.init_from.path={args.output}')
  print(f'its network takes images as {wants}')
  return 0


def info(args: argparse.Namespace) -> int:
  """`segjax info`."""
  workdir = Workdir(args.workdir)
  config = complete(workdir.read_config())
  checkpoints = open_checkpoints(workdir, config)
  restored = checkpoints.restore(args.checkpoint)
  if restored is None:
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: let training reach its first one')
  best = checkpoints.best()
  sizes = [a.size for n, a in restored.state.items() if n.startswith('params.')]
  facts = {
    'step': restored.step,
    'steps': config['train']['steps'],
    'parameter_count': sum(sizes),
    'parameters_sha256': restored.params_sha256,
    'config_digest': config_lib.digest(config),
    'best_metric': config['train']['best_metric'],
    'best_value': best[1] if best else None,
    'best_step': best[0] if best else None,
    'checkpoints': checkpoints.steps(),
  }
  if args.json:
    print(json.dumps(facts))
  else:
    for name, value in facts.items():
      print(f'{name:18} {value}')
  return 0


# --- tables --------------------------------------------------------------------------------------


def table_command(args: argparse.Namespace) -> int:
  """`segjax table`."""
  table = spec_lib.read_table(spec_lib.find_table(args.name))
  runs.check_overrides(args.overrides)
  facts = results.parse_facts(args.fact)
  workdirs = Path(args.workdirs or Path('runs', table.name))
  for text in args.record:
    name, equals, path = text.partition('=')
    entries = runs.select(table, [name])
    if not equals or len(entries) != 1 or entries[0].script:
      raise SegjaxError(f'--record={text} is no ROW.RECIPE=WORKDIR of one trained entry')
    record(table, entries[0], Workdir(path), workdirs, args.overrides, facts)
  if args.wanted is not None:
    fill_table(table, args, workdirs, facts)
  lines = page.make_lines(table, results.read_results(table), entry_facts)
  if args.html is not None:
    path = Path(args.html or workdirs / 'table.html')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table_page(path, table, lines, workdirs)
    _tell(f'{path} is written')
  if args.json:
    print(json.dumps(page.to_json(table, lines)))
  else:
    print(page.render_markdown(table, lines), end='')
  return 0


def entry_facts(entry: spec_lib.Entry) -> dict[str, float | None]:
  """What follows from an entry's config, its network built as shapes only; nothing of a script."""
  if entry.script:
    return {}
  config = complete(runs.given_config(entry))
  data = pipeline.DataConfig(**config['data'])
  spec = datasets.describe(data)
  rules = {rule: [1.0] * spec.num_classes for rule in CLASS_WEIGHTS}
  model = build(config, spec, rules).model
  height, width = data.crop_size or data.image_size or (256, 256)
  margin = 2 * getattr(model, 'margin', 0)
  return {
    'parameters': parameter_count(
      model, (1, height + margin, width + margin, spec.channels), data.instances is not None
    ),
    'stride': getattr(model, 'stride', None),
    'receptive_field': view(model.windows).size if hasattr(model, 'windows') else None,
  }


@functools.cache
def parameter_count(model: Any, shape: tuple[int, ...], sized: bool = False) -> int:
  """The number of parameters of a network for images of a shape; `sized` if it takes their size."""
  inputs = [jax.ShapeDtypeStruct(shape, np.float32)]
  inputs += [jax.ShapeDtypeStruct((shape[0], 2), np.int32)] * sized
  return size(jax.eval_shape(model.init, jax.random.key(0), *inputs)['params'])


def fill_table(
  table: spec_lib.Table, args: argparse.Namespace, workdirs: Path, facts: Mapping[str, Any]
) -> None:
  """Trains and records what is missing of the entries that `args.wanted` names."""
  entries = runs.select(table, args.wanted)
  seeds = [s for s in map(config_lib.parse_value, args.seeds.split(',')) if isinstance(s, int)]
  if len(seeds) != args.seeds.count(',') + 1:
    raise SegjaxError(f'--seeds={args.seeds} is no list of whole numbers such as 0,1,2')
  jobs = runs.plan(
    table,
    entries,
    seeds,
    results.read_results(table),
    lambda job: is_trained(Workdir(runs.workdir_of(job, workdirs))),
  )
  chains = runs.chains(table, jobs)
  _tell(f'{table.name}, to run: {", ".join(job.name for job in jobs) or "nothing"}')
  if args.launcher == 'submitit':
    arguments = [f'--fact={fact}' for fact in args.fact]
    arguments += [f'--config.{key}={value}' for key, value in args.overrides]
    launch.submit(table, chains, workdirs, arguments, args.launcher_option, _tell)
    return
  for chain in chains:
    if chain[0].entry.script:
      launch.run_script(table, chain[0].entry.script)
      update_readme(table)
      continue
    for job in chain:
      run_job(table, job, workdirs, args.overrides, facts)


def run_job(
  table: spec_lib.Table,
  job: runs.Job,
  workdirs: Path,
  overrides: Sequence[tuple[str, str]],
  facts: Mapping[str, Any],
) -> None:
  """Trains a job to its end, from where it stopped, and records it."""
  entry = job.entry
  workdir = Workdir(runs.workdir_of(job, workdirs))
  if not is_trained(workdir):
    ours = runs.training_overrides(table, job, workdirs, overrides)
    config, path = str(entry.config), str(workdir.path)
    train(argparse.Namespace(config=config, workdir=path, overrides=ours))
  if runs.missing(entry, job.seed, results.read_results(table)):
    record(table, entry, workdir, workdirs, overrides, facts)
  jax.clear_caches()


def is_trained(workdir: Workdir) -> bool:
  """Whether a training has reached its last step."""
  if not workdir.has_checkpoints():
    return False
  config = complete(workdir.read_config())
  checkpoints = open_checkpoints(workdir, config)
  steps = checkpoints.steps()
  checkpoints.close()
  return bool(steps) and steps[-1] >= config['train']['steps']


def record(
  table: spec_lib.Table,
  entry: spec_lib.Entry,
  workdir: Workdir,
  workdirs: Path,
  overrides: Sequence[tuple[str, str]],
  facts: Mapping[str, Any],
) -> None:
  """Evaluates a workdir that was trained as an entry, and enters it into the table's results.

  Args:
    table: of the entry.
    entry: with a config.
    workdir: of the training.
    workdirs: where the table keeps its pictures.
    overrides: for the evaluation.
    facts: what the workdir does not say, keys of `Record`.
  """
  config = runs.check_workdir(
    table,
    entry,
    workdir.path,
    complete=complete,
    read=lambda path: complete(Workdir(str(path)).read_config()),
  )
  if not is_trained(workdir):
    raise SegjaxError(
      f'{workdir.path} has not reached step {config["train"]["steps"]} yet: let it train on first'
    )
  job = runs.Job(entry, config['train']['seed'])
  trained_on = datasets.DatasetSpec.from_json(workdir.read_dataset()['spec'])
  evaluation = [(k, v) for k, v in overrides if k.startswith(('data.', 'mesh.'))]
  if 'metrics' in (ours := complete(runs.given_config(entry))['eval']):
    evaluation.append(('eval.metrics', repr(ours['metrics'])))
  records = []
  for which in entry.checkpoints:
    evaluated = evaluate_run(workdir, which, table.file.split, evaluation)
    if which == entry.checkpoints[0]:
      results.write_pictures(workdirs, entry.name, evaluated.pictures)
    data = [f'{spec.name} {spec.version}' for spec in (trained_on, evaluated.run.spec)]
    noted = {
      'seconds': results.training_seconds(
        curves.read_log(workdir.log), config['data']['batch_size']
      ),
      **results.merge_starts(workdir.read_starts()),
      **facts,
      'weights': results.spell_weights(
        entry, config, runs.find_start(workdir.path, config), facts.get('weights')
      ),
    }
    records.append(
      results.Record(
        row=entry.row,
        recipe=entry.recipe,
        metrics=results.keep_metrics(table, evaluated.metrics),
        seed=job.seed,
        checkpoint=which,
        step=evaluated.step,
        steps=config['train']['steps'],
        split=evaluated.split,
        data=', evaluated on '.join(dict.fromkeys(data)),
        parameters=evaluated.parameters,
        config_digest=runs.entry_digest(entry),
        date=datetime.date.today().isoformat(),
        command=runs.command(table, job),
        **noted,
      )
    )
  results.write_records(table, records)
  update_readme(table)
  unknown = [key for key in results.FACTS if key != 'note' and getattr(records[0], key) is None]
  hint = f'; the workdir does not say its {", ".join(unknown)}: give --fact' if unknown else ''
  _tell(f'{entry.name}, seed {job.seed}: recorded in {table.folder / "results.jsonl"}{hint}')


def update_readme(table: spec_lib.Table) -> None:
  """Writes the page of a table into its README.md, where it has one."""
  path = table.folder / 'README.md'
  if path.exists():
    lines = page.make_lines(table, results.read_results(table), entry_facts)
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(page.render_markdown(table, lines), encoding='utf-8')
    temporary.replace(path)


def write_table_page(
  path: Path, table: spec_lib.Table, lines: Sequence[page.Line], workdirs: Path
) -> None:
  """The table as one HTML file, with pictures of the entries whose pictures are at hand."""
  summary = {'source': table.file.source, 'written': datetime.date.today().isoformat()}
  rows = {', '.join(r.pop(k) for k in ('row', 'recipe')): r for r in page.cells(table, lines)}
  entries = dict.fromkeys(r.entry for line in lines for r in line.records)
  sections = [
    html.table_section('Figures', rows),
    *(
      html.pictures_section(f'Pictures of {name}', results.read_pictures(workdirs, name))
      for name in entries
    ),
    html.text_section('All of it as Markdown', page.render_markdown(table, lines)),
  ]
  html.write_report(path, title=table.file.title, summary=summary, sections=sections)


# --- the command line ----------------------------------------------------------------------------

_EXAMPLES = {
  'train': """example:
  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes --config.train.steps=100

Any key of the config can be set by --config.KEY=VALUE. The same command again goes on where the run
stopped; without --config the workdir's own config is taken.""",
  'evaluate': """example:
  segjax evaluate --workdir=runs/scenes --split=val --checkpoint=best --json
  segjax evaluate --workdir=runs/panoptic --split='train[:500]' --tune""",
  'predict': """example:
  segjax predict --workdir=runs/scenes --images='photos/*.jpg' --output=out/

Writes NAME.png (a pixel is its class index, drawn in the class's colour) and NAME_overlay.png. Of a
SegNet with dropout, --config.eval.samples=40 makes NAME_uncertainty.png too (Bayesian SegNet).
Of an instance task: NAME.json, NAME_overlay.png, results.json and images.json in COCO's format.""",
  'data': """example:
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/""",
  'convert': f"""example:
  segjax convert --source=torchvision/vgg16 --weights=vgg16.pth --output=vgg16.safetensors

Sources: {', '.join(weights_lib.SOURCES)}.
Weights are .safetensors, .pth, .pt, .pkl or .caffemodel files; no code that they hold is run.""",
  'info': """example:
  segjax info --workdir=runs/scenes --json""",
  'table': """examples:
  segjax table segnet_table1
  segjax table segnet_table1 --html
  segjax table segnet_table1 --run '*.cpu' --seeds=0,1,2 --config.data.source=CamVid/
  segjax table segnet_table1 --record segnet_basic_mfb.cpu=runs/basic --fact commit=1e077fc

A table is a folder with a table.toml, or its name under ./experiments. --config.KEY=VALUE goes to
every row; it may only say where things lie and how they run, such as data.source, data.dir,
init_from.path and mesh.""",
}


def make_parser() -> argparse.ArgumentParser:
  """The parser of `segjax`."""
  parser = argparse.ArgumentParser(
    prog='segjax',
    description='Image segmentation in JAX: from a config to a measured network.',
    epilog='example:\n  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes\n'
    '  segjax evaluate --workdir=runs/scenes',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=segjax.__version__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

  def add(name: str, run: Callable[[argparse.Namespace], int], text: str):
    sub = commands.add_parser(
      name,
      help=text,
      description=text[0].upper() + text[1:] + '.',
      epilog=_EXAMPLES[name],
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    sub.set_defaults(run=run)
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return sub

  def add_workdir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument('--workdir', required=True, help='folder of the run')

  def add_checkpoint(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
      '--checkpoint', type=_which, default='latest', help='latest (default), best, or a step'
    )

  sub = add('train', train, 'train a network from a config, or go on with a run')
  add_workdir(sub)
  sub.add_argument('--config', help='path of a config file')
  sub.add_argument(
    '--distributed',
    nargs='?',
    const='auto',
    metavar='HOST:PORT,COUNT,INDEX',
    help='several processes: found by JAX on TPU pods, SLURM and the like, or as given',
  )

  sub = add('evaluate', evaluate_command, 'compute the metrics of a trained network')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--split', help='split of the data set; default: config.data.eval_split')
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')

  sub.add_argument(
    '--tune',
    action='store_true',
    help='find the best thresholds of a panoptic network on the split, and tell how to set them',
  )

  sub = add('predict', predict_command, 'segment images')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--images', required=True, help='a folder, or a pattern in quotes')
  sub.add_argument('--output', required=True, help='folder to write to')

  sub = add('data', data_command, 'prepare a data set')
  sub.add_argument('action', choices=['prepare'])
  sub.add_argument('name', help='for example scenes, camvid, isbi2012/fold1')
  sub.add_argument('--data_dir', help='where prepared data goes')
  sub.add_argument('--source', help='where the raw files lie')

  sub = add('convert', convert, 'convert pretrained weights of another program')
  sub.add_argument('--source', required=True, help='for example torchvision/vgg16')
  sub.add_argument('--weights', required=True, help='file to read')
  sub.add_argument('--output', required=True, help='.safetensors file to write')

  sub = add('info', info, 'tell the step, the size and the digest of a run')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')

  sub = add('table', table_command, "print a paper's table with our figures beside it, or fill it")
  sub.add_argument('name', help='for example segnet_table1')
  sub.add_argument(
    '--run',
    dest='wanted',
    nargs='*',
    metavar='ROW',
    help="train and record what is not run yet: of all rows, or of ROW, ROW.RECIPE, '*.cpu'",
  )
  sub.add_argument('--seeds', default='0', help='for --run: 0 (default) or more, 0,1,2')
  sub.add_argument('--workdirs', help='folder of the trainings; default: runs/NAME')
  sub.add_argument(
    '--launcher', choices=['local', 'submitit'], default='local', help='where --run trains'
  )
  sub.add_argument(
    '--launcher_option',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='of submitit, such as gpus_per_node=1 or slurm_partition=gpu; may be repeated',
  )
  sub.add_argument(
    '--record',
    action='append',
    default=[],
    metavar='ROW.RECIPE=WORKDIR',
    help='evaluate and enter a training that was done by hand; may be repeated',
  )
  sub.add_argument(
    '--fact',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help=f'what the workdir does not say: {", ".join(results.FACTS)}; may be repeated',
  )
  sub.add_argument(
    '--html', nargs='?', const='', help='write a page with pictures; default: WORKDIRS/table.html'
  )
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
  return parser


def _which(text: str) -> checkpoint.Which:
  return int(text) if text.isdigit() else text


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
  if overrides and args.command in ('data', 'convert', 'info'):
    parser.error(f'segjax {args.command} takes no --config.{overrides[0][0]}')
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status; an error that the user can mend is one line."""
  args = parse_arguments(sys.argv[1:] if argv is None else argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['segjax'])  # Grain's worker processes read absl's flags
  try:
    compile.enable_cache()
    if getattr(args, 'distributed', None):
      start_distributed(args.distributed)
    return args.run(args)
  except SegjaxError as e:
    if args.debug:
      raise
    print(f'segjax: {e}', file=sys.stderr)
    return 2
  except OSError as e:
    if args.debug:
      raise
    reason = f'{e.filename or "a file"}: {e.strerror or e}'
    print(f'segjax: {reason}: check the path, its permissions and the disk', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('segjax: interrupted', file=sys.stderr)
    return 130
  except loop.StoppedError as e:
    print(
      f'segjax: stopped by {e}; the state is saved: the same command goes on from there',
      file=sys.stderr,
    )
    return 128 + e.signum


def start_distributed(how: str) -> None:
  """Joins the other processes: 'auto', or 'host:port,number of processes,index of this one'."""
  if how == 'auto':
    jax.distributed.initialize()
    return
  try:
    address, count, index = how.split(',')
    count, index = int(count), int(index)
  except ValueError:
    raise SegjaxError(
      f'--distributed={how} is not HOST:PORT,COUNT,INDEX: write for example '
      '--distributed=10.0.0.1:1234,4,0'
    ) from None
  jax.distributed.initialize(address, count, index)


if __name__ == '__main__':
  sys.exit(main())
