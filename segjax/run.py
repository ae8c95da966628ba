"""From an experiment, a data set and a workdir to what runs: the one place that puts them together.

`segjax train` calls `assemble`, then `make_optimizer`, `init_state` and `start_from`; every other
command starts from a trained run by `load_run`. Training and evaluation share `Evaluator`.
"""

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import flags, logging

import segjax
from segjax import config as config_lib
from segjax import merge, storage
from segjax.convert import addresses, own
from segjax.convert import load as weights_lib
from segjax.data import (
  datasets,
  images,
  order,
  pipeline,
  read,
  source_reader,
  statistics,
  unusual,
)
from segjax.data.config import InputConfig
from segjax.data.sample import Size
from segjax.draw import draw_labels, draw_objects, draw_panoptic
from segjax.experiment import (
  CLASS_WEIGHTS,
  Experiment,
  Loss,
  best_mode,
  check_eval,
  check_group,
  check_keys,
  check_start,
  parse,
  task_module,
)
from segjax.losses import dense
from segjax.tasks.base import Task, from_pixels
from segjax.training import checkpoint, compile, evaluate, loop, optim, sharding, state, step
from segjax.types import Batch, SegjaxError, SumCount
from segjax.upgrade import check_moved
from segjax.workdir import Workdir, weights_file

Dataset = tuple[Any, datasets.DatasetSpec]
ClassWeights = Mapping[str, Sequence[float]]

# What the images of a report show, by the last of the annotations that a task reads.
_DRAW = {'label': draw_labels, 'objects': draw_objects, 'segments': draw_panoptic}
# Examples of a split that are read to say which classes occur, evenly spaced.
_COUNTED = 1_000
# What can be set of a run that is trained.
_SET_LATER = ('data.', 'batch.', 'eval.', 'mesh.', 'train.images')


