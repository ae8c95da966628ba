"""Cityscapes semantic: both kinds of label files, and each way in which they can be wrong."""

import cv2
import numpy as np
import pytest
import synthetic_cityscapes
from raw_files import gray, remove, write

from segjax.data.builders.cityscapes import builder as cityscapes
from segjax.data.formats import common

HEIGHT, WIDTH = 12, 20
STEMS = {
  'train': ['ulm/ulm_000000_000019', 'aachen/aachen_000000_000019'],
  'val': ['munster/munster_000000_000019'],
  'test': ['berlin/berlin_000000_000019'],
}
# Columns 0, 1, … of a label: upstream's class ids, and the train ids of cityscapesscripts' table.
LABEL_IDS = [*range(34), 0, 0]
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13]
TRAIN_IDS += [14, 15, 255, 255, 16, 17, 18, 255, 255]


def rows(values):
  """u8[12, 36], each row the same."""
  return np.tile(np.array(values, np.uint8), (HEIGHT, 1))


@pytest.fixture
def source(tmp_path):
  synthetic_cityscapes.write(tmp_path / 'raw', STEMS, np.zeros((HEIGHT, 36), np.uint16))
  write_labels(tmp_path / 'raw', 'labelIds', LABEL_IDS)
  return tmp_path / 'raw'


def write_labels(source, kind, values):
  for path in source.glob('gtFine/*/*/*_instanceIds.png'):
    other = path.with_name(path.name.replace('instanceIds', kind))
    assert cv2.imwrite(str(other), rows(values))


def replace_labels(source):
  for path in source.glob('gtFine/*/*/*_labelIds.png'):
    path.unlink()
  write_labels(source, 'labelTrainIds', TRAIN_IDS)


@pytest.mark.parametrize('kind', ['labelIds', 'labelTrainIds'])
def test_both_kinds_of_labels_give_train_ids(prepare, by_name, source, kind):
  if kind == 'labelTrainIds':
    replace_labels(source)
  builder = prepare(cityscapes.Builder, source)
  assert sorted(builder.info.splits) == ['test', 'train', 'val']
  for split in ('train', 'val'):
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(stem.split('/')[1] for stem in STEMS[split])
    for stem in STEMS[split]:
      example = examples[stem.split('/')[1]]
      path = source / 'leftImg8bit' / split / f'{stem}_leftImg8bit.png'
      np.testing.assert_array_equal(example['image'], cv2.imread(str(path))[..., ::-1])
      np.testing.assert_array_equal(example['label'][..., 0], rows(TRAIN_IDS))


def test_test_split_is_void_and_optional(prepare, by_name, source, tmp_path):
  example = by_name(prepare(cityscapes.Builder, source), 'test')['berlin_000000_000019']
  assert example['label'].shape == (HEIGHT, 36, 1) and (example['label'] == common.VOID).all()
  (source / 'leftImg8bit' / 'test').rename(source / 'elsewhere')
  few = prepare(cityscapes.Builder, source, data_dir=tmp_path / 'prepared_few')
  assert sorted(few.info.splits) == ['train', 'val']


def test_classes(tmp_path):
  info = cityscapes.Builder(data_dir=tmp_path).info
  names = info.features['label'].names
  assert len(names) == 19 and names[::6] == ['road', 'traffic light', 'rider', 'bicycle']
  assert info.metadata['palette'][13] == [0, 0, 142]  # cars


LABEL = f'gtFine/val/{STEMS["val"][0]}_gtFine_labelIds.png'


def wrong_train_id(source):
  replace_labels(source)
  path = source / LABEL.replace('labelIds', 'labelTrainIds')
  assert cv2.imwrite(str(path), gray(HEIGHT, 36, 19))


BREAKS = {
  'label': (
    remove(LABEL),
    r'1 images of val lack .* such as .*gtFine/val/munster/munster_000000_000019_gtFine_labelIds',
  ),
  'size': (write(LABEL, gray(6, 10)), r'leftImg8bit\.png is 36x12 .*labelIds\.png is 10x6'),
  'value': (
    write(LABEL, gray(HEIGHT, 36, 34)),
    r'labelIds\.png has the value 34, which is out of range: classes are 0 to 33',
  ),
  'train id': (wrong_train_id, r'labelTrainIds\.png has the label value 19, .* 0 to 18'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(cityscapes.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(cityscapes.Builder, source)
