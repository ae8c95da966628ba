"""Rules of functions, branches and loops."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.export.onnx.builder import Builder, cast, rule, slice_of, where

_CALLS = (
  'jit',
  'pjit',
  'closed_call',
  'core_call',
  'remat',
  'remat2',
  'checkpoint',
  'custom_jvp_call',
  'custom_vjp_call',
  'custom_vjp_call_jaxpr',
)


@rule(*_CALLS)
def _call(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  keys = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
  return g.inline(next(eqn.params[key] for key in keys if key in eqn.params), inputs)


@rule('platform_index')
def _platform(g: Builder, eqn: Any) -> list[str]:
  """Not known; `_branch` does not read it."""
  del eqn
  return [g.constant(np.int32(0))]


@rule('cond')
def _branch(g: Builder, eqn: Any, index: str, *inputs: str) -> list[str]:
  branches = eqn.params['branches']
  if platforms := eqn.params.get('branches_platforms'):
    # Of `lax.platform_dependent`, the form that is for no platform in particular.
    return g.inline(branches[platforms.index(None)], inputs)

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
    found = g.node('ReduceMax', [cast(g, rows, np.int32)], keepdims=0)
    return rows, cast(g, found, bool)

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
    return where(g, rows, new, old, aval.dtype)

  body = g.body(_types(eqn.outvars), make, 'body')
  names = [g.name() for _ in eqn.outvars]
  return g.node_with('Loop', ['', test(g, state)[1], *state], names, body=body)


def _scan_inputs(params: Mapping[str, Any]) -> tuple[int, int]:
  """How many of the inputs of a scan are constants, and how many its state."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  constants, state, _ = params['ft_in'].unpack()  # from jax 0.12 on
  return len(list(constants)), len(list(state))


@rule('scan')
def _scan(g: Builder, eqn: Any, *inputs: str) -> list[str]:
  params = eqn.params
  (a, b), length = _scan_inputs(params), params['length']
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
  flip = lambda x: slice_of(g, x, [-1], [-(2**62)], [0], [-1])
  return [*found[:b], *(flip(x) if params['reverse'] else x for x in found[b:])]