def notify(text: str) -> None:
  """Shows a line on standard error: of several processes, the first one's."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def notify_process(text: str) -> None:
  """Shows what each process knows of its own part of the batches."""
  process = f'process {jax.process_index()}: ' if jax.process_count() > 1 else ''
  print(process + text, file=sys.stderr, flush=True)


def start_process() -> None:
  """What a process that trains or predicts needs: quiet libraries, and the compilation cache."""
  logging.set_verbosity(logging.ERROR)  # Orbax warns about intended usage
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['segjax'])  # Grain's worker processes read absl's flags
  compile.enable_cache()


# --- a run ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
  """An experiment and a data set, put together.

  Attributes:
    experiment: all that the config says.
    task: the task around the experiment's model.
    spec: classes, colors and channels of the data set.
  """

  experiment: Experiment
  task: Task
  spec: datasets.DatasetSpec

  @property
  def model(self) -> Any:
    """The Linen module."""
    return self.experiment.model


def build(experiment: Experiment, spec: datasets.DatasetSpec, class_weights: ClassWeights) -> Run:
  """The run of `experiment` on the data set `spec`.

  Args:
    experiment: see `Experiment`.
    spec: of the data set.
    class_weights: weights for each rule that a loss names, see `find_class_weights`.

  Raises:
    SegjaxError: the network, or the class weights of a loss, have other numbers of classes than the
      data set.
  """
  _check_classes(experiment, spec)
  read.check_channels(experiment.input, spec)
  draw = functools.partial(_DRAW[experiment.input.annotations[-1]], spec)
  task = task_module(experiment.task).make_task(
    experiment.model,
    experiment.eval,
    class_names=spec.class_names,
    losses={
      name: _bind(name, loss, class_weights, spec.num_classes)
      for name, loss in experiment.losses.items()
    },
    draw=draw,
    things=spec.things,
  )
  data = experiment.data
  task = from_pixels(task, data.mean, data.std)
  # Traced once, for the shapes that the optimizer needs and for the state.
  task = dataclasses.replace(task, init=jax.jit(compile.traced_fast(task.init)))
  return Run(experiment, task, spec)


def _check_classes(experiment: Experiment, spec: datasets.DatasetSpec) -> None:
  expected = {'classes': (spec.num_classes, 'classes')}
  model_config = experiment.model_config
  # A network that predicts masks numbers things and stuff together.
  several = not getattr(experiment.model, 'predicts_masks', False)
  if several and 'segments' in experiment.input.annotations:
    things = len(spec.things)
    of_things = (things, 'classes of things')
    expected = {'classes': of_things, 'stuff': (spec.num_classes - things, 'classes of stuff')}
    if hasattr(type(experiment.model), 'parts'):
      whole = (spec.num_classes, 'classes')
      expected = {'semantic.classes': whole, 'instance.classes': of_things}
  flat = config_lib.flatten(model_config)
  for key, (number, what) in expected.items():
    if flat.get(key) != number:
      raise SegjaxError(
        f'config.model.{key}={flat.get(key)} but the data set {spec.name} has {number} {what}: set '
        f'config.model.{key}={number}'
      )


def _bind(
  name: str, loss: Loss, class_weights: ClassWeights, classes: int
) -> Callable[..., SumCount]:
  """The loss times its scale, with its class weights as numbers."""
  arguments = dict(loss.arguments)
  weights = arguments.get('class_weights')
  if isinstance(weights, str):
    weights = class_weights[weights]
  # Of a single class these take two weights, that of the background first.
  two = loss.function in (dense.sigmoid_cross_entropy, dense.focal)
  needed = max(classes, 2) if two else classes
  if weights is not None and loss.function.__module__ == dense.__name__ and len(weights) != needed:
    of = 'the background and for the class' if needed > classes else 'each class of the data set'
    raise SegjaxError(
      f'config.losses.{name}.class_weights has {len(weights)} values and needs {needed}, one for '
      f'{of}: correct it'
    )
  if weights is not None:
    arguments['class_weights'] = np.asarray(weights, np.float32)

  def scaled(*args: Any) -> SumCount:
    total, count = loss.function(*args, **arguments)
    return SumCount(total * loss.scale, count)

  return scaled


def find_class_weights(
  experiment: Experiment, count: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[float]]:
  """The weights behind each rule, such as 'median_frequency', that a loss names.

  Args:
    experiment: see `Experiment`.
    count: counts the labels of the training split: pixels of each class, and pixels of the images
      in which each class occurs. Called only where a rule is named.
  """
  named = {rule for loss in experiment.losses.values() if (rule := loss.rule)}
  counts = count() if named else ()
  return {rule: np.asarray(CLASS_WEIGHTS[rule](*counts)).tolist() for rule in sorted(named)}


def parameter_count(experiment: Experiment, channels: int) -> int:
  """The number of parameters of the network, built as shapes for images of so many channels."""
  return size_of(_variables(experiment, experiment.model, channels)['params'])


def class_specific(experiment: Experiment, channels: int) -> tuple[str, ...]:
  """Patterns of the parameters whose shapes depend on the number of classes: those of the heads.

  Args:
    experiment: of a network with `classes`, and in panoptic tasks `stuff`.
    channels: of the images.
  """
  model = experiment.model
  numbers = {key: getattr(model, key) for key in ('classes', 'stuff') if hasattr(model, key)}
  more = model.clone(**{key: number + 1 for key, number in numbers.items()})
  ours, theirs = (
    weights_lib.flat_paths(_variables(experiment, network, channels)) for network in (model, more)
  )
  found = (path for path, leaf in ours.items() if leaf.shape != theirs[path].shape)
  return tuple(f'^{re.escape(path.partition("/")[2])}$' for path in found)


def _variables(experiment: Experiment, model: Any, channels: int) -> Any:
  size = experiment.data.size
  height, width = size.crop_size or size.image_size or (256, 256)
  margin = 2 * getattr(model, 'margin', 0)
  masks = getattr(model, 'predicts_masks', False)
  sized = not masks and 'objects' in experiment.input.annotations
  return _shapes(model, (1, height + margin, width + margin, channels), sized)


@functools.cache
def _shapes(model: Any, shape: tuple[int, ...], sized: bool) -> Any:
  """The variables of a network as shapes."""
  inputs = [jax.ShapeDtypeStruct(shape, np.float32)]
  inputs += [jax.ShapeDtypeStruct((shape[0], 2), np.int32)] * sized
  return jax.eval_shape(compile.traced_fast(model.init), jax.random.key(0), *inputs)


def size_of(params: Any) -> int:
  """The number of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))


