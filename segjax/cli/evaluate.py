"""`segjax evaluate`: computes metrics on a split, tunes thresholds, writes the report."""

import argparse
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from segjax import config as config_lib
from segjax import provenance, storage
from segjax import run as run_lib
from segjax.cli import options, processes
from segjax.data import statistics
from segjax.experiment import Experiment, best_mode
from segjax.report import console, curves, html, values
from segjax.run import Dataset, Loaded, Run
from segjax.training import checkpoint, compile, evaluate, log, sharding, step
from segjax.types import SegjaxError
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax evaluate --workdir=runs/scenes --split=val --checkpoint=best --json
  segjax evaluate --workdir=runs/panoptic --split='train[:500]' --tune

--config.KEY=VALUE can override config.data, config.batch, config.eval, config.mesh, and of
config.model the thresholds of inference."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  parser.add_argument('--split', help='split to evaluate on; default: config.data.eval_split')
  options.add_json(parser)
  parser.add_argument(
    '--tune',
    action='store_true',
    help='search for the best thresholds of a panoptic network on the split, and print them',
  )
  options.add_distributed(parser)


def run(args: argparse.Namespace) -> int:
  processes.start(args)
  command = _tune if args.tune else _evaluate
  command(args)
  return 0


def _evaluate(args: argparse.Namespace) -> None:
  workdir = Workdir(args.workdir)
  evaluated = evaluate_run(workdir, args.checkpoint, args.split, args.overrides)
  if jax.process_index() != 0:
    return
  if args.json:
    facts = {'step': evaluated.step, 'split': evaluated.split, **_measured(evaluated)}
    print(json.dumps(log.no_nan({**facts, **evaluated.metrics})))
  else:
    Console().print(console.metrics_table(evaluated.metrics))
    if missing := _missing(evaluated):
      print(missing)
  write_report(workdir, evaluated)  # after the metrics, as the workdir may be read-only
  if not args.json:
    print(f'{evaluated.split} at step {evaluated.step}; report: {workdir.report}')


def _tune(args: argparse.Namespace) -> None:
  found = tune_run(Workdir(args.workdir), args.checkpoint, args.split, args.overrides)
  if jax.process_index() != 0:
    return
  if args.json:
    print(json.dumps(log.no_nan(found)))
    return
  measure, own, best = found['measure'], found['own'], found['best']
  chosen = {key: f'{value:g}' for key, value in best.items() if key != measure}
  spell = lambda entry: f'{measure}={values.format_metric(measure, entry[measure])}'
  print(
    f'{found["split"]} at step {found["step"]}, {len(found["tried"])} settings tried: best '
    f'{spell(best)}, config {spell(own)}'
  )
  group = found['group']
  print('set it with ' + ' '.join(f'--{group}.{key}={x}' for key, x in chosen.items()))


class Evaluated(NamedTuple):
  """An evaluation of a trained run.

  Attributes:
    run: with the `spec` of the evaluation data set.
    split: that was evaluated.
    step: of the checkpoint.
    parameters: number of parameters.
    measured: the metrics and the images to show.
    counts: of the classes in the split; None in the course of a training, which shows them once.
    median: the image with the median score; None if it was not asked for, or no image has a score.
    options: of the command that repeats it, besides its workdir and split.
  """

  run: Run
  split: str
  step: int
  parameters: int
  measured: evaluate.Evaluation
  counts: statistics.ClassCounts | None = None
  median: evaluate.Example | None = None
  options: Sequence[str] = ()

  @property
  def metrics(self) -> dict[str, Any]:
    """By name, as fractions; tables as nested mappings."""
    return self.measured.metrics


