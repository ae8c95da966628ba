"""The operations of ONNX that compute what a primitive of JAX does, one rule for each primitive.

Values are names of tensors. What XLA leaves open, such as the value of an index out of bounds in
mode 'promise_in_bounds', is clamped.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from segjax.export.onnx_builder import Builder, Rule, type_of
from segjax.types import SegjaxError

RULES: dict[str, Rule] = {}

Make = Callable[..., Any]


def rule(*primitives: str, broadcasts: bool = False) -> Callable[[Make], Make]:
  """Registers a function as the rule of some primitives."""

  def register(make: Make) -> Make:
    RULES.update(dict.fromkeys(primitives, Rule(make, broadcasts)))
    return make

  return register


def _cast(g: Builder, x: str, dtype: Any) -> str:
  return g.node('Cast', [x], to=type_of(dtype))


def _shape(eqn: Any, index: int = 0) -> tuple[Any, ...]:
  return eqn.invars[index].aval.shape


def _unsupported(eqn: Any, what: str) -> SegjaxError:
  return SegjaxError(
    f'--format=onnx: the operation {eqn.primitive.name} with {what} has no counterpart in ONNX: use '
    '--format=stablehlo'
  )


# --- each element ---------------------------------------------------------------------------------

# Primitive -> the operations that are applied one after another; the first takes all inputs.
_ELEMENTWISE = {
  'abs': ('Abs',),
  'add': ('Add',),
  'add_any': ('Add',),
  'ceil': ('Ceil',),
  'cos': ('Cos',),
  'div': ('Div',),
  'eq': ('Equal',),
  'erf': ('Erf',),
  'exp': ('Exp',),
  'floor': ('Floor',),
  'ge': ('GreaterOrEqual',),
  'gt': ('Greater',),
  'le': ('LessOrEqual',),
  'log': ('Log',),
  'logistic': ('Sigmoid',),
  'lt': ('Less',),
  'max': ('Max',),
  'min': ('Min',),
  'mul': ('Mul',),
  'ne': ('Equal', 'Not'),
  'neg': ('Neg',),
  'pow': ('Pow',),
  'rsqrt': ('Sqrt', 'Reciprocal'),
  'sign': ('Sign',),
  'sin': ('Sin',),
  'sqrt': ('Sqrt',),
  'sub': ('Sub',),
  'tanh': ('Tanh',),
}
# What ONNX or its runtimes do not have for the types 'bool' and 'uint8' is computed as int32.
_NARROW_TYPES = ('bool', 'uint8', 'uint16')


def _elementwise(ops: Sequence[str], g: Builder, eqn: Any, *inputs: str) -> str:
  aval = eqn.invars[0].aval
  narrow = aval.dtype.name in _NARROW_TYPES
  if narrow:
    inputs = tuple(_cast(g, x, np.int32) for x in inputs)
  found = g.node(ops[0], inputs)
  for op in ops[1:]:
    found = g.node(op, [found])
  same = eqn.outvars[0].aval.dtype == aval.dtype
  return _cast(g, found, aval.dtype) if narrow and same else found


for _name, _ops in _ELEMENTWISE.items():
  RULES[_name] = Rule(functools.partial(_elementwise, _ops), broadcasts=True)


@rule('and', 'or', 'not', broadcasts=True)
def _logic(g: Builder, eqn: Any, *inputs: str) -> str:
  name = eqn.primitive.name.capitalize()
  boolean = eqn.invars[0].aval.dtype == bool
  return g.node(name if boolean else f'Bitwise{name}', inputs)


@rule('rem', broadcasts=True)
def _rem(g: Builder, eqn: Any, a: str, b: str) -> str:
  return g.node('Mod', [a, b], fmod=1)


@rule('is_finite', broadcasts=True)
def _is_finite(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Not', [g.node('Or', [g.node('IsInf', [x]), g.node('IsNaN', [x])])])


@rule('square', broadcasts=True)
def _square(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Mul', [x, x])


@rule('integer_pow', broadcasts=True)
def _integer_pow(g: Builder, eqn: Any, x: str) -> str:
  power = eqn.params['y']
  found = functools.reduce(lambda y, x: g.node('Mul', [y, x]), [x] * abs(power))
  return g.node('Reciprocal', [found]) if power < 0 else found


@rule('log1p', broadcasts=True)
def _log1p(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Log', [g.node('Add', [x, g.constant(np.float32(1))])])


@rule('round', broadcasts=True)
def _round(g: Builder, eqn: Any, x: str) -> str:
  if eqn.params['rounding_method'] != lax.RoundingMethod.TO_NEAREST_EVEN:
    raise _unsupported(eqn, 'halves away from zero')
  return g.node('Round', [x])


@rule('clamp', broadcasts=True)
def _clamp(g: Builder, eqn: Any, low: str, x: str, high: str) -> str:
  return g.node('Min', [g.node('Max', [x, low]), high])


@rule('select_n', broadcasts=True)
def _select(g: Builder, eqn: Any, which: str, *cases: str) -> str:
  if eqn.invars[0].aval.dtype != bool:
    found = cases[-1]
    for index in reversed(range(len(cases) - 1)):
      here = g.node('LessOrEqual', [which, g.constant(np.int32(index))])
      found = g.node('Where', [here, cases[index], found])
    return found
  if eqn.outvars[0].aval.dtype == bool:  # onnxruntime's Where has no bool
    false = g.node('And', [g.node('Not', [which]), cases[0]])
    return g.node('Or', [false, g.node('And', [which, cases[1]])])
  return g.node('Where', [which, cases[1], cases[0]])


@rule('convert_element_type', broadcasts=True)
def _convert(g: Builder, eqn: Any, x: str) -> str:
  return _cast(g, x, eqn.params['new_dtype'])


@rule('copy', 'copy_p', 'stop_gradient', 'reduce_precision', broadcasts=True)
def _same(g: Builder, eqn: Any, x: str) -> str:
  return x


@rule('optimization_barrier')
def _all_same(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  return list(inputs)


# --- shapes ---------------------------------------------------------------------------------------


@rule('broadcast_in_dim', broadcasts=True)
def _broadcast(g: Builder, eqn: Any, x: str, *sizes: str) -> str:
  kept = eqn.params['broadcast_dimensions']
  new = [axis for axis in range(len(eqn.params['shape'])) if axis not in kept]
  return g.node('Unsqueeze', [x, g.ints(new)]) if new else x


@rule('reshape')
def _reshape(g: Builder, eqn: Any, x: str, *sizes: str) -> str:
  return g.node('Reshape', [x, g.ints(eqn.outvars[0].aval.shape)], allowzero=1)


@rule('squeeze')
def _squeeze(g: Builder, eqn: Any, x: str) -> str:
  axes = eqn.params['dimensions']
  return g.node('Squeeze', [x, g.ints(axes)]) if axes else x


@rule('expand_dims')
def _expand_dims(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Unsqueeze', [x, g.ints(eqn.params['dimensions'])])


@rule('transpose')
def _transpose(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Transpose', [x], perm=list(eqn.params['permutation']))


@rule('tile')
def _tile(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Tile', [x, g.ints(eqn.params['reps'])])


@rule('concatenate')
def _concatenate(g: Builder, eqn: Any, *inputs: str) -> str:
  return g.node('Concat', inputs, axis=eqn.params['dimension'])


@rule('stack')
def _stack(g: Builder, eqn: Any, *inputs: str) -> str:
  axis = eqn.params['axis']
  return g.node('Concat', [g.node('Unsqueeze', [x, g.ints([axis])]) for x in inputs], axis=axis)


@rule('unstack')
def _unstack(g: Builder, eqn: Any, x: str) -> list[str]:
  axis = eqn.params['axis']
  take = lambda index: g.node('Gather', [x, g.constant(np.int64(index))], axis=axis)
  return [take(index) for index in range(len(eqn.outvars))]


@rule('split')
def _split(g: Builder, eqn: Any, x: str) -> list[str]:
  names = [g.name() for _ in eqn.outvars]
  sizes = g.ints(eqn.params['sizes'])
  return g.node_with('Split', [x, sizes], names, axis=eqn.params['axis'])


@rule('rev')
def _reverse(g: Builder, eqn: Any, x: str) -> str:
  axes = eqn.params['dimensions']
  return _slice(g, x, [-1] * len(axes), [-(2**62)] * len(axes), axes, [-1] * len(axes))


def _slice(g: Builder, x: str, starts: Any, ends: Any, axes: Any, steps: Any = None) -> str:
  """Of sequences, or of names of i64[axes]."""
  steps = [1] * len(axes) if steps is None else steps
  parts = [p if isinstance(p, str) else g.ints(p) for p in (starts, ends, axes, steps)]
  return g.node('Slice', [x, *parts])


@rule('slice')
def _static_slice(g: Builder, eqn: Any, x: str) -> str:
  starts, ends = eqn.params['start_indices'], eqn.params['limit_indices']
  return _slice(g, x, starts, ends, range(len(starts)), eqn.params['strides'])


def _starts(g: Builder, starts: Sequence[str], shape: Sequence[Any], sizes: Sequence[Any]) -> str:
  """i64[n], the corner of a window of i[] coordinates, moved to where the window fits."""
  axis = g.ints([0])
  corner = g.node('Concat', [g.node('Unsqueeze', [_cast(g, s, np.int64), axis]) for s in starts], axis=0)
  room = g.node('Sub', [g.ints(shape), g.ints(sizes)])
  return g.node('Min', [g.node('Max', [corner, g.constant(np.int64(0))]), room])


@rule('dynamic_slice')
def _dynamic_slice(g: Builder, eqn: Any, x: str, *starts: str) -> str:
  sizes, shape = eqn.params['slice_sizes'], _shape(eqn)
  starts = starts[: len(shape)]
  corner = _starts(g, starts, shape, sizes)
  return _slice(g, x, corner, g.node('Add', [corner, g.ints(sizes)]), range(len(sizes)))


@rule('dynamic_update_slice')
def _dynamic_update(g: Builder, eqn: Any, x: str, update: str, *starts: str) -> str:
  shape, sizes = _shape(eqn), _shape(eqn, 1)
  corner = _starts(g, starts, shape, sizes)
  inside: list[str] = []
  for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
    start = g.node('Gather', [corner, g.constant(np.int64(axis))], axis=0)
    index = g.node('Sub', [_range(g, length), start])
    last = g.node('Sub', [g.size(size), g.constant(np.int64(1))])
    near = g.node('Min', [g.node('Max', [index, g.constant(np.int64(0))]), last])
    update = g.node('Gather', [update, near], axis=axis)
    here = g.node('Equal', [near, index])
    others = [i for i in range(len(shape)) if i != axis]
    inside.append(g.node('Unsqueeze', [here, g.ints(others)]) if others else here)
  inside = functools.reduce(lambda a, b: g.node('And', [a, b]), inside)
  return _where(g, inside, update, x, eqn.outvars[0].aval.dtype)


def _where(g: Builder, condition: str, true: str, false: str, dtype: Any) -> str:
  if dtype != bool:
    return g.node('Where', [condition, true, false])
  numbers = [_cast(g, value, np.uint8) for value in (true, false)]
  return _cast(g, g.node('Where', [condition, *numbers]), bool)


def _range(g: Builder, length: Any) -> str:
  """i64[length]: 0, 1, …."""
  if isinstance(length, int | np.integer):
    return g.constant(np.arange(length))
  return g.node('Range', [g.constant(np.int64(0)), g.size(length), g.constant(np.int64(1))])


@rule('iota', broadcasts=True)
def _iota(g: Builder, eqn: Any, *sizes: str) -> str:
  shape, axis = eqn.params['shape'], eqn.params['dimension']
  others = [i for i in range(len(shape)) if i != axis]
  line = _cast(g, _range(g, shape[axis]), eqn.params['dtype'])
  return g.node('Unsqueeze', [line, g.ints(others)]) if others else line


@rule('dim_as_value')
def _size(g: Builder, eqn: Any) -> str:
  return _cast(g, g.size(eqn.params['dim']), eqn.outvars[0].aval.dtype)


@rule('pad')
def _pad(g: Builder, eqn: Any, x: str, value: str) -> str:
  config = eqn.params['padding_config']
  if any(not isinstance(inner, int) or inner for _, _, inner in config):
    raise _unsupported(eqn, 'padding between elements')
  positive = lambda pad: max(pad, 0) if isinstance(pad, int) else pad
  pads = [positive(low) for low, _, _ in config] + [positive(high) for _, high, _ in config]
  cut = lambda pad: max(-pad, 0) if isinstance(pad, int) else 0
  shape = [length + positive(low) + positive(high) for length, (low, high, _) in zip(_shape(eqn), config, strict=True)]
  boolean = eqn.outvars[0].aval.dtype == bool
  if boolean:
    x, value = _cast(g, x, np.int32), _cast(g, value, np.int32)
  found = g.node('Pad', [x, g.ints(pads), value])
  if any(cut(low) or cut(high) for low, high, _ in config):
    starts = [cut(low) for low, _, _ in config]
    ends = [side - cut(high) for side, (_, high, _) in zip(shape, config, strict=True)]
    found = _slice(g, found, starts, ends, range(len(config)))
  return _cast(g, found, bool) if boolean else found


# --- reductions -----------------------------------------------------------------------------------

_REDUCTIONS = {
  'reduce_and': 'ReduceMin',
  'reduce_max': 'ReduceMax',
  'reduce_min': 'ReduceMin',
  'reduce_or': 'ReduceMax',
  'reduce_prod': 'ReduceProd',
  'reduce_sum': 'ReduceSum',
}


@rule(*_REDUCTIONS)
def _reduce(g: Builder, eqn: Any, x: str) -> str:
  dtype, axes = eqn.invars[0].aval.dtype, eqn.params['axes']
  if not axes:
    return x
  narrow = dtype.name in _NARROW_TYPES
  x = _cast(g, x, np.int32) if narrow else x
  found = g.node(_REDUCTIONS[eqn.primitive.name], [x, g.ints(axes)], keepdims=0)
  return _cast(g, found, dtype) if narrow else found


@rule('argmax', 'argmin')
def _arg(g: Builder, eqn: Any, x: str) -> str:
  [axis] = eqn.params['axes']
  op = {'argmax': 'ArgMax', 'argmin': 'ArgMin'}[eqn.primitive.name]
  return _cast(g, g.node(op, [x], axis=axis, keepdims=0), eqn.params['index_dtype'])


@rule('cumsum')
def _cumsum(g: Builder, eqn: Any, x: str) -> str:
  axis = g.constant(np.int64(eqn.params['axis']))
  return g.node('CumSum', [x, axis], reverse=int(eqn.params['reverse']))


@rule('sort')
def _sort(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  if eqn.params['num_keys'] != 1:
    raise _unsupported(eqn, 'several keys')
  axis = eqn.params['dimension']
  key = inputs[0]
  if eqn.invars[0].aval.dtype.name in _NARROW_TYPES:
    key = _cast(g, key, np.int32)
  # Of equal values the first comes first.
  count = g.ints([_shape(eqn)[axis]])
  names = [g.name(), g.name()]
  _, index = g.node_with('TopK', [key, count], names, axis=axis, largest=0, sorted=1)
  return [g.node('GatherElements', [x, index], axis=axis) for x in inputs]


@rule('top_k')
def _top_k(g: Builder, eqn: Any, x: str) -> list[str]:
  axis = eqn.params.get('axis', -1)
  names = [g.name(), g.name()]
  values, index = g.node_with('TopK', [x, g.ints([eqn.params['k']])], names, axis=axis)
  return [values, _cast(g, index, eqn.outvars[1].aval.dtype)]


# --- products -------------------------------------------------------------------------------------


@rule('dot_general')
def _dot(g: Builder, eqn: Any, a: str, b: str) -> str:
  (contract, batch), (x, y) = eqn.params['dimension_numbers'], (v.aval for v in eqn.invars)
  letters = iter('abcdefghijklmnopqrstuvwxyz')
  left = [next(letters) for _ in x.shape]
  right: list[str] = [''] * len(y.shape)
  for axes in (contract, batch):
    for i, j in zip(*axes, strict=True):
      right[j] = left[i]
  right = [letter or next(letters) for letter in right]
  shared = [left[i] for i in batch[0]]
  free = [
    letter
    for letters, (axes, shares) in ((left, (contract[0], batch[0])), (right, (contract[1], batch[1])))
    for i, letter in enumerate(letters)
    if i not in (*axes, *shares)
  ]
  if (contract, batch) == (((1,), (0,)), ((), ())) and len(y.shape) == len(x.shape) == 2:
    return g.node('MatMul', [a, b])
  integers = x.dtype.kind != 'f' and x.dtype.name != 'bfloat16'
  inputs = [_cast(g, v, np.float32) if integers else v for v in (a, b)]
  equation = f'{"".join(left)},{"".join(right)}->{"".join(shared + free)}'
  found = g.node('Einsum', inputs, equation=equation)
  return _cast(g, found, eqn.outvars[0].aval.dtype) if integers else found


@rule('conv_general_dilated')
def _conv(g: Builder, eqn: Any, x: str, kernel: str) -> str:
  params = eqn.params
  if params['batch_group_count'] != 1:
    raise _unsupported(eqn, 'batch groups')
  numbers = params['dimension_numbers']
  x = g.node('Transpose', [x], perm=list(numbers.lhs_spec))
  kernel = g.node('Transpose', [kernel], perm=list(numbers.rhs_spec))
  size = [_shape(eqn, 1)[axis] for axis in numbers.rhs_spec]
  padding = list(params['padding'])
  if any(step != 1 for step in params['lhs_dilation']):
    found = _transposed_conv(g, eqn, x, kernel, size, padding)
  else:
    if not all(isinstance(pad, int) and pad >= 0 for pair in padding for pad in pair):
      x, padding = _pad_space(g, x, padding), [(0, 0)] * len(padding)
    found = g.node(
      'Conv',
      [x, kernel],
      dilations=list(params['rhs_dilation']),
      group=params['feature_group_count'],
      pads=[low for low, _ in padding] + [high for _, high in padding],
      strides=list(params['window_strides']),
    )
  return g.node('Transpose', [found], perm=list(np.argsort(numbers.out_spec)))


def _pad_space(g: Builder, x: str, padding: Sequence[tuple[Any, Any]]) -> str:
  """f[B, C, …] with zeros around, or cut where the padding is negative."""
  pads = [0, 0, *(low for low, _ in padding), 0, 0, *(high for _, high in padding)]
  return g.node('Pad', [x, g.ints(pads), g.constant(np.float32(0))])


def _transposed_conv(
  g: Builder, eqn: Any, x: str, kernel: str, size: Sequence[int], padding: Sequence[tuple[Any, Any]]
) -> str:
  """A convolution of an image with zeros between its pixels, f[B, C, …] and f[O, I, …]."""
  params, groups = eqn.params, eqn.params['feature_group_count']
  if any(step != 1 for step in params['window_strides']):
    raise _unsupported(eqn, 'strides and zeros between pixels')
  space = range(2, len(size))
  kernel = _slice(g, kernel, [-1] * len(space), [-(2**62)] * len(space), space, [-1] * len(space))
  out, within = size[:2]
  # f[O, I, …] -> f[groups · I, O / groups, …], as ConvTranspose has its kernels.
  kernel = g.node('Reshape', [kernel, g.ints([groups, out // groups, within, *size[2:]])])
  kernel = g.node('Transpose', [kernel], perm=[0, 2, 1, *(axis + 1 for axis in space)])
  kernel = g.node('Reshape', [kernel, g.ints([groups * within, out // groups, *size[2:]])])
  reach = [(k - 1) * step for k, step in zip(size[2:], params['rhs_dilation'], strict=True)]
  found = g.node(
    'ConvTranspose',
    [x, kernel],
    dilations=list(params['rhs_dilation']),
    group=groups,
    strides=list(params['lhs_dilation']),
  )
  # It is as large as can be; what XLA does not pad is cut.
  rest = [(low - r, high - r) for r, (low, high) in zip(reach, padding, strict=True)]
  return _pad_space(g, found, rest) if any(pad != 0 for pair in rest for pad in pair) else found


_POOLS = {'reduce_window_max': 'MaxPool', 'reduce_window_sum': 'AveragePool'}


@rule(*_POOLS)
def _pool(g: Builder, eqn: Any, x: str) -> str:
  params = eqn.params
  if any(step != 1 for step in params['base_dilation']):
    raise _unsupported(eqn, 'zeros between pixels')
  window, padding = params['window_dimensions'], params['padding']
  rank = len(window)
  space = [
    axis for axis in range(rank) if window[axis] != 1 or tuple(padding[axis]) != (0, 0) or params['window_strides'][axis] != 1
  ]
  rest = [axis for axis in range(rank) if axis not in space]
  perm, out = rest + space, eqn.outvars[0].aval.shape
  shape = _shape(eqn)
  x = g.node('Transpose', [x], perm=perm)
  x = g.node('Reshape', [x, g.ints([-1, 1, *(shape[axis] for axis in space)])])
  sums = eqn.primitive.name == 'reduce_window_sum'
  found = g.node(
    _POOLS[eqn.primitive.name],
    [x],
    kernel_shape=[window[axis] for axis in space],
    pads=[padding[axis][0] for axis in space] + [padding[axis][1] for axis in space],
    strides=[params['window_strides'][axis] for axis in space],
    **({'count_include_pad': 1} if sums else {}),
  )
  if sums:
    if any(step != 1 for step in params['window_dilation']):
      raise _unsupported(eqn, 'dilation')
    found = g.node('Mul', [found, g.constant(np.float32(math.prod(window)))])
  found = g.node('Reshape', [found, g.ints([out[axis] for axis in perm])])
  return g.node('Transpose', [found], perm=list(np.argsort(perm)))


# --- indices --------------------------------------------------------------------------------------


def _along(g: Builder, values: str, axis: int, rank: int) -> str:
  """[n] as an array of `rank` with its values along an axis."""
  others = [i for i in range(rank) if i != axis]
  return g.node('Unsqueeze', [values, g.ints(others)]) if others else values


def _component(g: Builder, indices: str, place: int, axes: Sequence[int], rank: int) -> str:
  """Coordinate `place` of i[…, n], as i64 of `rank` whose `axes` are those of the indices."""
  found = g.node('Gather', [_cast(g, indices, np.int64), g.constant(np.int64(place))], axis=-1)
  others = [i for i in range(rank) if i not in axes]
  return g.node('Unsqueeze', [found, g.ints(others)]) if others else found


def _bounded(g: Builder, start: str, room: Any) -> tuple[str, str]:
  """The start of a window, moved to where it fits, and whether it did."""
  zero = g.constant(np.int64(0))
  clamped = g.node('Min', [g.node('Max', [start, zero]), g.size(room)])
  return clamped, g.node('Equal', [clamped, start])


@rule('gather')
def _gather(g: Builder, eqn: Any, x: str, indices: str) -> str:
  numbers, sizes, shape = eqn.params['dimension_numbers'], eqn.params['slice_sizes'], _shape(eqn)
  starts = _shape(eqn, 1)
  hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  # Sides that are taken as a whole come last, and have no index.
  whole = [
    d
    for d, size in enumerate(sizes)
    if d not in hidden and d not in numbers.start_index_map and size is shape[d] or d not in hidden and d not in numbers.start_index_map and size == shape[d]
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
      start, fit = _bounded(g, _component(g, indices, place, range(len(batch)), rank), shape[d] - sizes[d])
      terms.append(start)
      fits.append(fit)
    if d in numbers.operand_batching_dims:
      axis = numbers.start_indices_batching_dims[list(numbers.operand_batching_dims).index(d)]
      terms.append(_along(g, _range(g, shape[d]), axis, rank))
    if d in window:
      terms.append(_along(g, _range(g, sizes[d]), len(batch) + window.index(d), rank))
    parts.append(functools.reduce(lambda a, b: g.node('Add', [a, b]), terms))
  full = g.ints([*batch, *(sizes[d] for d in window)])
  last = g.ints([-1])
  index = g.node('Concat', [g.node('Unsqueeze', [g.node('Expand', [p, full]), last]) for p in parts], axis=-1)
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
    kinds = {'f': lambda: np.nan, 'i': lambda: np.iinfo(dtype).min, 'u': lambda: np.iinfo(dtype).max}
    value = kinds.get(dtype.kind, lambda: True)()
  inside = functools.reduce(lambda a, b: g.node('And', [a, b]), fits)
  for _ in range(whole):
    inside = g.node('Unsqueeze', [inside, g.ints([-1])])
  return _where(g, inside, found, g.constant(np.asarray(value, dtype)), dtype)


_SCATTERS = {'scatter': 'none', 'scatter_add': 'add', 'scatter-add': 'add', 'scatter_max': 'max', 'scatter_min': 'min'}


@rule(*_SCATTERS)
def _scatter(g: Builder, eqn: Any, x: str, indices: str, updates: str) -> str:
  numbers, shape, new = eqn.params['dimension_numbers'], _shape(eqn), _shape(eqn, 2)
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
      terms.append(_along(g, _range(g, shape[d]), batch[axis], rank))
    if d in window:
      terms.append(_along(g, _range(g, size), windows[window.index(d)], rank))
    here = functools.reduce(lambda a, b: g.node('Add', [a, b]), terms)
    flat = g.node('Add', [g.node('Mul', [flat, g.size(shape[d])]), here])
  total = g.size(math.prod(shape))
  if 'CLIP' not in str(eqn.params['mode']) and fits:
    inside = functools.reduce(lambda a, b: g.node('And', [a, b]), fits)
    flat = g.node('Where', [inside, flat, total])
  flat = g.node('Reshape', [g.node('Expand', [flat, g.ints(new)]), g.ints([-1])])
  dtype = eqn.outvars[0].aval.dtype
  narrow = dtype.name in _NARROW_TYPES
  line = [g.node('Reshape', [v, g.ints([-1])]) for v in (x, updates)]
  line = [_cast(g, v, np.int32) for v in line] if narrow else line
  spare = g.constant(np.zeros(1, np.int32 if narrow else dtype))
  array = g.node('Concat', [line[0], spare], axis=0)
  reduction = _SCATTERS[eqn.primitive.name]
  found = g.node('ScatterElements', [array, flat, line[1]], axis=0, reduction=reduction)
  found = g.node('Reshape', [_slice(g, found, [0], [-1], [0]), g.ints(shape)], allowzero=1)
  return _cast(g, found, dtype) if narrow else found


# --- functions, branches and loops ----------------------------------------------------------------

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')


@rule(*_CALLS)
def _call(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  keys = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
  return g.inline(next(eqn.params[key] for key in keys if key in eqn.params), inputs)


@rule('cond')
def _branch(g: Builder, eqn: Any, index: str, *inputs: str) -> list[str]:
  branches = eqn.params['branches']

  def choose(g: Builder, first: int) -> list[str]:
    if first == len(branches) - 1:
      return g.inline(branches[first], inputs)
    here = g.node('LessOrEqual', [index, g.constant(np.int32(first))])
    then = g.body([], lambda g, _: g.inline(branches[first], inputs), 'then')
    other = g.body([], lambda g, _: choose(g, first + 1), 'else')
    names = [g.name() for _ in eqn.outvars]
    return g.node_with('If', [here], names, then_branch=then, else_branch=other)

  return choose(g, 0)


def _types(variables: Sequence[Any]) -> list[Any]:
  """The inputs of a loop's body: its step, whether it goes on, and its state."""
  return [np.zeros((), np.int64), np.zeros((), bool), *(v.aval for v in variables)]


