"""Curves of a run: from its metrics log to one small SVG per metric.

The log `metrics.jsonl` has one JSON object per line: `step`, `split` ("train" or the name of an
evaluation split), `time`, and scalars by name.
"""

import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segjax import storage
from segjax.report.values import is_percent

# Matplotlib is imported by what plots: a run starts sooner without it.
if TYPE_CHECKING:
  from matplotlib.axes import Axes

# Light-mode colors; a page sets --series-0, --series-1, ... to replace them.
SERIES_COLORS = ('#2563eb', '#ea580c', '#0d9488', '#9333ea', '#ca8a04', '#db2777')

# Of the lines of the first six series, of the next six, ….
_DASHES = ('-', '--', ':')

# The split whose values are those of the batches of training, and so noisy.
TRAIN = 'train'

# In the line of an entry of training.
_OF_TRAINING = b'"split": "train"'

# About as many entries of training are shown on a page, see `read_log`.
MOST_SHOWN = 2_000

# Plotted by matplotlib, then replaced with the text color of the page around the SVG.
INK = '#123456'

# Left, bottom, width and height of a plot's axes, with room for labels such as −1.25e+08. All plots
# have the same, as they stand beside each other; to fit each one is to lay it out before drawing.
_AXES = 0.18, 0.11, 0.79, 0.85

# Fewer points than these are marked one by one and not smoothed.
_FEW_POINTS = 20

# Set, not measured: there is no noise to smooth away, and only a linear axis shows the shape of a
# schedule.
_EXACT = ('learning_rate',)


class Curve(NamedTuple):
  """One metric on one split over training.

  Attributes:
    steps: i64[N] increasing.
    values: f64[N] finite.
  """

  steps: np.ndarray
  values: np.ndarray


def read_log(path: str | os.PathLike, most: int | None = None) -> list[dict[str, Any]]:
  """Reads `metrics.jsonl`; the log of a run that has not started is empty.

  Lines that are not JSON objects are skipped: a run killed while writing leaves a partial line.

  Args:
    path: of the log.
    most: of the entries of training at least as many are kept, and at most about twice as many,
      evenly, and the last one: the memory and size of a report do not grow with a training. None
      for all.
  """
  try:
    file = storage.as_path(path).open('rb')
  except FileNotFoundError:
    return []
  found, stride, seen, last = [], 1, 0, None  # of (number in training or 0, record)
  with file:
    for line in file:
      number = 0
      if most is not None and _OF_TRAINING in line:
        seen += 1
        number, last = seen, line
        if number % stride:
          continue
      found.append((number, _parse(line)))
      if most is not None and seen > 2 * most * stride:
        stride *= 2
        found = [entry for entry in found if entry[0] % stride == 0]
  if seen % stride:
    found.append((seen, _parse(last)))
  return [record for _, record in found if isinstance(record, dict)]


def _parse(line: bytes) -> Any:
  try:
    return json.loads(line.decode('utf-8', errors='replace'))
  except json.JSONDecodeError:
    return None


