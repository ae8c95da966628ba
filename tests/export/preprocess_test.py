"""The preprocessing in exported programs: that of `prepare_image`, pixel by pixel."""

import cv2
import jax
import numpy as np
import pytest
from inputs import input_config

from segjax.data import order, pipeline
from segjax.data.batch import mean_color
from segjax.export import preprocess
from segjax.ops.normalize import normalize_pixels

SIZES = {
  'stretch': {'image_size': (24, 36)},
  'fit': {'image_size': (24, 36), 'resize': 'fit'},
  'short side': {'short_side': (24,), 'longest_side': 50, 'shapes': ((64, 64),)},
  'padded': {'shapes': ((96, 96),)},
  'multiple': {},
}
# Smaller and larger along each axis, half the size along both, and the same.
NATIVE = [(37, 53), (20, 61), (60, 30), (48, 72), (24, 36), (11, 17)]


def photograph(size, channels=3):
  """u8[H, W, C] with edges and gradients."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (7, 9, channels), np.uint8)
  return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)


def prepare(config, native, *, symbolic):
  """The compiled preprocessing of images of a size, which the program knows or not."""
  data = config.data
  fixed = data.size.image_size or data.size.shapes

  def function(image):
    sides = tuple(image.shape[1:3])
    seen = preprocess.seen_size(sides, data.size)
    canvas = order.shape_alone(native, config) if fixed else order.multiple_shape(sides)
    color, interpolation = mean_color(data), data.size.interpolation
    return preprocess.prepare(image, seen, canvas, interpolation, color, data.mean, data.std)

  if not symbolic:
    return jax.jit(function)
  limits = ['h <= 96', 'w <= 96'] if data.size.shapes == ((96, 96),) else []
  shape = jax.export.symbolic_shape('b, h, w, 3', constraints=limits)
  exported = jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct(shape, np.uint8))
  return exported.call


@pytest.mark.parametrize('interpolation', ['area', 'bilinear', 'bicubic'])
@pytest.mark.parametrize('size', SIZES)
def test_images_are_resized_padded_and_normalized_as_in_the_evaluation(size, interpolation):
  config = input_config(
    **SIZES[size], interpolation=interpolation, mean=(10.0, 20.0, 30.0), std=(50.0,)
  )
  program_of_any = prepare(config, (37, 53), symbolic=True)
  for native in NATIVE:
    image = photograph(native)
    pixels = pipeline.prepare_image(image, config)[0]['image']
    expected = np.asarray(normalize_pixels(pixels, config.data.mean, config.data.std))
    for run in (program_of_any, prepare(config, native, symbolic=False)):
      found = np.asarray(run(image[None]))
      assert found.shape == expected.shape
      levels = np.abs(found - expected) * 50  # of 0..255
      # The last columns of a row pass another path of OpenCV.
      assert levels.max() <= 1.001 and (levels > 0.01).mean() < 0.02, native


@pytest.mark.parametrize('size', SIZES)
def test_the_size_of_an_image_of_unknown_size(size):
  data = input_config(**SIZES[size]).data
  for native in [*NATIVE, (1, 90), (300, 7), (63, 63), (125, 500), (25, 50)]:
    expected = order.eval_size(native, input_config(**SIZES[size]))
    found = jax.jit(lambda h, w: preprocess.seen_size((h, w), data.size))(*map(np.int32, native))
    assert tuple(map(int, found)) == preprocess.seen_size(native, data.size) == expected


def test_scores_are_resized_as_by_opencv():
  scores = np.random.default_rng(0).normal(size=(1, 32, 40, 5)).astype(np.float32)
  expected = cv2.resize(scores[0, :20, :30], (61, 47), interpolation=cv2.INTER_LINEAR)
  found = jax.jit(lambda x: preprocess.resize_scores(x, (20, 30), (47, 61)))(scores)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
