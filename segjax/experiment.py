"""What a config says, checked once: a frozen `Experiment` with a typed part for each group.

The signatures of these parts are the schema of a config (`segjax.config.complete`). What no
signature can say, because it is about two groups, is checked here.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

from segjax import config as config_lib
from segjax.convert.load import InitFrom
from segjax.data import datasets
from segjax.data.augment import find_transform
from segjax.data.config import Augment, BatchConfig, DataConfig, InputConfig
from segjax.data.weight_map import border_weight_map
from segjax.lookup import failing, locate
from segjax.losses import dense
from segjax.report.values import better
from segjax.tasks.base import find_metric
from segjax.training.loop import TrainConfig
from segjax.training.optim import OptimConfig
from segjax.training.sharding import MeshConfig
from segjax.types import NonNegativeFloat, SegjaxError, SumCount, nearest
from segjax.upgrade import check_moved

# Groups of a config whose schema is the same for every task.
GROUPS = {
  'data': DataConfig,
  'augment': Augment,
  'batch': BatchConfig,
  'optim': OptimConfig,
  'train': TrainConfig,
  'mesh': MeshConfig,
  'init_from': InitFrom | None,
}
KEYS = ('task', 'model', 'losses', 'eval', *GROUPS)
# Rules that `class_weights` of a loss may name instead of numbers.
CLASS_WEIGHTS = {
  'median_frequency': dense.median_frequency_weights,
  'natural': dense.natural_weights,
}
# How a config says that there is no group.
NONE = (None, 'none')
# Fields that Linen gives every module.
LINEN = ('parent', 'name')


@dataclasses.dataclass(frozen=True)
class Loss:
  """One entry of `config.losses`.

  Attributes:
    scale: multiplies the mean.
    arguments: keyword arguments of `function`, complete; `class_weights` may be a rule's name.
    function: what the task gives a loss -> `SumCount`.
    name: of the function, where it is not that of the entry.
  """

  scale: float
  arguments: Mapping[str, Any]
  function: Callable[..., SumCount]
  name: str | None = None

  @property
  def rule(self) -> str | None:
    """The name in `CLASS_WEIGHTS` of the rule that its class weights follow."""
    weights = self.arguments.get('class_weights')
    return weights if isinstance(weights, str) else None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All that a config says. Two are equal where their configs are.

  Attributes:
    task: a module of `segjax.tasks`.
    model: the Linen module, unbound; a group of its config is a dataclass.
    model_config: `config.model`, complete: its name and arguments.
    losses: by name.
    eval: the `EvalConfig` of the task.
    data, augment, batch: what the batches are, see `input`.
    optim, train, mesh: how it is trained.
    init_from: the weights to start from, or None.
  """

  task: str
  model: Any
  model_config: Mapping[str, Any]
  losses: Mapping[str, Loss]
  eval: Any
  data: DataConfig
  augment: Augment
  batch: BatchConfig
  optim: OptimConfig
  train: TrainConfig
  mesh: MeshConfig
  init_from: InitFrom | None

  @functools.cached_property
  def input(self) -> InputConfig:
    """What the batches are."""
    annotations = task_module(self.task).ANNOTATIONS
    masks = getattr(self.model, 'masks', True)
    predicts_masks = getattr(self.model, 'predicts_masks', False)
    queries = self.model.queries if predicts_masks else None
    return InputConfig(self.data, self.augment, self.batch, annotations, masks, queries)

  def to_dict(self) -> dict[str, Any]:
    """The complete config, which `parse` reads back."""
    groups = {key: getattr(self, key) for key in ('eval', *GROUPS)}
    losses = {
      key: {**({'name': loss.name} if loss.name else {}), 'scale': loss.scale, **loss.arguments}
      for key, loss in self.losses.items()
    }
    return {
      'task': self.task,
      'model': dict(self.model_config),
      'losses': losses,
      **config_lib.as_dict(groups),
    }

  @property
  def digest(self) -> str:
    """See `segjax.config.digest`."""
    return config_lib.digest(self.to_dict())


