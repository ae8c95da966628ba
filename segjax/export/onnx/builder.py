"""Builds the nodes of an ONNX graph from the equations of a jaxpr, by a rule for each primitive."""

import ast
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from segjax.types import SegjaxError

TYPES = {
  'bool': TensorProto.BOOL,
  'uint8': TensorProto.UINT8,
  'uint16': TensorProto.UINT16,
  'uint32': TensorProto.UINT32,
  'int32': TensorProto.INT32,
  'int64': TensorProto.INT64,
  'float32': TensorProto.FLOAT,
  'bfloat16': TensorProto.FLOAT,
}


class Rule(NamedTuple):
  """How a primitive becomes nodes.

  Attributes:
    make: `(builder, equation, names of the inputs) -> name or names of the outputs`.
    broadcasts: whether inputs may be narrower than their shapes say, with sides of 1, and the
      output then is: ONNX broadcasts, so that no map of a constant has to be in memory.
  """

  make: Callable[..., Any]
  broadcasts: bool = False


def type_of(dtype: Any) -> int:
  """The ONNX type of a NumPy one.

  Raises:
    SegjaxError: there is none in use.
  """
  # Keys of `jax.random` have types that NumPy does not know.
  name = np.dtype(dtype).name if isinstance(dtype, type | str) else dtype.name
  if name in TYPES:
    return TYPES[name]
  raise SegjaxError(f'--format=onnx: arrays of {name} are not supported: use --format=stablehlo')


def declare(name: str, x: Any) -> Any:
  """An input or output of a graph, of the type and shape of `x`."""
  shape = [side if isinstance(side, int) else str(side) for side in x.shape]
  return helper.make_tensor_value_info(name, type_of(x.dtype), shape)


RULES: dict[str, Rule] = {}
# What ONNX or its runtimes often lack is computed as int32.
NARROW_TYPES = ('bool', 'uint8', 'uint16')


