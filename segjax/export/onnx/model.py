"""From a JAX function to an ONNX model: its jaxpr, operation by operation.

The public converters do not cover what is exported here (docs/export.md), and a network that is
traced for inference has few operations: the modules beside this one have a short rule for each.
Sizes may be symbolic. bfloat16 becomes float32, as ONNX's runtimes have few operations for it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import onnx
from onnx import helper

from segjax.export.onnx import control, elements, indices, reductions, shapes
from segjax.export.onnx.builder import Builder, declare

# Imported for the rules that they register.
_RULES = (control, elements, indices, reductions, shapes)
# Of the operations; the first with axes as inputs of all reductions. Read by onnxruntime >= 1.14.
OPSET = 18
IR_VERSION = 8
# Bytes; above it, protocol buffers cannot hold the parameters.
_LARGE = 2**31 - 2**20


def convert(function: Callable[..., Mapping[str, Any]], spec: jax.ShapeDtypeStruct) -> Any:
  """The ONNX model of `image -> outputs by name`.

  Args:
    function: of one array.
    spec: of the array; dimensions may be symbolic, see `jax.export.symbolic_shape`.

  Returns:
    An `onnx.ModelProto` with the input `image`.

  Raises:
    SegjaxError: there is no rule for one of the operations.
  """
  closed, outputs = jax.make_jaxpr(function, return_shape=True)(spec)
  names, specs = zip(*sorted(outputs.items()), strict=True)
  builder = Builder()
  builder.add_sizes('image', spec.shape)
  found = builder.inline(closed, ['image'])
  for value, name in zip(found, names, strict=True):
    builder.node('Identity', [value], name)
  graph = helper.make_graph(
    builder.nodes,
    'segjax',
    [declare('image', spec)],
    list(map(declare, names, specs)),
    list(builder.constants.values()),
  )
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)])
  model.ir_version = IR_VERSION
  return model


def save(model: Any, path: Path) -> None:
  """Writes a model; parameters that do not fit into one file are in a second one, PATH.data."""
  size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
  external = {'save_as_external_data': True, 'location': f'{path.name}.data'}
  onnx.save(model, str(path), **(external if size > _LARGE else {}))
