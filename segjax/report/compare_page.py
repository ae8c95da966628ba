"""The page that compares runs: what differs in their configs, their curves, metrics and images."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segjax.report import html
from segjax.report.curves import TRAIN, Curve, collect_curves
from segjax.report.values import MISSING, bar, better, column_names, format_metric, split_metrics


class ComparedRun(NamedTuple):
  """What the page shows of a run.

  Attributes:
    name: different for each run.
    facts: such as the model and the step, by name.
    config: the complete config, with dotted keys.
    log: see `curves.read_log`.
    metrics: of one evaluation, fractions by name and tables; empty without an evaluation.
  """

  name: str
  facts: Mapping[str, str]
  config: Mapping[str, Any]
  log: Sequence[Mapping[str, Any]]
  metrics: Mapping[str, Any]


class ComparedImage(NamedTuple):
  """An image in the eyes of all runs.

  Attributes:
    name: of the image.
    scores: one per run.
    panels: of each run, u8[H, W, 3] by title: `image`, `truth` and `prediction`.
  """

  name: str
  scores: Sequence[float]
  panels: Sequence[Mapping[str, np.ndarray]]


def sections(
  runs: Sequence[ComparedRun], colors: Mapping[str, Sequence[int]], images: html.Section | None
) -> list[html.Section]:
  """The sections of the page.

  Args:
    runs: two or more.
    colors: class name -> RGB from 0 to 255.
    images: from `images_section`; None for none.
  """
  names = [run.name for run in runs]
  return [
    html.comparison_section('Runs', names, _fact_rows(runs), text=True),
    html.comparison_section('Config differences', names, config_rows(runs), text=True),
    html.comparison_section('Metrics', names, metric_rows(runs)),
    *_class_sections(runs, colors),
    html.plots_section('Curves', plots(runs), names),
    *([] if images is None else [images]),
  ]


def _fact_rows(runs: Sequence[ComparedRun]) -> list[html.Comparison]:
  facts = dict.fromkeys(fact for run in runs for fact in run.facts)
  return [
    html.Comparison(fact, [html.Cell(run.facts.get(fact, MISSING)) for run in runs])
    for fact in facts
  ]


def config_rows(runs: Sequence[ComparedRun]) -> list[html.Comparison]:
  """The keys whose values are not the same in all runs."""
  rows = []
  for key in sorted(set().union(*(run.config for run in runs))):
    cells = [html.Cell(_spell(run.config[key]) if key in run.config else MISSING) for run in runs]
    if len(set(cells)) > 1:
      rows.append(html.Comparison(key, cells))
  return rows


def describe_configs(runs: Sequence[ComparedRun]) -> str:
  """How many keys differ, such as '2 of 96 keys differ'."""
  every = set().union(*(run.config for run in runs))
  return f'{len(config_rows(runs))} of {len(every)} keys differ'


def _spell(value: Any) -> str:
  return value if isinstance(value, str) else repr(value)


def metric_rows(runs: Sequence[ComparedRun]) -> list[html.Comparison]:
  """The scalar metrics, the best run of each in bold."""
  scalars = [split_metrics(run.metrics)[0] for run in runs]
  names = dict.fromkeys(name for values in scalars for name in values)
  return [
    html.Comparison(name, _cells(name, [values.get(name) for values in scalars])) for name in names
  ]


def _class_sections(
  runs: Sequence[ComparedRun], colors: Mapping[str, Sequence[int]]
) -> list[html.Section]:
  """For each table and each of its columns, the classes with a bar per run; the first open."""
  tables = [split_metrics(run.metrics)[1] for run in runs]
  found = []
  for title in dict.fromkeys(name for run in tables for name in run):
    per_run = [run.get(title, {}) for run in tables]
    rows = list(dict.fromkeys(row for table in per_run for row in table))
    every = {(i, row): cells for i, table in enumerate(per_run) for row, cells in table.items()}
    for column in column_names(every):
      values = [[table.get(row, {}).get(column) for table in per_run] for row in rows]
      if any(isinstance(value, int) for cells in values for value in cells):
        continue  # counts
      found.append(
        html.comparison_section(
          f'{title.replace("_", " ").capitalize()}: {column}',
          [run.name for run in runs],
          [
            html.Comparison(row, _cells(column, cells, bars=True), colors.get(row))
            for row, cells in zip(rows, values, strict=True)
          ],
          collapsed=bool(found),
        )
      )
  return found


def _cells(metric: str, values: Sequence[float | None], *, bars: bool = False) -> list[html.Cell]:
  texts = [format_metric(metric, value) for value in values]
  known = {value: text for value, text in zip(values, texts, strict=True) if _is_number(value)}
  choose = better(metric)
  # Where all runs look equal, none is the best.
  best = known[choose(known)] if choose and len(set(known.values())) > 1 else None
  return [
    html.Cell(text, bar(metric, value) if bars else None, text == best)
    for value, text in zip(values, texts, strict=True)
  ]


def _is_number(value: Any) -> bool:
  return value is not None and math.isfinite(value)


def plots(runs: Sequence[ComparedRun]) -> list[html.Plot]:
  """One plot per metric, of evaluation and of training, with a line per run."""
  found: dict[tuple[str, bool], dict[str, Curve]] = {}
  for run in runs:
    for metric, curves in collect_curves(run.log).items():
      for split, curve in curves.items():
        found.setdefault((metric, split == TRAIN), {})[run.name] = curve
  names = [run.name for run in runs]
  return [
    html.Plot(_title(metric, training, found), metric, curves, names if training else ())
    for (metric, training), curves in found.items()
  ]


def _title(metric: str, training: bool, found: Collection[tuple[str, bool]]) -> str:
  """The metric, with where it is measured if that is both."""
  if (metric, not training) not in found:
    return metric
  return f'{metric}, {"training" if training else "evaluation"}'


def worst_images(
  scores: Sequence[Mapping[str, float]], count: int
) -> list[tuple[str, tuple[float, ...]]]:
  """The images on which the runs are the worst on average, the worst first.

  Args:
    scores: of each run, name -> score, the higher the better.
    count: of images.

  Returns:
    The names, and the scores of all runs. Images that not every run has scored are left out.
  """
  names = [name for name in scores[0] if all(name in run for run in scores)]
  every = [(name, tuple(run[name] for run in scores)) for name in names]
  return sorted(every, key=lambda entry: sum(entry[1]))[:count]


def images_section(
  runs: Sequence[str],
  images: Sequence[ComparedImage],
  measure: str,
  colors: Mapping[str, Sequence[int]],
) -> html.Section:
  """The images side by side: the image, its truth, and the prediction of each run.

  Args:
    runs: their names.
    images: in order.
    measure: the name of the score.
    colors: legend, class name -> RGB from 0 to 255.
  """
  rows = []
  for image in images:
    first = image.panels[0]
    shown = {title: first[title] for title in ('image', 'truth')}
    for run, score, panels in zip(runs, image.scores, image.panels, strict=True):
      shown[f'{run}: {measure} {format_metric(measure, score)}'] = panels['prediction']
    rows.append((image.name, shown))
  return html.images_section('Worst images on average', rows, colors, lossy=True)