def rule(
  *primitives: str, broadcasts: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Registers a function as the rule of some primitives."""

  def register(make: Callable[..., Any]) -> Callable[..., Any]:
    RULES.update(dict.fromkeys(primitives, Rule(make, broadcasts)))
    return make

  return register


class Builder:
  """The nodes of a graph, or of the body of a loop, which sees the names around it.

  Attributes:
    nodes: in order.
    constants: name -> tensor; of the outermost graph, and visible in all others.
  """

  def __init__(self, outer: 'Builder | None' = None):
    self.nodes: list[Any] = []
    self.constants: dict[str, Any] = outer.constants if outer else {}
    self._sizes: dict[str, str] = outer._sizes if outer else {}
    self._counter = outer._counter if outer else itertools.count()
    self._known: dict[Any, str] = outer._known if outer else {}

  # --- values ---

  def name(self) -> str:
    """A new name."""
    return f'v{next(self._counter)}'

  def node(
    self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
  ) -> str:
    """Adds a node with one output; its name."""
    return self.node_with(op, inputs, [output or self.name()], **attributes)[0]

  def node_with(
    self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
  ) -> list[str]:
    """Adds a node; the names of its outputs."""
    self.nodes.append(helper.make_node(op, list(inputs), list(outputs), **attributes))
    return list(outputs)

  def constant(self, value: Any, dtype: Any = None) -> str:
    """The name of a constant, one for equal small values."""
    array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
    if array.dtype.name == 'bfloat16':
      array = array.astype(np.float32)
    key = (array.tobytes(), array.shape, array.dtype.name) if array.size <= 64 else None
    if key in self._known:
      return self._known[key]
    name = self.name()
    type_of(array.dtype)
    self.constants[name] = numpy_helper.from_array(array, name)
    if key is not None:
      self._known[key] = name
    return name

  def ints(self, values: Iterable[Any]) -> str:
    """i64[n] of integers and symbolic sizes."""
    values = list(values)
    if all(isinstance(value, int | np.integer) for value in values):
      return self.constant(np.array(values, np.int64).reshape(len(values)))
    zero = self.constant(np.zeros(1, np.int64))
    return self.node(
      'Concat', [self.node('Unsqueeze', [self.size(v), zero]) for v in values], axis=0
    )

  # --- sizes ---

  def add_sizes(self, array: str, shape: Sequence[Any]) -> None:
    """Names the symbolic sizes of an input."""
    dims = self.node('Shape', [array])
    for axis, side in enumerate(shape):
      if not isinstance(side, int):
        index = self.constant(np.int64(axis))
        self._sizes[str(side)] = self.node('Gather', [dims, index], axis=0)

  def size(self, value: Any) -> str:
    """i64[] of an integer or a symbolic size."""
    if isinstance(value, int | np.integer):
      return self.constant(np.int64(value))
    return self._evaluate(ast.parse(str(value).strip().replace('^', '**'), mode='eval').body)

  def _evaluate(self, tree: ast.expr) -> str:
    """A size from the text in which JAX shows it: `- 32*floordiv(- h, 32)`."""
    if isinstance(tree, ast.Constant):
      return self.constant(np.int64(tree.value))
    if isinstance(tree, ast.Name):
      return self._sizes[tree.id]
    if isinstance(tree, ast.UnaryOp):
      return self.node('Neg', [self._evaluate(tree.operand)])
    if isinstance(tree, ast.BinOp):
      op = {ast.Add: 'Add', ast.Sub: 'Sub', ast.Mult: 'Mul', ast.Pow: 'Pow'}[type(tree.op)]
      return self.node(op, [self._evaluate(tree.left), self._evaluate(tree.right)])
    a, b = map(self._evaluate, tree.args)
    function = tree.func.id
    if function != 'floordiv':
      return self.node({'mod': 'Mod', 'max': 'Max', 'min': 'Min'}[function], [a, b])
    return self.node('Div', [self.node('Sub', [a, self.node('Mod', [a, b])]), b])  # Mod is >= 0

  # --- equations ---

  def inline(self, closed: Any, inputs: Sequence[str]) -> list[str]:
    """Adds the nodes of a jaxpr; the names of its outputs."""
    jaxpr = getattr(closed, 'jaxpr', closed)
    constants = [self.constant(np.asarray(value)) for value in getattr(closed, 'consts', ())]
    names = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))
    narrow: set[Any] = set()  # whose value is narrower than its shape

    def read(atom: Any, full: bool = True) -> str:
      if isinstance(atom, core.Literal):
        return self.constant(np.asarray(atom.val, atom.aval.dtype))
      return self._expand(names[atom], atom.aval.shape) if full and atom in narrow else names[atom]

    for eqn in _needed(jaxpr):
      rule = self._rule(eqn.primitive.name)
      found = rule.make(self, eqn, *(read(atom, not rule.broadcasts) for atom in eqn.invars))
      names.update(zip(eqn.outvars, [found] if isinstance(found, str) else found, strict=True))
      shape = eqn.outvars[0].aval.shape
      variables = [atom for atom in eqn.invars if not isinstance(atom, core.Literal)]
      if rule.broadcasts and all(v in narrow or v.aval.shape != shape for v in variables):
        narrow.add(eqn.outvars[0])
    return [read(atom) for atom in jaxpr.outvars]

  def _expand(self, x: str, shape: Sequence[Any]) -> str:
    found = self.node('Expand', [x, self.ints(shape)])
    # onnxruntime's Expand leaves a side of 1 where it should be 0.
    empty = [axis for axis, side in enumerate(shape) if not at_least(side, 1)]
    if not empty:
      return found
    ends = self.ints(shape[axis] for axis in empty)
    return self.node('Slice', [found, self.ints([0] * len(empty)), ends, self.ints(empty)])

  def _rule(self, primitive: str) -> Rule:
    if primitive not in RULES:
      raise SegjaxError(
        f'--format=onnx: the operation {primitive} of the network has no counterpart in ONNX: use '
        '--format=stablehlo'
      )
    return RULES[primitive]

  def body(
    self, inputs: Sequence[Any], make: Callable[['Builder', list[str]], list[str]], name: str
  ) -> Any:
    """A graph inside this one, for a loop or a branch.

    Args:
      inputs: the types of its inputs, with `shape` and `dtype`.
      make: `(builder, names of the inputs) -> names of the outputs`.
      name: of the graph.
    """
    inner = Builder(self)
    names = [inner.name() for _ in inputs]
    # Outputs must be made inside.
    outputs = [inner.node('Identity', [value]) for value in make(inner, names)]
    blank = [helper.make_empty_tensor_value_info(output) for output in outputs]  # inferred
    return helper.make_graph(inner.nodes, name, list(map(declare, names, inputs)), blank)


def at_least(side: Any, number: int) -> bool:
  """Whether a size is known to be so large."""
  try:
    return bool(side >= number)
  except jax.errors.InconclusiveDimensionOperation:
    return False


def _needed(jaxpr: Any) -> list[Any]:
  """The equations that the outputs depend on."""
  needed = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
  found = []
  for eqn in reversed(jaxpr.eqns):
    if needed.intersection(eqn.outvars):
      needed.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
      found.append(eqn)
  return found[::-1]


# --- what several rules need ----------------------------------------------------------------------


def cast(g: Builder, x: str, dtype: Any) -> str:
  return g.node('Cast', [x], to=type_of(dtype))


def shape_of(eqn: Any, index: int = 0) -> tuple[Any, ...]:
  return eqn.invars[index].aval.shape


def unsupported(eqn: Any, what: str) -> SegjaxError:
  return SegjaxError(
    f'--format=onnx: the operation {eqn.primitive.name} with {what} has no counterpart in ONNX: '
    'use --format=stablehlo'
  )


def slice_of(g: Builder, x: str, starts: Any, ends: Any, axes: Any, steps: Any = None) -> str:
  """Of sequences, or of names of i64[axes]."""
  steps = [1] * len(axes) if steps is None else steps
  parts = [p if isinstance(p, str) else g.ints(p) for p in (starts, ends, axes, steps)]
  return g.node('Slice', [x, *parts])


def where(g: Builder, condition: str, true: str, false: str, dtype: Any) -> str:
  if np.dtype(dtype).name != 'bool':
    return g.node('Where', [condition, true, false])
  numbers = [cast(g, value, np.uint8) for value in (true, false)]
  return cast(g, g.node('Where', [condition, *numbers]), bool)


def range_of(g: Builder, length: Any) -> str:
  """i64[length]: 0, 1, …."""
  if isinstance(length, int | np.integer):
    return g.constant(np.arange(length))
  return g.node('Range', [g.constant(np.int64(0)), g.size(length), g.constant(np.int64(1))])