@rule('while')
def _while(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  params = eqn.params
  a, b = params['cond_nconsts'], params['body_nconsts']
  around, inside, state = inputs[:a], inputs[a : a + b], inputs[a + b :]
  avals = [v.aval for v in eqn.outvars]
  # A loop that is mapped over a batch goes on while one of its rows does; the others keep theirs.
  batched = len(params['cond_jaxpr'].out_avals[0].shape)

  def test(g: Builder, state: Sequence[str]) -> tuple[str, str]:
    [rows] = g.inline(params['cond_jaxpr'], [*around, *state])
    if not batched:
      return rows, rows
    found = g.node('ReduceMax', [_cast(g, rows, np.int32)], keepdims=0)
    return rows, _cast(g, found, bool)

  def make(g: Builder, names: list[str]) -> list[str]:
    old = names[2:]
    new = g.inline(params['body_jaxpr'], [*inside, *old])
    if batched:
      rows, _ = test(g, old)
      new = [keep(g, rows, *pair) for pair in zip(new, old, avals, strict=True)]
    return [test(g, new)[1], *new]

  def keep(g: Builder, rows: str, new: str, old: str, aval: Any) -> str:
    axes = range(batched, len(aval.shape))
    rows = g.node('Unsqueeze', [rows, g.ints(axes)]) if axes else rows
    return _where(g, rows, new, old, aval.dtype)

  body = g.body(_types(eqn.outvars), make, 'body')
  names = [g.name() for _ in eqn.outvars]
  return g.node_with('Loop', ['', test(g, state)[1], *state], names, body=body)


@rule('scan')
def _scan(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  params = eqn.params
  a, b, length = params['num_consts'], params['num_carry'], params['length']
  constants, state, series = inputs[:a], inputs[a : a + b], inputs[a + b :]

  def make(g: Builder, names: list[str]) -> list[str]:
    step = names[0]
    if params['reverse']:
      step = g.node('Sub', [g.node('Sub', [g.size(length), g.constant(np.int64(1))]), step])
    parts = [g.node('Gather', [x, step], axis=0) for x in series]
    return [names[1], *g.inline(params['jaxpr'], [*constants, *names[2:], *parts])]

  body = g.body(_types(eqn.outvars[:b]), make, 'body')
  names = [g.name() for _ in eqn.outvars]
  start = [g.size(length), g.constant(np.bool_(True)), *state]
  found = g.node_with('Loop', start, names, body=body)
  flip = lambda x: _slice(g, x, [-1], [-(2**62)], [0], [-1])
  return [*found[:b], *(flip(x) if params['reverse'] else x for x in found[b:])]