def collect_curves(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
  """Turns a log into curves.

  If a step was logged twice (by a run resumed from an earlier checkpoint), the last entry counts.
  Values that are not finite numbers are skipped.

  Args:
    log: records with `step`, `split` and scalars by name.

  Returns:
    Metric name -> split -> curve: the loss, then evaluation metrics, then the rest.
  """
  points: dict[str, dict[str, dict[int, float]]] = {}
  for record in log:
    for name, value in record.items():
      if name != 'step' and isinstance(value, int | float) and math.isfinite(value):
        splits = points.setdefault(name, {})
        splits.setdefault(record['split'], {})[record['step']] = value

  def rank(name: str) -> int:
    return 0 if name == 'loss' else 1 if set(points[name]) != {'train'} else 2

  return {
    name: {split: _curve(values) for split, values in points[name].items()}
    for name in sorted(points, key=rank)
  }


def _curve(values: Mapping[int, float]) -> Curve:
  steps = sorted(values)
  return Curve(np.array(steps, np.int64), np.array([values[s] for s in steps], np.float64))


def smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Centered running mean of f[N] over `window` (odd) values, fewer at both ends."""
  kernel = np.ones(min(window, 2 * len(values) - 1))
  total = np.convolve(values, kernel, mode='full')
  count = np.convolve(np.ones_like(values), kernel, mode='full')
  start = len(kernel) // 2
  return (total / count)[start : start + len(values)]


def curve_svg(
  name: str,
  curves: Mapping[str, Curve],
  colors: Mapping[str, int],
  noisy: Collection[str] = (TRAIN,),
  *,
  key: str | None = None,
) -> str:
  """Plots one metric over the steps, one line per split, without a title or legend.

  Training values are faint, with their running mean over a tenth of the run on top; evaluation
  values are plotted as they are. The background is transparent, and text and axes take
  `currentColor`, so the SVG suits any page. Positive values that span more than two decades get a
  logarithmic axis, except the learning rate; metrics in percent (`values.is_percent`) get an axis
  in percent.

  Args:
    name: of the metric.
    curves: by split.
    colors: split -> index of its color, SERIES_COLORS or the CSS variable `--series-<number>`;
      where the colors repeat, the line is dashed.
    noisy: the splits whose values are those of training.
    key: different for each plot of a page; by default `name`.

  Returns:
    An `<svg>` element.
  """

  def draw(axes: 'Axes') -> None:
    for split, curve in curves.items():
      smoothed = split in noisy and name not in _EXACT and len(curve.steps) >= _FEW_POINTS
      _draw(axes, curve, smoothed, colors[split])
    _style(axes, name, np.concatenate([curve.values for curve in curves.values()]))

  return plot_svg(key or name, draw)


def series_color(index: int) -> str:
  """The color of a series, by its index in a plot's `colors`."""
  return SERIES_COLORS[index % len(SERIES_COLORS)]


def plot_svg(name: str, draw: Callable[['Axes'], None]) -> str:
  """A small plot for a page.

  Args:
    name: different for each plot of a page.
    draw: draws on the axes, in colors of `series_color` and, for lines and text, `INK`.

  Returns:
    An `<svg>` element, see `curve_svg`.
  """
  import matplotlib
  from matplotlib.figure import Figure

  style = {
    'svg.fonttype': 'none',  # text stays text, in the page's font
    'svg.hashsalt': name,  # deterministic ids, different for each plot
    'path.simplify_threshold': 0.5,
    'font.size': 9,
    'text.color': INK,
    'axes.edgecolor': INK,
    'xtick.color': INK,
    'ytick.color': INK,
  }
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(4.4, 2.4))
    axes = figure.add_axes(_AXES)
    draw(axes)
    _plain(axes)
    buffer = io.StringIO()
    unknown = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', transparent=True, metadata=unknown)
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :].replace(INK, 'currentColor')
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)  # the same in every plot, but unique in a page
  for index, color in enumerate(SERIES_COLORS):
    svg = svg.replace(color, f'var(--series-{index}, {color})')
  return svg


def _draw(axes: 'Axes', curve: Curve, smoothed: bool, index: int) -> None:
  (steps, values), color = curve, series_color(index)
  if smoothed:
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    values = smooth(values, len(values) // 20 * 2 + 1)
  marker = 'o' if len(values) < _FEW_POINTS else None
  dashes = _DASHES[index // len(SERIES_COLORS) % len(_DASHES)]
  axes.plot(steps, values, dashes, color=color, linewidth=1.5, marker=marker, markersize=3)


def _style(axes: 'Axes', name: str, values: np.ndarray) -> None:
  from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

  if name not in _EXACT and values.min() > 0 and values.max() > 100 * values.min():
    axes.set_yscale('log')
  else:
    axes.yaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_formatter(PercentFormatter(1) if is_percent(name) else '{x:g}')
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  axes.set_xlim(left=0)


def _plain(axes: 'Axes') -> None:
  axes.grid(axis='y', color=INK, alpha=0.15, linewidth=0.6)
  axes.tick_params(which='both', length=0)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_alpha(0.4)