def evaluate_run(
  workdir: Workdir,
  which: checkpoint.Which,
  split: str | None = None,
  overrides: Sequence[tuple[str, str]] = (),
  *,
  median: bool = False,
) -> Evaluated:
  """Evaluates a checkpoint of a workdir on a split, by default `config.data.eval_split`.

  Args:
    workdir: of the run.
    which: the checkpoint.
    split: to evaluate on.
    overrides: see `run.load_run`.
    median: whether to draw the image with the median score.

  Raises:
    SegjaxError: see `run.load_run`; unknown split; the data set has different classes.
  """
  loaded, run, dataset, mesh = load(workdir, which, overrides)
  split = split or run.experiment.data.eval_split
  evaluator = run_lib.Evaluator(run, dataset, split, mesh, run.experiment.train.images)
  variables = sharding.put_replicated(loaded.variables, mesh)
  measured = evaluator(variables)
  parameters = run_lib.size_of(loaded.variables['params'])
  counts = run_lib.count_classes(run, dataset, split)
  shown = _draw_median(evaluator, variables, measured.scores) if median else None
  options = (f'--checkpoint={which}', *(f'--config.{key}={value}' for key, value in overrides))
  return Evaluated(run, split, loaded.restored.step, parameters, measured, counts, shown, options)


