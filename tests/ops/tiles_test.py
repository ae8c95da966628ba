import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.ops.pooling import max_pool_2x2
from segjax.ops.tiles import map_blocks, mean_of_windows, overlap_tile
from segjax.ops.upsample import conv_transpose
from segjax.types import SegjaxError

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def network(padding, cin=2, cout=3):
  """Two 3x3 convolutions: a receptive field of 5x5, so a margin of 2."""
  k1, k2 = normal(3, 3, cin, 4), normal(3, 3, 4, cout)

  def apply(x):
    y = jnp.tanh(lax.conv_general_dilated(x, k1, (1, 1), padding, dimension_numbers=LAYOUT))
    return lax.conv_general_dilated(y, k2, (1, 1), padding, dimension_numbers=LAYOUT)

  return apply


def mirrored(image, margin):
  """np.pad keeps reflecting where the margin exceeds the image."""
  (mh, mw) = np.broadcast_to(margin, 2)
  return np.pad(np.asarray(image), ((0, 0), (mh, mh), (mw, mw), (0, 0)), mode='reflect')


@pytest.mark.parametrize(
  'size, tile, margin',
  [
    ((8, 8), 4, 2),  # whole tiles
    ((11, 7), 4, 2),  # sizes that the tile does not divide
    ((5, 9), (3, 4), 2),  # rectangular tiles
    ((3, 2), 8, 2),  # an image smaller than a tile, and a mirror longer than the image
    ((1, 1), 4, 2),  # one pixel
    ((1, 6), 4, 2),
    ((6, 5), 1, 2),  # tiles of one pixel
  ],
)
@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
def test_equals_the_whole_image(size, tile, margin, padding):
  image = normal(2, *size, 2)
  expected = jax.jit(network('VALID'))(mirrored(image, margin))
  y = jax.jit(lambda x: overlap_tile(network(padding), x, tile, margin))(image)
  assert y.shape == (2, *size, 3)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def pooled(x):
  """An unpadded U-Net of one level: stride 2, margin 6, any even size out."""

  def convolve(x, cout):
    y = lax.conv_general_dilated(
      x, normal(3, 3, x.shape[-1], cout), (1, 1), 'VALID', dimension_numbers=LAYOUT
    )
    return jnp.tanh(y / 4)

  skip = convolve(x, 4)
  y = conv_transpose(convolve(convolve(max_pool_2x2(skip), 4), 4), normal(2, 2, 4, 4), 2)
  cut = (skip.shape[1] - y.shape[1]) // 2
  return convolve(jnp.concatenate([skip[:, cut:-cut, cut:-cut], y], -1), 3)


