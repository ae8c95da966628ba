"""Windows of TIFF files, against the image as Pillow reads it."""

import sys

import numpy as np
import pytest
from PIL import Image

from segjax.data import frames, images, unusual, windows
from segjax.types import SegjaxError

tifffile = pytest.importorskip('tifffile', reason="tifffile is not installed: 'segjax[tiff]'")

COLOR = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
GRAY = COLOR[..., 0]
FILES = {
  'tiles': {'tile': (32, 16)},
  'compressed tiles': {'tile': (16, 32), 'compression': 'deflate', 'predictor': True},
  'strips': {'rowsperstrip': 7},
  'one strip': {'rowsperstrip': 75, 'compression': 'deflate'},
}


def write(path, pixels=COLOR, **options):
  photometric = 'rgb' if pixels.ndim == 3 else 'minisblack'
  tifffile.imwrite(path, pixels, photometric=photometric, **options)
  return path


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('pixels', [COLOR, GRAY], ids=['color', 'gray'])
def test_windows_are_those_of_the_image(tmp_path, name, channels, pixels):
  path = write(tmp_path / 'a.tif', pixels, **FILES[name])
  expected = images.decode_image(path.read_bytes(), channels, 'a.tif')
  found = windows.open_windows(path, None, channels)
  assert found.shape == expected.shape and found.dtype == expected.dtype
  np.testing.assert_array_equal(found[:20], expected[:20])
  np.testing.assert_array_equal(found[30:75, 15:48], expected[30:75, 15:48])
  np.testing.assert_array_equal(found[70:200, 89:90], expected[70:, 89:])
  assert found[75:80, :].shape == (0, 90, channels)
  np.testing.assert_array_equal(np.asarray(found), expected)
  with pytest.raises(ValueError, match='all of its pixels'):
    found[::2]


def test_a_page_of_several(tmp_path):
  path = tmp_path / 'a.tif'
  with tifffile.TiffWriter(path) as writer:
    for shift in range(3):
      writer.write(COLOR + np.uint8(shift), photometric='rgb', tile=(32, 32))
  source = frames.find_source(path)
  found = list(frames.read_frames(source, 3, windows_above=100))
  assert [frame.name for frame in found] == ['a_page1', 'a_page2', 'a_page3']
  for shift, frame in enumerate(found):
    assert isinstance(frame.pixels, windows.Windows) and frame.area == 75 * 90
    np.testing.assert_array_equal(np.asarray(frame.pixels), COLOR + np.uint8(shift))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore:Truncated', 'ignore:Metadata')
def test_the_first_pages_of_a_file_that_is_cut_short_are_not_all(tmp_path):
  path = tmp_path / 'a.tif'
  first, *others = (Image.fromarray(GRAY + np.uint8(shift)) for shift in range(3))
  first.save(path, save_all=True, append_images=others)
  whole = path.read_bytes()
  for length in range(len(whole) // 2, len(whole) - 200, 500):
    path.write_bytes(whole[:length])
    with pytest.raises(SegjaxError, match=r'a\.tif'):
      for frame in frames.read_frames(frames.find_source(path), 1, windows_above=100):
        np.asarray(frame.pixels)


def test_only_large_files_are_read_by_windows(tmp_path):
  source = frames.find_source(write(tmp_path / 'a.tif', tile=(32, 32)))
  for above in (None, 75 * 90):
    (frame,) = frames.read_frames(source, 3, windows_above=above)
    assert isinstance(frame.pixels, np.ndarray)
  with pytest.raises(SegjaxError, match=r'a\.tif is 90x75 = 6,750 pixels, more than'):
    list(frames.read_frames(source, 3, windows_above=100, max_pixels=6749))


def test_tiles_are_decoded_once_for_windows_that_share_them(tmp_path, monkeypatch):
  found = windows.open_windows(write(tmp_path / 'a.tif', tile=(32, 32)), None, 3)
  decode, calls = found._decode_stored, []
  monkeypatch.setattr(found, '_decode_stored', lambda i: calls.append(i) or decode(i))
  for left in range(0, 90, 10):
    found[:75, left : left + 20]
  assert sorted(calls) == list(range(1, 9)), 'the first was read when the file was opened'
  monkeypatch.setattr(windows, '_KEPT', 0)
  found._kept.clear()
  np.testing.assert_array_equal(found[:40, :40], COLOR[:40, :40])
  assert len(found._kept) == 1


def rotated(path):
  write(path, tile=(32, 32), extratags=[(274, 'H', 1, 6, True)])


def overwritten(path, **tags):
  write(path, tile=(32, 32))
  with tifffile.TiffFile(path, mode='r+') as file:
    for name, value in tags.items():
      file.pages[0].tags[name].overwrite(value)


REFUSED = {
  'rotated': rotated,
  '16 bits': lambda path: tifffile.imwrite(path, GRAY.astype(np.uint16) * 257),
  'transparent': lambda path: Image.fromarray(COLOR).convert('RGBA').save(path),
  'palette': lambda path: Image.fromarray(COLOR).convert('P').save(path),
  'planes': lambda path: write(path, COLOR.transpose(2, 0, 1).copy(), planarconfig='separate'),
  'tiles without a pixel': lambda path: overwritten(path, TileWidth=0),
  'unknown colors': lambda path: overwritten(path, PhotometricInterpretation=99),
  'not a TIFF file': lambda path: path.write_bytes(b'II no'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_other_files_are_left_to_pillow(tmp_path, name):
  REFUSED[name](tmp_path / 'a.tif')
  assert windows.open_windows(tmp_path / 'a.tif', None, 3) is None


def test_without_the_library(tmp_path, monkeypatch):
  path = write(tmp_path / 'a.tif', tile=(32, 32))
  monkeypatch.setitem(sys.modules, 'tifffile', None)
  assert windows.open_windows(path, None, 3) is None


def test_a_file_that_is_cut_short(tmp_path):
  path = write(tmp_path / 'a.tif', tile=(32, 32), compression='deflate')
  found = windows.open_windows(path, None, 3)
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(SegjaxError, match=r'a\.tif cannot be decoded .*: replace it'):
    np.asarray(found)


def test_whether_an_image_is_unusual_is_found_by_strips(tmp_path, monkeypatch):
  monkeypatch.setattr(unusual, '_STRIP', 10)
  path = write(tmp_path / 'a.tif', COLOR // np.array([1, 2, 3], np.uint8), tile=(32, 32))
  by_strips = unusual._describe(windows.open_windows(path, None, 3))
  whole = unusual._describe(images.decode_image(path.read_bytes(), 3, 'a.tif'))
  for a, b in zip(by_strips, whole, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
