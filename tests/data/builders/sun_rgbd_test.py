"""SUN RGB-D: both layouts, unlabeled pixels, and each way in which files can be wrong."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from raw_files import gray, remove, rename, rgb, truncate, write

from segjax.data.builders.sun_rgbd import builder as sun_rgbd
from segjax.data.formats import common

COUNTS = {'train': 3, 'test': 2}
# Directory of a split's images, directory of its labels, name of label n of train and of test.
LAYOUTS = {
  'reorganised': ('image/{}', 'label37/{}', 'img-{:06d}.png', 'img-{:06d}.png', 0),
  'reorganised, other names': ('image/{}', 'label37/{}', '{:08d}.png', '{:08d}.png', 0),
  'numbered throughout': ('{}', 'labels/{}', 'img-{:06d}.png', 'img-{:06d}.png', 5050),
}


def write_source(directory, layout='reorganised'):
  """Writes synthetic images of 10 x 14. Returns the raw labels by split and number."""
  image_directory, label_directory, train_name, test_name, ahead = LAYOUTS[layout]
  rng = np.random.default_rng(0)
  labels = {}
  for split, count in COUNTS.items():
    images, annotations = (directory / f.format(split) for f in (image_directory, label_directory))
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for number in range(1, count + 1):
      image = rng.integers(0, 256, (10, 14, 3), np.uint8)
      cv2.imwrite(str(images / f'img-{number:06d}.jpg'), image)
      label = labels[split, number] = rng.integers(0, 38, (10, 14), np.uint8)
      name = train_name.format(number + ahead) if split == 'train' else test_name.format(number)
      cv2.imwrite(str(annotations / name), label)
  return labels


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw')
  return tmp_path / 'raw'


@pytest.mark.parametrize('layout', LAYOUTS)
def test_reads_layouts(prepare, by_name, tmp_path, layout):
  labels = write_source(tmp_path / 'raw', layout)
  builder = prepare(sun_rgbd.Builder, tmp_path / 'raw')
  assert {name: info.num_examples for name, info in builder.info.splits.items()} == COUNTS
  skip = {'image': tfds.decode.SkipDecoding()}
  for split in COUNTS:
    examples = by_name(builder, split)
    encoded = by_name(builder, split, decoders=skip)
    for number in range(1, COUNTS[split] + 1):
      name = f'img-{number:06d}'
      raw = labels[split, number].astype(int)
      expected = np.where(raw == 0, common.VOID, raw - 1)
      np.testing.assert_array_equal(examples[name]['label'][..., 0], expected)
      path = tmp_path / 'raw' / LAYOUTS[layout][0].format(split) / f'{name}.jpg'
      np.testing.assert_array_equal(examples[name]['image'], cv2.imread(str(path))[..., ::-1])
      assert encoded[name]['image'] == path.read_bytes()


def test_classes_and_palette(tmp_path):
  info = sun_rgbd.Builder(data_dir=tmp_path).info
  names, palette = info.features['label'].names, info.metadata['palette']
  assert len(names) == len(set(names)) == len(palette) == 37
  assert [names[i] for i in (0, 9, 19, 24, 36)] == ['wall', 'bookshelf', 'floor mat', 'tv', 'bag']
  assert palette[0] == [128, 0, 0]
  assert [0, 0, 0] not in palette
  assert len({tuple(color) for color in palette}) == 37


def empty_directory(source):
  for path in (source / 'image/test').iterdir():
    path.unlink()


BREAKS = {
  'undecodable': (
    truncate('image/train/img-000002.jpg', 200),
    r'train/img-000002\.jpg cannot be decoded',
  ),
  'size': (
    write('label37/train/img-000001.png', gray(10, 13)),
    r'img-000001\.jpg is 14x10 .*img-000001\.png is 13x10',
  ),
  'value': (
    write('label37/test/img-000002.png', gray(10, 14, 38)),
    r'img-000002\.png has the label value 38.* out of range',
  ),
  'mode': (
    write('label37/test/img-000001.png', rgb(10, 14)),
    r'img-000001\.png has pixels of mode RGB, not L or P',
  ),
  'layout': (rename('label37', 'label13'), r'raw holds neither label37 nor labels.*data\.source'),
  'name': (
    rename('label37/test/img-000001.png', 'label37/test/img-1.png'),
    r'img-1\.png has no number of 6 digits',
  ),
  'empty': (empty_directory, r'image/test contains no \.jpg file.*data\.source'),
  'image': (remove('image/train/img-000003.jpg'), r'000003\.png has no image in .*image/train'),
  'label': (remove('label37/test/img-000001.png'), r'000001\.jpg has no label in .*label37/test'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(sun_rgbd.Builder, source, message)