# --- data -----------------------------------------------------------------------------------------


def load_dataset(
  experiment: Experiment,
  *,
  download: bool = False,
  offline: bool = False,
  workers: int | None = None,
) -> Dataset:
  """The data set to train on, prepared where it was not yet, and its spec.

  Args:
    experiment: names it.
    download, offline: as in `datasets.load`.
    workers: likewise; None for those that prepare batches.
  """
  data = experiment.data
  with images.pixel_limit(data.max_pixels):
    builder = datasets.load(
      data.name,
      data.dir,
      data.source,
      report=notify,
      files=data.files,
      annotations=experiment.input.annotations,
      download=download,
      offline=offline,
      workers=experiment.batch.workers if workers is None else workers,
    )
  return builder, datasets.spec(builder, experiment.input)


def load_eval_dataset(experiment: Experiment, class_names: Sequence[str]) -> Dataset:
  """The data set to evaluate on, and its spec.

  Raises:
    SegjaxError: it has other classes than `class_names`.
  """
  data = experiment.data
  key = 'name' if data.eval_name is None else 'eval_name'
  if data.eval_name is not None:
    files = data.files if datasets.options_of(data.eval_name) else None
    data = dataclasses.replace(data, name=data.eval_name, source=data.eval_source, files=files)
  builder, spec = load_dataset(dataclasses.replace(experiment, data=data))
  if spec.class_names != tuple(class_names):
    raise SegjaxError(
      f'the network has {len(class_names)} other classes than those of {spec.name}: set '
      f'config.data.{key} to a data set with the same'
    )
  return builder, spec


def train_batches(
  run: Run,
  builder: Any,
  *,
  start_step: int = 0,
  config: InputConfig | None = None,
  report: Callable[[str], None] | None = None,
) -> Generator[Any, None, None]:
  """This process's part of the endless stream of training batches, from `start_step` on.

  Args:
    run: whose seed, data and margin they have.
    builder: of the data set to train on.
    start_step: batches that are left out.
    config: in place of the run's own, such as one without augmentation or worker processes.
    report: shows what was left out of an image.
  """
  part = sharding.own_part(run.experiment.mesh)
  return pipeline.train_batches(
    builder,
    run.spec,
    config or run.experiment.input,
    seed=run.experiment.train.seed,
    start_step=start_step,
    margin=getattr(run.model, 'margin', 0),
    process_index=part.index,
    process_count=part.count,
    report=report,
  )


def eval_batches(
  run: Run, dataset: Dataset, split: str, mesh: jax.sharding.Mesh
) -> tuple[Iterator[Any], evaluate.Put]:
  """This process's part of a split, once through it, and what moves a batch to the mesh."""
  builder, spec = dataset
  part = sharding.own_part(run.experiment.mesh)
  batches = pipeline.eval_batches(
    builder,
    spec,
    run.experiment.input,
    split=split,
    multiple=mesh.shape['data'],
    process_index=part.index,
    process_count=part.count,
  )
  return batches, functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec)


def count_classes(run: Run, dataset: Dataset, split: str) -> statistics.ClassCounts:
  """Pixels and objects of each class of a split; of a large one, in a sample."""
  builder, spec = dataset
  reader = source_reader.open_reader(builder, split, run.experiment.input, spec)
  return statistics.count_classes(reader, _COUNTED)


def make_mesh(run: Run) -> jax.sharding.Mesh:
  """The mesh of devices that the experiment asks for.

  Raises:
    SegjaxError: there are not as many, or the task does not split an image.
  """
  mesh = sharding.make_mesh(run.experiment.mesh)
  if mesh.shape['space'] > 1 and not any('space' in spec for spec in run.task.batch_spec.values()):
    network = f' with {type(run.model).__name__}' if run.experiment.input.queries else ''
    raise SegjaxError(
      f'config.mesh.space={mesh.shape["space"]}: the task {run.experiment.task}{network} does not '
      'split an image: set it to 1'
    )
  return mesh


