"""What this machine reaches: operations and bytes a second, and what is installed."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from segjax import provenance

# Side of the square matrices whose product is timed, on a CPU and on what a small product would not
# fill, and elements of the array that is copied.
SIDE, LARGE_SIDE = 2048, 8192
ELEMENTS = 2**26
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'numpy',
  'opencv-python-headless',
  'pycocotools',
  'faster-coco-eval',
  'torch',
  'torchvision',
  'transformers',
)


def peak(dtype: str = 'float32', repeats: int = 3) -> dict[str, float]:
  """The measured peak a second: `flops`, of a matrix product, and `bytes`, of a copy.

  A copy reads and writes: both count.

  Args:
    dtype: of the matrices.
    repeats: the least time of so many counts.
  """
  side = SIDE if jax.default_backend() == 'cpu' else LARGE_SIDE
  # Random, as a GPU multiplies ones faster.
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
  array = jnp.ones(ELEMENTS, jnp.float32)
  # In place: a fresh result would cost a page fault for each page.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  holder = [add(array)]

  def copy() -> None:
    holder[0] = jax.block_until_ready(add(holder[0]))

  product = jax.jit(lambda a: a @ a)
  return {
    'flops': 2 * side**3 / _least(lambda: jax.block_until_ready(product(matrix)), repeats),
    'bytes': 8 * ELEMENTS / _least(copy, repeats),
  }


def facts() -> dict[str, Any]:
  """Commit, hardware, versions and load of a result, as plain JSON values."""
  found = provenance.provenance()
  return {
    'date': found['time'][:10],
    'commit': found['commit'],
    'dirty': found['dirty'],
    'hardware': found['hardware'],
    'versions': versions(),
    'load': round(os.getloadavg()[0], 2),
  }


def versions() -> dict[str, str]:
  """Of Python and of the packages that are compared, where they are installed."""
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _least(run: Callable[[], Any], repeats: int) -> float:
  run()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return min(seconds)
