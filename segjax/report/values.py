"""Formatting of metrics, in the report and the terminal."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MISSING = '–'

# IoU, COCO's AP and AR, and PQ with its factors SQ and RQ, which papers report in percent:
# `mean_iou`, `mask_ap50`, `box_ar_small`, `pq_things`.
_PERCENT = re.compile(r'(.*_)?(iou|a[pr]\d*|pq|sq|rq)(_.*)?')

# Metrics that are better the higher, besides those in percent, and the lower.
_HIGHER = re.compile(r'(.*_)?(accuracy|dice|f1)(_.*)?')
_LOWER = re.compile(r'(.*_)?(loss|error|hd95|assd)(_.*)?')


def split_metrics(
  metrics: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Mapping[str, Mapping[str, Any]]]]:
  """Splits a metrics mapping into its scalars and its tables.

  Args:
    metrics: scalars by name, and tables such as `per_class`: row name -> column name -> scalar.

  Returns:
    The scalars and the tables, in the order given.
  """
  tables = {name: value for name, value in metrics.items() if isinstance(value, Mapping)}
  scalars = {name: value for name, value in metrics.items() if name not in tables}
  return scalars, tables


def column_names(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The columns of a table (row name -> column name -> value) in order of first appearance."""
  return list(dict.fromkeys(name for row in table.values() for name in row))


def is_percent(name: str) -> bool:
  """Whether a metric is displayed in percent (a fraction in JSON): IoU, AP, AR, PQ, SQ and RQ."""
  return _PERCENT.fullmatch(name) is not None


def format_metric(name: str, value: Any) -> str:
  """Formats a metric: '72.4%' if `is_percent(name)`, else `format_value`."""
  if not is_percent(name) or value is None or isinstance(value, str) or not math.isfinite(value):
    return format_value(value)
  return f'{100 * float(value):.1f}%'


def better(name: str) -> Callable[..., Any] | None:
  """`max` or `min`, what the best value of a metric is; None if that is not known."""
  if _LOWER.fullmatch(name):  # first, for the loss `loss_dice`
    return min
  return max if _HIGHER.fullmatch(name) or is_percent(name) else None


def bar(name: str, value: Any) -> float | None:
  """Length of the bar of a metric, from 0 to 1; None for a value that is no score in [0, 1]."""
  if value is None or isinstance(value, str) or is_integer(value) or better(name) is min:
    return None
  return float(value) if 0 <= value <= 1 else None


def format_value(value: Any) -> str:
  """Formats a scalar with 4 to 5 digits, an integer in full, NaN and None as an en dash."""
  if value is None:
    return MISSING
  if isinstance(value, str):
    return value
  number = float(value)
  if math.isnan(number):
    return MISSING
  if math.isinf(number):
    return '∞' if number > 0 else '−∞'
  size = abs(number)
  if is_integer(value) or size >= 1000:
    return f'{number:,.0f}'
  if 0 < size < 1e-3:
    return f'{number:.3g}'
  decimals = 4 if size <= 1 else 3 if size < 10 else 2 if size < 100 else 1
  return f'{number:.{decimals}f}'


def format_share(share: float) -> str:
  """Formats a fraction in percent, one below 0.1% with two digits: '12.3%', '0.042%'."""
  percent = 100 * float(share)
  return f'{percent:.2g}%' if 0 < percent < 0.1 else f'{percent:.1f}%'


def is_integer(value: Any) -> bool:
  """Whether a Python, NumPy or JAX scalar has an integer type."""
  return isinstance(value, int) or getattr(getattr(value, 'dtype', None), 'kind', '') in ('i', 'u')
