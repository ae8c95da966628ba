"""SBD: the layouts, the labels in MATLAB files, and each way in which files can be wrong."""

import cv2
import numpy as np
import pytest
import scipy.io
from raw_files import gray, remove, rename, truncate, write

from segjax.data.builders.sbd import builder as sbd
from segjax.data.builders.voc import builder as voc
from segjax.data.formats import common

NAMES = {'train': ['2008_000002', '2008_000003', '2011_003276'], 'val': ['2008_000008']}


def write_mat(path, label):
  """Writes a label as upstream does: in a struct, beside boundaries and the classes there are."""
  content = {
    'Boundaries': np.zeros((20, 1), object),
    'Segmentation': label,
    'CategoriesPresent': np.unique(label)[:, None],
  }
  scipy.io.savemat(path, {'GTcls': content}, do_compression=True)


def write_dataset_directory(directory):
  """Writes synthetic images of 10 x 14 in the layout of `dataset`. Returns the labels."""
  rng = np.random.default_rng(0)
  for name in ('img', 'cls'):
    (directory / name).mkdir(parents=True)
  labels = {}
  for split, names in NAMES.items():
    (directory / f'{split}.txt').write_text('\n'.join(names) + '\n')
    for name in names:
      labels[name] = rng.integers(0, 21, (10, 14), np.uint8)
      image = rng.integers(0, 256, (10, 14, 3), np.uint8)
      cv2.imwrite(str(directory / 'img' / f'{name}.jpg'), image)
      write_mat(directory / 'cls' / f'{name}.mat', labels[name])
  return labels


@pytest.fixture
def source(tmp_path):
  write_dataset_directory(tmp_path / 'raw/benchmark_RELEASE/dataset')
  return tmp_path / 'raw'


@pytest.mark.parametrize('source', ['', 'benchmark_RELEASE', 'benchmark_RELEASE/dataset'])
def test_reads_layouts(prepare, by_name, tmp_path, source):
  directory = tmp_path / 'raw/benchmark_RELEASE/dataset'
  labels = write_dataset_directory(directory)
  builder = prepare(sbd.Builder, tmp_path / 'raw' / source)
  for split, names in NAMES.items():
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(names)
    for name in names:
      np.testing.assert_array_equal(examples[name]['label'][..., 0], labels[name])
      image = cv2.imread(str(directory / 'img' / f'{name}.jpg'))[..., ::-1]
      np.testing.assert_array_equal(examples[name]['image'], image)


def test_void_is_ignored(prepare, by_name, source):
  label = np.full((10, 14), 255, np.uint8)
  label[0, 0] = 3
  write_mat(source / 'benchmark_RELEASE/dataset/cls/2008_000008.mat', label)
  result = by_name(prepare(sbd.Builder, source), 'val')['2008_000008']['label'][..., 0]
  assert result[0, 0] == 3
  assert np.sum(result == common.VOID) == 10 * 14 - 1


def test_classes_and_palette_are_those_of_voc(tmp_path):
  ours, theirs = (b(data_dir=tmp_path).info for b in (sbd.Builder, voc.Builder))
  assert ours.features['label'].names == theirs.features['label'].names
  assert ours.metadata['palette'] == theirs.metadata['palette']


def drop_segmentation(root):
  scipy.io.savemat(root / 'cls/2008_000003.mat', {'GTcls': {'Boundaries': 0}})


def swap_for_instances(root):
  scipy.io.savemat(root / 'cls/2008_000003.mat', {'GTinst': {'Segmentation': np.zeros((10, 14))}})


def shrink_label(root):
  write_mat(root / 'cls/2008_000002.mat', np.zeros((10, 13), np.uint8))


def put_value_21(root):
  write_mat(root / 'cls/2008_000008.mat', np.full((10, 14), 21, np.uint8))


BREAKS = {
  'truncated': (truncate('cls/2008_000003.mat', 30), r'2008_000003\.mat cannot be read'),
  'field': (drop_segmentation, r'2008_000003\.mat cannot be read .*GTcls\.Segmentation'),
  'variable': (swap_for_instances, r'2008_000003\.mat cannot be read .*GTcls\.Segmentation'),
  'size': (shrink_label, r'2008_000002\.jpg is 14x10 .*2008_000002\.mat is 13x10'),
  'value': (put_value_21, r'2008_000008\.mat has the label value 21.* out of range'),
  'mode': (
    write('img/2011_003276.jpg', gray(10, 14)),
    r'2011_003276\.jpg has pixels of mode L, not RGB',
  ),
  'directory': (
    rename('cls', 'class'),
    r'raw does not hold benchmark_RELEASE/dataset.*data\.source',
  ),
  'list': (remove('val.txt'), r'val\.txt is missing.*data\.source'),
  'image': (remove('img/2008_000002.jpg'), r'2008_000002\.jpg is missing'),
  'label': (remove('cls/2008_000008.mat'), r'2008_000008\.mat is missing'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source / 'benchmark_RELEASE/dataset')
  refuses(sbd.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(sbd.Builder, source)
