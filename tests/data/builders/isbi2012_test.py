"""ISBI 2012: both layouts, the splits, and each way in which the raw files can be wrong."""

import cv2
import numpy as np
import pytest
from PIL import Image
from raw_files import gray, remove, rename, rgb, truncate, write
from real_data import real_data

from segjax import types
from segjax.data.builders.isbi2012 import builder as isbi2012

HEIGHT, WIDTH = 12, 16


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
  """Synthetic slices: images u8[30, H, W] and raw labels, 0 or 255."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (30, HEIGHT, WIDTH), np.uint8)
  return images, 255 * rng.integers(0, 2, images.shape, np.uint8)


@pytest.fixture
def source(tmp_path, volume):
  """A directory in the layout image/N.png, label/N.png."""
  for directory, pages in zip(('image', 'label'), volume, strict=True):
    (tmp_path / 'raw' / directory).mkdir(parents=True)
    for index, page in enumerate(pages):
      cv2.imwrite(str(tmp_path / 'raw' / directory / f'{index}.png'), page)
  return tmp_path / 'raw'


def write_tiff(path, pages):
  path.parent.mkdir(exist_ok=True)
  first, *rest = [Image.fromarray(page) for page in pages]
  first.save(path, save_all=True, append_images=rest)


def check_examples(examples, volume, indices):
  images, labels = volume
  assert sorted(examples, key=int) == [str(index) for index in indices]
  for index in indices:
    example = examples[str(index)]
    np.testing.assert_array_equal(example['image'], images[index][..., None])
    np.testing.assert_array_equal(example['label'], labels[index][..., None] // 255)


def test_reads_directories(prepare, by_name, source, volume):
  builder = prepare(isbi2012.Builder, source)
  check_examples(by_name(builder, 'train'), volume, range(25))
  check_examples(by_name(builder, 'val'), volume, range(25, 30))
  assert builder.info.features['label'].names == ['membrane', 'cell']
  assert len(builder.info.metadata['palette']) == 2


@pytest.mark.parametrize('suffix', ['.tif', '.tiff'])
def test_reads_tiff_volumes(prepare, by_name, tmp_path, volume, suffix):
  images, labels = volume
  write_tiff(tmp_path / 'tiff' / f'train-volume{suffix}', images)
  write_tiff(tmp_path / 'tiff' / f'train-labels{suffix}', labels)
  builder = prepare(isbi2012.Builder, tmp_path / 'tiff')
  check_examples(by_name(builder, 'train'), volume, range(25))
  check_examples(by_name(builder, 'val'), volume, range(25, 30))


def test_folds_are_contiguous_and_cover_all_slices():
  folds = [isbi2012.Builder.builder_configs[f'fold{fold}'].held_out for fold in range(5)]
  assert [index for held_out in folds for index in held_out] == list(range(30))
  assert [len(held_out) for held_out in folds] == [6] * 5


def test_fold_is_selected_by_name(prepare, by_name, source, volume):
  builder = prepare(isbi2012.Builder, source, config='fold1')
  check_examples(by_name(builder, 'val'), volume, range(6, 12))
  check_examples(by_name(builder, 'train'), volume, [*range(6), *range(12, 30)])


BREAKS = {
  'undecodable': (truncate('image/3.png', 100), r'image/3\.png cannot be decoded'),
  'size': (
    write('label/4.png', gray(HEIGHT, WIDTH - 1)),
    r'image/4\.png is 16x12 .*label/4\.png is 15x12',
  ),
  'value': (
    write('label/26.png', gray(HEIGHT, WIDTH, 7)),
    r'label/26\.png has label values other than 0 .* and 255',
  ),
  'mode': (write('image/0.png', rgb(HEIGHT, WIDTH)), r'image/0\.png has pixels of mode RGB, not L'),
  'file': (remove('label/2.png'), r'label/2\.png is missing'),
  'directory': (rename('label', 'labels'), r'raw holds neither label/ nor .*data\.source'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(isbi2012.Builder, source, message)


def test_short_volume(prepare, tmp_path, volume):
  write_tiff(tmp_path / 'tiff' / 'train-volume.tif', volume[0][:29])
  write_tiff(tmp_path / 'tiff' / 'train-labels.tif', volume[1])
  with pytest.raises(types.SegjaxError, match=r'train-volume\.tif has no page 30'):
    prepare(isbi2012.Builder, tmp_path / 'tiff')


def test_failed_prepare_leaves_nothing_and_can_be_repeated(prepare, by_name, source, volume):
  path = source / 'label' / '29.png'  # the last file to be read: train is written already
  good = path.read_bytes()
  path.write_bytes(b'no image')
  builder = isbi2012.Builder(data_dir=source.parent / 'prepared')
  with pytest.raises(types.SegjaxError, match=r'label/29\.png'):
    prepare(isbi2012.Builder, source)
  assert not builder.data_path.exists()
  assert not list((source.parent / 'prepared').rglob('*.array_record*'))
  path.write_bytes(good)
  check_examples(by_name(prepare(isbi2012.Builder, source), 'val'), volume, range(25, 30))


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(isbi2012.Builder, source)


def test_real_data(prepare, by_name):
  builder = prepare(isbi2012.Builder, real_data('isbi2012'))
  assert builder.info.splits['train'].num_examples == 25
  assert builder.info.splits['val'].num_examples == 5
  example = by_name(builder, 'val')['25']
  raw = cv2.imread(str(real_data('isbi2012') / 'image' / '25.png'), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(example['image'], raw[..., None])
  assert example['image'].shape == example['label'].shape == (512, 512, 1)
  # Membranes are dark, and less of the image than cells are.
  membrane = example['label'] == builder.info.features['label'].names.index('membrane')
  assert example['image'][membrane].mean() < example['image'][~membrane].mean() - 20
  assert 0.1 < membrane.mean() < 0.4
