"""The report of a run: one self-contained HTML file without scripts or network access.

A page consists of a title, a summary and a list of sections. The functions here make sections and
do not depend on a task.
"""

import base64
import dataclasses
import io
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from PIL import Image

from segjax import storage
from segjax.report.curves import SERIES_COLORS, TRAIN, Curve, collect_curves, curve_svg
from segjax.report.histograms import histogram_svg
from segjax.report.values import (
  bar,
  column_names,
  format_metric,
  format_share,
  format_value,
  split_metrics,
)

# Images on the page are downscaled to at most this many pixels per side.
MAX_SIDE = 512
# Rows and columns of a confusion matrix on a page; of more classes, the most confused are shown.
_MATRIX = 24
# Of JPEG files, on pages with many photographs.
_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of the page; sections with an empty body are omitted.

  Attributes:
    title: the heading, plain text.
    body: HTML, escaped.
    collapsed: show the heading only, until the reader opens it.
  """

  title: str
  body: Markup
  collapsed: bool = False


class CountsRow(NamedTuple):
  """A row of `counts_section`.

  Attributes:
    name: at its start.
    cells: integers, texts, and fractions (float, shown in percent and as a bar); None for no value.
    color: RGB from 0 to 255, shown before the name.
  """

  name: str
  cells: Sequence[int | float | str | None]
  color: Sequence[int] | None = None


class Cell(NamedTuple):
  """A value of one run, in `comparison_section`.

  Attributes:
    text: as shown.
    share: length of its bar from 0 to 1; None for no bar.
    best: whether it is the best of its row.
  """

  text: str
  share: float | None = None
  best: bool = False


class Comparison(NamedTuple):
  """A row of `comparison_section`.

  Attributes:
    name: at its start.
    cells: one per run.
    color: RGB from 0 to 255, shown before the name.
  """

  name: str
  cells: Sequence[Cell]
  color: Sequence[int] | None = None


class Plot(NamedTuple):
  """A plot of `plots_section`.

  Attributes:
    title: different for each plot of a page.
    metric: the name of what is plotted.
    curves: by series, such as the split or the run.
    noisy: see `curves.curve_svg`.
  """

  title: str
  metric: str
  curves: Mapping[str, Curve]
  noisy: Collection[str] = (TRAIN,)


def metrics_section(title: str, metrics: Mapping[str, Any]) -> Section:
  """The scalars of a metrics mapping; see `table_section` for its tables."""
  scalars, _ = split_metrics(metrics)
  return Section(title, _render('scalars', scalars))


def table_section(
  title: str,
  table: Mapping[str, Mapping[str, Any]],
  colors: Mapping[str, Sequence[int]] | None = None,
) -> Section:
  """A table such as the `per_class` of a metrics mapping.

  Args:
    title: the heading.
    table: row name -> column name -> scalar. A score from 0 to 1 also gets a bar.
    colors: row name -> RGB from 0 to 255, shown before the name.
  """
  return Section(title, _render('table', table, column_names(table), colors or {}))


def curves_section(title: str, log: Sequence[Mapping[str, Any]]) -> Section:
  """One plot per scalar of the metrics log (`curves.read_log`)."""
  metrics = collect_curves(log)
  splits = dict.fromkeys(split for curves in metrics.values() for split in curves)
  return plots_section(title, [Plot(name, name, c) for name, c in metrics.items()], list(splits))


def plots_section(title: str, plots: Sequence[Plot], series: Sequence[str]) -> Section:
  """Plots of several series, each of which has the same color in all plots.

  Args:
    title: the heading.
    plots: in order.
    series: the names of all series, in the order of their colors.
  """
  colors = {name: index for index, name in enumerate(series)}
  drawn = [(plot, Markup(_plot_svg(plot, colors))) for plot in plots]
  return Section(title, _render('curves', drawn, colors))


def _plot_svg(plot: Plot, colors: Mapping[str, int]) -> str:
  return curve_svg(plot.metric, plot.curves, colors, plot.noisy, key=plot.title)


def histograms_section(
  title: str, quantities: Mapping[str, Mapping[str, npt.ArrayLike]]
) -> Section:
  """One histogram per quantity.

  Args:
    title: the heading.
    quantities: name -> split -> numbers, see `histograms.histogram_svg`.
  """
  splits = dict.fromkeys(split for values in quantities.values() for split in values)
  colors = {split: index for index, split in enumerate(splits)}
  plots = [
    (name, list(values), Markup(histogram_svg(name, values, colors)))
    for name, values in quantities.items()
    if any(len(numbers) for numbers in values.values())
  ]
  return Section(title, _render('histograms', plots, colors))


def counts_section(
  title: str, columns: Sequence[str], rows: Sequence[CountsRow], *, collapsed: bool = False
) -> Section:
  """A table of counts and shares.

  Args:
    title: the heading.
    columns: their names.
    rows: as many cells each.
    collapsed: see `Section`.
  """
  return Section(title, _render('counts', columns, rows), collapsed)


def comparison_section(
  title: str,
  runs: Sequence[str],
  rows: Sequence[Comparison],
  *,
  text: bool = False,
  collapsed: bool = False,
) -> Section:
  """A table with a column per run, each in the color of its curves (`plots_section`).

  Args:
    title: the heading.
    runs: their names.
    rows: with as many cells each.
    text: whether the cells are text, such as the values of a config.
    collapsed: see `Section`.
  """
  return Section(title, _render('comparison', runs, rows, text), collapsed)


def confusion_section(
  title: str, confusion: np.ndarray, class_names: Sequence[str], colors: npt.ArrayLike
) -> Section:
  """A confusion matrix, each row in percent of the pixels of its true class.

  Of more than 24 classes, those with the most wrong pixels are shown.

  Args:
    title: the heading.
    confusion: i[C, C], pixels by true class (rows) and predicted class.
    class_names: C names.
    colors: u8[C, 3].
  """
  confusion, colors = np.asarray(confusion), np.asarray(colors)
  wrong = confusion.sum(0) + confusion.sum(1) - 2 * np.diagonal(confusion)
  shown = np.sort(np.argsort(-wrong, kind='stable')[:_MATRIX])
  share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
  names = [class_names[i] for i in shown]
  left_out = len(class_names) - len(shown)
  cells = [[(share[i, j], int(confusion[i, j])) for j in shown] for i in shown]
  if not confusion.sum():
    return Section(title, Markup())
  return Section(title, _render('confusion', names, colors[shown].tolist(), cells, left_out))


def list_section(title: str, sentences: Sequence[str]) -> Section:
  """A bullet list."""
  return Section(title, _render('sentences', sentences))


def images_section(
  title: str,
  images: Sequence[tuple[str, Mapping[str, np.ndarray]]],
  colors: Mapping[str, Sequence[int]] | None = None,
  *,
  lossy: bool = False,
  collapsed: bool = False,
) -> Section:
  """Rows of images, one row per example.

  Args:
    title: the heading.
    images: a caption such as the file name, and panels u8[H, W, 3] by name (`overlays.panels`).
    colors: legend, name -> RGB from 0 to 255.
    lossy: store images that are not shown enlarged as JPEG, a third as large as PNG.
    collapsed: see `Section`.
  """
  return Section(title, _render('images', images, colors or {}, lossy), collapsed)


def text_section(title: str, text: str, *, collapsed: bool = True) -> Section:
  """Verbatim text, such as the frozen config or the command."""
  return Section(title, _render('text', text), collapsed)


def write_report(
  path: str | os.PathLike,
  *,
  title: str,
  summary: Mapping[str, Any],
  sections: Sequence[Section],
  command: Sequence[str] = (),
) -> None:
  """Writes the page atomically.

  Args:
    path: of the HTML file, see `storage.as_path`.
    title: of the run, such as the name of its config.
    summary: facts by name, such as the model, the data set and the best metric.
    sections: in order.
    command: the words of the command that writes the page; a line breaks between them only.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """
  page = _ENVIRONMENT.get_template('report.html.j2').render(
    title=title,
    summary=summary,
    sections=[section for section in sections if section.body],
    command=[shlex.quote(word) for word in command],
  )
  storage.write_text(storage.as_path(path), page)


def _render(macro: str, *args: Any) -> Markup:
  return getattr(_ENVIRONMENT.get_template('sections.html.j2').module, macro)(*args).strip()


def _image_uri(panel: np.ndarray, lossy: bool) -> str:
  image = Image.fromarray(panel)
  image.thumbnail((MAX_SIDE, MAX_SIDE))
  buffer = io.BytesIO()
  # Of images that are shown enlarged, the pixels are to be seen.
  if lossy := lossy and not _is_small(panel):
    image.save(buffer, format='JPEG', quality=_QUALITY, subsampling=0)
  else:
    image.save(buffer, format='PNG', optimize=True)
  encoded = base64.b64encode(buffer.getvalue()).decode('ascii')
  return f'data:image/{"jpeg" if lossy else "png"};base64,{encoded}'


def _is_small(panel: np.ndarray) -> bool:
  """Whether the page shows it enlarged, with sharp pixels."""
  return max(panel.shape[:2]) <= MAX_SIDE // 2


_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader('segjax.report', '.'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
  'bar': lambda value, name: bar(name, value),
  # A line may break after an underscore or a dot, such as those of `mean_class_accuracy`.
  'breakable': lambda name: Markup(re.sub(r'([._])', r'\1<wbr>', str(escape(name)))),
  'hue': lambda index: index % len(SERIES_COLORS),
  'metric': lambda value, name: format_metric(name, value),
  'image_uri': _image_uri,
  'share': format_share,
  'small': _is_small,
  'value': format_value,
}
