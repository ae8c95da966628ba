"""How a number or a name from a metrics mapping is written, on the page and in the terminal."""

import math
from collections.abc import Mapping
from typing import Any

MISSING = '–'


def split_metrics(
  metrics: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Mapping[str, Mapping[str, Any]]]]:
  """Parts a metrics mapping into its scalars and its tables.

  Args:
    metrics: scalars by name, and tables such as `per_class`: row name -> column name -> scalar.

  Returns:
    The scalars and the tables, each in the order given.
  """
  tables = {name: value for name, value in metrics.items() if isinstance(value, Mapping)}
  scalars = {name: value for name, value in metrics.items() if name not in tables}
  return scalars, tables


def column_names(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The columns of a table (row name -> column name -> value) in the order they first appear."""
  return list(dict.fromkeys(name for row in table.values() for name in row))


def format_value(value: Any) -> str:
  """Writes a scalar with 4 to 5 digits, a whole number in full, NaN and None as an en dash."""
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


def is_integer(value: Any) -> bool:
  """Whether the type of a Python, NumPy or JAX scalar is an integer's."""
  return isinstance(value, int) or getattr(getattr(value, 'dtype', None), 'kind', '') in ('i', 'u')
