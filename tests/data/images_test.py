"""Strict decoding: pixels as a viewer shows them, whole files only, one image a file."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from segjax.data import images
from segjax.types import SegjaxError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
# Of pieces that JPEG keeps: a corner that tells all eight orientations apart.
CORNER = np.kron([[250, 90, 10], [10, 10, 10]], np.ones((16, 16))).astype(np.uint8)


def encoded(image, kind='PNG', **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, kind, **kwargs)
  return buffer.getvalue()


def flagged(pixels, flag, kind='PNG'):
  """A file whose orientation flag has a value."""
  exif = Image.Exif()
  exif[0x0112] = flag
  options = {'JPEG': {'quality': 98}, 'WEBP': {'lossless': True}}.get(kind, {})
  return encoded(Image.fromarray(pixels), kind, exif=exif, **options)


def png(pixels, color_type, *chunks):
  """A PNG file of 16 bits a channel, with further chunks after the pixels."""

  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  height, width = pixels.shape[:2]
  header = struct.pack('>IIBBBBB', width, height, 16, color_type, 0, 0, 0)
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  parts = [(b'IHDR', header), (b'IDAT', zlib.compress(rows)), *chunks, (b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


# --- what a viewer shows --------------------------------------------------------------------------


def test_pixels_are_those_of_the_file():
  np.testing.assert_array_equal(images.decode_image(encoded(Image.fromarray(RGB)), 3, 'a'), RGB)
  gray = encoded(Image.fromarray(GRAY), 'TIFF')
  np.testing.assert_array_equal(images.decode_image(gray, 1, 'a'), GRAY[..., None])
  webp = encoded(Image.fromarray(RGB), 'WEBP', lossless=True)
  np.testing.assert_array_equal(images.decode_image(webp, 3, 'a'), RGB)


def test_channels_are_converted():
  gray = images.decode_image(encoded(Image.fromarray(GRAY)), 3, 'a')
  np.testing.assert_array_equal(gray, np.repeat(GRAY[..., None], 3, axis=-1))
  rgb = images.decode_image(encoded(Image.fromarray(RGB)), 1, 'a')
  np.testing.assert_allclose(rgb[..., 0], RGB @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_of_sixteen_bits_of_gray_the_upper_eight_are_kept(kind):
  wide = Image.fromarray(GRAY.astype(np.uint16) * 256 + 77)
  found = images.decode_image(encoded(wide, kind), 1, 'a')
  np.testing.assert_array_equal(found, GRAY[..., None])
  np.testing.assert_array_equal(
    images.decode_image(encoded(wide, kind), 3, 'a'), np.repeat(GRAY[..., None], 3, axis=-1)
  )


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_of_sixteen_bits_of_color_the_upper_eight_are_kept(suffix):
  wide = cv2.imencode(suffix, RGB[..., ::-1].astype(np.uint16) * 256 + 77)[1].tobytes()
  np.testing.assert_array_equal(images.decode_image(wide, 3, 'a'), RGB)


def test_what_is_transparent_is_white():
  alpha = np.where(np.arange(9) < 4, 0, 255).astype(np.uint8)
  alpha = np.broadcast_to(alpha, GRAY.shape)
  rgba = encoded(Image.fromarray(np.dstack([RGB, alpha])))
  expected = np.where(alpha[..., None] == 0, 255, RGB)
  np.testing.assert_array_equal(images.decode_image(rgba, 3, 'a'), expected)
  gray_alpha = encoded(Image.fromarray(np.dstack([GRAY, alpha])))
  expected = np.where(alpha == 0, 255, GRAY)[..., None]
  np.testing.assert_array_equal(images.decode_image(gray_alpha, 1, 'a'), expected)
  wide = png(np.dstack([GRAY, alpha]).astype(np.uint16) * 257, 4)
  np.testing.assert_array_equal(images.decode_image(wide, 1, 'a'), expected)


@pytest.mark.parametrize('transparency', [None, 0, b'\0\xff\xff'])
def test_a_palette_shows_its_colors(transparency):
  colors = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0]], np.uint8)
  image = Image.fromarray(GRAY % 3)
  image.putpalette(colors.tobytes())
  options = {} if transparency is None else {'transparency': transparency}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = images.decode_image(encoded(image, **options), 3, 'a')
  if transparency is not None:
    colors[0] = 255
  np.testing.assert_array_equal(found, colors[GRAY % 3])


def test_one_bit_is_black_and_white():
  bits = GRAY > 128
  for kind in ('PNG', 'TIFF'):
    found = images.decode_image(encoded(Image.fromarray(bits), kind), 3, 'a')
    np.testing.assert_array_equal(found, np.repeat(255 * bits[..., None], 3, axis=-1))


@pytest.mark.parametrize('kind', ['TIFF', 'JPEG'])
def test_cmyk_is_shown_in_rgb(kind):
  flat = np.broadcast_to(np.array([200, 30, 60], np.uint8), (16, 16, 3))
  image = Image.fromarray(flat).convert('CMYK')
  found = images.decode_image(encoded(image, kind), 3, 'a')
  np.testing.assert_allclose(found, flat, atol=3)


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_thirty_two_bits_are_an_error(kind):
  data = encoded(Image.fromarray(GRAY.astype(kind)), 'TIFF')
  with pytest.raises(SegjaxError, match=r'a\.tif has 32 bits a pixel.*convert it'):
    images.decode_image(data, 1, 'a.tif')


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize('flag', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_images_and_labels_are_upright(kind, flag):
  """By Pillow's own function, which is exact where the format is."""
  data = flagged(np.stack([CORNER] * 3, -1), flag, kind)
  expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
  assert expected.shape[:2] == ((32, 48) if flag < 5 else (48, 32))
  np.testing.assert_array_equal(images.decode_image(data, 3, 'a'), expected)
  assert images.read_size(data, 'a') == expected.shape[:2]
  if kind in ('PNG', 'TIFF'):
    label = images.decode_label(flagged(CORNER, flag, kind), 'a')
    np.testing.assert_array_equal(label, expected[..., 0])
    wide = images.decode_label(flagged(CORNER.astype(np.uint16) * 256, flag, kind), 'a')
    np.testing.assert_array_equal(wide, expected[..., 0].astype(np.uint16) * 256)


