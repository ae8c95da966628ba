"""Strict decoding: pixels as stored, whole files only."""

import io

import numpy as np
import pytest
from PIL import Image

from segjax.data import images
from segjax.types import SegjaxError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def encoded(image, kind='PNG', **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, kind, **kwargs)
  return buffer.getvalue()


def test_pixels_are_those_of_the_file():
  np.testing.assert_array_equal(images.decode_image(encoded(Image.fromarray(RGB)), 3, 'a'), RGB)
  gray = encoded(Image.fromarray(GRAY), 'TIFF')
  np.testing.assert_array_equal(images.decode_image(gray, 1, 'a'), GRAY[..., None])


def test_channels_are_converted():
  gray = images.decode_image(encoded(Image.fromarray(GRAY)), 3, 'a')
  np.testing.assert_array_equal(gray, np.repeat(GRAY[..., None], 3, axis=-1))
  rgb = images.decode_image(encoded(Image.fromarray(RGB)), 1, 'a')
  np.testing.assert_allclose(rgb[..., 0], RGB @ [0.299, 0.587, 0.114], atol=1)
  rgba = np.dstack([RGB, GRAY])
  np.testing.assert_array_equal(images.decode_image(encoded(Image.fromarray(rgba)), 3, 'a'), RGB)


def test_sixteen_bit_gray_is_scaled():
  wide = GRAY.astype(np.uint16) * 256 + 77
  np.testing.assert_array_equal(
    images.decode_image(encoded(Image.fromarray(wide)), 1, 'a'), GRAY[..., None]
  )


def test_orientation_flag_is_not_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  data = encoded(Image.fromarray(RGB), exif=exif)
  assert images.decode_image(data, 3, 'a').shape == RGB.shape
  assert images.read_size(data, 'a') == RGB.shape[:2]


def test_palette_label_keeps_its_indices():
  label = RNG.integers(0, 4, (5, 7), dtype=np.uint8)
  label_image = Image.fromarray(label)
  label_image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
  np.testing.assert_array_equal(images.decode_label(encoded(label_image), 'a'), label)


def test_color_label_is_an_error():
  with pytest.raises(SegjaxError, match='label of x.* one integer'):
    images.decode_label(encoded(Image.fromarray(RGB)), 'label of x')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF'])
def test_truncated_and_foreign_files_name_themselves(kind):
  whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
  for data in (whole[: len(whole) // 2], b'', b'no image'):
    with pytest.raises(SegjaxError, match=r'image\.x cannot be decoded'):
      images.decode_image(data, 3, 'image.x')
  with pytest.raises(SegjaxError, match=r'image\.x cannot be decoded'):
    images.decode_label(b'no image', 'image.x')
  with pytest.raises(SegjaxError, match=r'image\.x cannot be decoded'):
    images.read_size(b'no image', 'image.x')
