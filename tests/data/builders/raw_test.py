"""Directories, lists and label values: what is read, and each way in which it can be wrong."""

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax import types
from segjax.data.builders import raw

LABEL = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_find_directory_takes_the_first_place(tmp_path):
  for place in ('a/kit', 'kit'):
    (tmp_path / place / 'lists').mkdir(parents=True)
  assert raw.find_directory(tmp_path, ('kit', 'a/kit', ''), 'lists', 'kit') == tmp_path / 'kit'
  assert raw.find_directory(tmp_path / 'a/kit', ('kit', ''), 'lists', 'kit') == tmp_path / 'a/kit'
  with pytest.raises(types.SegjaxError, match=r'does not hold the kit: set config\.data\.source'):
    raw.find_directory(tmp_path, ('', 'a'), 'lists', 'the kit')


def test_list_is_read_word_by_line(tmp_path):
  (tmp_path / 'train.txt').write_bytes(b'\xef\xbb\xbfb_1\n\na_2  1\r\n  c\n')
  assert raw.read_list(tmp_path / 'train.txt', 'lists') == ['b_1', 'a_2', 'c']


@pytest.mark.parametrize(
  'text, message',
  [
    (None, r'train\.txt is missing: set config\.data\.source to the directory that holds lists'),
    ('\n \n', r'train\.txt names no image'),
    ('a\nb\na\n', r'train\.txt names a twice'),
    ('caf\xe9', r'train\.txt is not text in UTF-8: save it as such'),
    ('a\nb/../../c\n', r'train\.txt names b/\.\./\.\./c, which leaves its directory: correct'),
  ],
)
def test_bad_list(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'train.txt').write_text(text, encoding='latin-1')
  with pytest.raises(types.SegjaxError, match=message):
    raw.read_list(tmp_path / 'train.txt', 'lists')


def test_map_label_of_every_value():
  values = np.array([*range(21), 255], np.uint8).reshape(2, 11)
  result = raw.map_label(values, 'x', 21, first=0, void=255)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float64])
def test_map_label_shifts_classes_and_void(dtype):
  values = np.array([[0, 1, 2], [37, 0, 36]], dtype)
  result = raw.map_label(values, 'x', 37, first=1, void=0)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, [[255, 0, 1], [36, 255, 35]])


@pytest.mark.parametrize(
  'value, first, void', [(21, 0, 255), (254, 0, 255), (38, 1, 0), (255, 1, 0), (0, 1, 255)]
)
def test_value_out_of_range(value, first, void):
  values = np.full((2, 3), first, np.uint8)
  values[1, 2] = value
  classes = 21 if first == 0 else 37
  with pytest.raises(types.SegjaxError, match=rf'x\.png has the label value {value}, .*void is'):
    raw.map_label(values, 'x.png', classes, first=first, void=void)


def test_label_is_gray_or_palette_indices(tmp_path):
  cv2.imwrite(str(tmp_path / 'gray.png'), LABEL)
  palette = Image.fromarray(LABEL)
  palette.putpalette([200, 10, 30] * 256)
  palette.save(tmp_path / 'palette.png')
  cv2.imwrite(str(tmp_path / 'rgb.png'), np.zeros((3, 4, 3), np.uint8))
  for name in ('gray', 'palette'):
    np.testing.assert_array_equal(raw.read_label(tmp_path / f'{name}.png'), LABEL)
  with pytest.raises(types.SegjaxError, match=r'rgb\.png has pixels of mode RGB, not L or P'):
    raw.read_label(tmp_path / 'rgb.png')


def save(path, pixels, flag=1):
  exif = Image.Exif()
  exif[0x0112] = flag
  Image.fromarray(pixels).save(path, exif=exif)
  return path


def test_images_and_labels_are_read_upright(tmp_path):
  gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
  path = save(tmp_path / 'a.png', gray, flag=6)
  np.testing.assert_array_equal(raw.read_image(path, 'L'), np.rot90(gray, -1))
  np.testing.assert_array_equal(raw.read_label(path), np.rot90(gray, -1))
  rgb = np.stack([gray] * 3, -1)
  path = save(tmp_path / 'b.png', rgb, flag=3)
  np.testing.assert_array_equal(raw.read_image(path, 'RGB'), rgb[::-1, ::-1])


def test_label_of_the_unrotated_image_is_told(tmp_path):
  gray = np.zeros((2, 3), np.uint8)
  image_path, label_path = save(tmp_path / 'a.png', gray, flag=6), save(tmp_path / 'm.png', gray)
  image, label = raw.read_image(image_path, 'L'), raw.read_label(label_path)
  message = r'a\.png is 2x3 pixels as its EXIF orientation flag turns it but its label .*m\.png'
  with pytest.raises(types.SegjaxError, match=rf'{message} is 3x2, as without the flag: turn'):
    raw.check_same_size(image, image_path, label, label_path)
  raw.check_same_size(image, image_path, label.T, label_path)
  message = r'a\.png is 2x3 pixels but its label .*m\.png is 2x2: '
  with pytest.raises(types.SegjaxError, match=message):
    raw.check_same_size(image, image_path, label[:2, :2], label_path)


def test_pages_are_read_by_their_number(tmp_path):
  pages = [Image.fromarray(np.full((2, 3), k, np.uint8)) for k in range(3)]
  pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
  assert raw.read_image(tmp_path / 'a.tif', 'L', page=2)[0, 0] == 2
  with pytest.raises(types.SegjaxError, match=r'a\.tif has no page 4'):
    raw.read_image(tmp_path / 'a.tif', 'L', page=3)


@pytest.mark.parametrize('name', ['a.png', 'b/a.png', 'b\\a.png', 'b/./a.png'])
def test_paths_inside(tmp_path, name):
  (tmp_path / 'root').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'root')
  for root in (tmp_path / 'root', tmp_path / 'link'):  # a directory may be a link
    assert raw.inside(root, name, 'list.json') == root / name.replace('\\', '/')


@pytest.mark.parametrize(
  'name', ['../a.png', 'b/../../a.png', 'b\\..\\..\\a', '/a.png', 'C:a', 'C:\\a', '\\\\host\\a\\b']
)
def test_paths_outside(tmp_path, name):
  with pytest.raises(
    types.SegjaxError, match=r'list\.json names .*, which is not below .*root: mo'
  ):
    raw.inside(tmp_path / 'root', name, 'list.json')
  assert raw.inside(tmp_path / 'root', name, 'list.json', outside=True)


@pytest.mark.parametrize('target', ['file', 'directory'])
def test_links_that_lead_outside(tmp_path, target):
  (tmp_path / 'root').mkdir()
  (tmp_path / 'secret').mkdir()
  (tmp_path / 'secret' / 'a.png').write_bytes(b'')
  to = {'file': tmp_path / 'secret' / 'a.png', 'directory': tmp_path / 'secret'}[target]
  name = {'file': 'b.png', 'directory': 'b/a.png'}[target]
  (tmp_path / 'root' / name.split('/')[0]).symlink_to(to)
  with pytest.raises(types.SegjaxError, match=r'names .*, a link to a file that is not below'):
    raw.inside(tmp_path / 'root', name, 'list.json')
  (tmp_path / 'root' / 'c.png').symlink_to(tmp_path / 'root' / 'd.png')
  assert raw.inside(tmp_path / 'root', 'c.png', 'list.json') == tmp_path / 'root' / 'c.png'
