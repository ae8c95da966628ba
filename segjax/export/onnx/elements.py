"""Rules of operations on each element."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from segjax.export.onnx.builder import NARROW_TYPES, RULES, Builder, Rule, cast, rule, unsupported

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


def _elementwise(ops: Sequence[str], g: Builder, eqn: Any, *inputs: str) -> str:
  aval = eqn.invars[0].aval
  narrow = aval.dtype.name in NARROW_TYPES
  if narrow:
    inputs = tuple(cast(g, x, np.int32) for x in inputs)
  found = g.node(ops[0], inputs)
  for op in ops[1:]:
    found = g.node(op, [found])
  same = eqn.outvars[0].aval.dtype == aval.dtype
  return cast(g, found, aval.dtype) if narrow and same else found


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


@rule('erfc', broadcasts=True)
def _erfc(g: Builder, eqn: Any, x: str) -> str:
  return g.node('Sub', [g.constant(np.float32(1)), g.node('Erf', [x])])


@rule('round', broadcasts=True)
def _round(g: Builder, eqn: Any, x: str) -> str:
  if eqn.params['rounding_method'] != lax.RoundingMethod.TO_NEAREST_EVEN:
    raise unsupported(eqn, 'halves away from zero')
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
  return cast(g, x, eqn.params['new_dtype'])


@rule('copy', 'copy_p', 'stop_gradient', 'reduce_precision', broadcasts=True)
def _same(g: Builder, eqn: Any, x: str) -> str:
  return x


@rule('optimization_barrier')
def _all_same(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  return list(inputs)