def check_train_shapes(run: Run, builder: Any, mesh: jax.sharding.Mesh) -> None:
  """Raises a SegjaxError where training batches do not divide over the mesh.

  Parts of an accumulated batch may not: this is shown.
  """
  experiment = run.experiment
  size = experiment.batch.size
  sharding.check_rows(size, mesh)
  if idle := sharding.describe_idle(size, experiment.optim.accumulate, mesh):
    notify(idle)
  if mesh.shape['space'] > 1:
    shapes = pipeline.train_shapes(builder, run.spec, experiment.input)
    sharding.check_heights(shapes, mesh, margin=getattr(run.model, 'margin', 0))


class Evaluator:
  """Evaluates variables of a run on a split; compiles once for each shape of a batch.

  Raises:
    SegjaxError: unknown split; no object of it has the mask that the task needs; its images do not
      divide over the mesh.
  """

  def __init__(self, run: Run, dataset: Dataset, split: str, mesh: jax.sharding.Mesh, images: int):
    if mesh.shape['space'] > 1:
      shapes = pipeline.eval_shapes(*dataset, run.experiment.input, split)
      sharding.check_heights(shapes, mesh)
    pipeline.check_objects(*dataset, run.experiment.input, split, notify)
    # Of the losses, the states of metrics, the predictions, and the scores of the images.
    places = (None, None, sharding.by_rows(mesh), None)
    eval_step = compile.jit(step.make_eval_step(run.task), out_shardings=places)
    eval_step = sharding.on_mesh(eval_step, mesh)
    self._eval_step = compile.announced(eval_step, 'evaluation step', notify)
    self._batches = functools.partial(eval_batches, run, dataset, split, mesh)
    self._task, self._images = run.task, images
    self._part = sharding.own_part(run.experiment.mesh)

  def __call__(
    self, variables: Mapping[str, Any], beat: Callable[[], None] = lambda: None
  ) -> evaluate.Evaluation:
    """The metrics of the split, and the first and the worst images; `beat` is called by batch."""
    batches, put = self._batches()
    batches = (beat() or batch for batch in batches)
    options = {'num_images': self._images, 'part': self._part}
    return evaluate.evaluate(self._eval_step, variables, batches, self._task, put, **options)

  def draw(self, variables: Mapping[str, Any], names: Collection[str]) -> list[evaluate.Example]:
    """The panels of the images with these names."""
    batches, put = self._batches()
    task, part = self._task, self._part
    return evaluate.draw(self._eval_step, variables, batches, task, put, names, part=part)


# --- before training ------------------------------------------------------------------------------


