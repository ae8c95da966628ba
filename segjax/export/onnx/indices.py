"""Rules of gathers and scatters.

An index that JAX promises to be in bounds is moved there if it is not.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segjax.export.onnx.builder import (
  NARROW_TYPES,
  Builder,
  cast,
  range_of,
  rule,
  shape_of,
  slice_of,
  where,
)


def _along(g: Builder, values: str, axis: int, rank: int) -> str:
  """[n] as an array of `rank` with its values along an axis."""
  others = [i for i in range(rank) if i != axis]
  return g.node('Unsqueeze', [values, g.ints(others)]) if others else values


def _component(g: Builder, indices: str, place: int, axes: Sequence[int], rank: int) -> str:
  """Coordinate `place` of i[…, n], as i64 of `rank` whose `axes` are those of the indices."""
  found = g.node('Gather', [cast(g, indices, np.int64), g.constant(np.int64(place))], axis=-1)
  others = [i for i in range(rank) if i not in axes]
  return g.node('Unsqueeze', [found, g.ints(others)]) if others else found


def _bounded(g: Builder, start: str, room: Any) -> tuple[str, str]:
  """The start of a window, moved to where it fits, and whether it did."""
  zero = g.constant(np.int64(0))
  clamped = g.node('Min', [g.node('Max', [start, zero]), g.size(room)])
  return clamped, g.node('Equal', [clamped, start])


@rule('gather')
def _gather(g: Builder, eqn: Any, x: str, indices: str) -> str:
  numbers, sizes, shape = eqn.params['dimension_numbers'], eqn.params['slice_sizes'], shape_of(eqn)
  starts = shape_of(eqn, 1)
  hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  # Sides that are taken as a whole come last, and have no index.
  whole = [
    d
    for d, size in enumerate(sizes)
    if size == shape[d] and d not in (*hidden, *numbers.start_index_map)
  ]
  chosen = [d for d in range(len(shape)) if d not in whole]
  window = [d for d in chosen if d not in hidden]
  batch = list(starts[:-1])
  rank = len(batch) + len(window)
  parts, fits = [], []
  for d in chosen:
    terms = []
    if d in numbers.start_index_map:
      place = list(numbers.start_index_map).index(d)
      start = _component(g, indices, place, range(len(batch)), rank)
      start, fit = _bounded(g, start, shape[d] - sizes[d])
      terms.append(start)
      fits.append(fit)
    if d in numbers.operand_batching_dims:
      axis = numbers.start_indices_batching_dims[list(numbers.operand_batching_dims).index(d)]
      terms.append(_along(g, range_of(g, shape[d]), axis, rank))
    if d in window:
      terms.append(_along(g, range_of(g, sizes[d]), len(batch) + window.index(d), rank))
    parts.append(functools.reduce(lambda a, b: g.node('Add', [a, b]), terms))
  full = g.ints([*batch, *(sizes[d] for d in window)])
  last = g.ints([-1])
  parts = [g.node('Unsqueeze', [g.node('Expand', [part, full]), last]) for part in parts]
  index = g.node('Concat', parts, axis=-1)
  if chosen + whole != list(range(len(shape))):
    x = g.node('Transpose', [x], perm=chosen + whole)
  found = g.node('GatherND', [x, index])
  if 'FILL' in str(eqn.params['mode']) and fits:
    found = _filled(g, eqn, found, fits, len(whole))
  # [batch, window, whole] -> as the output has them.
  order = [len(batch) + (window + whole).index(d) for d in sorted(window + whole)]
  where = dict(zip(sorted(numbers.offset_dims), order, strict=True))
  ahead = iter(range(len(batch)))
  perm = [where[i] if i in where else next(ahead) for i in range(rank + len(whole))]
  return found if perm == sorted(perm) else g.node('Transpose', [found], perm=perm)


def _filled(g: Builder, eqn: Any, found: str, fits: Sequence[str], whole: int) -> str:
  """What is out of bounds is NaN, or of integers the lowest value, as in JAX."""
  dtype = eqn.outvars[0].aval.dtype
  value = eqn.params['fill_value']
  if value is None:
    lowest = {'f': lambda: np.nan, 'i': lambda: np.iinfo(dtype).min, 'b': lambda: True}
    value = lowest.get(dtype.kind, lambda: np.iinfo(dtype).max)()
  inside = functools.reduce(lambda a, b: g.node('And', [a, b]), fits)
  for _ in range(whole):
    inside = g.node('Unsqueeze', [inside, g.ints([-1])])
  return where(g, inside, found, g.constant(np.asarray(value, dtype)), dtype)


_SCATTERS = {
  'scatter': 'none',
  'scatter-add': 'add',
  'scatter-max': 'max',
  'scatter-min': 'min',
  'scatter-mul': 'mul',
}


@rule(*_SCATTERS)
def _scatter(g: Builder, eqn: Any, x: str, indices: str, updates: str) -> str:
  numbers, shape, new = eqn.params['dimension_numbers'], shape_of(eqn), shape_of(eqn, 2)
  windows, rank = list(numbers.update_window_dims), len(new)
  batch = [axis for axis in range(rank) if axis not in windows]
  hidden = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
  window = [d for d in range(len(shape)) if d not in hidden]
  # The position of each update in the flat array; those that are dropped come behind its end.
  flat, fits = g.constant(np.int64(0)), []
  for d in range(len(shape)):
    terms = []
    size = new[windows[window.index(d)]] if d in window else 1
    if d in numbers.scatter_dims_to_operand_dims:
      place = list(numbers.scatter_dims_to_operand_dims).index(d)
      start, fit = _bounded(g, _component(g, indices, place, batch, rank), shape[d] - size)
      terms.append(start)
      fits.append(fit)
    if d in numbers.operand_batching_dims:
      axis = numbers.scatter_indices_batching_dims[list(numbers.operand_batching_dims).index(d)]
      terms.append(_along(g, range_of(g, shape[d]), batch[axis], rank))
    if d in window:
      terms.append(_along(g, range_of(g, size), windows[window.index(d)], rank))
    here = functools.reduce(lambda a, b: g.node('Add', [a, b]), terms)
    flat = g.node('Add', [g.node('Mul', [flat, g.size(shape[d])]), here])
  total = g.size(math.prod(shape))
  if 'CLIP' not in str(eqn.params['mode']) and fits:
    inside = functools.reduce(lambda a, b: g.node('And', [a, b]), fits)
    flat = g.node('Where', [inside, flat, total])
  flat = g.node('Reshape', [g.node('Expand', [flat, g.ints(new)]), g.ints([-1])])
  dtype = eqn.outvars[0].aval.dtype
  narrow = dtype.name in NARROW_TYPES
  line = [g.node('Reshape', [v, g.ints([-1])]) for v in (x, updates)]
  line = [cast(g, v, np.int32) for v in line] if narrow else line
  spare = g.constant(np.zeros(1, np.int32 if narrow else dtype))
  array = g.node('Concat', [line[0], spare], axis=0)
  reduction = _SCATTERS[eqn.primitive.name]
  found = g.node('ScatterElements', [array, flat, line[1]], axis=0, reduction=reduction)
  found = g.node('Reshape', [slice_of(g, found, [0], [-1], [0]), g.ints(shape)], allowzero=1)
  return cast(g, found, dtype) if narrow else found
