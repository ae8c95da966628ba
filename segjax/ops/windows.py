"""Windows that slide over rows and columns: which pixels an output of stacked layers sees."""

from collections.abc import Iterable
from typing import NamedTuple


class Window(NamedTuple):
  """Of a convolution or a pooling, the same for rows and columns.

  Attributes:
    kernel: its size.
    stride: the step from one output to the next.
    padding: rows and columns added on each side of the input.
  """

  kernel: int
  stride: int = 1
  padding: int = 0


class View(NamedTuple):
  """Output i of stacked windows sees `size` pixels of the input around pixel stride·i + center.

  Attributes:
    stride: input pixels from one output to the next.
    center: the pixel that output 0 lies on; halves fall between two pixels.
    size: the receptive field.
  """

  stride: int
  center: float
  size: int


def view(windows: Iterable[Window]) -> View:
  """What an output of `windows`, the first of which takes the image, sees of the image.

  Of parallel branches give the one with the largest kernel: where each is padded to keep the size,
  all have the same center.
  """
  stride, center, size = 1, 0.0, 1
  for kernel, step, padding in windows:
    center += stride * ((kernel - 1) / 2 - padding)
    size += stride * (kernel - 1)
    stride *= step
  return View(stride, center, size)


def bilinear_crop(seen: View) -> tuple[int, int]:
  """How outputs that see `seen` are brought back to the pixels that they lie on.

  Input i of a transposed convolution of kernel k lies at stride·i + (k - 1) / 2 of its output,
  which is to be at stride·i + center of the image: what is before is cropped off. Of the two
  kernels that interpolate bilinearly, 2·stride and 2·stride - 1, one makes that a whole number.

  Returns:
    (kernel size, rows and columns to crop off the top and left).

  Raises:
    ValueError: the output would start within the image, which has to be padded more.
  """
  kernel = 2 * seen.stride
  offset = (kernel - 1) / 2 - seen.center
  if offset % 1:
    kernel, offset = kernel - 1, offset - 0.5
  if offset < 0:
    raise ValueError(f'the upsampled output starts {-offset:g} pixels within the image: pad more')
  return kernel, int(offset)
