"""Finding, preparing and describing data sets, by segjax's own builders and by TFDS alone."""

import fcntl
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data import datasets, pipeline, records
from segjax.data.config import BatchConfig, DataConfig, InputConfig
from segjax.types import SegjaxError

FEATURES = tfds.features


def semantic_features(label, channels=3):
  return {
    'file_name': FEATURES.Text(),
    'image': FEATURES.Image(shape=(None, None, channels)),
    'label': label,
  }


def labeled(labels):
  return FEATURES.LabeledImage(labels=labels, shape=(None, None, 1))


@pytest.fixture
def tiny(tmp_path, write_dataset, png):
  """Writes a data set of one 4 × 4 example, given its label feature."""

  def write(label=None, metadata=None, channels=3, **kwargs):
    example = {
      'file_name': 'a',
      'image': png(np.zeros((4, 4, channels), np.uint8)),
      'label': png(np.zeros((4, 4), np.uint8)),
    }
    label = labeled(['x', 'y']) if label is None else label
    features = semantic_features(label, channels)
    return write_dataset(tmp_path, features, {'train': [example]}, metadata, **kwargs)

  return write


def spec(builder, **kwargs):
  return datasets.spec(builder, InputConfig(DataConfig(builder.name, **kwargs)))


@pytest.fixture
def isbi(tmp_path):
  """Raw files like those of ISBI 2012, but small."""
  for directory in ('image', 'label'):
    (tmp_path / 'raw' / directory).mkdir(parents=True)
    for i in range(30):
      pixels = np.full((8, 8), 255 * (i % 2), np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'raw' / directory / f'{i}.png')
  return tmp_path / 'raw'


def test_own_data_set_is_prepared_once_without_a_word_on_stdout(tmp_path, isbi, capsys):
  reports = []
  builder = datasets.load('isbi2012/fold1', tmp_path / 'data', isbi, report=reports.append)
  assert len(reports) == 1 and 'isbi2012/fold1' in reports[0]
  result = datasets.spec(builder, InputConfig(DataConfig('isbi2012/fold1')))
  assert result.splits == {'train': 24, 'val': 6}
  assert result.channels == 1
  assert result.num_classes == 2
  assert result.version == '1.0.0'

  again = datasets.load('isbi2012/fold1', tmp_path / 'data', report=reports.append)
  assert len(reports) == 1
  assert len(again.as_data_source('val')) == 6
  assert capsys.readouterr().out == ''


def test_leaves_no_temporary_files_and_no_words_of_a_library(tmp_path):
  """TFDS makes a directory for each builder without prepared data, and reports unknown sizes."""
  script = """if True:
    from segjax.data import datasets
    from segjax.data.config import DataConfig, InputConfig
    datasets.describe(InputConfig(DataConfig('camvid')))
    for _ in range(2):
      assert len(datasets.load('scenes/tiny').as_data_source('val')[0]['image']) == 64
  """
  (tmp_path / 'temporary').mkdir()
  places = {'TMPDIR': str(tmp_path / 'temporary'), 'SEGJAX_DATA_DIR': str(tmp_path / 'data')}
  result = subprocess.run(
    [sys.executable, '-c', script],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), **places},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert not list((tmp_path / 'temporary').iterdir())
  assert result.stdout == ''
  assert 'Unknown size' not in result.stderr


def test_failed_preparation_leaves_nothing_and_can_be_repeated(tmp_path, isbi):
  broken = isbi / 'image' / '29.png'
  good = broken.read_bytes()
  broken.write_bytes(good[:40])
  with pytest.raises(SegjaxError, match=r'29\.png'):
    datasets.load('isbi2012', tmp_path / 'data', isbi)
  broken.write_bytes(good)
  builder = datasets.load('isbi2012', tmp_path / 'data', isbi)
  assert builder.info.splits['val'].num_examples == 5


def test_of_several_processes_one_prepares_and_the_others_wait(tmp_path, isbi):
  lock = tmp_path / 'data' / 'isbi2012' / 'default' / '.1.0.0.lock'
  lock.parent.mkdir(parents=True)
  reports = []
  with lock.open('a') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    first = threading.Timer(0.3, lambda: fcntl.flock(held, fcntl.LOCK_UN))
    first.start()
    builder = datasets.load('isbi2012', tmp_path / 'data', isbi, reports.append)
    assert not first.is_alive()
  assert 'waiting for another process' in reports[0] and 'preparing' in reports[1]
  assert len(builder.as_data_source('val')) == 5


