"""PASCAL VOC: the layouts, void, the split seg11valid, and each way in which files can be wrong."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_files import remove, rgb, truncate, write

from segjax import types
from segjax.data import datasets, pipeline
from segjax.data.builders.voc import builder as voc
from segjax.data.config import DataConfig, InputConfig
from segjax.data.formats import common

NAMES = {
  'train': ['2007_000032', '2009_004882'],
  'val': ['2007_000033', '2010_000002', '2011_003271'],
}


def write_palette_png(path, indices):
  image = Image.fromarray(indices)
  image.putpalette(common.voc_palette(256).ravel().tolist())
  image.save(path)


def write_year(directory):
  """Writes synthetic images of 10 x 14 in a year's layout. Returns the raw labels."""
  rng = np.random.default_rng(0)
  for name in ('ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass'):
    (directory / name).mkdir(parents=True)
  labels = {}
  for split, names in NAMES.items():
    (directory / 'ImageSets/Segmentation' / f'{split}.txt').write_text('\n'.join(names) + '\n')
    for name in names:
      labels[name] = rng.integers(0, 21, (10, 14), np.uint8)
      labels[name][:2, :5] = 255
      image = rng.integers(0, 256, (10, 14, 3), np.uint8)
      cv2.imwrite(str(directory / 'JPEGImages' / f'{name}.jpg'), image)
      write_palette_png(directory / 'SegmentationClass' / f'{name}.png', labels[name])
  return labels


def write_sbd_train(directory, names):
  path = directory / 'benchmark_RELEASE/dataset/train.txt'
  path.parent.mkdir(parents=True)
  path.write_text('\n'.join(names) + '\n')


@pytest.fixture
def source(tmp_path):
  write_year(tmp_path / 'raw/VOCdevkit/VOC2012')
  return tmp_path / 'raw'


