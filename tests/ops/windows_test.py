import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.upsample import bilinear_kernel, conv_transpose
from segjax.ops.windows import (
  ReceptiveField,
  Window,
  bilinear_crop,
  bottom_padding,
  receptive_field,
)

STACKS = {
  'one pixel': [],
  '1x1': [Window(1)],
  'strides alone': [Window(1, 3), Window(1, 2)],
  'poolings': [Window(2, 2), Window(2, 2)],
  'padded': [Window(3, 1, 1), Window(5, 1, 2)],
  'even and odd': [Window(3, 1, 4), Window(2, 2), Window(4, 1, 1), Window(3, 2)],
  'strided first': [Window(11, 4, 10), Window(3, 2), Window(5, 1, 2), Window(2, 1)],
}


def reached(windows, pixels):
  """[outputs, pixels]: whether a path leads from the pixel to the output."""
  paths = np.eye(pixels, dtype=bool)
  for kernel, stride, padding in windows:
    padded = np.pad(paths, [(padding, padding), (0, 0)])
    starts = range(0, len(padded) - kernel + 1, stride)
    paths = np.stack([padded[start : start + kernel].any(0) for start in starts])
  return paths


@pytest.mark.parametrize('name', STACKS)
def test_view_is_what_each_output_reaches(name):
  seen, inside = receptive_field(STACKS[name]), 0
  for i, pixels in enumerate(reached(STACKS[name], 120)):
    first, last = seen.stride * i + seen.center + (seen.size - 1) / 2 * np.array([-1, 1])
    if first >= 0 and last < len(pixels):
      np.testing.assert_array_equal(np.flatnonzero(pixels)[[0, -1]], [first, last])
      inside += 1
  assert inside >= 3


@pytest.mark.parametrize(
  'seen',
  [
    ReceptiveField(2, -3.5, 9),
    ReceptiveField(2, -4.0, 9),
    ReceptiveField(4, 1.5, 1),
    ReceptiveField(4, 1.0, 1),
    ReceptiveField(1, 0.0, 1),
  ],
)
def test_bilinear_crop_puts_outputs_on_the_pixels_they_see(seen):
  """A ramp sampled at the centers, upsampled and cropped, is the ramp again."""
  kernel, offset = bilinear_crop(seen)
  assert kernel in (2 * seen.stride - 1, 2 * seen.stride)
  assert (kernel + 1) // 2 == seen.stride
  ramp = (seen.stride * jnp.arange(8.0) + seen.center).reshape(1, 1, 8, 1)
  kernels = bilinear_kernel((1, kernel), 1)
  upsampled = conv_transpose(ramp, kernels, (1, seen.stride))[0, 0, offset:, 0]
  first, last = max(0, int(np.ceil(seen.center))), int(7 * seen.stride + seen.center)
  np.testing.assert_allclose(upsampled[first:last], np.arange(first, last), atol=1e-5)


def test_an_unpadded_stack_cannot_be_cropped_to_its_image():
  # Output 0 is at 4.5 + 0.5 + 2 · 4.5 = 14; the kernel of stride 2 reaches 1 before it.
  with pytest.raises(ValueError, match='starts 13 pixels within the image: pad more'):
    bilinear_crop(receptive_field([Window(10), Window(2, 2), Window(10)]))


PADDED = {
  'even': [Window(3, 1, 1), Window(2, 2), Window(4, 2, 1)],
  'odd': [Window(5, 2, 7), Window(3, 2), Window(3, 1, 1), Window(3, 1)],
}


@pytest.mark.parametrize('name', PADDED)
def test_missing_is_the_least_with_which_the_scores_reach_the_last_row(name):
  windows = PADDED[name]
  seen = receptive_field(windows)
  kernel, offset = bilinear_crop(seen)

  def enough(image, size):
    padding = [2 * w.padding for w in windows]
    scores = image
    for (step_kernel, stride, _), both in zip(windows, padding, strict=True):
      scores = (scores + both - step_kernel) // stride + 1
    return scores >= 1 and seen.stride * (scores - 1) + kernel - offset >= size

  added = [bottom_padding(seen, size) for size in range(1, 60)]
  assert {n > 0 for n in added} == {True, False}
  for size, more in enumerate(added, 1):
    assert enough(size + more, size)
    assert more == 0 or not enough(size + more - 1, size)
