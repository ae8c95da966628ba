"""`segjax train`: starts or resumes a training run."""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import optax

from segjax import config as config_lib
from segjax import provenance
from segjax import run as run_lib
from segjax.cli import options, processes
from segjax.cli.evaluate import Evaluated, write_report
from segjax.data import datasets, pipeline, statistics
from segjax.data.config import Augment, InputConfig
from segjax.experiment import Experiment, best_mode, measures
from segjax.report import console, values
from segjax.run import Dataset, Run, notify, notify_process, size_of
from segjax.training import checkpoint, compile, evaluate, log, loggers, loop, optim, sharding, step
from segjax.training.state import TrainState, eval_variables, flat_arrays
from segjax.training.watchdog import Watchdog
from segjax.types import Batch, SegjaxError, nearest
from segjax.workdir import Workdir

T = TypeVar('T')

# Keys of `config.model` and the values that freeze layers.
_FREEZES = {
  'norm': ('frozen',),
  'backbone.norm': ('frozen',),
  'backbone.frozen_stages': range(1, 6),
}

EXAMPLE = """example:
  segjax train --config=unet/scenes --workdir=runs/scenes --config.train.steps=100

--config is the path of a file, or a name that `segjax list configs` prints; NAME:ARGUMENT passes an
argument to its get_config(). --config.KEY=VALUE overrides any key of the config. Run the same
command again to resume from the last checkpoint. Without --config, the config in the workdir is
used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument('--config', help='path or name of a config, such as unet/scenes')
  options.add_distributed(parser)


def run(args: argparse.Namespace) -> int:
  processes.start(args, saves=True)
  train(Workdir(args.workdir), args.config, args.overrides)
  return 0


def train(workdir: Workdir, config_file: str | None, overrides: Sequence[tuple[str, str]]) -> None:
  """Trains to the last step, resuming from the last checkpoint in `workdir` if there is one.

  Args:
    workdir: of the run.
    config_file: its path; None for the config in the workdir.
    overrides: `(key, value)` pairs for the config.

  Raises:
    SegjaxError: any error that the user can fix, such as a workdir created with a different config.
  """
  train_given(workdir, run_lib.read_given(workdir, config_file, overrides))


def train_given(workdir: Workdir, given: Mapping[str, Any]) -> TrainState:
  """`train` of a config that is read; returns the last state."""
  first = jax.process_index() == 0
  if workdir.has_weights_alone():
    raise SegjaxError(
      f'{workdir.path} has weights alone, without the state of a training: take another --workdir, '
      f'with --config.init_from.path={workdir.path}'
    )
  with workdir.lock(notify) if first else contextlib.nullcontext():
    checkpoint.check_shared(workdir.path)
    run, builder = run_lib.assemble(workdir, given, write=first)
    return fit(run, builder, workdir)


def fit(run: Run, builder: Any, workdir: Workdir) -> TrainState:
  """Trains an assembled run to its last step, with its checkpoints, log and report in `workdir`."""
  mesh = run_lib.make_mesh(run)
  run_lib.check_train_shapes(run, builder, mesh)
  if run.experiment.mesh.fsdp:
    run = dataclasses.replace(run, task=sharding.gathered(run.task, mesh))
  # Config errors surface here, before anything is compiled.
  loggers.check(run.experiment.train.loggers)
  if not workdir.has_checkpoints():  # what has begun may go on
    _check_best_metric(run.experiment)
    optim.check_schedule(run.experiment.optim)
  eval_dataset = run_lib.load_eval_dataset(run.experiment, run.spec.class_names)
  evaluator = _make_evaluator(run, eval_dataset, mesh)
  refresh = _make_refresh(run, builder, mesh)  # also checks that the task has one
  with contextlib.ExitStack() as stack:
    checkpoints = _open_checkpoints(run, workdir)
    stack.callback(checkpoints.close)
    prepared = _prepare(run, builder, checkpoints, mesh, stack)
    current = prepared.state
    _check_batch_norm(run, current)
    start, batches = int(current.step), prepared.batches
    _notify_start(run, workdir, start, current.params, mesh)
    if start == 0:
      _notify_frozen(run.experiment)
      _notify_large_batch(run, builder)
      notify_missing = functools.partial(_notify_missing, run, (builder, run.spec), eval_dataset)
      if run.experiment.train.steps > 1:
        batches = _beside(batches, prepared.threads, notify_missing)
      else:  # there is no second batch
        notify_missing()
    train_step = prepared.compile()
    run_log = None
    if jax.process_index() == 0:
      workdir.note_start({'step': start, **provenance.provenance()})
      run_log = stack.enter_context(_open_log(run, workdir, start, prepared.evaluated))
    progress = stack.enter_context(_progress(run.experiment.train.steps, start))
    # Of several processes the first one holds JAX's coordination service.
    coordinates = jax.process_count() > 1 and jax.process_index() == 0
    watchdog = stack.enter_context(Watchdog(run.experiment.mesh.hang_timeout, last=coordinates))
    current = loop.run(
      current,
      compile.announced(train_step, 'train step for another shape', progress.message),
      batches,
      run.experiment.train,
      batch_size=run.experiment.batch.size,
      checkpoints=checkpoints,
      log=run_log,
      progress=progress,
      evaluate=functools.partial(_evaluate, run, workdir, evaluator, run_log, progress, watchdog),
      evaluated=prepared.evaluated,
      refresh=functools.partial(refresh, watchdog.beat),
      watchdog=watchdog,
    )
    done = _done(run.experiment.train, int(current.step), checkpoints.best())
  notify(f'{done}; report: {workdir.report}')
  return current


def _done(config: loop.TrainConfig, step: int, best: tuple[int, float] | None) -> str:
  if step >= config.steps or best is None:
    return f'done: {config.steps} steps'
  return (
    f'done: ended early at step {step} of {config.steps}, without a better {config.best_metric} '
    f'since step {best[0]} (config.train.patience={config.patience})'
  )


class _Prepared(NamedTuple):
  """What a run needs for its first step.

  Attributes:
    state: to train from, on the mesh.
    evaluated: whether it has been evaluated, if that was due.
    batches: on the mesh, and the names of their examples.
    compile: compiles the train step, and returns it.
    threads: that run until the end of the training.
  """

  state: TrainState
  evaluated: bool
  batches: Iterator[tuple[Any, Sequence[str]]]
  compile: Callable[[], Callable[..., Any]]
  threads: concurrent.futures.Executor


def _prepare(
  run: Run,
  builder: Any,
  checkpoints: checkpoint.Checkpoints,
  mesh: jax.sharding.Mesh,
  stack: contextlib.ExitStack,
) -> _Prepared:
  """Traces the train step; meanwhile threads compile the first state and read the first batch."""
  example = _first_batch(run, builder)
  optimizer = run_lib.make_optimizer(run, example)
  init = run_lib.init_state(run, optimizer, example)
  key = jax.random.key(run.experiment.train.seed)
  shapes = jax.eval_shape(init, key)
  places = sharding.state_shardings(shapes, mesh, fsdp=run.experiment.mesh.fsdp)
  init = compile.jit(init, once=True, out_shardings=places)
  restored = checkpoints.restore('latest', shapes)

  start = restored.step if restored else 0
  batches = _device_batches(run, builder, start, mesh)
  stack.callback(batches.close)
  threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2, 'segjax_train'))
  first_batch = threads.submit(next, batches)
  if restored:
    state = threads.submit(sharding.put, restored.state, places)
  else:
    state = threads.submit(init, key)
  train_step = _make_train_step(run, optimizer, places, mesh)
  lowered = None
  if start < run.experiment.train.steps:
    shapes = sharding.placed(shapes, places)
    lowered = train_step.lower(shapes, sharding.put_batch(example, mesh, run.task.batch_spec))
  current = state.result()
  if not restored and run.experiment.init_from is not None:
    current = sharding.put(run_lib.start_from(sharding.to_host(current), run), places)

  def compile_step() -> Callable[..., Any]:
    if lowered is not None:
      compile.announced(lowered.compile, 'train step', notify)()
    return train_step  # which finds what was compiled for these shapes

  return _Prepared(
    state=current,
    evaluated=restored is None or restored.metrics is not None,
    batches=_started(first_batch, batches),
    compile=compile_step,
    threads=threads,
  )


def _started(first: concurrent.futures.Future[T], rest: Iterator[T]) -> Iterator[T]:
  yield first.result()
  yield from rest


def _beside(
  batches: Iterator[T], threads: concurrent.futures.Executor, function: Callable[[], Any]
) -> Iterator[T]:
  """The batches; from the second one on, `function` runs in a thread, and its error is raised."""
  yield next(batches)
  done = threads.submit(function)
  for batch in batches:
    if done.done():
      done.result()
    yield batch


def _open_log(run: Run, workdir: Workdir, start: int, evaluated: bool) -> log.RunLog:
  config, train_config = config_lib.dotted(run.experiment.to_dict()), run.experiment.train
  opened = loggers.open_loggers(train_config.loggers, workdir.path, config, notify)
  run_log = log.RunLog(workdir.path, start_step=start, evaluated=evaluated, loggers=opened)
  split = log.evaluation_split(run.experiment.data.eval_split)
  run_log.config(config, ['train/loss', f'{split}/{train_config.best_metric}'])
  return run_log


def _first_batch(run: Run, builder: Any) -> Batch:
  """One batch, for its shapes; starts no worker processes."""
  config = _without_workers(run)
  with contextlib.closing(run_lib.train_batches(run, builder, config=config)) as batches:
    batch, _ = next(batches)
  return batch


def _without_workers(run: Run) -> InputConfig:
  config = run.experiment.input
  return dataclasses.replace(config, batch=dataclasses.replace(config.batch, workers=0))


def _open_checkpoints(run: Run, workdir: Workdir) -> checkpoint.Checkpoints:
  config = run.experiment.train
  return checkpoint.Checkpoints(
    workdir.checkpoints,
    keep=config.keep,
    best_metric=config.best_metric,
    best_mode=best_mode(config),
    warn=notify,
    check=workdir.check_lock,
  )


def _notify_start(
  run: Run, workdir: Workdir, start: int, params: Any, mesh: jax.sharding.Mesh
) -> None:
  notify(
    f'{workdir.path}: {"resuming from" if start else "starting at"} step {start} of '
    f'{run.experiment.train.steps}, {size_of(params):,} parameters, {provenance.hardware()}'
  )
  if run.experiment.mesh.fsdp:
    notify(sharding.describe_fsdp(flat_arrays(params), mesh.shape['data']))


def _notify_frozen(experiment: Experiment) -> None:
  """Says so where a part of the network keeps what it is initialized with."""
  given = config_lib.flatten(experiment.model_config)
  frozen = {key: given[key] for key in _FREEZES if given.get(key) in _FREEZES[key]}
  if experiment.train.steps and experiment.init_from is None and frozen:
    shown = ' and '.join(f'config.model.{key}={value!r}' for key, value in frozen.items())
    notify(
      f'{shown} without weights to start from: these layers stay as they are initialized; set '
      "config.init_from, or norm='group' and frozen_stages=0"
    )


def _notify_large_batch(run: Run, builder: Any) -> None:
  """Says so where a step sees an example more than once."""
  batch, split = run.experiment.batch.size, run.experiment.data.train_split
  examples = datasets.count_examples(builder, split, run.spec.name)
  if batch > examples:
    notify(
      f'config.batch.size={batch} is larger than the split {split} (examples: {examples}): a step '
      'sees examples more than once; add images, or make it smaller'
    )


def _notify_missing(run: Run, train_dataset: Dataset, eval_dataset: Dataset) -> None:
  """Shows which classes never occur in the splits, and how many pixels are ignored."""
  if jax.process_index() != 0:
    return
  data, names = run.experiment.data, run.spec.class_names
  for split, dataset in ((data.train_split, train_dataset), (data.eval_split, eval_dataset)):
    counts = run_lib.count_classes(run, dataset, split)
    if missing := statistics.describe_missing(counts, names, split):
      notify(missing)


def _device_batches(run: Run, builder: Any, start: int, mesh: jax.sharding.Mesh) -> Any:
  """Batches on the mesh and the names of their examples, from step `start` on."""
  batches = run_lib.train_batches(run, builder, start_step=start, report=notify_process)
  put = functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec)
  return pipeline.prefetch_to_device(batches, lambda pair: (put(pair[0]), pair[1]))


def _make_train_step(
  run: Run, optimizer: optax.GradientTransformation, places: Any, mesh: jax.sharding.Mesh
) -> Callable[..., Any]:
  config, train_config = run.experiment.optim, run.experiment.train
  train_step = step.make_train_step(
    run.task,
    optimizer,
    optim.make_schedule(config, train_config.steps),
    seed=train_config.seed,
    accumulate=config.accumulate,
    ema=config.ema,
  )
  places = (places, sharding.replicated(mesh))
  return compile.jit(train_step, donate_argnums=0, out_shardings=places)


def _make_evaluator(run: Run, dataset: Dataset, mesh: jax.sharding.Mesh) -> run_lib.Evaluator:
  """The evaluator of the evaluation split, which exists."""
  split = run.experiment.data.eval_split
  datasets.count_examples(dataset[0], split, dataset[1].name)  # checks that the split exists
  return run_lib.Evaluator(run, dataset, split, mesh, run.experiment.train.images)


def _progress(total: int, start: int) -> console.TrainProgress:
  """The progress bar; silent in all processes but the first."""
  stream = sys.stderr if jax.process_index() == 0 else io.StringIO()
  return console.TrainProgress(total, start, stream)


def _evaluate(
  run: Run,
  workdir: Workdir,
  evaluator: run_lib.Evaluator,
  run_log: log.RunLog | None,
  progress: console.TrainProgress,
  watchdog: Watchdog,
  current: TrainState,
  now: int,
) -> dict[str, Any]:
  """Evaluates a state at step `now` and writes its metrics to the log, report and terminal."""
  measured = evaluator(eval_variables(current), beat=watchdog.beat)
  metrics = measured.metrics
  split = run.experiment.data.eval_split
  if run_log:
    logged = log.evaluation_split(split)
    run_log.scalars(now, logged, metrics)
    run_log.images(now, logged, measured.examples)
    write_report(workdir, Evaluated(run, split, now, size_of(current.params), measured))
  metric = run.experiment.train.best_metric
  value = _best_value(metric, metrics)
  loss = f' loss={metrics["loss"]:.4f}' if 'loss' in metrics else ''
  progress.message(f'step {now}: {split} {metric}={values.format_metric(metric, value)}{loss}')
  return metrics


def _check_best_metric(experiment: Experiment) -> None:
  """Raises a SegjaxError where no evaluation computes `config.train.best_metric`."""
  known = measures(experiment)
  if known is not None:
    _best_value(experiment.train.best_metric, dict.fromkeys(known, 0.0))


def _best_value(name: str, metrics: Mapping[str, Any]) -> float:
  if not isinstance(metrics.get(name), int | float):
    numbers = [key for key, value in metrics.items() if isinstance(value, int | float)]
    hint = nearest(name, numbers)
    raise SegjaxError(f'config.train.best_metric={name} is an unknown metric{hint}')
  return metrics[name]


def _check_batch_norm(run: Run, current: TrainState) -> None:
  if run.experiment.train.recompute_batch_norm and not current.model_state.get('batch_stats'):
    raise SegjaxError(
      'config.train.recompute_batch_norm: the network has no batch normalization: set it to false'
    )


def _make_refresh(
  run: Run, builder: Any, mesh: jax.sharding.Mesh
) -> Callable[[Callable[[], None], TrainState], TrainState]:
  """`(beat, state) -> state` before an evaluation, see `config.train.recompute_batch_norm`.

  `beat` is called with each batch.
  """
  if not run.experiment.train.recompute_batch_norm:
    return lambda _, current: current
  if run.task.batch_statistics is None:
    raise SegjaxError(
      f'config.train.recompute_batch_norm is not supported by {type(run.model).__name__}: set it '
      'to false'
    )
  data = run.experiment.data
  config = dataclasses.replace(_without_workers(run), augment=Augment())
  examples = datasets.count_examples(builder, data.train_split, run.spec.name)
  count = max(examples // run.experiment.batch.size, 1)
  statistics = compile.jit(run.task.batch_statistics, out_shardings=sharding.replicated(mesh))

  def refresh(beat: Callable[[], None], current: TrainState) -> TrainState:
    def put(batches: Iterator[tuple[Batch, Any]]) -> Iterator[Batch]:
      for batch, _ in itertools.islice(batches, count):
        beat()
        yield sharding.put_batch(batch, mesh=mesh, spec=run.task.batch_spec)

    with contextlib.closing(run_lib.train_batches(run, builder, config=config)) as batches:
      seed = run.experiment.train.seed
      return evaluate.recompute_statistics(statistics, current, put(batches), seed=seed)

  return refresh
