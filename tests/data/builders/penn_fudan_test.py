"""Penn-Fudan: objects of the masks, the splits, and each way in which raw files can be wrong."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from raw_files import gray, remove, rename, rgb, truncate, write
from real_data import real_data

from segjax.data.builders.penn_fudan import builder as penn_fudan
from segjax.data.formats import coco

STEMS = [f'FudanPed{k:05d}' for k in range(1, 75)] + [f'PennPed{k:05d}' for k in range(1, 97)]
HEIGHT, WIDTH = 8, 10


def people(index):
  """Masks u8[H, W] of one to three people; 2 hides a part of 1."""
  label = np.zeros((HEIGHT, WIDTH), np.uint8)
  label[1:7, 1:5] = 1
  if index % 3 > 0:
    label[3:8, 3:6] = 2
  if index % 3 > 1:
    label[0:2, 7 : 8 + index % 2] = 3
  return label


def write_source(source, suffix='.jpg'):
  for directory in ('PNGImages', 'PedMasks'):
    (source / directory).mkdir(parents=True)
  rng = np.random.default_rng(0)
  for index, stem in enumerate(STEMS):
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(source / 'PNGImages' / f'{stem}{suffix}'), image)
    cv2.imwrite(str(source / 'PedMasks' / f'{stem}_mask.png'), people(index))


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw')
  return tmp_path / 'raw'


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_objects_are_those_of_the_masks(prepare, by_name, tmp_path, suffix):
  source = tmp_path / 'raw'
  write_source(source, suffix)
  builder = prepare(penn_fudan.Builder, source)
  assert builder.info.features['objects']['label'].names == ['person']
  skip = {'image': tfds.decode.SkipDecoding()}
  examples = {
    name: example
    for split in ('train', 'val')
    for name, example in by_name(builder, split, decoders=skip).items()
  }
  assert sorted(examples) == STEMS
  for index, stem in enumerate(STEMS):
    example, label = examples[stem], people(index)
    assert example['image'] == (source / 'PNGImages' / f'{stem}{suffix}').read_bytes()
    assert example['image_id'] == index + 1
    assert (example['height'], example['width']) == (HEIGHT, WIDTH)
    objects = example['objects']
    assert objects['id'] == [1000 * (index + 1) + k for k in range(1, label.max() + 1)]
    assert not any(objects['iscrowd']) and not any(objects['label'])
    assert set(objects['category_id']) == {1}
    for k in range(label.max()):
      mask = label == k + 1
      counts = objects['segmentation'][k]
      np.testing.assert_array_equal(coco.decode_mask(counts, label.shape), mask)
      assert objects['bbox'][k].tolist() == list(cv2.boundingRect(mask.astype(np.uint8)))
      assert objects['area'][k] == mask.sum()


def held_out(config, tmp_path):
  builder = penn_fudan.Builder(data_dir=tmp_path, config=config)
  return list(builder.builder_config.held_out)


def test_splits(prepare, by_name, source, tmp_path):
  folds = [held_out(f'fold{k}', tmp_path) for k in range(5)]
  assert [position for fold in folds for position in fold] == list(range(170))
  assert [len(fold) for fold in folds] == [34] * 5

  def stems(builder, split):
    skip = {'image': tfds.decode.SkipDecoding()}
    return set(by_name(builder, split, decoders=skip))

  default, fold = (prepare(penn_fudan.Builder, source, config=c) for c in (None, 'fold4'))
  assert (len(stems(default, 'train')), len(stems(default, 'val'))) == (120, 50)
  assert stems(fold, 'train') | stems(fold, 'val') == set(STEMS)
  assert not stems(fold, 'train') & stems(fold, 'val')
  # The last of the same order: fold 4 holds out 34 of the default's 50.
  assert stems(fold, 'val') < stems(default, 'val')


def test_split_is_always_the_same(prepare, by_name, source):
  """The stems of the 50 largest SHA-256, sorted with coreutils' sha256sum."""
  builder = prepare(penn_fudan.Builder, source)
  val = by_name(builder, 'val', decoders={'image': tfds.decode.SkipDecoding()})
  assert sorted(val)[:4] == ['FudanPed00003', 'FudanPed00004', 'FudanPed00005', 'FudanPed00011']
  assert sum(stem.startswith('Penn') for stem in val) == 29


BREAKS = {
  'count': (
    remove(f'PNGImages/{STEMS[4]}.jpg'),
    r'PNGImages holds 169 images, not 170: set config\.data\.source',
  ),
  'directory': (
    rename('PNGImages', 'Images'),
    'PNGImages holds 0 images',
  ),
  'mask': (
    remove(f'PedMasks/{STEMS[4]}_mask.png'),
    r'PedMasks/FudanPed00005_mask\.png is missing',
  ),
  'size': (
    write(f'PedMasks/{STEMS[4]}_mask.png', gray(3, 4)),
    r'FudanPed00005\.jpg is 10x8 .*FudanPed00005_mask\.png is 4x3',
  ),
  'undecodable': (
    truncate(f'PNGImages/{STEMS[4]}.jpg', 150),
    r'FudanPed00005\.jpg cannot be decoded',
  ),
  'mode': (
    write(f'PedMasks/{STEMS[4]}_mask.png', rgb(HEIGHT, WIDTH)),
    r'FudanPed00005_mask\.png has pixels of uint8\[3\]',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(penn_fudan.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(penn_fudan.Builder, source)


def test_real_data(prepare, by_name):
  source = real_data('PennFudanPed')
  builder = prepare(penn_fudan.Builder, source)
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
    'train': 120,
    'val': 50,
  }
  skip = {'image': tfds.decode.SkipDecoding()}
  examples = by_name(builder, 'train', decoders=skip) | by_name(builder, 'val', decoders=skip)
  assert sum(len(example['objects']['id']) for example in examples.values()) == 423
  for stem in (STEMS[0], STEMS[-1]):
    label = cv2.imread(str(source / 'PedMasks' / f'{stem}_mask.png'), cv2.IMREAD_UNCHANGED)
    for k, counts in enumerate(examples[stem]['objects']['segmentation'], start=1):
      np.testing.assert_array_equal(coco.decode_mask(counts, label.shape), label == k)