# Config, where the year's directory lies, what the source is.
LAYOUTS = {
  '2012': ('2012', 'VOCdevkit/VOC2012', ''),
  '2012, the devkit': ('2012', 'VOCdevkit/VOC2012', 'VOCdevkit'),
  "2012, the year's directory": ('2012', 'VOCdevkit/VOC2012', 'VOCdevkit/VOC2012'),
  '2012, renamed': ('2012', 'pascal', 'pascal'),
  '2011': ('2011', 'TrainVal/VOCdevkit/VOC2011', ''),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_reads_layouts(prepare, by_name, tmp_path, layout):
  config, place, source = LAYOUTS[layout]
  labels = write_year(tmp_path / 'raw' / place)
  builder = prepare(voc.Builder, tmp_path / 'raw' / source, config=config)
  assert set(builder.info.splits) == {'train', 'val'}
  for split, names in NAMES.items():
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(names)
    for name in names:
      # The raw value of void is the stored one.
      np.testing.assert_array_equal(examples[name]['label'][..., 0], labels[name])
      path = tmp_path / 'raw' / place / 'JPEGImages' / f'{name}.jpg'
      np.testing.assert_array_equal(examples[name]['image'], cv2.imread(str(path))[..., ::-1])


def test_label_files_hold_palette_indices(source):
  """What the other tests rest on: the synthetic labels are like upstream's."""
  path = source / 'VOCdevkit/VOC2012/SegmentationClass/2007_000032.png'
  with Image.open(path) as image:
    assert image.mode == 'P'
    assert image.getpalette()[3:6] == [128, 0, 0]


def test_images_are_stored_unchanged(prepare, by_name, source):
  builder = prepare(voc.Builder, source, config='2012')
  decoders = {'image': tfds.decode.SkipDecoding()}
  for name, example in by_name(builder, 'train', decoders=decoders).items():
    path = source / 'VOCdevkit/VOC2012/JPEGImages' / f'{name}.jpg'
    assert example['image'] == path.read_bytes()


def test_classes_and_palette(tmp_path):
  info = voc.Builder(data_dir=tmp_path).info
  names = (
    'background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse '
    'motorbike person pottedplant sheep sofa train tvmonitor'
  )
  assert info.features['label'].names == names.split()
  assert len(info.metadata['palette']) == 21
  assert info.metadata['palette'][15] == [192, 128, 128]
  assert info.metadata['palette'][20] == [0, 64, 128]


def test_both_years_and_the_first_is_the_default(tmp_path):
  assert list(voc.Builder.builder_configs) == ['2011', '2012']
  assert voc.Builder(data_dir=tmp_path).builder_config.year == 2011


def test_other_year_is_not_taken(prepare, source):
  for place in ('', 'VOCdevkit', 'VOCdevkit/VOC2012'):
    with pytest.raises(types.SegjaxError, match=r'does not hold VOCdevkit/VOC2011'):
      prepare(voc.Builder, source / place, config='2011')


@pytest.mark.parametrize('year', ['2011', '2012'])
def test_seg11valid_from_its_list(prepare, by_name, tmp_path, year):
  directory = tmp_path / 'raw/VOCdevkit' / f'VOC{year}'
  write_year(directory)
  (directory / 'ImageSets/Segmentation/seg11valid.txt').write_text('2011_003271\n2007_000033\n')
  # The list decides, whatever SBD has.
  write_sbd_train(tmp_path / 'raw', ['2007_000033'])
  builder = prepare(voc.Builder, tmp_path / 'raw', config=year)
  assert sorted(by_name(builder, 'seg11valid')) == ['2007_000033', '2011_003271']


@pytest.mark.parametrize('source', ['', 'VOCdevkit', 'VOCdevkit/VOC2011'])
def test_seg11valid_from_sbd(prepare, by_name, tmp_path, source):
  write_year(tmp_path / 'raw/VOCdevkit/VOC2011')
  write_sbd_train(tmp_path / 'raw', ['2010_000002', '2008_000001', '2007_000032'])
  builder = prepare(voc.Builder, tmp_path / 'raw' / source, config='2011')
  assert sorted(by_name(builder, 'seg11valid')) == ['2007_000033', '2011_003271']
  assert builder.info.splits['val'].num_examples == 3


def test_seg11valid_is_not_computed_from_a_later_val(prepare, source):
  write_sbd_train(source, ['2010_000002'])
  assert 'seg11valid' not in prepare(voc.Builder, source, config='2012').info.splits


@pytest.mark.parametrize('split', ['seg11valid', 'seg11valid[:10]'])
def test_absent_seg11valid_is_explained(prepare, source, split):
  prepare(voc.Builder, source, config='2012')
  config = InputConfig(DataConfig('voc/2012', dir=str(source.parent / 'prepared')))
  # As in a user's second start: what is on disk counts.
  builder = datasets.load(config.data.name, config.data.dir)
  spec = datasets.spec(builder, config)
  with pytest.raises(types.SegjaxError, match=r'no split .*seg11valid\.txt.*delete .*/voc/2012'):
    pipeline.eval_batches(builder, spec, config, split=split)
  with pytest.raises(types.SegjaxError, match=r"no split 'vall': did you mean val\?"):
    pipeline.eval_batches(builder, spec, config, split='vall')


def test_name_does_not_clash_with_that_of_tfds():
  assert 'voc' in tfds.list_builders(with_community_datasets=False)
  assert 'voc' in datasets.own_names()


def shrink_label(root):
  write_palette_png(root / 'SegmentationClass/2007_000032.png', np.zeros((9, 14), np.uint8))


def put_value_21(root):
  write_palette_png(root / 'SegmentationClass/2007_000033.png', np.full((10, 14), 21, np.uint8))


def empty_list(root):
  (root / 'ImageSets/Segmentation/train.txt').write_text('\n')


BREAKS = {
  'undecodable': (
    truncate('JPEGImages/2009_004882.jpg', 200),
    r'2009_004882\.jpg cannot be decoded',
  ),
  'size': (shrink_label, r'2007_000032\.jpg is 14x10 .*2007_000032\.png is 14x9'),
  'value': (put_value_21, r'2007_000033\.png has the label value 21.* out of range'),
  'mode': (
    write('SegmentationClass/2010_000002.png', rgb(10, 14)),
    r'2010_000002\.png has pixels of mode RGB, not L or P',
  ),
  'empty list': (empty_list, r'train\.txt names no image'),
  'list': (remove('ImageSets/Segmentation/val.txt'), r'val\.txt is missing.*data\.source'),
  'image': (remove('JPEGImages/2007_000032.jpg'), r'2007_000032\.jpg is missing'),
  'label': (remove('SegmentationClass/2007_000033.png'), r'2007_000033\.png is missing'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source / 'VOCdevkit/VOC2012')
  refuses(voc.Builder, source, message, config='2012')
