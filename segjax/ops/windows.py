"""Sliding windows of layers, and receptive fields of stacked layers."""

from collections.abc import Iterable
from typing import NamedTuple


class Window(NamedTuple):
  """The window of a convolution or pooling layer, the same for rows and columns.

  Attributes:
    kernel: kernel size.
    stride: of the window.
    padding: on each side of the input.
  """

  kernel: int
  stride: int = 1
  padding: int = 0


class ReceptiveField(NamedTuple):
  """The receptive field of output i: `size` input pixels, centered at pixel stride·i + center.

  Attributes:
    stride: input pixels per output.
    center: center of the receptive field of output 0; halves are between two pixels.
    size: of the receptive field.
  """

  stride: int
  center: float
  size: int


def receptive_field(windows: Iterable[Window]) -> ReceptiveField:
  """The receptive field of stacked `windows`, from the image on.

  For parallel branches pass the one with the largest kernel: same-padded branches have the same
  center.
  """
  stride, center, size = 1, 0.0, 1
  for kernel, step, padding in windows:
    center += stride * ((kernel - 1) / 2 - padding)
    size += stride * (kernel - 1)
    stride *= step
  return ReceptiveField(stride, center, size)


def bilinear_crop(field: ReceptiveField) -> tuple[int, int]:
  """Kernel and crop of a bilinear upsampling that aligns outputs with their receptive fields.

  Input i of a transposed convolution of kernel k is centered at stride·i + (k - 1) / 2 of its
  output, and should be at stride·i + center of the image: the difference is cropped. Of the two
  bilinear kernel sizes, 2·stride and 2·stride - 1, one makes it an integer.

  Returns:
    (kernel size, rows and columns to crop from the top and left).

  Raises:
    ValueError: the output would start inside the image, which needs more padding.
  """
  kernel = 2 * field.stride
  offset = (kernel - 1) / 2 - field.center
  if offset % 1:
    kernel, offset = kernel - 1, offset - 0.5
  if offset < 0:
    raise ValueError(f'the upsampled output starts {-offset:g} pixels within the image: pad more')
  return kernel, int(offset)


def bottom_padding(field: ReceptiveField, size: int) -> int:
  """Rows to add below an image of `size` rows so that the upsampled scores reach its last row.

  For layers without partial windows, which see (size - 1 - 2 · center) // stride + 1 scores, and
  the upsampling of `bilinear_crop`. 0 if the scores are enough.
  """
  kernel, offset = bilinear_crop(field)
  # The 0 comes second: of a size that `jax.export` calls by a name, it is known not to be more.
  steps = max(-((kernel - offset - size) // field.stride), 0)
  return max(int(2 * field.center) + 1 + field.stride * steps - size, 0)
