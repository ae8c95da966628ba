"""Types and constants shared by every part of segjax.

Shape letters: B batch, H W image rows and columns, C channels or classes, N padded ground-truth
instances, R regions, K detections. Images are NHWC, RGB, float32, normalised. Boxes are
`[x0, y0, x1, y1]` in input pixels, continuous coordinates (no +1).
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

# The one label value that no loss and no metric counts; builders and transforms map void to it.
IGNORE_LABEL = 255

Array: TypeAlias = jax.Array

# What a task's functions read. Dense tasks use
#   image  f32[B, H, W, C]  normalised; H and W include the model's margin where it has one
#   label  i32[B, h, w]     class index or IGNORE_LABEL
#   weight f32[B, h, w]     loss weight a pixel, only where the config asks for one
#   valid  bool[B]          False for an example that only fills up an evaluation batch
Batch: TypeAlias = Mapping[str, Any]


class SumCount(NamedTuple):
  """A quantity before its one division: the mean is `sum / count`, over all devices and hosts.

  Attributes:
    sum: f32[] total.
    count: f32[] what the total is divided by; 0 where there was nothing to count.
  """

  sum: Any
  count: Any


class SegjaxError(Exception):
  """An error that the user can mend: one sentence with the file or key, and what to do.

  The command line prints it without a traceback and exits with status 2.
  """


def nearest(name: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
  """`': did you mean X?'` with the nearest of `names`, else `': known are …'` with `shown`."""
  names = list(names)
  if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
    return f': did you mean {close[0]}?'
  return f': known are {", ".join(sorted(names if shown is None else shown)) or "none"}'
