"""From a config to a network and its task: every key checked, every default filled in."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segjax import config as config_lib
from segjax import merge
from segjax.convert import load as weights_lib
from segjax.data import datasets, pipeline
from segjax.data.transforms import Augment
from segjax.data.weight_map import border_weight_map
from segjax.losses import dense
from segjax.program.draw import draw_labels, draw_objects, draw_panoptic
from segjax.tasks.base import Task
from segjax.train import loop, optim, sharding
from segjax.types import SegjaxError, SumCount, nearest
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
  _check_groups(given)
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


def resolve(given: Mapping[str, Any]) -> Config:
  """`complete`, with networks in place of the workdirs that `config.model` may name.

  Raises:
    SegjaxError: as `complete`; there is no such workdir, or the two cannot be merged.
  """
  paths = merge.named_runs(given)
  if not paths:
    return complete(given)
  _check_groups(given)
  checked = {}
  for key, target in (('data', pipeline.DataConfig), ('train', loop.TrainConfig)):
    ours = given.get(key, {})
    full = config_lib.complete_arguments(target, ours, f'config.{key}')
    checked[key] = {k: full[k] for k in ours}
  parts = {part: complete(Workdir(path).read_config()) for part, path in paths.items()}
  return complete(merge.merged_config({**given, **checked}, parts))


def _check_groups(given: Mapping[str, Any]) -> None:
  """Raises a SegjaxError where one is missing, is not known or is no group."""
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
  draw = draw_labels if data.instances is None else draw_objects
  task = _task_factory(config)(
    model=model,
    class_names=spec.class_names,
    losses={n: _bind_loss(n, kw, class_weights, module) for n, kw in config['losses'].items()},
    draw=functools.partial(draw if data.segments is None else draw_panoptic, spec, data),
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


@functools.cache
def parameter_count(model: Any, shape: tuple[int, ...], sized: bool = False) -> int:
  """The number of parameters of a network for images of a shape; `sized` if it takes their size."""
  inputs = [jax.ShapeDtypeStruct(shape, np.float32)]
  inputs += [jax.ShapeDtypeStruct((shape[0], 2), np.int32)] * sized
  return size(jax.eval_shape(model.init, jax.random.key(0), *inputs)['params'])


def size(params: Any) -> int:
  """The number of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