def parse(given: Mapping[str, Any], *, trained: bool = False) -> Experiment:
  """The experiment that a config describes, every key of it checked.

  Args:
    given: the groups `KEYS`, nested dicts. Those with defaults may be left out.
    trained: whether it is complete, of a run that is trained. Then what only training or the data
      needs of the user's own code may be missing.

  Raises:
    SegjaxError: an unknown key, with the nearest right one; a value of the wrong type or out of
      range; or two that do not go together.
  """
  check_keys(given)
  check_moved(given)
  task = config_lib.check_value(given['task'], str, 'config.task')
  module = task_module(task)
  groups = {key: check_group(key, given) for key in GROUPS}
  groups['data'] = _fill_weight_map(groups['data'])
  if not trained or _is_found(datasets.options_of, groups['data'].name):
    groups['data'] = fill_files(groups['data'])
  groups['augment'] = _fill_transforms(groups['augment'], trained)
  evaluation = config_lib.check_value(given.get('eval'), module.EvalConfig, 'config.eval')
  groups['train'] = _fill_best_metric(groups['train'], module, evaluation.metrics)
  if not trained:
    for name in evaluation.metrics:
      if name not in module.METRICS:
        find_metric(name)
  model_config, model = _parse_model(given['model'], 'config.model')
  losses = given.get('losses')
  # 'none' is how an override takes a loss away.
  losses = {} if losses in NONE else {n: g for n, g in losses.items() if g not in NONE}
  experiment = Experiment(
    task=task,
    model=model,
    model_config=model_config,
    losses={name: _parse_loss(name, loss, module, model, trained) for name, loss in losses.items()},
    eval=evaluation,
    **groups,
  )
  _check_together(experiment)
  return experiment


def check_keys(given: Mapping[str, Any]) -> None:
  """Raises a SegjaxError where a group is missing, is not known or is not a group."""
  for key, value in given.items():
    if key not in KEYS:
      raise config_lib.unknown_key('config', key, KEYS)
    if key != 'task' and value not in NONE and not isinstance(value, Mapping):
      raise SegjaxError(f'config.{key}={value!r} has the wrong type: it takes a group of keys')
  for key in ('task', 'model', 'data'):
    if key not in given:
      raise SegjaxError(f'config.{key} is missing: see configs/unet/scenes.py for an example')


def check_group(key: str, given: Mapping[str, Any]) -> Any:
  """The dataclass of one of `GROUPS`."""
  return config_lib.check_value(given.get(key), GROUPS[key], f'config.{key}')


def task_module(task: str) -> ModuleType:
  """The module that `config.task` names."""
  make_task = locate(f'{task}.make_task', 'config.task', 'segjax.tasks')
  return importlib.import_module(make_task.__module__)


def _fill_weight_map(data: DataConfig) -> DataConfig:
  if data.weight_map is None:
    return data
  where = 'config.data.weight_map'
  full = config_lib.complete(border_weight_map, data.weight_map, where, injected=('label',))
  return dataclasses.replace(data, weight_map=full)


def _has_defaults(target: Callable[..., Any]) -> bool:
  known = config_lib.arguments(target, injected=('split',))
  return all(default is not inspect.Parameter.empty for default in known.values())


def fill_files(data: DataConfig) -> DataConfig:
  """The options of a format of users' own data, complete."""
  target = datasets.options_of(data.name)
  if target is None:
    if data.files:
      raise SegjaxError(
        f'config.data.files is for formats of your own data, and {data.name} has no such keys: '
        'leave it out'
      )
    return dataclasses.replace(data, files=None)
  if not data.files and _has_defaults(target):
    return dataclasses.replace(data, files=None)
  files = config_lib.complete(target, data.files or {}, 'config.data.files', injected=('split',))
  if dataclasses.is_dataclass(target):
    target(**files)  # checks itself
  return dataclasses.replace(data, files=files)


def _is_found(find: Callable[[str], Any], name: str) -> bool:
  try:
    find(name)
  except SegjaxError:
    return False
  return True


