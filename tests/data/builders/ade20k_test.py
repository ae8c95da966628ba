"""ADE20K semantic: classes from upstream's values, and each way in which files can be wrong."""

import cv2
import numpy as np
import pytest
import synthetic_ade20k as ade
from raw_files import gray, remove, rename, write

from segjax.data import datasets, pipeline
from segjax.data.builders import ade20k_files
from segjax.data.builders.ade20k import builder as ade20k
from segjax.data.config import BatchConfig, DataConfig, InputConfig
from segjax.data.formats import common


@pytest.fixture
def source(tmp_path):
  ade.write(tmp_path / 'raw')
  return tmp_path / 'raw'


def test_labels_and_images(prepare, by_name, source):
  builder = prepare(ade20k.Builder, source)
  assert sorted(builder.info.splits) == ['train', 'val']
  expected = np.where(ade.label_map() == 0, common.VOID, ade.label_map() - 1)
  for split, stems in ade.STEMS.items():
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(stems)
    for stem in stems:
      path = source / 'images' / ade20k_files.DIRECTORIES[split] / f'{stem}.jpg'
      decoded = cv2.imread(str(path))[..., ::-1].astype(int)
      # Two JPEG decoders may round differently.
      assert abs(examples[stem]['image'].astype(int) - decoded).max() <= 2
      np.testing.assert_array_equal(examples[stem]['label'][..., 0], expected)


def test_gray_images(prepare, source):
  """Some of upstream's are gray: they are read as RGB."""
  path = source / 'images' / 'validation' / 'ADE_val_00000012.jpg'
  assert cv2.imwrite(str(path), gray(ade.HEIGHT, ade.WIDTH, 77))
  builder = prepare(ade20k.Builder, source)
  config = InputConfig(DataConfig('ade20k'), batch=BatchConfig(eval_size=1))
  spec = datasets.spec(builder, config)
  [(batch, _)] = pipeline.eval_batches(builder, spec, config)
  image = batch['image'][0]
  assert image.shape == (ade.HEIGHT, ade.WIDTH, 3) and abs(image.astype(int) - 77).max() <= 1


def test_classes(tmp_path):
  info = ade20k.Builder(data_dir=tmp_path).info
  names = info.features['label'].names
  assert len(set(names)) == len(names) == 150
  assert names[::30] == ['wall', 'armchair', 'river', 'plane', 'food'] and names[149] == 'flag'
  assert info.metadata['palette'][12] == [150, 5, 61]  # people
  assert [c.id for c in ade20k_files.CATEGORIES] == list(range(150))


def test_things_and_stuff():
  """The list `stuff_classes` of EoMT's authors."""
  numbers = (
    '0 1 2 3 4 5 6 9 11 13 16 17 21 25 26 28 29 34 40 46 48 51 52 54 59 60 61 63 68 77 79 84 91 94 '
    '96 99 100 101 105 106 109 113 114 117 122 128 131 140 141 145'
  )
  stuff = [category.id for category in ade20k_files.CATEGORIES if not category.isthing]
  assert stuff == [int(number) for number in numbers.split()]
  assert len({c.color for c in ade20k_files.CATEGORIES}) == 150


LABEL = 'annotations/validation/ADE_val_00000012.png'
BREAKS = {
  'label': (
    remove(LABEL),
    r'1 images of validation lack .* such as .*annotations/validation/ADE_val_00000012\.png: ',
  ),
  'image': (
    remove('images/training/ADE_train_00000002.jpg'),
    r'1 images of training lack .* such as .*images/training/ADE_train_00000002\.jpg: unpack',
  ),
  'images': (
    rename('images/validation', 'images/elsewhere'),
    r'raw/images/validation has no images: set config\.data\.source to the directory that holds',
  ),
  'size': (
    write(LABEL, gray(5, 6)),
    r'ADE_val_00000012\.jpg is 12x8 .*ADE_val_00000012\.png is 6x5',
  ),
  'value': (
    write(LABEL, gray(ade.HEIGHT, ade.WIDTH, 151)),
    r'ADE_val_00000012\.png has the label value 151, .* classes are 1 to 150, void is 0',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(ade20k.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(ade20k.Builder, source)
