"""Histograms of what was measured on the examples of a data set, one small SVG each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from segjax.report.curves import plot_svg, series_color

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_BINS = 24
_FEW_BINS = 7
# Values from 1 on whose largest is more than this many times the smallest get a logarithmic axis;
# those of 8-bit pixels never do.
_LOGARITHMIC = 256


def histogram_svg(name: str, values: Mapping[str, npt.ArrayLike], colors: Mapping[str, int]) -> str:
  """Plots how often values occur, a series of bars per split, in percent of its values.

  Args:
    name: of the quantity.
    values: split -> finite numbers; at least one in all.
    colors: split -> index of its color, as for `curves.curve_svg`.

  Returns:
    An `<svg>` element, see `curves.plot_svg`.
  """
  from matplotlib.ticker import MaxNLocator, PercentFormatter

  series = {split: np.asarray(v) for split, v in values.items() if len(v)}
  edges, logarithmic = bin_edges(np.concatenate(list(series.values())))

  def draw(axes: 'Axes') -> None:
    axes.hist(
      list(series.values()),
      edges,
      weights=[np.full(len(v), 1 / len(v)) for v in series.values()],
      color=[series_color(colors[split]) for split in series],
    )
    if logarithmic:
      axes.set_xscale('log')
    else:
      axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10), min_n_ticks=2))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

  return plot_svg(name, draw)


def bin_edges(values: npt.ArrayLike) -> tuple[np.ndarray, bool]:
  """Edges of equal bins that hold all values, and whether they are equal on a logarithmic axis.

  Integers get bins of a whole number of integers, each in the middle of its own where they are few.
  """
  values = np.asarray(values)
  low, high = values.min(), values.max()
  if low >= 1 and high > _LOGARITHMIC * low:
    return np.geomspace(low, high * (1 + 1e-9), _BINS + 1), True
  if values.dtype.kind in 'iu':
    span = int(high - low) + 1
    width = -(-span // _BINS)
    count = -(-span // width)
    spare = max(0, _FEW_BINS - count)  # at both sides, so that a single bar is narrow
    return int(low) - 0.5 + width * np.arange(-(spare // 2), count + -(-spare // 2) + 1), False
  return np.linspace(low, max(high, low + 1), _BINS + 1), False
