"""CamVid: both layouts, void, and each way in which the raw files can be wrong."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from raw_files import gray, remove, rgb, truncate, write
from real_data import real_data

from segjax import types
from segjax.data.builders.camvid import builder as camvid
from segjax.data.formats import common

FRAMES = {
  'train': ['0001TP_006690', '0001TP_006720', '0006R0_f00930'],
  'val': ['0016E5_07959', '0016E5_07961'],
  'test': ['0001TP_008550'],
}


def write_source(directory, suffix='.jpg', line='{stem}'):
  """Writes synthetic frames of 10 x 14; the first train label is free of void. Returns labels."""
  rng = np.random.default_rng(0)
  labels = {}
  for split, stems in FRAMES.items():
    for name in (split, f'{split}annot'):
      (directory / name).mkdir(parents=True)
    lines = [line.format(split=split, stem=stem) for stem in stems]
    (directory / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    for stem in stems:
      image = rng.integers(0, 256, (10, 14, 3), np.uint8)
      labels[stem] = rng.integers(0, 11, (10, 14), np.uint8)
      if stem != FRAMES['train'][0]:
        labels[stem][:2, :5] = 11
      cv2.imwrite(str(directory / split / f'{stem}{suffix}'), image)
      cv2.imwrite(str(directory / f'{split}annot' / f'{stem}.png'), labels[stem])
  return labels


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw')
  return tmp_path / 'raw'


LAYOUTS = {
  'jpeg and stems': {'suffix': '.jpg'},
  'upstream': {
    'suffix': '.png',
    'line': '/SegNet/CamVid/{split}/{stem}.png /SegNet/CamVid/{split}annot/{stem}.png',
  },
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_reads_both_layouts(prepare, by_name, tmp_path, layout):
  source, suffix = tmp_path / 'raw', LAYOUTS[layout]['suffix']
  labels = write_source(source, **LAYOUTS[layout])
  builder = prepare(camvid.Builder, source)
  for split, stems in FRAMES.items():
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(stems)
    for stem in stems:
      image = cv2.imread(str(source / split / f'{stem}{suffix}'))[..., ::-1]
      np.testing.assert_array_equal(examples[stem]['image'], image)
      expected = np.where(labels[stem] == 11, common.VOID, labels[stem])
      np.testing.assert_array_equal(examples[stem]['label'][..., 0], expected)


def test_files_are_stored_unchanged(prepare, by_name, source):
  builder = prepare(camvid.Builder, source)
  skip = tfds.decode.SkipDecoding()
  examples = by_name(builder, 'train', decoders={'image': skip, 'label': skip})
  for stem, example in examples.items():
    assert example['image'] == (source / 'train' / f'{stem}.jpg').read_bytes()
  stem = FRAMES['train'][0]  # the one without void
  assert examples[stem]['label'] == (source / 'trainannot' / f'{stem}.png').read_bytes()


def test_classes_and_palette(tmp_path):
  info = camvid.Builder(data_dir=tmp_path).info
  names = 'sky building pole road pavement tree sign fence car pedestrian bicyclist'
  assert info.features['label'].names == names.split()
  assert len({tuple(color) for color in info.metadata['palette']}) == 11
  assert info.metadata['palette'][3] == [128, 64, 128]


BREAKS = {
  'undecodable': (
    truncate('train/0001TP_006720.jpg', 200),
    r'train/0001TP_006720\.jpg cannot be decoded',
  ),
  'size': (
    write('valannot/0016E5_07959.png', gray(9, 14)),
    r'0016E5_07959\.jpg is 14x10 .*0016E5_07959\.png is 14x9',
  ),
  'value': (
    write('testannot/0001TP_008550.png', gray(10, 14, 12)),
    r'0001TP_008550\.png has the label value 12.* out of range',
  ),
  'mode': (
    write('trainannot/0001TP_006690.png', rgb(10, 14)),
    r'0001TP_006690\.png has pixels of mode RGB, not L',
  ),
  'image': (
    remove('val/0016E5_07961.jpg'),
    r'val has no image 0016E5_07961',
  ),
  'label': (
    remove('valannot/0016E5_07961.png'),
    r'valannot/0016E5_07961\.png is missing',
  ),
  'list': (remove('test.txt'), r'test\.txt is missing.*data\.source'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(camvid.Builder, source, message)


def test_failed_prepare_leaves_nothing_and_can_be_repeated(prepare, by_name, source):
  path = source / 'test' / '0001TP_008550.jpg'  # the last file to be read
  good = path.read_bytes()
  path.write_bytes(good[:-200])
  builder = camvid.Builder(data_dir=source.parent / 'prepared')
  with pytest.raises(types.SegjaxError, match=r'0001TP_008550\.jpg'):
    prepare(camvid.Builder, source)
  assert not builder.data_path.exists()
  assert not list((source.parent / 'prepared').rglob('*.array_record*'))
  path.write_bytes(good)
  assert sorted(by_name(prepare(camvid.Builder, source), 'train')) == sorted(FRAMES['train'])


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(camvid.Builder, source)


def test_real_data(prepare, by_name):
  builder = prepare(camvid.Builder, real_data('camvid'))
  sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
  assert sizes == {'train': 367, 'val': 101, 'test': 233}
  example = by_name(builder, 'val')['0016E5_07959']
  assert example['image'].shape == (360, 480, 3)
  raw_path = real_data('camvid') / 'valannot' / '0016E5_07959.png'
  raw = cv2.imread(str(raw_path), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(example['label'][..., 0] == common.VOID, raw == 11)
  np.testing.assert_array_equal(example['label'][..., 0][raw != 11], raw[raw != 11])