def _draw_median(
  evaluator: run_lib.Evaluator, variables: Mapping[str, Any], scores: Sequence[tuple[str, float]]
) -> evaluate.Example | None:
  """The image with the median score; of two in the middle, the worse one."""
  if not scores:
    return None
  name, _ = sorted(scores, key=lambda pair: pair[1])[(len(scores) - 1) // 2]
  return evaluator.draw(variables, {name})[0]


def load(
  workdir: Workdir, which: checkpoint.Which, overrides: Sequence[tuple[str, str]]
) -> tuple[Loaded, Run, Dataset, jax.sharding.Mesh]:
  """The trained run, the same run on the evaluation data set, that data set, and the mesh."""
  loaded = run_lib.load_run(workdir, which, overrides)
  dataset = run_lib.load_eval_dataset(loaded.run.experiment, loaded.run.spec.class_names)
  run = dataclasses.replace(loaded.run, spec=dataset[1])
  return loaded, run, dataset, run_lib.make_mesh(run)


def tune_run(
  workdir: Workdir,
  which: checkpoint.Which,
  split: str | None = None,
  overrides: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
  """Grid search over thresholds of a config on a split.

  Returns:
    `step`, `split`, `group`, the part of the config that has the thresholds, such as 'config.eval',
    and `measure`, the name of the metric; `own` (the config's thresholds), `best`,
    and `tried`, a list: each a mapping of the thresholds and the metric to their values.

  Raises:
    SegjaxError: see `evaluate_run`; the task has no thresholds.
  """
  loaded, run, dataset, mesh = load(workdir, which, overrides)
  tuning, split = run.task.tuning, split or run.experiment.data.eval_split
  if tuning is None:
    raise SegjaxError(
      f'--tune: the task {run.experiment.task} has no thresholds to tune: remove --tune'
    )
  batches, put = run_lib.eval_batches(run, dataset, split, mesh)
  measured = evaluate.tune(
    sharding.on_mesh(compile.jit(step.make_tune_step(run.task)), mesh),
    sharding.put_replicated(loaded.variables, mesh),
    batches,
    run.task,
    put,
  )
  tried = [
    {**dict(zip(tuning.names, setting, strict=True)), tuning.measure: metrics[tuning.measure]}
    for setting, metrics in zip(tuning.settings, measured, strict=True)
  ]
  # The first of a tie wins; NaN counts as the worst.
  best = max(tried, key=lambda entry: np.nan_to_num(entry[tuning.measure], nan=-np.inf))
  facts = {'step': loaded.restored.step, 'split': split, 'measure': tuning.measure}
  return {**facts, 'group': f'config.{tuning.group}', 'own': tried[0], 'best': best, 'tried': tried}


def write_report(workdir: Workdir, evaluated: Evaluated) -> None:
  """Writes the `report.html` of a workdir from its log and one evaluation."""
  records, metrics = curves.read_log(workdir.log, curves.MOST_SHOWN), evaluated.metrics
  spec = evaluated.run.spec
  colors = dict(zip(spec.class_names, spec.palette.tolist(), strict=True))
  _, tables = values.split_metrics(metrics)
  sections = [
    html.metrics_section('Metrics', metrics),
    *(
      html.table_section(name.replace('_', ' ').capitalize(), table, colors)
      for name, table in tables.items()
    ),
    *_confusion(evaluated),
    html.curves_section('Curves', records),
    *_images(evaluated.measured, colors),
    html.text_section('Config', config_lib.to_json(evaluated.run.experiment.to_dict())),
  ]
  html.write_report(
    workdir.report,
    title=storage.resolved(workdir.path).name,
    summary=_summary(evaluated, records),
    sections=sections,
    command=[
      *('segjax', 'evaluate', f'--workdir={workdir.path}', f'--split={evaluated.split}'),
      *evaluated.options,
    ],
  )


def _confusion(evaluated: Evaluated) -> list[html.Section]:
  confusion, spec = evaluated.measured.confusion, evaluated.run.spec
  if confusion is None:
    return []
  return [html.confusion_section('Confusion matrix', confusion, spec.class_names, spec.palette)]


def _images(
  measured: evaluate.Evaluation, colors: Mapping[str, Sequence[int]]
) -> list[html.Section]:
  """The worst images, each with its score, and the first ones; a small split only once."""
  scores = dict(measured.scores)
  caption = lambda name: (
    f'{name}: {measured.measure} {values.format_metric(measured.measure, scores[name])}'
    if name in scores
    else name
  )
  captioned = lambda images: [(caption(name), panels) for name, panels in images]
  worst = html.images_section('Worst images', captioned(measured.worst), colors)
  shown = {name for name, _ in measured.worst}
  if shown >= {name for name, _ in measured.examples}:
    return [worst]
  return [worst, html.images_section('Examples', captioned(measured.examples), colors)]


def _summary(evaluated: Evaluated, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The summary at the top of a report."""
  experiment, spec = evaluated.run.experiment, evaluated.run.spec
  return {
    'model': f'{experiment.model_config["name"]}, {evaluated.parameters:,} parameters',
    'data set': f'{spec.name} {spec.version}, split {evaluated.split}',
    **_not_measured(evaluated),
    'step': f'{evaluated.step} of {experiment.train.steps}',
    'best': describe_best(experiment, records),
    'hardware': provenance.hardware(),
    'written': datetime.datetime.now().isoformat(' ', 'minutes'),
    'versions': provenance.versions(),
    'config digest': experiment.digest,
  }


def _measured(evaluated: Evaluated) -> dict[str, Any]:
  """What the metrics cannot measure: classes that never occur, and the fraction of ignored pixels.

  Of a large split both are those of a sample, as `describe_missing` says.
  """
  counts, names = evaluated.counts, evaluated.run.spec.class_names
  present = counts.pixels + counts.objects > 0
  return {
    'unseen_classes': [name for name, there in zip(names, present, strict=True) if not there],
    'ignored_pixels': counts.ignored_fraction,
  }


def _missing(evaluated: Evaluated) -> str:
  names = evaluated.run.spec.class_names
  return statistics.describe_missing(evaluated.counts, names, evaluated.split)


def _not_measured(evaluated: Evaluated) -> dict[str, str]:
  missing = '' if evaluated.counts is None else _missing(evaluated)
  return {'not measured': missing} if missing else {}


def describe_best(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> str:
  """The best evaluation so far, such as 'mean_iou 61.7% at step 400'; empty before the first."""
  config, split = experiment.train, log.evaluation_split(experiment.data.eval_split)
  metric = config.best_metric
  scored = [
    (r[metric], r['step']) for r in records if r['split'] == split and r.get(metric) is not None
  ]
  # The first of a tie wins, as in `Checkpoints`.
  choose = max if best_mode(config) == 'max' else min
  best = choose(scored, key=lambda pair: pair[0], default=None)
  return f'{metric} {values.format_metric(metric, best[0])} at step {best[1]}' if best else ''