def test_what_killed_processes_left_is_deleted(tmp_path, isbi):
  directory = tmp_path / 'data' / 'isbi2012' / 'default'
  for name in ('incomplete.ABCDEF_1.0.0', '.1.0.0.123.old', 'incomplete.ABCDEF_2.0.0'):
    (directory / name).mkdir(parents=True)
    (directory / name / 'file').touch()
  (directory / '.1.0.0.shards').mkdir()
  (directory / '.1.0.0.shards' / f'a.1{records.HALF}').touch()
  datasets.load('isbi2012', tmp_path / 'data', isbi)
  left = sorted(path.name for path in directory.iterdir())
  assert left == ['.1.0.0.lock', '1.0.0', 'incomplete.ABCDEF_2.0.0']


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('scnes', 'unknown data set: did you mean scenes'),
    ('oxford_iiit_pets', 'unknown data set: did you mean oxford_iiit_pet'),
    ('qqqqqq', 'unknown data set: choose from ade20k, .*, scenes, .*, voc'),
    ('isbi2012/fold7', 'has no config fold7: did you mean fold'),
  ],
)
def test_unknown_names(tmp_path, name, message):
  with pytest.raises(SegjaxError, match=message):
    datasets.load(name, tmp_path)


def test_third_party_data_set_that_is_not_there(tmp_path):
  """The stock builder of coco needs TensorFlow even to be constructed."""
  with pytest.raises(SegjaxError, match=rf'coco is not in {tmp_path} .*TensorFlow.*array_record'):
    datasets.load('coco', tmp_path)


def test_source_must_be_a_directory(tmp_path):
  with pytest.raises(SegjaxError, match=r'config\.data\.source=.*nowhere'):
    datasets.load('isbi2012', tmp_path, tmp_path / 'nowhere')


