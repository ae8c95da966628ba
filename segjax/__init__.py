"""segjax: image segmentation in JAX and Flax Linen, from a config to a paper's table."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from segjax.api import Predictor, Result, evaluate, load, train

__version__ = '0.1.0'

__all__ = ['Predictor', 'Result', 'evaluate', 'load', 'train']


def __getattr__(name: str) -> Any:
  # On request: the API imports JAX, which the command line's help does not need.
  if name in __all__:
    return getattr(importlib.import_module('segjax.api'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
