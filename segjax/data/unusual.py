"""Whether an image is like those that a network was trained on: its size, and its channels.

What training images are like is measured once, when a run starts, and is kept in its workdir.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax.data.config import SizeConfig
from segjax.data.read import Reader
from segjax.data.sample import Size
from segjax.data.statistics import spread
from segjax.data.windows import Windows
from segjax.types import SegjaxError, tuples

# Training images that are read, evenly spaced.
_READ = 64
# Rows at once of an image that is read by windows.
_STRIP = 512
# How far from all of them an image may be: a factor of its sides, and of the contrast of its
# channels, and a difference of the channels' means, 0..255.
_FACTOR, _SHIFT = 2.0, 32.0


class ImageRanges(NamedTuple):
  """The lowest and highest value among training images.

  Attributes:
    side: square root of the number of pixels.
    mean: of the pixels of each channel, 0..255.
    std: likewise.
    resized: whether the network sees all images at one size, so that a large one is not unusual.
    common: height and width of all images of the evaluation, see `order.common_size`; None if they
      differ or are padded.
  """

  side: tuple[float, float]
  mean: tuple[tuple[float, float], ...]
  std: tuple[tuple[float, float], ...]
  resized: bool
  common: Size | None = None

  def to_json(self) -> dict[str, Any]:
    """A dict that `json` can write and `from_json` reads back."""
    return self._asdict()

  @classmethod
  def from_json(cls, content: Mapping[str, Any] | None) -> 'ImageRanges | None':
    """The inverse of `to_json`; None of the None that runs of earlier versions have."""
    return content and cls(**{key: tuples(value) for key, value in content.items()})


def measure(reader: Reader, size: SizeConfig) -> ImageRanges | None:
  """The ranges of a training split, from a sample; None if not one of its images can be read.

  Args:
    reader: of the split.
    size: of the run.
  """
  sides, means, stds = [], [], []
  for index in spread(len(reader), _READ):
    with contextlib.suppress(SegjaxError):  # a broken example is the pipeline's to report
      side, mean, std = _describe(reader[index].image)
      sides.append(side)
      means.append(mean)
      stds.append(std)
  if not sides:
    return None
  resized = size.image_size is not None or size.short_side is not None
  (side,) = _ranges(np.reshape(sides, (-1, 1)))
  return ImageRanges(side, _ranges(means), _ranges(stds), resized)


def describe(image: np.ndarray | Windows, ranges: ImageRanges | None) -> str:
  """How an image u8[H, W, C] differs from training images; '' where it does not, or nobody knows.

  Returns:
    Such as 'it is 4000x3000 pixels, and training images had 480x480 at most'.
  """
  if ranges is None:
    return ''
  side, mean, std = _describe(image)
  low, high = ranges.side
  shape = f'it is {image.shape[1]}x{image.shape[0]} pixels, training images had at'
  found = []
  if side * _FACTOR < low:
    found.append(f'{shape} least the area of {low:.0f}x{low:.0f}')
  if side > high * _FACTOR and not ranges.resized:
    found.append(f'{shape} most the area of {high:.0f}x{high:.0f}')
  channels = zip(mean, std, ranges.mean, ranges.std, strict=True)
  for number, (value, spread_, means, stds) in enumerate(channels, 1):
    if not means[0] - _SHIFT <= value <= means[1] + _SHIFT:
      found.append(f'the mean of channel {number} is {value:.0f}, {_span(means)} in training')
      break
    if not stds[0] / _FACTOR <= spread_ <= stds[1] * _FACTOR:
      found.append(
        f'the standard deviation of channel {number} is {spread_:.0f}, {_span(stds)} in training'
      )
      break
  return ' and '.join(found)


def _describe(image: np.ndarray | Windows) -> tuple[float, np.ndarray, np.ndarray]:
  side = float(np.sqrt(image.shape[0] * image.shape[1]))
  if isinstance(image, Windows):
    return side, *_moments(image)
  mean, std = (values[:, 0] for values in cv2.meanStdDev(np.ascontiguousarray(image)))
  return side, mean, std


def _moments(image: Windows) -> tuple[np.ndarray, np.ndarray]:
  """The mean and the standard deviation of each channel, read by strips."""
  height, _, channels = image.shape
  first, second = np.zeros(channels), np.zeros(channels)
  for top in range(0, height, _STRIP):
    strip = image[top : top + _STRIP]
    mean, std = (values[:, 0] for values in cv2.meanStdDev(strip))
    first += mean * len(strip) / height
    second += (mean**2 + std**2) * len(strip) / height
  return first, np.sqrt(np.maximum(second - first**2, 0))


def _ranges(values: Any) -> tuple[tuple[float, float], ...]:
  """The lowest and the highest of each column."""
  array = np.asarray(values)
  lows, highs = array.min(0).round(2).tolist(), array.max(0).round(2).tolist()
  return tuple(zip(lows, highs, strict=True))


def _span(ends: tuple[float, float]) -> str:
  return f'{ends[0]:.0f} to {ends[1]:.0f}'
