"""Compilation of steps: the persistent cache, and compiler options for CPUs."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# jaxlib 0.10 uses YNNPACK for convolutions on CPUs, whose filter gradient is several times slower
# than Eigen's: restrict it to dots and reductions.
_CPU_OPTIONS = {
  'xla_cpu_experimental_ynn_fusion_type': (
    'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
  ),
  # Without this pass the barriers of `jax.checkpoint` outlive scheduling. With it XLA computes the
  # activations again early, and saves no memory.
  'xla_disable_hlo_passes': 'cse_barrier_expander',
}


# For programs that run once, such as the initializer, optimization costs more than it saves.
_ONCE_OPTIONS = {'xla_backend_optimization_level': '0'}


@functools.cache
def compiler_options(*, once: bool = False) -> dict[str, str]:
  """Compiler options for a step; empty except on CPUs that support them.

  Args:
    once: optimize compile time instead, for a program that runs once.
  """
  if jax.default_backend() != 'cpu':
    return {}
  options = _ONCE_OPTIONS if once else _CPU_OPTIONS
  try:
    jax.jit(lambda x: x + 1, compiler_options=options).lower(jnp.zeros(())).compile()
  except jax.errors.JaxRuntimeError:  # this jaxlib does not have the option
    return {}
  return options


def jit(function: Callable[..., Any], *, once: bool = False, **kwargs: Any) -> Callable[..., Any]:
  """`jax.jit` with `compiler_options()`."""
  return jax.jit(function, compiler_options=compiler_options(once=once) or None, **kwargs)


def enable_cache() -> None:
  """Enables JAX's persistent compilation cache in the user's cache directory, unless it is set."""
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(Path(root) / 'segjax' / 'jax'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