def _fill_transforms(augment: Augment, trained: bool) -> Augment:
  """The arguments of the user's own transforms, whose first two are the program's."""
  full = []
  for i, given in enumerate(augment.transforms):
    where, arguments = f'config.augment.transforms[{i}]', dict(given)
    name = config_lib.check_value(arguments.pop('name', None), str, f'{where}.name')
    if trained and not _is_found(find_transform, name):
      full.append(dict(given))
      continue
    function = find_transform(name)
    injected = list(config_lib.arguments(function))[:2]
    full.append(
      {'name': name, **config_lib.complete(function, arguments, where, injected=injected)}
    )
  return dataclasses.replace(augment, transforms=tuple(full))


def measures(experiment: Experiment) -> tuple[str, ...] | None:
  """The numbers that an evaluation computes; None where the user's own metrics add to them."""
  task, metrics = task_module(experiment.task), experiment.eval.metrics
  if any(name not in task.MEASURES for name in metrics):
    return None
  found = [measure for name in metrics for measure in task.MEASURES[name]]
  # Networks that detect or predict masks have losses in training only.
  if 'label' in task.LOSS_INPUTS and not getattr(experiment.model, 'predicts_masks', False):
    parts = experiment.losses if len(experiment.losses) > 1 else ()  # as in the log
    found += ['loss', *(f'loss_{name}' for name in parts)]
  return tuple(found)


def _fill_best_metric(train: TrainConfig, task: ModuleType, metrics: Sequence[str]) -> TrainConfig:
  """`config.train` with the number that selects the best checkpoint, by default the first."""
  name = train.best_metric
  if name is None:
    name = next((found[0] for metric, found in task.MEASURES.items() if metric in metrics), None)
  if name is None:
    raise SegjaxError(
      f'config.train.best_metric is missing, with config.eval.metrics={tuple(metrics)}: name a '
      'number that they compute'
    )
  return dataclasses.replace(train, best_metric=name)


def best_mode(train: TrainConfig) -> Literal['max', 'min']:
  """Whether the largest or the smallest `best_metric` is best."""
  return train.best_mode or ('min' if better(train.best_metric) is min else 'max')


def _parse_model(given: Any, where: str) -> tuple[dict[str, Any], Any]:
  """A network's complete config, and the network; of those that it is made of too."""
  if not isinstance(given, Mapping):
    raise SegjaxError(f'{where}={given!r} has the wrong type: it takes a group of keys')
  given = dict(given)
  name = config_lib.check_value(given.pop('name', None), str, f'{where}.name')
  model_class = locate(name, f'{where}.name', 'segjax.models')
  full = config_lib.complete(model_class, given, where, injected=LINEN)
  parts = {
    part: _parse_model(full[part], f'{where}.{part}') for part in getattr(model_class, 'parts', ())
  }
  model = model_class(**{**full, **{part: network for part, (_, network) in parts.items()}})
  configs = {part: config for part, (config, _) in parts.items()}
  return {'name': name, **config_lib.as_dict({**full, **configs})}, model


def _parse_loss(name: str, given: Any, task: ModuleType, model: Any, trained: bool) -> Loss:
  where = f'config.losses.{name}'
  if not isinstance(given, Mapping):
    raise SegjaxError(f'{where}={given!r} has the wrong type: it takes a group of keys, or none')
  given = dict(given)
  scale = config_lib.check_value(given.pop('scale', 1.0), NonNegativeFloat, f'{where}.scale')
  function_name = config_lib.check_value(given.pop('name', name), str, f'{where}.name')
  named = None if function_name == name else function_name
  rule = given.get('class_weights')
  rule = rule if isinstance(rule, str) and rule != 'none' else None
  if rule:
    del given['class_weights']
    if rule not in CLASS_WEIGHTS:
      raise SegjaxError(
        f'{where}.class_weights={rule!r} is an unknown rule{nearest(rule, CLASS_WEIGHTS)}'
      )
  # A network that predicts masks has the same losses in all tasks.
  own = getattr(model, 'losses_module', None)
  inputs = ('outputs',) if own else task.LOSS_INPUTS
  if '.' in function_name:
    try:
      function = locate(function_name, f'{where}.name', 'segjax.losses')
    except SegjaxError as e:
      if not trained:
        raise
      return Loss(scale, given, failing(e), named)
    inputs = _check_own_loss(function, inputs, f'{where}.name={function_name}')
  else:
    package, _, module = (own or task.LOSSES).rpartition('.')
    key = f'{where}.name' if named else 'config.losses'
    function = locate(f'{module}.{function_name}', key, package)
  full = config_lib.complete(function, given, where, injected=inputs)
  rule = {'class_weights': rule} if rule else {}
  return Loss(scale, {**full, **rule}, function, named)


