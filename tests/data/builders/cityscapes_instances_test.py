"""Cityscapes instances: objects and groups, and each way in which the raw files can be wrong."""

import cv2
import numpy as np
import pytest
import synthetic_cityscapes
import tensorflow_datasets as tfds
from raw_files import remove, rename, truncate, write

from segjax.data.builders.cityscapes_instances import builder as cityscapes
from segjax.data.formats import coco

HEIGHT, WIDTH = 12, 20
STEMS = {
  'train': ['aachen/aachen_000001_000019', 'aachen/aachen_000000_000019', 'ulm/ulm_000000_000019'],
  'val': ['munster/munster_000000_000019'],
  'test': ['berlin/berlin_000000_000019'],
}
SKIP = {'image': tfds.decode.SkipDecoding()}


def instance_ids():
  """u16[H, W]: road, two people, one in two parts, a group of them, a car, a trailer, a bicycle."""
  label = np.full((HEIGHT, WIDTH), 7, np.uint16)
  label[0:4, 0:3] = 24000
  label[2:9, 5:9] = 24001
  label[4:6, 5:9] = 26000
  label[0:2, 10:18] = 24
  label[4:8, 10:13] = 30000
  label[10:12, 18:20] = 33012
  label[11, 0] = 0
  return label


# Value, class index, crowd.
OBJECTS = [
  (24, 0, True),
  (24000, 0, False),
  (24001, 0, False),
  (26000, 2, False),
  (33012, 7, False),
]


@pytest.fixture
def source(tmp_path):
  synthetic_cityscapes.write(tmp_path / 'raw', STEMS, instance_ids())
  return tmp_path / 'raw'


def test_objects(prepare, by_name, source):
  builder = prepare(cityscapes.Builder, source)
  label = instance_ids()
  for split in ('train', 'val'):
    examples = by_name(builder, split, decoders=SKIP)
    assert sorted(examples) == sorted(stem.split('/')[1] for stem in STEMS[split])
    for image_id, stem in enumerate(sorted(STEMS[split]), start=1):
      example = examples[stem.split('/')[1]]
      path = source / 'leftImg8bit' / split / f'{stem}_leftImg8bit.png'
      assert example['image'] == path.read_bytes()
      assert example['image_id'] == image_id
      assert (example['height'], example['width']) == (HEIGHT, WIDTH)
      objects = example['objects']
      assert objects['id'] == [100_000 * image_id + value for value, _, _ in OBJECTS]
      assert objects['label'] == [class_index for _, class_index, _ in OBJECTS]
      assert objects['iscrowd'] == [crowd for _, _, crowd in OBJECTS]
      assert objects['category_id'] == [24, 24, 24, 26, 33]
      for k, (value, _, _) in enumerate(OBJECTS):
        mask = label == value
        counts = objects['segmentation'][k]
        np.testing.assert_array_equal(coco.decode_mask(counts, label.shape), mask)
        assert objects['bbox'][k].tolist() == list(cv2.boundingRect(mask.astype(np.uint8)))
        assert objects['area'][k] == mask.sum()


def test_test_split_has_no_objects_and_is_optional(prepare, by_name, source, tmp_path):
  example = by_name(prepare(cityscapes.Builder, source), 'test')['berlin_000000_000019']
  assert example['image'].shape == (HEIGHT, WIDTH, 3)
  assert example['objects']['id'] == []
  stems = {split: STEMS[split] for split in ('train', 'val')}
  synthetic_cityscapes.write(tmp_path / 'few', stems, instance_ids())
  few = prepare(cityscapes.Builder, tmp_path / 'few', data_dir=tmp_path / 'prepared_few')
  assert sorted(few.info.splits) == ['train', 'val']


def test_classes(tmp_path):
  info = cityscapes.Builder(data_dir=tmp_path).info
  names = 'person rider car truck bus train motorcycle bicycle'
  assert info.features['objects']['label'].names == names.split()
  assert info.metadata['category_ids'] == [24, 25, 26, 27, 28, 31, 32, 33]
  assert len({tuple(color) for color in info.metadata['palette']}) == 8


VAL = STEMS['val'][0]
LABEL = f'gtFine/val/{VAL}_gtFine_instanceIds.png'


def put_value(value):
  def put(source):
    label = instance_ids()
    label[5, 5] = value
    cv2.imwrite(str(source / LABEL), label)

  return put


BREAKS = {
  'image': (
    remove(f'leftImg8bit/train/{STEMS["train"][1]}_leftImg8bit.png'),
    r'1 images of train lack .* such as .*leftImg8bit/train/aachen/aachen_000000_000019_leftImg',
  ),
  'label': (
    remove(LABEL),
    r'1 images of val lack .* such as .*gtFine/val/munster/munster_000000_000019_gtFine_instance',
  ),
  'directory': (
    rename('leftImg8bit/val', 'val'),
    r'leftImg8bit/val has no images: set config\.data\.source to .* that holds leftImg8bit/',
  ),
  'size': (
    write(LABEL, np.zeros((6, 10), np.uint16)),
    r'leftImg8bit\.png is 20x12 .*instanceIds\.png is 10x6',
  ),
  'value': (put_value(34001), r'instanceIds\.png has the value 34001, which is out of range'),
  'class': (put_value(255), r'instanceIds\.png has the value 255, which is out of range'),
  'undecodable': (
    truncate(f'leftImg8bit/val/{VAL}_leftImg8bit.png', 100),
    r'munster_000000_000019_leftImg8bit\.png cannot be decoded',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(cityscapes.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(cityscapes.Builder, source)
