"""How label maps are stored, and their colors."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data.builders import raw
from segjax.data.formats import common


@pytest.mark.parametrize(
  'classes, void, dtype',
  [
    (1, 255, np.uint8),
    (255, 255, np.uint8),
    (256, 65_535, np.uint16),
    (65_535, 65_535, np.uint16),
  ],
)
def test_void_and_depth_follow_from_the_classes(classes, void, dtype):
  assert common.stored_void(classes) == void
  assert common.label_dtype(classes) == dtype
  label = raw.map_label(np.array([[0, classes - 1, -1]]), 'x', classes, first=0, void=-1)
  assert label.dtype == dtype
  assert label.tolist() == [[0, classes - 1, void]]


@pytest.mark.parametrize('classes', [3, 300])
def test_labels_are_stored_in_8_or_16_bits(write_dataset, png, tmp_path, classes):
  """TFDS writes and reads both without TensorFlow."""
  builder = tfds.testing.DummyDataset(data_dir=tmp_path)
  names = [f'c{i}' for i in range(classes)]
  info = common.semantic_info(
    builder, description='x', class_names=names, palette=common.voc_palette(classes)
  )
  label = np.array([[0, classes - 1, common.stored_void(classes)]], common.label_dtype(classes))
  example = {
    'file_name': 'a',
    'image': png(np.zeros((1, 3, 3), np.uint8)),
    'label': common.encode_png(label),
  }
  written = write_dataset(tmp_path, dict(info.features), {'train': [example]})
  for reread in (written, tfds.builder_from_directory(written.data_path)):
    feature, read = reread.info.features['label'], reread.as_data_source('train')[0]['label']
    assert feature.num_classes == classes and feature.np_dtype == label.dtype == read.dtype
    np.testing.assert_array_equal(read[..., 0], label)


def test_voc_palette():
  """The development kit's colors of background, aeroplane, …, tv/monitor, and of void."""
  palette = common.voc_palette(256)
  assert palette[[0, 1, 2, 7, 8, 15, 20]].tolist() == [
    [0, 0, 0],
    [128, 0, 0],
    [0, 128, 0],
    [128, 128, 128],
    [64, 0, 0],
    [192, 128, 128],
    [0, 64, 128],
  ]
  assert palette[255].tolist() == [224, 224, 192]
  assert len(np.unique(palette, axis=0)) == 256
