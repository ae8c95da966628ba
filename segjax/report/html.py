"""The report of a run: one self-contained HTML file without scripts or network access.

A page consists of a title, a summary and a list of sections. The functions here make sections and
do not depend on a task.
"""

import base64
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from segjax.report.curves import SERIES_COLORS, collect_curves, curve_svg
from segjax.report.histograms import histogram_svg
from segjax.report.values import (
  column_names,
  format_metric,
  format_share,
  format_value,
  is_integer,
  split_metrics,
)

# Images on the page are downscaled to at most this many pixels per side.
MAX_SIDE = 512
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
    table: row name -> column name -> scalar. A scalar from 0 to 1 also gets a bar.
    colors: row name -> RGB from 0 to 255, shown before the name.
  """
  return Section(title, _render('table', table, column_names(table), colors or {}))


def curves_section(title: str, log: Sequence[Mapping[str, Any]]) -> Section:
  """One plot per scalar of the metrics log (`curves.read_log`)."""
  metrics = collect_curves(log)
  splits = dict.fromkeys(split for curves in metrics.values() for split in curves)
  colors = {split: index % len(SERIES_COLORS) for index, split in enumerate(splits)}
  plots = [
    (name, curves, Markup(curve_svg(name, curves, colors))) for name, curves in metrics.items()
  ]
  return Section(title, _render('curves', plots, colors))


def histograms_section(
  title: str, quantities: Mapping[str, Mapping[str, npt.ArrayLike]]
) -> Section:
  """One histogram per quantity.

  Args:
    title: the heading.
    quantities: name -> split -> numbers, see `histograms.histogram_svg`.
  """
  splits = dict.fromkeys(split for values in quantities.values() for split in values)
  colors = {split: index % len(SERIES_COLORS) for index, split in enumerate(splits)}
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
  path: str | os.PathLike, *, title: str, summary: Mapping[str, Any], sections: Sequence[Section]
) -> None:
  """Writes the page atomically.

  Args:
    path: of the HTML file; its directory exists.
    title: of the run, such as the name of its config.
    summary: facts by name, such as the model, the data set and the best metric.
    sections: in order.
  """
  page = _ENVIRONMENT.get_template('report.html.j2').render(
    title=title, summary=summary, sections=[section for section in sections if section.body]
  )
  path = Path(path)
  partial = path.with_name(path.name + '.partial')
  # File names in captions need not be valid Unicode.
  partial.write_text(page, encoding='utf-8', errors='replace')
  partial.replace(path)


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


def _bar(value: Any) -> float | None:
  """Length of a bar in percent; None for integers and for values outside [0, 1]."""
  if value is None or isinstance(value, str) or is_integer(value) or not 0 <= value <= 1:
    return None
  return 100 * float(value)


_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader('segjax.report', '.'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
  'bar': _bar,
  'metric': lambda value, name: format_metric(name, value),
  'image_uri': _image_uri,
  'share': format_share,
  'small': _is_small,
  'value': format_value,
}