def _check_own_loss(function: Callable[..., Any], inputs: Sequence[str], where: str) -> list[str]:
  """The names of the parameters of a user's loss that take the task's inputs: its first ones."""
  names = list(config_lib.arguments(function))
  taken = {'scale', 'name'} & set(names)
  if len(names) < len(inputs) or taken:
    problem = f'has a parameter {sorted(taken)[0]}' if taken else f'takes {len(names)} parameters'
    raise SegjaxError(
      f'{where} {problem}: it takes {", ".join(inputs)} and then keywords of its own, other than '
      'scale and name'
    )
  return names[: len(inputs)]


def _check_together(experiment: Experiment) -> None:
  """Raises a SegjaxError where keys of two groups do not go together.

  A warm-up has to end before training does, or the learning rate never gets to what the config
  says; a short trial of a long recipe sets both. With `train.steps=0` nothing is trained, and
  neither the optimizer nor the losses matter.
  """
  experiment.input  # noqa: B018 -- checks itself: keys that the task does not read
  for part in getattr(type(experiment.model), 'parts', ()):
    network = getattr(experiment.model, part)
    if getattr(network, 'predicts_masks', False):
      raise SegjaxError(
        f'config.model.{part} is of {type(network).__name__}, which cannot be merged: name a '
        'network that classifies pixels as semantic, and one that detects boxes as instance'
      )
  if hasattr(experiment.model, 'patch'):
    _check_patches(experiment)
  batch, optim, train = experiment.batch, experiment.optim, experiment.train
  if batch.size % optim.accumulate:
    raise SegjaxError(
      f'config.optim.accumulate={optim.accumulate} does not divide config.batch.size='
      f'{batch.size}: choose one that does'
    )
  if train.steps and not experiment.losses:
    raise SegjaxError('config.losses is empty: name a loss, such as softmax_cross_entropy')
  if 0 < train.steps <= optim.warmup_steps:
    raise SegjaxError(
      f'config.optim.warmup_steps={optim.warmup_steps} must be less than config.train.steps='
      f'{train.steps}: set it to 0 for a short trial'
    )
  for pattern, start, warmup in optim.late:
    if 0 < train.steps <= start + warmup:
      raise SegjaxError(
        f'config.optim.late: the warm-up of {pattern!r} ends at step {start + warmup}, not before '
        f'config.train.steps={train.steps}: set config.optim.late=() for a short trial'
      )
  named = (loss for key, loss in experiment.losses.items() if (loss.name or key) == 'mask')
  mask = next(named, None)
  head = getattr(experiment.model, 'mask_head', None)
  ours, theirs = mask and mask.arguments.get('activation'), getattr(head, 'activation', None)
  if ours and theirs and ours != theirs:
    raise SegjaxError(
      f'config.losses.mask.activation={ours!r} but config.model.mask_head.activation={theirs!r}: '
      'set both to the same'
    )


def check_start(experiment: Experiment) -> None:
  """Raises a SegjaxError where a run that starts would not do what its config says.

  What has begun with such a config may go on.
  """
  check_eval(experiment)
  _check_weight_map(experiment)
  _check_normalization(experiment.data)
  if experiment.train.steps:
    _check_training(experiment)


def check_eval(experiment: Experiment) -> None:
  """Raises a SegjaxError where an evaluation would not do what `config.eval` says."""
  model, overlap = experiment.model, getattr(experiment.eval, 'overlap', 0)
  if overlap and getattr(model, 'margin', 0):
    raise SegjaxError(
      f'config.eval.overlap={overlap}: the context of a {type(model).__name__} whose output is '
      f'smaller than its input is {model.margin} pixels, always: set it to 0'
    )
  if 'isbi' in experiment.eval.metrics and model.classes != 2:
    raise SegjaxError(
      'config.eval.metrics: isbi is for two classes, membranes and then the inside of cells, and '
      f'config.model.classes={model.classes}: leave it out'
    )


