"""NYUDv2: the layout of FCN's data layer, and each way in which files can be wrong."""

import cv2
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from raw_files import remove, truncate

from segjax.data import datasets, pipeline
from segjax.data.builders.nyud import builder as nyud
from segjax.data.config import BatchConfig, DataConfig, InputConfig, SizeConfig
from segjax.data.formats import common

NUMBERS = {'train': ['5449', '6140'], 'val': ['5010'], 'test': ['5133', '6002']}


def write_mat(path, label):
  scipy.io.savemat(path, {'segmentation': label}, do_compression=True)


@pytest.fixture
def raw_labels():
  """Synthetic raw labels of 10 x 14; the first two of them as upstream may have them: any type."""
  rng = np.random.default_rng(0)
  numbers = [number for names in NUMBERS.values() for number in names]
  dtypes = [np.float64, np.uint16, *[np.uint8] * (len(numbers) - 2)]
  return {
    number: rng.integers(0, 41, (10, 14)).astype(dtype)
    for number, dtype in zip(numbers, dtypes, strict=True)
  }


@pytest.fixture
def source(tmp_path, raw_labels):
  rng = np.random.default_rng(1)
  directory = tmp_path / 'raw'
  for name in ('data/images', 'segmentation'):
    (directory / name).mkdir(parents=True)
  for split, numbers in NUMBERS.items():
    # The authors' lists end without a line break.
    (directory / f'{split}.txt').write_text('\n'.join(numbers))
    for number in numbers:
      image = rng.integers(0, 256, (10, 14, 3), np.uint8)
      cv2.imwrite(str(directory / f'data/images/img_{number}.png'), image)
      write_mat(directory / f'segmentation/img_{number}.mat', raw_labels[number])
  return directory


def test_reads_layout(prepare, by_name, source, raw_labels):
  builder = prepare(nyud.Builder, source)
  skip = {'image': tfds.decode.SkipDecoding()}
  for split, numbers in NUMBERS.items():
    examples = by_name(builder, split)
    encoded = by_name(builder, split, decoders=skip)
    assert sorted(examples) == sorted(f'img_{number}' for number in numbers)
    for number in numbers:
      raw = raw_labels[number].astype(int)
      expected = np.where(raw == 0, common.VOID, raw - 1)
      np.testing.assert_array_equal(examples[f'img_{number}']['label'][..., 0], expected)
      path = source / f'data/images/img_{number}.png'
      image = cv2.imread(str(path))[..., ::-1]
      np.testing.assert_array_equal(examples[f'img_{number}']['image'], image)
      assert encoded[f'img_{number}']['image'] == path.read_bytes()


def test_papers_training_set_is_train_and_val(prepare, source):
  builder = prepare(nyud.Builder, source)
  data = DataConfig('nyud', train_split='train+val', size=SizeConfig(image_size=(10, 14)))
  config = InputConfig(data, batch=BatchConfig(size=3))
  batches = pipeline.train_batches(builder, datasets.spec(builder, config), config, seed=0)
  _, names = next(batches)
  batches.close()
  assert sorted(names) == ['img_5010', 'img_5449', 'img_6140']


def test_classes_and_palette(tmp_path):
  info = nyud.Builder(data_dir=tmp_path).info
  names, palette = info.features['label'].names, info.metadata['palette']
  assert len(names) == len(set(names)) == len(palette) == 40
  assert [names[i] for i in (0, 6, 19, 23, 36, 39)] == [
    'wall',
    'table',
    'floor mat',
    'refrigerator',
    'bag',
    'other prop',
  ]
  assert palette[0] == [128, 0, 0]
  assert [0, 0, 0] not in palette
  assert len({tuple(color) for color in palette}) == 40


def rename_variable(source):
  scipy.io.savemat(source / 'segmentation/img_6140.mat', {'label': np.zeros((10, 14), np.uint8)})


def shrink_label(source):
  write_mat(source / 'segmentation/img_5133.mat', np.zeros((9, 14), np.uint8))


def put_value_41(source):
  write_mat(source / 'segmentation/img_6002.mat', np.full((10, 14), 41, np.uint8))


BREAKS = {
  'truncated label': (truncate('segmentation/img_6140.mat', 20), r'img_6140\.mat cannot be read'),
  'variable': (rename_variable, r'img_6140\.mat cannot be read .* with segmentation'),
  'truncated image': (
    truncate('data/images/img_5010.png', 100),
    r'img_5010\.png cannot be decoded',
  ),
  'size': (shrink_label, r'img_5133\.png is 14x10 .*img_5133\.mat is 14x9'),
  'value': (put_value_41, r'img_6002\.mat has the label value 41.* out of range'),
  'list': (remove('val.txt'), r'val\.txt is missing.*data\.source'),
  'image': (remove('data/images/img_5449.png'), r'img_5449\.png is missing'),
  'label': (remove('segmentation/img_5449.mat'), r'img_5449\.mat is missing'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(nyud.Builder, source, message)