def test_the_flag_may_follow_the_pixels():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = png(GRAY.astype(np.uint16) * 256, 0, (b'eXIf', exif.tobytes()[6:]))
  np.testing.assert_array_equal(images.decode_image(data, 1, 'a')[..., 0], np.rot90(GRAY, -1))
  assert images.read_size(data, 'a') == (9, 6)


def test_sizes_are_read_from_the_header():
  """A PNG whose pixels are missing has a size."""
  data = encoded(Image.fromarray(RGB))
  assert images.read_size(data[: data.index(b'IDAT') + 8], 'a') == (6, 9)


@pytest.mark.parametrize('content', [b'', b'Exif\0\0', b'Exif\0\0garbage', b'Exif\0\0II*\0\xff'])
@pytest.mark.filterwarnings('ignore')
def test_an_image_with_corrupt_exif_is_shown(content):
  data = encoded(Image.fromarray(RGB), exif=content)
  np.testing.assert_array_equal(images.decode_image(data, 3, 'a'), RGB)


@pytest.mark.parametrize('flag', [0, 9, 77])
def test_a_flag_without_meaning_is_none(flag):
  np.testing.assert_array_equal(images.decode_image(flagged(RGB, flag), 3, 'a'), RGB)


def test_an_annotation_of_the_unrotated_image_is_told():
  data = flagged(RGB, 6)
  assert images.is_unrotated(data, (6, 9))
  error = str(images.size_error(data, 'a.jpg', 'its label', (6, 9), 'download both'))
  assert error.startswith('a.jpg is 6x9 pixels as its EXIF orientation flag turns it but its label')
  assert 'is 9x6, as without the flag: turn the annotation' in error
  error = str(images.size_error(data, 'a.jpg', 'its label', (6, 8), 'download both'))
  assert error == 'a.jpg is 6x9 pixels but its label is 8x6: download both'


@pytest.mark.parametrize(
  ('data', 'size'),
  [
    (flagged(RGB, 6), (9, 6)),
    (flagged(RGB, 6), (6, 8)),
    (flagged(RGB, 3), (6, 9)),
    (flagged(RGB, 1), (9, 6)),
    (flagged(RGB[:6, :6], 6), (6, 6)),
    (b'no image', (6, 9)),
  ],
)
def test_other_sizes_are_not_those_of_the_unrotated_image(data, size):
  assert not images.is_unrotated(data, size)


# --- label maps -----------------------------------------------------------------------------------


