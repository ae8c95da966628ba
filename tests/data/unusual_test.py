"""Images that are unlike those of the training."""

import json
import types

import numpy as np
import pytest

from segjax.data import unusual
from segjax.data.config import SizeConfig
from segjax.types import SegjaxError


class Broken:
  @property
  def image(self):
    raise SegjaxError('broken')


def pixels(height, width, mean=120, spread=40, channels=3):
  rng = np.random.default_rng(0)
  values = rng.normal(mean, spread, (height, width, channels))
  return np.rint(values.clip(0, 255)).astype(np.uint8)


def ranges(channels=3, **size):
  images = [pixels(100, 100 + 50 * k, 100 + 10 * k, 30 + k, channels) for k in range(5)]
  examples = [types.SimpleNamespace(image=image) for image in images]
  return unusual.measure([*examples, Broken()], SizeConfig(**size))


def test_ranges_are_those_of_the_images_that_can_be_read():
  found = ranges()
  np.testing.assert_allclose(found.side, (100, np.sqrt(100 * 300)), atol=0.01)
  np.testing.assert_allclose(found.mean, [(100, 140)] * 3, atol=1)
  np.testing.assert_allclose(found.std, [(30, 34)] * 3, atol=1)
  assert unusual.measure([Broken()], SizeConfig()) is None


def test_they_are_kept_in_json():
  found = ranges()._replace(common=(90, 120))
  for one in (found, ranges()):
    assert unusual.ImageRanges.from_json(json.loads(json.dumps(one.to_json()))) == one
  earlier = {key: value for key, value in found.to_json().items() if key != 'common'}
  assert unusual.ImageRanges.from_json(earlier) == found._replace(common=None)
  assert unusual.ImageRanges.from_json(None) is None


@pytest.mark.parametrize(
  ('image', 'expected'),
  [
    (pixels(150, 150), ''),
    (pixels(300, 300), ''),
    (pixels(150, 150, 80), ''),
    (pixels(40, 40), 'it is 40x40 pixels, training images had at least the area of 100x100'),
    (pixels(400, 400), 'it is 400x400 pixels, training images had at most the area of 173x173'),
    (pixels(150, 150, 30, 15), r'the mean of channel 1 is 30, 100 to 140 in training'),
    (pixels(150, 150, 120, 4), r'the standard deviation of channel 1 is 4, 30 to 34 in training'),
    (pixels(40, 40, 20), 'at least the area of 100x100 and the mean of channel 1 is 2'),
  ],
)
def test_what_is_unlike_training_images(image, expected):
  found = unusual.describe(image, ranges())
  assert (expected in found) if expected else found == ''


def test_a_large_image_is_usual_where_all_are_resized():
  found = ranges(image_size=(64, 64))
  assert unusual.describe(pixels(900, 900), found) == ''
  assert 'at least' in unusual.describe(pixels(30, 30), found)


def test_one_channel_and_a_run_that_does_not_know():
  gray = ranges(channels=1)
  assert unusual.describe(pixels(150, 150, channels=1), gray) == ''
  assert 'channel 1' in unusual.describe(pixels(150, 150, 10, channels=1), gray)
  assert unusual.describe(pixels(9, 9), None) == ''