@pytest.mark.parametrize('size', [(14, 18), (26, 10), (5, 7)])
@pytest.mark.parametrize('tile', [(6, 10), (10, 14)])
def test_equals_the_whole_image_for_a_network_that_pools(size, tile):
  # Tiles are adjacent at stride 2; at stride 4 they overlap by 2.
  image = normal(1, *size, 2)
  ends = [6 + n % 2 for n in size]
  pads = ((0, 0), (6, ends[0]), (6, ends[1]), (0, 0))
  expected = jax.jit(pooled)(np.pad(image, pads, mode='reflect'))
  for stride in (2, 4):
    y = jax.jit(lambda x, s=stride: overlap_tile(pooled, x, tile, 6, s))(image)
    np.testing.assert_allclose(y, expected[:, : size[0], : size[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('axis', [1, 2])
def test_tiles_start_at_multiples_of_the_stride(axis):
  image = np.expand_dims(np.arange(11.0, dtype=np.float32), [i for i in range(4) if i != axis])
  starts = []

  def apply(x):
    jax.debug.callback(lambda x: starts.append(int(x)), x[0, 0, 0, 0], ordered=True)
    return x

  tile = (7, 4) if axis == 1 else (4, 7)
  y = overlap_tile(apply, image, tile, 0, stride=4)
  jax.effects_barrier()
  np.testing.assert_array_equal(y, image)
  assert starts == [0, 4]  # And no third tile: the second reaches the end.


def by_window(x):
  """Differs by the place in the window."""
  y, x_ = np.mgrid[: x.shape[1], : x.shape[2]]
  return jnp.concatenate([x * (1 + y + 2 * x_)[..., None], x**2], -1)


def mean_by_hand(image, window):
  """EoMT's inference, as its public code has it: windows along the longer side of one image."""
  height, width = image.shape[:2]
  count = math.ceil(max(height, width) / window)
  overlap = count * window - max(height, width)
  step = window - (overlap / (count - 1) if overlap > 0 else 0)
  total, times = np.zeros((height, width, 2)), np.zeros((height, width, 1))
  for i in range(count):
    start = int(i * step)
    part = np.s_[start : start + window] if height > width else np.s_[:, start : start + window]
    total[part] += by_window(image[part][None])[0]
    times[part] += 1
  return total / times


@pytest.mark.parametrize(
  'sizes',
  [[(8, 8)], [(8, 16)], [(8, 21), (8, 9), (8, 8)], [(8, 20), (17, 8)], [(30, 8), (8, 23)]],
)
def test_windows_are_those_of_the_published_inference(sizes):
  """Of each image inside its padding, which is as large as the largest one needs."""
  canvas = tuple(-(-max(side) // 8) * 8 for side in zip(*sizes, strict=True))
  images = normal(len(sizes), *canvas, 1)
  run = jax.jit(lambda x, size: mean_of_windows(by_window, x, size, (8, 8)))
  found = np.asarray(run(images, np.array(sizes, np.int32)))
  for image, (height, width), one in zip(images, sizes, found, strict=True):
    expected = mean_by_hand(image[:height, :width], 8)
    np.testing.assert_allclose(one[:height, :width], expected, rtol=1e-5, atol=1e-5)
    assert not one[height:].any() and not one[:, width:].any()


def test_windows_along_both_axes():
  """Each pixel is covered; what does not depend on the window is as it is without windows."""
  image, size = normal(1, 20, 28, 1), np.array([[19, 27]], np.int32)
  found = mean_of_windows(lambda x: 3 * x, image, size, (8, 12))[0, :19, :27]
  np.testing.assert_allclose(found, 3 * image[0, :19, :27], rtol=1e-5)


def test_a_tile_smaller_than_the_stride():
  with pytest.raises(SegjaxError, match='4x4 is too small: use at least 8x8'):
    overlap_tile(lambda x: x, jnp.zeros((1, 8, 8, 1)), 4, 0, stride=8)


def test_reads_the_mirrored_surroundings_however_far():
  image = normal(1, 4, 3, 1)
  margin, tile = 9, (4, 3)
  seen = []

  def apply(x):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
    return x[:, margin:-margin, margin:-margin]

  y = overlap_tile(apply, image, tile, margin)
  jax.effects_barrier()
  np.testing.assert_array_equal(y, image)
  np.testing.assert_array_equal(seen[0], mirrored(image, margin))


def test_no_margin_and_jit():
  image = normal(2, 5, 6, 1)
  y = jax.jit(lambda x: overlap_tile(lambda t: 2 * t, x, 4, 0))(image)
  np.testing.assert_allclose(y, 2 * image)


def test_gradient_reaches_every_pixel_once():
  image = jnp.zeros((1, 5, 7, 1))

  def total(x):
    return overlap_tile(lambda t: t[:, 2:-2, 2:-2], x, 3, 2, stride=2).sum()

  gradient = jax.jit(jax.grad(total))(image)
  np.testing.assert_array_equal(gradient, jnp.ones_like(image))


def test_a_tile_that_does_not_fit_the_model():
  with pytest.raises(SegjaxError, match='4x4 with a margin of 2x2 has an output of 7x7'):
    overlap_tile(lambda t: t[:, :7, :7], jnp.zeros((1, 8, 8, 1)), 4, 2)


@pytest.mark.parametrize(
  ('size', 'block', 'context'),
  [
    ((8, 12), (4, 4), 2),
    ((11, 7), (4, 3), 2),
    ((3, 2), (8, 8), 2),  # an image smaller than a block
    ((9, 9), (4, 4), 0),
    ((10, 6), (2, 3), 5),  # a context larger than a block
  ],
)
def test_blocks_see_their_surroundings(size, block, context):
  image = np.random.default_rng(0).integers(0, 256, (*size, 2), np.uint8)

  def function(window):
    assert window.shape == (block[0] + 2 * context, block[1] + 2 * context, 2)
    # Of the window's rows, which are those of the image: the value `context` rows above.
    above = np.roll(window[..., 0], context, axis=0)
    return {'same': window, 'above': above.astype(np.int32)}

  read = lambda rows, columns: image[rows[:, None], columns]
  found = map_blocks(function, read, image.shape[:2], block, context)
  np.testing.assert_array_equal(found['same'], image)
  assert (found['same'].dtype, found['above'].dtype) == (np.uint8, np.int32)
  expected = mirrored(image[None], context)[0, : size[0], context : context + size[1], 0]
  np.testing.assert_array_equal(found['above'], expected)
