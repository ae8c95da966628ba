"""Training a run from its config, or going on with it."""

import contextlib
import dataclasses
import functools
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from segjax import config as config_lib
from segjax import merge
from segjax.convert import load as weights_lib
from segjax.data import datasets, pipeline
from segjax.program.build import Run, build, complete, find_class_weights, resolve, size
from segjax.program.evaluate import make_evaluator, write_report
from segjax.program.facts import hardware, provenance
from segjax.program.load import (
  batches_of,
  load_dataset,
  load_eval_dataset,
  restore,
  tell,
  tell_of_process,
)
from segjax.report import console
from segjax.train import checkpoint, compile, evaluate, log, loop, optim, sharding, state, step
from segjax.types import SegjaxError, nearest
from segjax.workdir import Workdir


def _progress(total: int, start: int) -> console.TrainProgress:
  """What the person sees: of several processes, the first one's."""
  stream = sys.stderr if jax.process_index() == 0 else io.StringIO()
  return console.TrainProgress(total, start, stream)


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


def train(workdir: Workdir, config_file: str | None, overrides: Iterable[tuple[str, str]]) -> None:
  """Trains to the last step, or goes on where the run in `workdir` stopped.

  Args:
    workdir: of the run.
    config_file: its path; None for the config that the workdir holds.
    overrides: of the config.

  Raises:
    SegjaxError: whatever the user can mend, such as a workdir of another config.
  """
  given = config_lib.read_file(config_file) if config_file else workdir.read_config()
  given = config_lib.override(given, overrides)
  config = resolve(given)
  first = jax.process_index() == 0
  with workdir.lock() if first else contextlib.nullcontext():
    # Only what has trained binds: a start that failed may be mended by another config.
    known = None
    if workdir.has_checkpoints():
      workdir.check_config(complete(workdir.read_config()), config)
      known = workdir.read_dataset()
    builder, spec = load_dataset(config)
    if parts := merge.named_runs(given):
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
    _train(run, builder, workdir)


def _train(run: Run, builder: Any, workdir: Workdir) -> None:
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
    batches_of(run.data).train_batches,
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
    warn=tell,
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
  tell(
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
  report = {} if run.data.instances is None else {'report': tell_of_process}
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
  tell(f'done: {config.steps} steps; look at {workdir.report}')


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
  tell(str(report))
  ema = None if current.ema is None else params
  return dataclasses.replace(current, params=params, model_state=model_state, ema=ema)


def _read_start(path: str, given: weights_lib.InitFrom) -> weights_lib.Pretrained:
  """The arrays of a workdir or a file to start from."""
  if not Path(path).is_dir():
    return weights_lib.read_pretrained(path, given.source)
  restored = restore(Workdir(path), given.checkpoint)
  variables = state.variables_from_arrays(restored.state)
  return weights_lib.Pretrained(path, weights_lib.flat_paths(variables))