def test_other_file_formats_are_refused(tmp_path, tiny):
  directory = tiny().data_path
  for record in directory.glob('*array_record*'):
    record.rename(directory / record.name.replace('array_record', 'tfrecord'))
  info = json.loads((directory / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  for split in info['splits']:
    split['filepathTemplate'] = split['filepathTemplate'].replace('array_record', 'tfrecord')
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  with pytest.raises(SegjaxError, match=r'tfrecord files.*array_record'):
    datasets.load('tiny', tmp_path)


def test_stock_data_set_through_a_config_alone(tmp_path, write_dataset, png):
  """Oxford-IIIT Pet's features as TFDS 4.9 declares them; trimaps of 1, 2, 3."""
  rng = np.random.default_rng(0)
  trimaps = [rng.integers(1, 4, (20, 30), dtype=np.uint8) for _ in range(4)]
  features = {
    'image': FEATURES.Image(encoding_format='jpeg'),
    'label': FEATURES.ClassLabel(names=['Abyssinian', 'beagle']),
    'species': FEATURES.ClassLabel(names=['Cat', 'Dog']),
    'file_name': FEATURES.Text(),
    'segmentation_mask': FEATURES.Image(shape=(None, None, 1), use_colormap=True),
    'head_bbox': FEATURES.BBoxFeature(),
  }
  image = png(np.zeros((20, 30, 3), np.uint8))
  examples = [
    {
      'image': image,
      'label': 1,
      'species': 1,
      'file_name': f'beagle_{i}.jpg',
      'segmentation_mask': png(trimap),
      'head_bbox': FEATURES.BBox(0.1, 0.1, 0.5, 0.5),
    }
    for i, trimap in enumerate(trimaps)
  ]
  splits = {'train': examples, 'test': examples[:2]}
  write_dataset(tmp_path, features, splits, name='oxford_iiit_pet', version='4.0.0')

  data = DataConfig(
    'oxford_iiit_pet',
    dir=str(tmp_path),
    image_key='image',
    label_key='segmentation_mask',
    label_offset=-1,
    name_key='file_name',
    class_names=('pet', 'background', 'border'),
    eval_split='test',
  )
  config = InputConfig(data, batch=BatchConfig(size=2, shuffle=False))
  builder = datasets.load(data.name, data.dir)
  result = datasets.spec(builder, config)
  assert result.class_names == ('pet', 'background', 'border')
  assert result.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
  assert result.splits == {'train': 4, 'test': 2}
  assert (result.version, result.channels) == ('4.0.0', 3)

  batches = pipeline.train_batches(builder, result, config, seed=0)
  by_name = {
    name: label
    for batch, names in (next(batches), next(batches))
    for name, label in zip(names, batch['label'], strict=True)
  }
  assert sorted(by_name) == [f'beagle_{i}.jpg' for i in range(4)]
  for i, trimap in enumerate(trimaps):
    np.testing.assert_array_equal(by_name[f'beagle_{i}.jpg'], trimap.astype(int) - 1)


def test_classes_and_colors_of_the_builder(tiny):
  result = spec(tiny(labeled(['sky', 'road']), {'palette': [[1, 2, 3], [4, 5, 6]]}))
  assert result.class_names == ('sky', 'road')
  assert result.num_classes == 2
  assert result.palette.dtype == np.uint8
  assert result.palette.tolist() == [[1, 2, 3], [4, 5, 6]]
  assert result.splits == {'train': 1}


def test_classes_without_names_and_colors(tiny):
  result = spec(tiny(labeled(3)))
  assert result.class_names == ('class 0', 'class 1', 'class 2')
  assert result.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_names_move_with_the_label_offset(tiny):
  assert spec(tiny(labeled(['void', 'a', 'b'])), label_offset=-1).class_names == ('a', 'b')


def test_number_of_classes_from_the_config(tiny):
  builder = tiny(FEATURES.Image(shape=(None, None, 1)))
  with pytest.raises(SegjaxError, match=r'config\.data\.num_classes'):
    spec(builder)
  assert spec(builder, num_classes=2).class_names == ('class 0', 'class 1')
  assert spec(builder, class_names=('a', 'b', 'c')).class_names == ('a', 'b', 'c')
  with pytest.raises(SegjaxError, match=r'num_classes=2 but tiny has 3 classes'):
    spec(builder, class_names=('a', 'b', 'c'), num_classes=2)
  assert spec(builder, num_classes=65_535).num_classes == 65_535
  with pytest.raises(SegjaxError, match='65536 classes: segjax takes 1 to 65,535'):
    spec(builder, num_classes=65_536)


def test_keys_that_the_data_set_lacks(tiny):
  builder = tiny()
  with pytest.raises(SegjaxError, match=r'data\.label_key=lable.*did you mean label'):
    spec(builder, label_key='lable')
  with pytest.raises(SegjaxError, match=r'data\.name_key=id.*choose from file_name, image, label'):
    spec(builder, name_key='id')
  assert spec(builder, name_key=None).num_classes == 2


def test_images_of_four_channels_are_refused(tiny):
  with pytest.raises(SegjaxError, match='4 channels'):
    spec(tiny(channels=4))


def test_describe_needs_no_prepared_data(tmp_path, isbi):
  config = InputConfig(DataConfig('isbi2012', dir=tmp_path / 'data', source=isbi))
  described = datasets.describe(config)
  assert not (tmp_path / 'data').exists()
  prepared = datasets.spec(datasets.load('isbi2012', tmp_path / 'data', isbi), config)
  assert described.splits == {}
  assert {**described.to_json(), 'splits': prepared.splits} == prepared.to_json()


def test_describe_own_data_set_that_tfds_has_another_of(tmp_path):
  """VOC is also a name of TFDS's, whose builders are registered once one of them is asked for."""
  keys = {'label_key': 'segmentation_mask', 'class_names': ('a', 'b', 'c')}
  pets = InputConfig(DataConfig('oxford_iiit_pet', dir=tmp_path, **keys))
  assert datasets.describe(pets).num_classes == 3
  assert datasets.describe(InputConfig(DataConfig('voc/2011', dir=tmp_path))).num_classes == 21


def test_spec_survives_json(tiny):
  result = spec(tiny(labeled(['sky', 'road'])))
  read = datasets.DatasetSpec.from_json(json.loads(json.dumps(result.to_json())))
  assert read.class_names == result.class_names
  assert read.palette.dtype == np.uint8
  np.testing.assert_array_equal(read.palette, result.palette)
  assert read.to_json() == result.to_json()


def test_default_data_dir(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('SEGJAX_DATA_DIR', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert datasets.default_data_dir() == tmp_path / '.cache' / 'segjax' / 'data'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  assert datasets.default_data_dir() == tmp_path / 'cache' / 'segjax' / 'data'
  monkeypatch.setenv('SEGJAX_DATA_DIR', str(tmp_path / 'sets'))
  assert datasets.default_data_dir() == tmp_path / 'sets'