def _check_weight_map(experiment: Experiment) -> None:
  """Raises a SegjaxError for a weight of each pixel that no loss reads."""
  inputs = task_module(experiment.task).LOSS_INPUTS
  reads = 'weight' in inputs and not getattr(experiment.model, 'predicts_masks', False)
  if experiment.data.weight_map is not None and not reads:
    raise SegjaxError(
      f'config.data.weight_map is for losses of pixels: those of {type(experiment.model).__name__} '
      f'on the task {experiment.task} do not read it: set it to none'
    )


def _check_normalization(data: DataConfig) -> None:
  """Raises a SegjaxError for statistics of pixel values 0 to 1, as other toolkits have them."""
  if all(0 < mean < 1 for mean in data.mean) or all(std < 1 for std in data.std):
    raise SegjaxError(
      f'config.data.mean={data.mean} and config.data.std={data.std} are of pixel values 0 to 1: '
      'multiply both by 255, as pixel values are 0 to 255'
    )


def _check_training(experiment: Experiment) -> None:
  """Raises a SegjaxError where a training would not do what its config says."""
  functions = [loss.function for loss in experiment.losses.values()]
  one_class = getattr(experiment.model, 'classes', None) == 1
  if one_class and functions == [dense.softmax_cross_entropy]:
    raise SegjaxError(
      'config.model.classes=1 leaves softmax_cross_entropy nothing to distinguish: name the '
      'background as a class too'
    )
  names = [loss.name or key for key, loss in experiment.losses.items()]
  own = any('.' in name for name in names)  # in place of which one, nobody knows
  for group in getattr(experiment.model, 'needed_losses', ()):
    if not own and not set(group) & set(names):
      raise SegjaxError(
        f'config.losses.{" or ".join(group)} is missing: without it a part of '
        f'{type(experiment.model).__name__} is not trained; set its scale to 0 to leave it out'
      )
  least, accumulate = getattr(experiment.model, 'smallest_batch', 1), experiment.optim.accumulate
  if (images := experiment.batch.size // accumulate) < least:
    parts = f' in {accumulate} parts' if accumulate > 1 else ''
    raise SegjaxError(
      f'config.batch.size={experiment.batch.size}{parts}: batch normalization of '
      f'{type(experiment.model).__name__} needs {least} images at once, not {images}: use more, or '
      'config.model.norm=group'
    )
  _check_annealing(experiment)


def _check_annealing(experiment: Experiment) -> None:
  """Raises a SegjaxError where the attention of a network is still masked at the end."""
  steps = experiment.train.steps
  last = max((end for _, end in getattr(experiment.model, 'annealing', ())), default=0)
  if steps <= last:
    raise SegjaxError(
      f'config.model.annealing ends at step {last}, not before config.train.steps={steps}: anneal '
      'in proportion (configs may take the steps as an argument, as coco_panoptic.py:large,20000), '
      'or set it to () for a short trial'
    )


def _check_patches(experiment: Experiment) -> None:
  """Raises a SegjaxError for a size at which the network sees images and patches do not fit."""
  patch, size = experiment.model.patch, experiment.data.size
  tiles = {key: getattr(experiment.eval, key, None) for key in ('tile', 'window')}
  sizes = {
    **{f'data.size.{key}': getattr(size, key) for key in ('image_size', 'crop_size')},
    **{f'data.size.shapes[{i}]': shape for i, shape in enumerate(size.shapes or ())},
    **{f'eval.{key}': side for key, side in tiles.items()},
    'eval.overlap': (getattr(experiment.eval, 'overlap', 0),),
  }
  for key, sides in sizes.items():
    if any(side % patch for side in sides or ()):
      shown = 'x'.join(map(str, sides))
      raise SegjaxError(
        f'config.{key}={shown} is not a multiple of config.model.patch={patch}: set it to '
        'multiples of that'
      )
