"""Terminal output of a run: tables of metrics, and training progress."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from rich import box
from rich.console import Console, Group
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from segjax.report.values import MISSING, column_names, format_metric, format_value, split_metrics


def metrics_table(metrics: Mapping[str, Any]) -> Group:
  """Metrics for `rich.console.Console.print`.

  Args:
    metrics: scalars by name, and tables such as `per_class`: row name -> column name -> scalar.

  Returns:
    A table of the scalars, then each table under its name.
  """
  scalars, tables = split_metrics(metrics)
  overall = {name: {'value': format_metric(name, value)} for name, value in scalars.items()}
  written = {
    title: {
      name: {column: format_metric(column, value) for column, value in row.items()}
      for name, row in rows.items()
    }
    for title, rows in tables.items()
  }
  named = [('metrics', overall), *written.items()]
  return Group(*(_table(name, rows) for name, rows in named if rows))


def _table(name: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
  # Text, not str: a class name may have square brackets, which Rich takes for markup.
  columns = column_names(rows)
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column(Text(name.replace('_', ' ')))
  for column in columns:
    table.add_column(Text(column), justify='right')
  for row_name, row in rows.items():
    table.add_row(Text(row_name), *(Text(row.get(column, MISSING)) for column in columns))
  return table


class TrainProgress:
  """Progress of training on a stream, as a context manager.

  On a terminal this is a bar with the step, the newest values and the time left. Elsewhere it
  prints one plain line per `update` with values, so that a log file stays readable.

  Args:
    total: step at which training ends.
    start: step at which this process begins, above 0 in a resumed run.
    stream: where to write, standard error by default.
  """

  def __init__(self, total: int, start: int = 0, stream: TextIO | None = None):
    self._total = total
    self._stream = sys.stderr if stream is None else stream
    self._first: tuple[int, float] | None = None
    self._bar: Progress | None = None
    console = Console(file=self._stream)
    # Not `console.is_terminal`, which is also true for a file where FORCE_COLOR is set.
    if self._stream.isatty() and not console.is_dumb_terminal:
      self._bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[values]}', markup=False),
        console=console,
        redirect_stdout=False,
      )
      self._task = self._bar.add_task('', total=total, completed=start, values='')

  def __enter__(self) -> Self:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

  def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
    """Shows the progress after `step` steps.

    Args:
      step: steps done since the run's first start.
      values: scalars to show, such as `loss` and `images_per_second`.
    """
    left = self._seconds_left(step)
    if values is None:
      if self._bar:
        self._bar.update(self._task, completed=step)
      return
    shown = [f'{_short(name)} {format_value(value)}' for name, value in values.items()]
    shown.append(f'{MISSING if left is None else _clock(left)} left')
    text = '  '.join(shown)
    if self._bar:
      self._bar.update(self._task, completed=step, values=text)
    else:
      print(f'step {step}/{self._total}  {text}', file=self._stream, flush=True)

  def message(self, text: str) -> None:
    """Writes a line of text, above the bar where there is one."""
    if self._bar:
      self._bar.console.print(Text(text), soft_wrap=True)
    else:
      print(text, file=self._stream, flush=True)

  def _seconds_left(self, step: int) -> float | None:
    """Estimated from the pace since the first update, which excludes compilation."""
    now = time.monotonic()
    if self._first is None:
      self._first = (step, now)
    first_step, first_time = self._first
    if step == first_step:
      return None
    return (self._total - step) * (now - first_time) / (step - first_step)


class ImageProgress:
  """How many images are done, as a context manager: a bar on a terminal, nothing elsewhere.

  Args:
    total: number of images; None where it is unknown.
    stream: where to write.
  """

  def __init__(self, total: int | None, stream: TextIO):
    console = Console(file=stream)
    self._bar: Progress | None = None
    if stream.isatty() and not console.is_dumb_terminal:
      columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
      self._bar = Progress(*columns, console=console, transient=True)
      self._task = self._bar.add_task('', total=total)

  def __enter__(self) -> Self:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

  def advance(self) -> None:
    """Counts one image more."""
    if self._bar:
      self._bar.advance(self._task)


def _short(name: str) -> str:
  return name.replace('_per_second', '/s').replace('_', ' ')


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