def test_palette_label_keeps_its_indices():
  label = RNG.integers(0, 4, (5, 7), dtype=np.uint8)
  label_image = Image.fromarray(label)
  label_image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
  np.testing.assert_array_equal(images.decode_label(encoded(label_image), 'a'), label)


def test_label_keeps_sixteen_bits_in_the_order_of_the_machine():
  label = GRAY.astype(np.uint16) * 201
  big_endian = cv2.imencode('.png', label)[1].tobytes()
  found = images.decode_label(big_endian, 'a')
  np.testing.assert_array_equal(found, label)
  assert found.dtype.isnative
  tiff = Image.frombytes('I;16B', (9, 6), label.astype('>u2').tobytes())
  found = images.decode_label(encoded(tiff, 'TIFF'), 'a')
  np.testing.assert_array_equal(found, label)
  assert found.dtype.isnative


def test_color_label_is_an_error():
  with pytest.raises(SegjaxError, match='label of x.* one integer'):
    images.decode_label(encoded(Image.fromarray(RGB)), 'label of x')


# --- files that are not one image -----------------------------------------------------------------


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF'])
def test_truncated_and_foreign_files_name_themselves(kind):
  whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
  for data in (whole[: len(whole) // 2], b'', b'no image'):
    with pytest.raises(SegjaxError, match=r'image\.x cannot be decoded.*: replace it or leave it'):
      images.decode_image(data, 3, 'image.x')
  for read in (images.decode_label, images.read_size):
    with pytest.raises(SegjaxError, match=r'image\.x cannot be decoded: replace it'):
      read(b'no image', 'image.x')


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'', 'it is empty'),
    (encoded(Image.fromarray(RGB), 'JPEG')[:-40], 'it is truncated'),
    (b'\0\0\0\x20ftypisom', 'it is a video.*save its frames as images'),
    (b'RIFF\0\0\0\0AVI LIST', 'it is a video'),
    (b'\0\0\0\x18ftypheic', 'it is a HEIC file.*convert it to JPEG'),
    (b'\0\5\x16\7\0\2', 'it is a Mac resource file.*delete it'),
    (bytes(128) + b'DICM', 'it is a DICOM file'),
    (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
  ],
)
def test_what_a_file_is_instead_is_told(data, reason):
  with pytest.raises(SegjaxError, match=rf'image\.x cannot be decoded \(.*{reason}'):
    images.decode_image(data, 3, 'image.x')


def pages(*arrays, **kwargs):
  first, *others = map(Image.fromarray, arrays)
  return encoded(first, 'TIFF', save_all=True, append_images=others, **kwargs)


def find_pages(directory, data):
  path = directory / 'a.tif'
  path.write_bytes(data)
  return images.find_pages(path)


def test_pages_are_images_by_their_number_alone(tmp_path):
  data = pages(GRAY, GRAY[::-1], GRAY[:, :5])
  assert find_pages(tmp_path, data) == [0, 1, 2]
  for decode in (
    lambda **k: images.decode_image(data, 1, 'a.tif', **k)[..., 0],
    lambda **k: images.decode_label(data, 'a.tif', **k),
  ):
    np.testing.assert_array_equal(decode(page=1), GRAY[::-1])
    np.testing.assert_array_equal(decode(page=2), GRAY[:, :5])
    with pytest.raises(SegjaxError, match=r'a\.tif has 3 pages, not one image: save each'):
      decode()
    with pytest.raises(SegjaxError, match=r'a\.tif has no page 4'):
      decode(page=3)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore:Truncated', 'ignore:Metadata')
def test_pages_that_are_cut_anywhere_are_a_truncated_file(tmp_path):
  """Pillow raises errors of several types, also of those that a bug would raise."""
  data = pages(*[GRAY] * 3)
  for length in range(0, len(data), 5):
    cut, fails = data[:length], pytest.raises(SegjaxError, match=r'a\.tif (cannot be|has)')
    find_pages(tmp_path, cut)
    with fails:
      images.decode_image(cut, 1, 'a.tif', page=2)
    with fails:
      images.decode_image(cut, 3, 'a.tif')
    with fails:
      images.decode_label(cut, 'a.tif')


