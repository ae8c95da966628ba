"""Rules of operations that move values: shapes, slices, padding."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from segjax.export.onnx.builder import (
  Builder,
  at_least,
  cast,
  range_of,
  rule,
  shape_of,
  slice_of,
  unsupported,
  where,
)


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
  return slice_of(g, x, [-1] * len(axes), [-(2**62)] * len(axes), axes, [-1] * len(axes))


@rule('slice')
def _static_slice(g: Builder, eqn: Any, x: str) -> str:
  starts, ends = eqn.params['start_indices'], eqn.params['limit_indices']
  return slice_of(g, x, starts, ends, range(len(starts)), eqn.params['strides'])


def _starts(g: Builder, starts: Sequence[str], shape: Sequence[Any], sizes: Sequence[Any]) -> str:
  """i64[n], the corner of a window of i[] coordinates, moved to where the window fits."""
  axis = g.ints([0])
  parts = [g.node('Unsqueeze', [cast(g, start, np.int64), axis]) for start in starts]
  corner = g.node('Concat', parts, axis=0)
  room = g.node('Sub', [g.ints(shape), g.ints(sizes)])
  return g.node('Min', [g.node('Max', [corner, g.constant(np.int64(0))]), room])


@rule('dynamic_slice')
def _dynamic_slice(g: Builder, eqn: Any, x: str, *starts: str) -> str:
  sizes, shape = eqn.params['slice_sizes'], shape_of(eqn)
  starts = starts[: len(shape)]
  corner = _starts(g, starts, shape, sizes)
  return slice_of(g, x, corner, g.node('Add', [corner, g.ints(sizes)]), range(len(sizes)))


@rule('dynamic_update_slice')
def _dynamic_update(g: Builder, eqn: Any, x: str, update: str, *starts: str) -> str:
  shape, sizes = shape_of(eqn), shape_of(eqn, 1)
  corner = _starts(g, starts, shape, sizes)
  inside: list[str] = []
  for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
    start = g.node('Gather', [corner, g.constant(np.int64(axis))], axis=0)
    index = g.node('Sub', [range_of(g, length), start])
    last = g.node('Sub', [g.size(size), g.constant(np.int64(1))])
    near = g.node('Min', [g.node('Max', [index, g.constant(np.int64(0))]), last])
    update = g.node('Gather', [update, near], axis=axis)
    here = g.node('Equal', [near, index])
    others = [i for i in range(len(shape)) if i != axis]
    inside.append(g.node('Unsqueeze', [here, g.ints(others)]) if others else here)
  inside = functools.reduce(lambda a, b: g.node('And', [a, b]), inside)
  return where(g, inside, update, x, eqn.outvars[0].aval.dtype)


@rule('iota', broadcasts=True)
def _iota(g: Builder, eqn: Any, *sizes: str) -> str:
  shape, axis = eqn.params['shape'], eqn.params['dimension']
  others = [i for i in range(len(shape)) if i != axis]
  line = cast(g, range_of(g, shape[axis]), eqn.params['dtype'])
  return g.node('Unsqueeze', [line, g.ints(others)]) if others else line


@rule('dim_as_value')
def _size(g: Builder, eqn: Any) -> str:
  return cast(g, g.size(eqn.params['dim']), eqn.outvars[0].aval.dtype)


@rule('pad')
def _pad(g: Builder, eqn: Any, x: str, value: str) -> str:
  config = eqn.params['padding_config']
  if any(not isinstance(inner, int) or inner for _, _, inner in config):
    raise unsupported(eqn, 'padding between elements')
  config, checked = _split(config)
  positive = lambda pad: max(pad, 0) if isinstance(pad, int) else pad
  pads = [positive(low) for low, _, _ in config] + [positive(high) for _, high, _ in config]
  cut = lambda pad: max(-pad, 0) if isinstance(pad, int) else 0
  sides = zip(shape_of(eqn), config, strict=True)
  shape = [length + positive(low) + positive(high) for length, (low, high, _) in sides]
  boolean = eqn.outvars[0].aval.dtype == bool
  if boolean:
    x, value = cast(g, x, np.int32), cast(g, value, np.int32)
  found = g.node('Pad', [x, g.ints(pads), value])
  if any(cut(low) or cut(high) for low, high, _ in config):
    starts = [cut(low) for low, _, _ in config]
    ends = [side - cut(high) for side, (_, high, _) in zip(shape, config, strict=True)]
    found = slice_of(g, found, starts, ends, range(len(config)))
  inside, whole = shape_of(eqn), eqn.outvars[0].aval.shape
  for axis, high in checked.items():
    later = [inside[i] if i in checked else whole[i] for i in range(axis + 1, len(whole))]
    more = g.node('Expand', [value, g.ints([*whole[:axis], high, *later])])
    found = g.node('Concat', [found, more], axis=axis)
  return cast(g, found, bool) if boolean else found


def _split(config: Sequence[Any]) -> tuple[list[Any], dict[int, Any]]:
  """The padding without that of some axes, and these: what an image that fits needs behind it.

  `Pad` would cut one that does not fit, as if the number were meant to be negative.
  """
  needed = lambda low, high: low == 0 and not isinstance(high, int) and at_least(high, 0)
  checked = {axis: high for axis, (low, high, _) in enumerate(config) if needed(low, high)}
  return [(0, 0, 0) if i in checked else pads for i, pads in enumerate(config)], checked
