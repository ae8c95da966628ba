"""PNG files that are written by strips, against Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from segjax.report import png


@pytest.mark.parametrize('heights', [(7,), (3, 4), (1, 1, 5)])
@pytest.mark.parametrize('width', [1, 2, 9])
def test_strips_are_one_image(heights, width):
  image = np.random.default_rng(0).integers(0, 256, (7, width, 3), np.uint8)
  file = io.BytesIO()
  png.write_rgb(file, (7, width), np.split(image, np.cumsum(heights)[:-1]))
  found = Image.open(file)
  assert (found.format, found.mode, found.size) == ('PNG', 'RGB', (width, 7))
  np.testing.assert_array_equal(np.asarray(found), image)
