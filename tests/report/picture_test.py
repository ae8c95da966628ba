import io

import numpy as np
import pytest
from PIL import Image

from segjax.report import picture

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
NAMES = ('background', 'a', 'b')


def panels(height, width, *values):
  return {
    name: np.full((height, width, 3), value, np.uint8)
    for name, value in zip(('image', 'truth', 'prediction', 'errors'), values, strict=True)
  }


def decode(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def test_panels_stand_side_by_side():
  shown = decode(picture.picture(panels(400, 300, 50, 100, 200, 0)))
  gap = (shown.shape[1] - 3 * 300) // 2
  assert shown.shape == (400, 3 * 300 + 2 * gap, 3) and gap > 0
  for k, value in enumerate((50, 100, 200)):
    start = k * (300 + gap)
    np.testing.assert_allclose(shown[20:-20, start + 20 : start + 280], value, atol=2)
  np.testing.assert_allclose(shown[:, 300 + gap // 2], 255, atol=8)


@pytest.mark.parametrize(
  ('size', 'height'), [((16, 16), 352), ((180, 240), 360), ((512, 512), 512), ((1024, 2048), 256)]
)
def test_small_images_are_enlarged_and_large_ones_shrunk(size, height):
  shown = decode(picture.picture(panels(*size, 50, 100, 200, 0)))
  assert shown.shape[0] == height
  assert shown.shape[1] == pytest.approx(3 * height * size[1] / size[0], rel=0.02)


def test_any_image_fits_the_limit():
  noise = np.random.default_rng(0).integers(0, 256, (3, 512, 512, 3), np.uint8)
  data = picture.picture(dict(zip(picture.PANELS, noise, strict=True)))
  assert picture.LIMIT / 2 < len(data) <= picture.LIMIT
  shown = decode(data)
  assert shown.shape[1] == pytest.approx(3 * shown.shape[0], rel=0.03)


def test_legend_has_the_classes_that_are_seen():
  colored = {
    'image': np.full((360, 360, 3), 128, np.uint8),
    'truth': np.full((360, 360, 3), PALETTE[1], np.uint8),
    'prediction': np.full((360, 360, 3), PALETTE[2], np.uint8),
  }
  without = decode(picture.picture(colored))
  legend = decode(picture.picture(colored, PALETTE, NAMES))[:, without.shape[1] :].astype(int)
  red, blue = ((np.abs(legend - color).sum(-1) < 60).sum() for color in PALETTE[1:])
  assert red > 50 and blue > 50
  only_truth = {**colored, 'prediction': colored['truth']}
  legend = decode(picture.picture(only_truth, PALETTE, NAMES))[:, without.shape[1] :].astype(int)
  assert (np.abs(legend - PALETTE[1]).sum(-1) < 60).sum() > 50
  assert not (np.abs(legend - PALETTE[2]).sum(-1) < 60).any()
