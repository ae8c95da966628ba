"""Types and constants shared by every part of segjax.

Shape letters: B batch, H W image rows and columns, C channels or classes, N padded ground-truth
instances, R RoIs, K detections. Images are NHWC, RGB, float32, normalized. Boxes are
`[x0, y0, x1, y1]` in input pixels, continuous coordinates (no +1).
"""

import difflib
import errno
import signal
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
  from jax import Array as Array

# The label value that losses and metrics ignore, above every class of a 16-bit label map. Prepared
# files store void as the highest value of their bit depth, see `data.read`.
IGNORE_LABEL = 65_535

# Errors of the system that are of a connection or a device, not of a path.
_OUTAGES = frozenset(
  {
    *(errno.EIO, errno.ESTALE, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
  }
)


class Range(NamedTuple):
  """The range of values of a config key: `Annotated[float, Range(0, 1)]`.

  Attributes:
    low: lower bound, or None.
    high: upper bound, or None.
    open: which bounds are excluded: '', 'low', 'high' or 'both'.
  """

  low: float | None = None
  high: float | None = None
  open: str = ''

  def __contains__(self, value: Any) -> bool:
    low_open, high_open = self.open in ('low', 'both'), self.open in ('high', 'both')
    above = self.low is None or (value > self.low if low_open else value >= self.low)
    below = self.high is None or (value < self.high if high_open else value <= self.high)
    return above and below

  def __str__(self) -> str:
    low, high = (x if x is None or isinstance(x, int) else f'{x:g}' for x in (self.low, self.high))
    if low is not None and high is not None:
      left, right = (
        '(' if self.open in ('low', 'both') else '[',
        ')' if self.open in ('high', 'both') else ']',
      )
      return f'in {left}{low}, {high}{right}'
    if low is not None:
      return f'greater than {low}' if self.open else f'{low} or greater'
    if high is not None:
      return f'less than {high}' if self.open else f'{high} or less'
    return 'a finite number'


PositiveInt: TypeAlias = Annotated[int, Range(1)]
NonNegativeInt: TypeAlias = Annotated[int, Range(0)]
PositiveFloat: TypeAlias = Annotated[float, Range(0, open='low')]
NonNegativeFloat: TypeAlias = Annotated[float, Range(0)]
Fraction: TypeAlias = Annotated[float, Range(0, 1)]
PositiveFraction: TypeAlias = Annotated[float, Range(0, 1, open='low')]
AnyFloat: TypeAlias = Annotated[float, Range()]

# The batch that a task's functions read. Semantic tasks use
#   image  f32[B, H, W, C]  normalized, or u8 pixels where the task is `tasks.base.from_pixels`;
#                           H and W include the model's margin where it has one
#   label  i32[B, h, w]     class index or IGNORE_LABEL
#   weight f32[B, h, w]     loss weight per pixel, only if the config asks for one
#   valid  bool[B]          False for padding of an evaluation batch
#   size   i32[B, 2]        height and width of the image without its padding, in evaluation
#   seed   u32[B]           of what the network samples for each image, in training
# Instance tasks use image, valid, size, in training too, and
#   instances `Instances`
# Panoptic tasks also use
#   label     i32[B, H, W]  as above, in training
#   segments  `Segments`    in evaluation, at the original image sizes, padded
#   native    i32[B, 2]     these sizes, in evaluation
Batch: TypeAlias = Mapping[str, Any]


class SumCount(NamedTuple):
  """A mean before its division: `sum / count`, summed over all devices and hosts first.

  Attributes:
    sum: f32[] total.
    count: f32[] divisor of the total; 0 if there was nothing to count.
  """

  sum: Any
  count: Any


class Instances(NamedTuple):
  """The ground-truth objects of a batch of images, padded to N per image.

  Attributes:
    boxes: f32[B, N, 4], around the visible pixels; zeros for padding.
    classes: i32[B, N], index among the thing classes, from 0; there is no background class.
    masks: u8[B, N, H, ceil(W / 8)], one bit per pixel, see `segjax.ops.masks.pack_masks`.
    crowd: bool[B, N], a region of many objects (COCO's iscrowd): never matched; boxes on it are
      background, as in torchvision and Detectron2.
    valid: bool[B, N], False for padding.
  """

  boxes: Any
  classes: Any
  masks: Any
  crowd: Any
  valid: Any


class Detections(NamedTuple):
  """Detected objects of a batch of images, K per image in descending order of score.

  Attributes:
    boxes: f32[B, K, 4].
    classes: i32[B, K], index among the thing classes, from 0.
    scores: f32[B, K], probability.
    masks: f32[B, K, M, M], probability inside the box; None without a mask head.
    valid: bool[B, K], False for padding.
  """

  boxes: Any
  classes: Any
  scores: Any
  masks: Any
  valid: Any


class Segments(NamedTuple):
  """Panoptic segments of a batch of images, at most S per image.

  A pixel belongs to one segment or none by construction. Segment k is described at index k - 1.
  Pixels of a segment that is not valid belong to none.

  Attributes:
    ids: i32[B, H, W], from 1 to S; 0 is void, and padding.
    classes: i32[B, S], class index, things and stuff numbered together.
    crowd: bool[B, S], a region of many objects; False in predictions.
    valid: bool[B, S].
  """

  ids: Any
  classes: Any
  crowd: Any
  valid: Any


class SegjaxError(Exception):
  """An error that the user can fix: one sentence with the file or key, and what to do.

  The command line prints it without a traceback and exits with status `exit_code`.
  """

  exit_code = 2


class MissingProcessError(SegjaxError):
  """One of several processes did not come, see `config.mesh.init_timeout`."""

  exit_code = 69


class OutageError(SegjaxError):
  """Storage or the network failed, see `is_outage`: the same command may succeed later."""

  exit_code = 74


class LostProcessError(SegjaxError):
  """One of several processes failed, died or does not answer, see `config.mesh.heartbeat`."""

  exit_code = 75


class HangingError(SegjaxError):
  """Nothing makes progress any more, see `config.mesh.hang_timeout`."""

  exit_code = 76


class StoppedError(Exception):
  """The run was stopped by a signal, after saving its state.

  Attributes:
    step: the last step.
    signum: the signal.
  """

  def __init__(self, step: int, signum: int):
    super().__init__(f'{signal.Signals(signum).name} after step {step}')
    self.step, self.signum = step, signum


def is_outage(error: BaseException) -> bool:
  """Whether an error is of a connection or a device, so that it may be gone in a second attempt."""
  # Errors of libraries, such as aiohttp's, have the number without being of Python's class.
  number = isinstance(error, OSError) and error.errno in _OUTAGES
  return number or isinstance(error, ConnectionError | TimeoutError)


def tuples(value: Any) -> Any:
  """A value from JSON, with tuples for its lists at any depth."""
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def nearest(name: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
  """`': did you mean X?'` with the closest of `names`, else `': choose from …'` with `shown`."""
  names = list(names)
  if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
    return f': did you mean {close[0]}?'
  return f': choose from {", ".join(sorted(names if shown is None else shown)) or "none"}'


def __getattr__(name: str) -> Any:
  """`Array`, imported when it is asked for, so that errors and tables do not need JAX."""
  if name == 'Array':
    from jax import Array

    return Array
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
