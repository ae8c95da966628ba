"""Compilation of steps: the persistent cache, compiler options for CPUs, and what was compiled."""

import contextlib
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# jaxlib 0.10 uses YNNPACK for convolutions on CPUs, whose filter gradient is several times slower
# than Eigen's: restrict it to dots and reductions.
_CPU_OPTIONS = {
  'xla_cpu_experimental_ynn_fusion_type': (
    'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
  ),
  # Without this pass the barriers of `jax.checkpoint` and of `ops.conv` outlive scheduling. With it
  # XLA computes the activations again early, and saves no memory. But what makes a function of a
  # small loop cannot compile a barrier in it ("Unhandled opcode", or a failed check that ends the
  # process).
  'xla_disable_hlo_passes': 'cse_barrier_expander,small-while-loop-hoisting',
}


# For programs that run once, such as the initializer, optimization costs more than it saves.
_ONCE_OPTIONS = {'xla_backend_optimization_level': '0'}
# Of the cache in the user's directory: thousands of programs for a CPU, of up to a few megabytes.
_CACHE_BYTES = 4 * 2**30


@functools.cache
def compiler_options(*, once: bool = False) -> dict[str, str]:
  """Compiler options for a step: on CPUs, those that this jaxlib supports.

  Args:
    once: optimize compile time instead, for a program that runs once.
  """
  if jax.default_backend() != 'cpu':
    return {}
  options = _ONCE_OPTIONS if once else _CPU_OPTIONS
  return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: str) -> bool:
  """Whether this jaxlib has the option."""
  try:
    jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(jnp.zeros(())).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def jit(function: Callable[..., Any], *, once: bool = False, **kwargs: Any) -> Callable[..., Any]:
  """`jax.jit` with `compiler_options()`, traced by `traced_fast`."""
  options = compiler_options(once=once) or None
  return jax.jit(traced_fast(function), compiler_options=options, **kwargs)


def traced_fast(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, to be traced: meanwhile the garbage collector is off.

  A trace allocates hundreds of thousands of objects that stay, which the collector would visit
  again and again: a quarter of the time of tracing a Mask R-CNN.
  """

  @functools.wraps(getattr(function, 'func', function))  # a partial has no name
  def traced(*args: Any, **kwargs: Any) -> Any:
    with _without_collector():
      return function(*args, **kwargs)

  return traced


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


# --- what was compiled ----------------------------------------------------------------------------


class Compilations(NamedTuple):
  """Programs that this process has compiled, or read from the cache, so far.

  Attributes:
    programs: their number.
    cached: of them, those that were read from the cache.
  """

  programs: int = 0
  cached: int = 0


_COMPILED = '/jax/core/compile/backend_compile_duration'
_READ = '/jax/compilation_cache/cache_hits'
_counts: dict[str, int] = dict.fromkeys((_COMPILED, _READ), 0)
_counting = threading.Lock()


def compilations() -> Compilations:
  """What was compiled since the first call, by all threads."""
  _listen()
  return Compilations(_counts[_COMPILED], _counts[_READ])


@functools.cache
def _listen() -> None:
  jax.monitoring.register_event_listener(lambda event, **_: _count(event))
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _count(event))


def _count(event: str) -> None:
  if event in _counts:
    with _counting:
      _counts[event] += 1


def announced(
  function: Callable[..., Any], what: str, report: Callable[[str], None]
) -> Callable[..., Any]:
  """`function`, whose calls `report` how long it took if they compiled something.

  Args:
    function: compiled, or `Lowered.compile`.
    what: is compiled, such as 'train step'.
    report: gets a line such as 'train step: compiled in 34 s' or '…: read from the cache in 2.1 s'.
  """

  def call(*args: Any) -> Any:
    before, start = compilations(), time.perf_counter()
    found = function(*args)
    after = compilations()
    if after.programs > before.programs:
      seconds = time.perf_counter() - start
      read = after.cached - before.cached == after.programs - before.programs
      how = 'read from the cache' if read else 'compiled'
      report(f'{what}: {how} in {seconds:.{seconds < 10:d}f} s')
    return found

  return call


# --- the cache ------------------------------------------------------------------------------------


def enable_cache() -> None:
  """Enables JAX's persistent compilation cache in the user's cache directory, unless it is set.

  The programs that were not used for the longest time are deleted from it where it is too large.
  """
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    directory = Path(root) / 'segjax' / 'jax'
    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    prune(directory, _CACHE_BYTES)


def prune(directory: Path, limit: int) -> None:
  """Deletes the files of a cache that were not used for the longest time, down to `limit` bytes.

  JAX's own limit (`jax_compilation_cache_max_size`) stores a second file for each program, and
  writes nothing more once it finds a program without one, as those of older versions and of killed
  processes are.
  """
  found = []
  for path in directory.glob('*-cache'):
    with contextlib.suppress(OSError):  # another process deleted it
      status = path.stat()
      found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  excess = sum(size for _, size, _ in found) - limit
  for _, size, path in sorted(found):
    if excess <= 0:
      return
    with contextlib.suppress(OSError):
      path.unlink()
    excess -= size
