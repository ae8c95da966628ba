"""A trained network over a split: metrics, thresholds, the report."""

import dataclasses
import datetime
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax import config as config_lib
from segjax.data import datasets
from segjax.program.build import Run, size
from segjax.program.facts import hardware, versions
from segjax.program.load import Loaded, batches_of, load_eval_dataset, load_run
from segjax.report import curves, html, values
from segjax.train import checkpoint, compile, evaluate, sharding, step
from segjax.types import SegjaxError
from segjax.workdir import Workdir


def make_evaluator(
  run: Run,
  dataset: tuple[Any, datasets.DatasetSpec],
  split: str,
  mesh: jax.sharding.Mesh,
  pictures: int,
) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], list]]:
  """`variables -> (metrics, named pictures)` on a split; compiles once a shape."""
  eval_step = compile.jit(step.make_eval_step(run.task))

  def evaluator(variables: Mapping[str, Any]) -> tuple[dict[str, Any], list]:
    batches, put = _feed(run, dataset, split, mesh)
    return evaluate.evaluate(eval_step, variables, batches, run.task, put, pictures=pictures)

  return evaluator


def _feed(
  run: Run, dataset: tuple[Any, datasets.DatasetSpec], split: str, mesh: jax.sharding.Mesh
) -> tuple[Iterator[Any], evaluate.Put]:
  """This process's batches of a split, once through it, and what moves one to the mesh."""
  builder, spec = dataset
  batches = batches_of(run.data).eval_batches(
    builder,
    run.data,
    spec,
    split=split,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return batches, functools.partial(sharding.put_batch, mesh=mesh, spec=run.task.batch_spec)


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
  loaded, run, dataset, mesh = _load_to_evaluate(workdir, which, overrides)
  tuning, split = run.task.tuning, split or run.data.eval_split
  if tuning is None:
    raise SegjaxError(
      f'--tune: the task {run.config["task"]} has no thresholds to choose: leave it out'
    )
  batches, put = _feed(run, dataset, split, mesh)
  measured = evaluate.tune(
    compile.jit(step.make_tune_step(run.task)),
    sharding.put_replicated(loaded.variables, mesh),
    batches,
    run.task,
    put,
  )
  tried = [
    {**dict(zip(tuning.names, setting, strict=True)), tuning.measure: metrics[tuning.measure]}
    for setting, metrics in zip(tuning.settings, measured, strict=True)
  ]
  # The first of equals; one that measures nothing is the worst.
  best = max(tried, key=lambda entry: np.nan_to_num(entry[tuning.measure], nan=-np.inf))
  facts = {'step': loaded.restored.step, 'split': split, 'measure': tuning.measure}
  return {**facts, 'own': tried[0], 'best': best, 'tried': tried}


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