def test_an_error_of_another_kind_is_no_corrupt_file(monkeypatch):
  def broken(*_):
    raise TypeError('a bug')

  for name in ('check_pixels', '_pixels'):
    monkeypatch.setattr(images, name, broken)
    with pytest.raises(TypeError, match='a bug'):
      images.decode_image(encoded(Image.fromarray(GRAY), 'TIFF'), 1, 'a.tif')


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')  # Pillow's, of a truncated header
@pytest.mark.parametrize(
  'data', [encoded(Image.fromarray(RGB), 'GIF'), pages(GRAY, GRAY)[:60], b'no image', b'']
)
def test_other_files_are_one_page(tmp_path, data):
  assert find_pages(tmp_path, data) == [0]


def test_a_smaller_copy_of_a_page_is_no_page(tmp_path):
  """As in pyramids and in files with a thumbnail, which may come first."""
  page = Image.fromarray(GRAY)
  page.encoderinfo = {'tiffinfo': {254: 0}}
  data = pages(GRAY[:2, :3], tiffinfo={254: 1})
  buffer = io.BytesIO()
  Image.open(io.BytesIO(data)).save(
    buffer, 'TIFF', save_all=True, append_images=[page], tiffinfo={254: 1}
  )
  data = buffer.getvalue()
  assert find_pages(tmp_path, data) == [1]
  np.testing.assert_array_equal(images.decode_image(data, 1, 'a')[..., 0], GRAY)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_an_animation_is_an_error(kind):
  frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
  data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
  with pytest.raises(SegjaxError, match=r'a\.x has 2 frames, not one image'):
    images.decode_image(data, 3, 'a.x')


def test_the_jpeg_of_a_phone_is_its_first_image():
  first = np.broadcast_to(np.array([200, 30, 60], np.uint8), (16, 16, 3))
  data = encoded(
    Image.fromarray(first), 'MPO', save_all=True, append_images=[Image.new('RGB', (8, 8))]
  )
  np.testing.assert_allclose(images.decode_image(data, 3, 'a'), first, atol=3)


# --- size -----------------------------------------------------------------------------------------


def test_each_file_below_a_directory_once(tmp_path):
  for name in ('a/1.png', 'a/.2.png', '.c/3.png', 'b/4.JPG', 'b/notes.txt', '../disk/in/5.png'):
    path = (tmp_path / 'root' / name).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')
  root, disk = tmp_path / 'root', tmp_path / 'disk'
  for link, target in {
    root / 'a/to_b': root / 'b',  # which is read by itself
    root / 'b/to_a': root / 'a',
    root / 'up': tmp_path,  # and so the root again
    root / 'disk': disk,
    root / 'disk_again': disk / 'in',
    disk / 'back': root,
    disk / 'in/round': disk,
  }.items():
    link.symlink_to(target)
  found = [path.relative_to(root).as_posix() for path in images.walk(root)]
  assert found == ['a/1.png', 'b/4.JPG', 'disk/in/5.png']
  assert list(images.walk(root, {'.txt'})) == [root / 'b/notes.txt']


def test_more_pixels_than_the_limit_are_an_error_until_it_is_raised():
  data = encoded(Image.fromarray(RGB))
  with images.pixel_limit(53):
    for decode in (
      lambda: images.decode_image(data, 3, 'a'),
      lambda: images.decode_label(data, 'a'),
    ):
      with pytest.raises(
        SegjaxError, match=r'a is 9x6 = 54 pixels.*set config\.data\.max_pixels=54'
      ):
        decode()
    assert images.read_size(data, 'a') == (6, 9)
  with images.pixel_limit(54):
    assert images.decode_image(data, 3, 'a').shape == (6, 9, 3)


def test_the_default_limit_is_that_of_pillow_which_stays():
  limit = Image.MAX_IMAGE_PIXELS
  assert 2 * limit == images.MAX_PIXELS
  data = bytearray(encoded(Image.fromarray(GRAY)))
  data[16:24] = struct.pack('>II', images.MAX_PIXELS // 2, 3)  # a header is read before pixels are
  data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  with pytest.raises(SegjaxError, match=r'89478485x3 = 268,435,455 pixels, more than .*=178956970'):
    images.decode_image(bytes(data), 1, 'a')
  assert images.read_size(bytes(data), 'a') == (3, 89_478_485)
  assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_pillows_own_limit_does_not_stop_a_larger_one(monkeypatch, kind):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
  monkeypatch.setattr(images, 'MAX_PIXELS', 20)
  data = encoded(Image.fromarray(GRAY), kind)
  with images.pixel_limit(54):
    np.testing.assert_array_equal(images.decode_image(data, 1, 'a')[..., 0], GRAY)
  assert Image.MAX_IMAGE_PIXELS == 10
