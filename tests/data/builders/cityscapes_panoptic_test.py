"""Cityscapes panoptic: stuff, things and groups, and each way in which the raw files are wrong."""

import cv2
import numpy as np
import pytest
import synthetic_cityscapes
from raw_files import remove, write

from segjax.data.builders.cityscapes_panoptic import builder as cityscapes
from segjax.data.formats import panoptic

HEIGHT, WIDTH = 12, 20
STEMS = {
  'train': ['ulm/ulm_000000_000019', 'aachen/aachen_000000_000019'],
  'val': ['munster/munster_000000_000019'],
  'test': ['berlin/berlin_000000_000019'],
}


def instance_ids():
  """u16[H, W]: road, two people, a group, a car, a trailer and parking (void), sky, a bicycle."""
  label = np.full((HEIGHT, WIDTH), 7, np.uint16)
  label[0:4, 0:3] = 24000
  label[2:9, 5:9] = 24001
  label[4:6, 5:9] = 26000
  label[0:2, 10:18] = 24
  label[4:8, 10:13] = 30000
  label[9, 0:4] = 9
  label[0, 18:20] = 23
  label[10:12, 18:20] = 33012
  label[11, 0] = 0
  return label


# Value, class index, crowd.
SEGMENTS = [
  (7, 0, False),
  (23, 10, False),
  (24, 11, True),
  (24000, 11, False),
  (24001, 11, False),
  (26000, 13, False),
  (33012, 18, False),
]


@pytest.fixture
def source(tmp_path):
  synthetic_cityscapes.write(tmp_path / 'raw', STEMS, instance_ids())
  return tmp_path / 'raw'


def test_segments(prepare, by_name, source):
  builder = prepare(cityscapes.Builder, source)
  label = instance_ids()
  for split in ('train', 'val'):
    examples = by_name(builder, split)
    for image_id, stem in enumerate(sorted(STEMS[split]), start=1):
      example = examples[stem.split('/')[1]]
      path = source / 'leftImg8bit' / split / f'{stem}_leftImg8bit.png'
      np.testing.assert_array_equal(example['image'], cv2.imread(str(path))[..., ::-1])
      assert example['image_id'] == image_id
      expected = np.where(np.isin(label, [0, 9, 30000]), 0, label)
      np.testing.assert_array_equal(panoptic.rgb_to_ids(example['panoptic']), expected)
      segments = example['segments']
      assert segments['id'] == [value for value, _, _ in SEGMENTS]
      assert segments['label'] == [index for _, index, _ in SEGMENTS]
      assert segments['iscrowd'] == [crowd for _, _, crowd in SEGMENTS]
      assert segments['category_id'] == [7, 23, 24, 24, 24, 26, 33]
      for k, (value, _, _) in enumerate(SEGMENTS):
        mask = label == value
        assert segments['area'][k] == mask.sum()
        assert segments['bbox'][k].tolist() == list(cv2.boundingRect(mask.astype(np.uint8)))
      read = panoptic.read_example(example, stem, size=(HEIGHT, WIDTH))
      np.testing.assert_array_equal(np.append(segments['id'], 0)[read.ids - 1], expected)


def test_test_split_is_void_and_optional(prepare, by_name, source, tmp_path):
  example = by_name(prepare(cityscapes.Builder, source), 'test')['berlin_000000_000019']
  assert example['segments']['id'] == []
  assert example['panoptic'].shape == (HEIGHT, WIDTH, 3) and not example['panoptic'].any()
  assert not panoptic.read_example(example, 'x').ids.any()
  stems = {split: STEMS[split] for split in ('train', 'val')}
  synthetic_cityscapes.write(tmp_path / 'few', stems, instance_ids())
  few = prepare(cityscapes.Builder, tmp_path / 'few', data_dir=tmp_path / 'prepared_few')
  assert sorted(few.info.splits) == ['train', 'val']


def test_classes(tmp_path):
  metadata = cityscapes.Builder(data_dir=tmp_path).info.metadata
  assert metadata['isthing'] == [False] * 11 + [True] * 8
  assert metadata['category_ids'] == sorted(metadata['category_ids'])
  assert metadata['class_names'][::6] == ['road', 'traffic light', 'rider', 'bicycle']
  assert len({tuple(color) for color in metadata['palette']}) == 19


VAL = STEMS['val'][0]
LABEL = f'gtFine/val/{VAL}_gtFine_instanceIds.png'


def put_value(value):
  def put(source):
    label = instance_ids()
    label[5, 5] = value
    cv2.imwrite(str(source / LABEL), label)

  return put


BREAKS = {
  'label': (
    remove(LABEL),
    r'1 images of val lack .* such as .*gtFine/val/munster/munster_000000_000019_gtFine_instance',
  ),
  'size': (
    write(LABEL, np.zeros((6, 10), np.uint16)),
    r'leftImg8bit\.png is 20x12 .*instanceIds\.png is 10x6',
  ),
  'value': (put_value(34001), r'instanceIds\.png has the value 34001, which is out of range'),
  'class': (put_value(255), r'instanceIds\.png has the value 255, which is out of range'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(cityscapes.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(cityscapes.Builder, source)
