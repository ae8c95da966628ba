"""Rules of reductions, products, convolutions and pooling."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segjax.export.onnx.builder import (
  NARROW_TYPES,
  Builder,
  cast,
  rule,
  shape_of,
  slice_of,
  unsupported,
)

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
  narrow = dtype.name in NARROW_TYPES
  x = cast(g, x, np.int32) if narrow else x
  found = g.node(_REDUCTIONS[eqn.primitive.name], [x, g.ints(axes)], keepdims=0)
  return cast(g, found, dtype) if narrow else found


@rule('argmax', 'argmin')
def _arg(g: Builder, eqn: Any, x: str) -> str:
  [axis] = eqn.params['axes']
  op = {'argmax': 'ArgMax', 'argmin': 'ArgMin'}[eqn.primitive.name]
  if eqn.invars[0].aval.dtype.name in NARROW_TYPES:
    x = cast(g, x, np.int32)
  return cast(g, g.node(op, [x], axis=axis, keepdims=0), eqn.params['index_dtype'])


@rule('cumsum')
def _cumsum(g: Builder, eqn: Any, x: str) -> str:
  axis = g.constant(np.int64(eqn.params['axis']))
  return g.node('CumSum', [x, axis], reverse=int(eqn.params['reverse']))


@rule('sort')
def _sort(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  if eqn.params['num_keys'] != 1:
    raise unsupported(eqn, 'several keys')
  axis = eqn.params['dimension']
  key = inputs[0]
  if eqn.invars[0].aval.dtype.name in NARROW_TYPES:
    key = cast(g, key, np.int32)
  # Of equal values the first comes first.
  count = g.ints([shape_of(eqn)[axis]])
  names = [g.name(), g.name()]
  _, index = g.node_with('TopK', [key, count], names, axis=axis, largest=0, sorted=1)
  return [g.node('GatherElements', [x, index], axis=axis) for x in inputs]


@rule('top_k')
def _top_k(g: Builder, eqn: Any, x: str) -> list[str]:
  axis = eqn.params.get('axis', -1)
  names = [g.name(), g.name()]
  values, index = g.node_with('TopK', [x, g.ints([eqn.params['k']])], names, axis=axis)
  return [values, cast(g, index, eqn.outvars[1].aval.dtype)]


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
    for side, letters_of in enumerate((left, right))
    for i, letter in enumerate(letters_of)
    if i not in (*contract[side], *batch[side])
  ]
  if (contract, batch) == (((1,), (0,)), ((), ())) and len(y.shape) == len(x.shape) == 2:
    return g.node('MatMul', [a, b])
  integers = x.dtype.kind != 'f' and x.dtype.name != 'bfloat16'
  inputs = [cast(g, v, np.float32) if integers else v for v in (a, b)]
  equation = f'{"".join(left)},{"".join(right)}->{"".join(shared + free)}'
  found = g.node('Einsum', inputs, equation=equation)
  return cast(g, found, eqn.outvars[0].aval.dtype) if integers else found


@rule('conv_general_dilated')
def _conv(g: Builder, eqn: Any, x: str, kernel: str) -> str:
  params = eqn.params
  if params['batch_group_count'] != 1:
    raise unsupported(eqn, 'batch groups')
  numbers = params['dimension_numbers']
  x = g.node('Transpose', [x], perm=list(numbers.lhs_spec))
  kernel = g.node('Transpose', [kernel], perm=list(numbers.rhs_spec))
  size = [shape_of(eqn, 1)[axis] for axis in numbers.rhs_spec]
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
    raise unsupported(eqn, 'strides and zeros between pixels')
  space = range(2, len(size))
  kernel = slice_of(g, kernel, [-1] * len(space), [-(2**62)] * len(space), space, [-1] * len(space))
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
    raise unsupported(eqn, 'zeros between pixels')
  window, padding = params['window_dimensions'], params['padding']
  rank = len(window)
  space = [
    axis
    for axis in range(rank)
    if (window[axis], *padding[axis], params['window_strides'][axis]) != (1, 0, 0, 1)
  ]
  rest = [axis for axis in range(rank) if axis not in space]
  perm, out = rest + space, eqn.outvars[0].aval.shape
  shape = shape_of(eqn)
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
      raise unsupported(eqn, 'dilation')
    found = g.node('Mul', [found, g.constant(np.float32(math.prod(window)))])
  found = g.node('Reshape', [found, g.ints([out[axis] for axis in perm])])
  return g.node('Transpose', [found], perm=list(np.argsort(perm)))
