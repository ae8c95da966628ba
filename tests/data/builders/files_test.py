"""What the formats of users' own data share: options, splits, and annotations for each task."""

import numpy as np
import pytest

from segjax.data.builders import files
from segjax.data.formats import coco
from segjax.types import IGNORE_LABEL, SegjaxError

SIZE = 6, 8


def square(y, x, label, side=3, **kwargs):
  mask = np.zeros(SIZE, bool)
  mask[y : y + side, x : x + side] = True
  return files.mask_object(mask, label, **kwargs)


def options(*classes, **kwargs):
  return files.Options(classes=classes, **kwargs)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'classes': ()}, 'one or more different names'),
    ({'classes': ('a', 'a')}, 'one or more different names'),
    ({'classes': ('a', 'b'), 'colors': ((0, 0, 0),)}, '1 colors for 2 classes'),
    ({'classes': ('a',), 'stuff': ('b',)}, 'stuff names b'),
  ],
)
def test_wrong_options(kwargs, message):
  with pytest.raises(SegjaxError, match=message):
    files.Options(**kwargs)


def test_label_of_objects_has_later_ones_in_front_and_a_background():
  content = files.Content(objects=[square(0, 0, 1), square(1, 1, 2)])
  label = files.label_of(content, SIZE, options('background', 'a', 'b'))
  assert label.dtype == np.uint16
  assert label[:5, :5].tolist() == [
    [1, 1, 1, 0, 0],
    [1, 2, 2, 2, 0],
    [1, 2, 2, 2, 0],
    [0, 2, 2, 2, 0],
    [0, 0, 0, 0, 0],
  ]
  content = files.Content(objects=[square(0, 0, 0)])
  assert files.label_of(content, SIZE, options('a'))[5, 5] == IGNORE_LABEL


def test_a_box_without_a_mask_is_a_rectangle_of_the_label():
  box = files.Object(1, None, (1.0, 2.0, 3.0, 2.0))
  label = files.label_of(files.Content(objects=[box]), SIZE, options('background', 'a'))
  assert np.argwhere(label)[[0, -1]].tolist() == [[2, 1], [3, 3]]
  assert (label == 1).sum() == 6


def test_segments_are_objects_of_things_and_classes_of_stuff():
  label = np.zeros(SIZE, np.uint16)
  label[:, 5:] = 1
  hidden = square(0, 0, 2, side=1)
  content = files.Content(label, [hidden, square(0, 0, 2), square(2, 2, 2, crowd=True)])
  ids, listed = files.segments_of(content, SIZE, options('sky', 'sea', 'cat', stuff=('sky', 'sea')))
  assert [(entry.label, entry.crowd) for entry in listed] == [
    (0, False),
    (1, False),
    (2, False),
    (2, True),
  ]
  assert ids[0, 0] == 3 and ids[2, 2] == 4 and ids[5, 0] == 1 and ids[0, 7] == 2
  assert set(np.unique(ids)) == {1, 2, 3, 4}


def test_segments_have_the_order_of_objects_and_void():
  area = lambda y, x, label: files.Object(label, None, (x, y, 2, 2))
  sea, cat, sky = (square(y, y, label, side=4) for y, label in enumerate((1, 2, 0)))
  content = files.Content(objects=[sea, cat, area(1, 1, IGNORE_LABEL), sky, area(5, 7, 1)])
  kinds = options('sky', 'sea', 'cat', 'background', stuff=('sky', 'sea', 'background'))
  ids, listed = files.segments_of(content, SIZE, kinds)
  assert [entry.label for entry in listed] == [0, 1, 3, 2]
  assert [ids[i, i] for i in range(6)] == [2, 0, 1, 1, 1, 1]
  assert ids[1, 3] == 4 and ids[5, 7] == 2 and ids[0, 7] == 3
  label = files.label_of(content, SIZE, kinds)
  np.testing.assert_array_equal(np.array([IGNORE_LABEL, 0, 1, 3, 2])[ids], label)


def test_objects_have_the_box_and_the_pixels_of_their_mask():
  found = square(1, 2, 0)
  assert found.box == (2, 1, 3, 3)
  assert coco.decode_mask(found.counts, SIZE).sum() == 9
  polygon = files.polygons_object([[2, 1, 5, 1, 5, 4, 2, 4]], 0, SIZE)
  assert polygon == found
  with pytest.raises(ValueError, match='polygon'):
    files.polygons_object([[2, 1, 5]], 0, SIZE)


def test_fractions_do_not_depend_on_the_order_and_are_disjoint():
  names = [f'im{i}' for i in range(10)]
  found = files.fraction_splits(names, {'train': 0.7, 'val': 0.3}, seed=0)
  assert len(found['train']) == 7 and not set(found['train']) & set(found['val'])
  backward = files.fraction_splits(names[::-1], {'train': 0.7, 'val': 0.3}, seed=0)
  assert set(backward['val']) == set(found['val'])
  assert files.fraction_splits(names, {'train': 0.7, 'val': 0.3}, seed=1) != found
  with pytest.raises(SegjaxError, match='leaves no image of 1 for val'):
    files.fraction_splits(['one'], {'train': 0.8, 'val': 0.2}, seed=0)
  with pytest.raises(SegjaxError, match='at most 1 in all'):
    files.fraction_splits(names, {'train': 0.8, 'val': 0.3}, seed=0)


def test_splits_by_directory_and_by_list(tmp_path):
  names = ['train/a', 'train/b', 'val/c']
  find = lambda **splits: files.splits_of(names, options('a', splits=splits), tmp_path)
  assert find(train='train', val='val/') == {'train': ['train/a', 'train/b'], 'val': ['val/c']}
  (tmp_path / 'list.txt').write_text('val/c.png\ntrain/a\n')
  assert find(test='list.txt') == {'test': ['val/c', 'train/a']}
  (tmp_path / 'list.txt').write_text('train/z')
  with pytest.raises(SegjaxError, match='lists train/z for test'):
    find(test='list.txt')
  for text, message in ((b'\n', 'names no image'), (b'caf\xe9', 'is not text in UTF-8')):
    (tmp_path / 'list.txt').write_bytes(text)
    with pytest.raises(SegjaxError, match=message):
      find(test='list.txt')
  with pytest.raises(SegjaxError, match='all fractions, or none'):
    find(train='train', val=0.2)