def read_given(
  workdir: Workdir, path: str | None, overrides: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  """The config file at `path`, or else the config of the workdir, with overrides put in place."""
  given = config_lib.read_file(path) if path else _read_config(workdir)
  return config_lib.override(given, overrides)


def read_mesh(
  workdir: Workdir, path: str | None, overrides: Sequence[tuple[str, str]]
) -> sharding.MeshConfig:
  """`config.mesh`, read without a word and without JAX: several processes start with it.

  Raises:
    SegjaxError: there is no such config, or its values are out of range.
  """
  given = config_lib.read_file(path) if path else workdir.read_config()
  return check_group('mesh', config_lib.override(given, overrides))


def resolve(given: Mapping[str, Any]) -> Experiment:
  """`parse`, with networks in place of the workdirs that `config.model` may name.

  Raises:
    SegjaxError: as `parse`; there is no such workdir, or the two cannot be merged.
  """
  if not (paths := merge.named_runs(given)):
    return parse(given)
  check_keys(given)
  check_moved(given)
  checked = {key: _checked(key, given) for key in ('data', 'train')}
  parts = {part: read_experiment(Workdir(path)).to_dict() for part, path in paths.items()}
  return parse(merge.merged_config({**given, **checked}, parts))


def _checked(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """A group's keys, with their values as `parse` has them, before the defaults are known."""
  full = dataclasses.asdict(check_group(key, given))
  return _only(full, given.get(key) or {})


def _only(full: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  nested = lambda key: isinstance(full[key], Mapping) and isinstance(given[key], Mapping)
  return {key: _only(full[key], given[key]) if nested(key) else full[key] for key in given}


def assemble(workdir: Workdir, given: Mapping[str, Any], *, write: bool = True) -> tuple[Run, Any]:
  """The run to train or to resume in `workdir`, and the builder of its data set.

  Args:
    workdir: of the run, locked by the caller.
    given: from `read_given`.
    write: whether to freeze the config there; of several processes, on the first.

  Raises:
    SegjaxError: whatever the user can fix, such as a workdir of another config.
  """
  experiment = resolve(given)
  known = None
  # Only what has trained binds: a start that failed may be fixed by another config.
  if not workdir.has_checkpoints():
    workdir.check_kind()
    check_start(experiment)
  else:
    workdir.check_config(read_experiment(workdir).to_dict(), experiment.to_dict())
    known = workdir.read_dataset()
  builder, spec = load_dataset(experiment)
  if paths := merge.named_runs(given):
    theirs = {part: Workdir(path).read_dataset() for part, path in paths.items()}
    names = {part: content['spec']['class_names'] for part, content in theirs.items()}
    merge.check_classes(spec.class_names, spec.things, names, paths)
  # Read back, so that what older runs did not write does not count.
  if known and datasets.DatasetSpec.from_json(known['spec']).to_json() != spec.to_json():
    raise SegjaxError(
      f'{builder.data_path} is not what {workdir.path} was trained on: take another --workdir, '
      'or prepare the same data again'
    )
  records = datasets.records_digest(builder)
  if known and known.get('records', records) != records:
    notify(
      f'{builder.data_path} was prepared again since {workdir.path} was first trained, and its '
      'examples are not the same: from here on the run cannot be repeated'
    )
  class_weights = (
    known['class_weights']
    if known
    else find_class_weights(
      experiment, lambda: pipeline.count_labels(builder, spec, experiment.input)
    )
  )
  run = build(experiment, spec, class_weights)
  if write:
    workdir.write_config(experiment.to_dict())
    ranges = known['images'] if known and 'images' in known else _image_ranges(run, builder)
    facts = {
      'spec': spec.to_json(),
      'class_weights': class_weights,
      'images': ranges,
      'records': known.get('records', records) if known else records,
    }
    workdir.write_dataset(facts)
  return run, builder


def _image_ranges(run: Run, builder: Any) -> dict[str, Any] | None:
  """What training images are like, for `dataset.json`."""
  config = run.experiment.input
  reader = source_reader.open_reader(builder, config.data.train_split, config, run.spec)
  ranges = unusual.measure(reader, config.data.size)
  return ranges and ranges._replace(common=_common_size(run, builder)).to_json()


def _common_size(run: Run, builder: Any) -> Size | None:
  """The size of all images of the evaluation, if they are not padded; None of another data set."""
  config = run.experiment.input
  if config.data.eval_name is not None:
    return None
  sizes = lambda: source_reader.open_reader(builder, config.data.eval_split, config, run.spec).sizes
  with contextlib.suppress(SegjaxError):  # what is wrong with the split, the evaluation says
    return order.common_size(sizes, config)
  return None


def make_optimizer(run: Run, batch: Batch) -> optax.GradientTransformation:
  """The optimizer of the parameters of `run`, for batches shaped like `batch`."""
  params = jax.eval_shape(run.task.init, jax.random.key(0), batch)['params']
  frozen = getattr(run.model, 'frozen_parameters', ())
  experiment = run.experiment
  return optim.make_optimizer(experiment.optim, experiment.train.steps, params, frozen)


def init_state(
  run: Run, optimizer: optax.GradientTransformation, batch: Batch
) -> Callable[[jax.Array], state.TrainState]:
  """`key -> TrainState` before the first step; can be traced by `jit`."""
  ema = run.experiment.optim.ema is not None
  return functools.partial(state.init_state, run.task, optimizer, batch=batch, ema=ema)


def start_from(current: state.TrainState, run: Run) -> state.TrainState:
  """A new state with the weights of the run's `init_from` in place of its own."""
  init_from = run.experiment.init_from
  if isinstance(init_from.path, Mapping):
    parts = {part: _read_start(path, init_from) for part, path in init_from.path.items()}
    pretrained = weights_lib.as_parts(parts)
  else:
    pretrained = _read_start(init_from.path, init_from)
  reset = init_from.reset
  if reset == 'heads':
    reset = class_specific(run.experiment, run.spec.channels)
  params, model_state, report = weights_lib.load_into(
    current.params, current.model_state, pretrained, reset
  )
  notify(str(report))
  ema = None if current.ema is None else params
  return dataclasses.replace(current, params=params, model_state=model_state, ema=ema)


def _read_start(path: str | None, init_from: weights_lib.InitFrom) -> weights_lib.Pretrained:
  """The arrays of a workdir or a file to start from, downloaded without a `path`."""
  if path is None:
    weights_lib.check_source(init_from.source)
    path = str(addresses.get(init_from.source, report=notify))
  start = weights_file(storage.as_path(path))
  if not start.exists() and init_from.source and addresses.find(init_from.source):
    raise SegjaxError(
      f'config.init_from.path={path} does not exist: correct it, or set config.init_from.path=none '
      f'to download the weights of {init_from.source}'
    )
  file = None if start.is_dir() else storage.local_path(start, 'config.init_from.path')
  of_run = file is None or weights_lib.is_of_run(file)
  # Not an error without a source: then the reset is not what a config says of published weights.
  if of_run and init_from.source and init_from.reset == 'heads':
    raise SegjaxError(
      f'config.init_from.path={path} is of a run, and config.init_from.reset=heads would discard '
      f'its class-specific layers, as those of {init_from.source}: set config.init_from.source='
      'none, and config.init_from.reset=() to keep them'
    )
  if file is not None:
    return weights_lib.read_pretrained(file, init_from.source)
  restored = restore(Workdir(start), init_from.checkpoint)
  variables = state.variables_from_arrays(restored.state)
  return weights_lib.of_run(path, weights_lib.flat_paths(variables))


# --- after training -------------------------------------------------------------------------------


def read_experiment(workdir: Workdir, overrides: Sequence[tuple[str, str]] = ()) -> Experiment:
  """The experiment of a workdir, with overrides put in place.

  Raises:
    SegjaxError: no such workdir, a corrupt one or one of a newer version; an unknown key.
  """
  _check_version(workdir)
  return parse(config_lib.override(_read_config(workdir), overrides), trained=True)


def _check_version(workdir: Workdir) -> None:
  """Raises a SegjaxError for a run that a newer version trained: the same keys may mean others."""
  found = [re.search(r'segjax (\d+)\.(\d+)', s.get('versions', '')) for s in workdir.read_starts()]
  newest = max((tuple(map(int, match.groups())) for match in found if match), default=(0, 0))
  if newest > tuple(map(int, segjax.__version__.split('.')[:2])):
    raise SegjaxError(
      f'{workdir.path} was trained by segjax {newest[0]}.{newest[1]}, newer than this '
      f'{segjax.__version__}: upgrade segjax'
    )


def _read_config(workdir: Workdir) -> dict[str, Any]:
  config = workdir.read_config()
  if workdir.is_old():
    _tell_upgrade(workdir.path)
  return config


@functools.cache
def _tell_upgrade(path: Path) -> None:
  notify(f'{path} was written by an older version of segjax: its config is read by the new keys')


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained run, and the variables of one of its checkpoints.

  Attributes:
    run: the run.
    restored: the checkpoint.
    variables: for `Task.forward`.
    images: what its training images were like; None for runs of earlier versions.
  """

  run: Run
  restored: checkpoint.Restored
  variables: Mapping[str, Any]
  images: unusual.ImageRanges | None = None

  @property
  def common_size(self) -> Size | None:
    """See `segjax.data.order.common_size`."""
    return self.images.common if self.images else None


def load_run(
  workdir: Workdir, which: checkpoint.Which = 'latest', overrides: Sequence[tuple[str, str]] = ()
) -> Loaded:
  """The run in `workdir`, without its data set.

  Raises:
    SegjaxError: no such workdir or checkpoint, a corrupt one, or an override of what was trained.
  """
  experiment = read_experiment(workdir)
  of_model = [f'model.{key}' for key in getattr(experiment.model, 'inference_keys', ())]
  for key, _ in overrides:
    if not key.startswith(_SET_LATER) and key not in of_model:
      raise SegjaxError(
        f'config.{key} belongs to the training of {workdir.path}: for a trained network only '
        'config.data, config.batch, config.eval and config.mesh can be set'
        + ''.join(f', config.{name}' for name in of_model)
      )
  if overrides:
    experiment = read_experiment(workdir, overrides)
    if any(key.startswith('eval.') for key, _ in overrides):
      check_eval(experiment)
  dataset = workdir.read_dataset()
  spec = datasets.DatasetSpec.from_json(dataset['spec'])
  run = build(experiment, spec, dataset['class_weights'])
  restored = restore(workdir, which)
  variables = _without_masking(state.variables_from_arrays(restored.state))
  return Loaded(run, restored, variables, unusual.ImageRanges.from_json(dataset.get('images')))


def _without_masking(variables: Mapping[str, Any]) -> Mapping[str, Any]:
  """The variables without those of masked attention that is annealed to none, see `eomt.EoMT`."""
  if any(np.any(share) for share in jax.tree.leaves(variables.get('masked', {}))):
    return variables
  return {key: value for key, value in variables.items() if key != 'masked'}


def restore(workdir: Workdir, which: checkpoint.Which) -> checkpoint.Restored:
  """A checkpoint of a workdir, its arrays by name; or the weights alone of an export.

  Raises:
    SegjaxError: there is none, or it is corrupt.
  """
  if workdir.has_weights_alone():
    _check_version(workdir)
    return _restore_weights(workdir.weights, which)
  checkpoints = open_checkpoints(workdir, read_experiment(workdir))
  restored = checkpoints.restore(which)
  checkpoints.close()
  if restored is None:
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: train until the first one')
  return restored


def _restore_weights(path: Path, which: checkpoint.Which) -> checkpoint.Restored:
  arrays, notes = own.read(path)
  step = int(notes['step'])
  if which not in ('latest', 'best', step):
    raise SegjaxError(f'{path} has no checkpoint {which}, only the weights of step {step}')
  named = {_name_in_state(name): array for name, array in arrays.items()}
  params = {name: array for name, array in named.items() if name.startswith('params.')}
  digest = state.combined_digest(state.array_digests(params))
  return checkpoint.Restored(named, step, digest, metrics=None)


def _name_in_state(name: str) -> str:
  """The name in a checkpoint of 'params/conv1/kernel' or 'batch_stats/bn1/mean'."""
  of_model = '' if name.startswith('params/') else 'model_state.'
  return of_model + name.replace('/', '.')


def open_checkpoints(workdir: Workdir, experiment: Experiment) -> checkpoint.Checkpoints:
  """The checkpoints of a workdir, to read."""
  if not workdir.checkpoints.is_dir():
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: train until the first one')
  return checkpoint.Checkpoints(
    workdir.checkpoints,
    best_metric=experiment.train.best_metric,
    best_mode=best_mode(experiment.train),
    read_only=True,
    warn=notify,
  )


def is_trained(workdir: Workdir) -> bool:
  """Whether a training has reached its last step, or ended early by `config.train.patience`."""
  if not workdir.has_checkpoints():
    return False
  experiment = read_experiment(workdir)
  checkpoints = open_checkpoints(workdir, experiment)
  try:
    if not (steps := checkpoints.steps()):
      return False
    ended = loop.ends_early(experiment.train, steps[-1], checkpoints.best())
    return steps[-1] >= experiment.train.steps or (ended and checkpoints.is_evaluated(steps[-1]))
  finally:
    checkpoints.close()
