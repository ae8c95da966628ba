"""Panoptic PNGs and lists: reading each kind of example, results, and what is wrong in them."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data.builders.scenes import builder as scenes
from segjax.data.formats import panoptic
from segjax.data.formats.common import VOID
from segjax.types import SegjaxError, Segments

IDS = np.array([[0, 70000, 70000, 300], [5, 70000, 300, 300], [5, 5, 5, 0]])
LISTED = [300, 70000, 5]
NUMBERED = [[0, 2, 2, 1], [3, 2, 1, 1], [3, 3, 3, 0]]


def decode(png):
  return np.array(Image.open(io.BytesIO(png)))


def test_ids_are_coded_in_three_bytes():
  ids = np.array([[0, 1, 255, 256], [65535, 65536, 2**24 - 1, 70000]])
  rgb = panoptic.ids_to_rgb(ids)
  assert rgb.dtype == np.uint8
  assert rgb[0, 3].tolist() == [0, 1, 0] and rgb[1, 3].tolist() == [112, 17, 1]
  np.testing.assert_array_equal(panoptic.rgb_to_ids(rgb), ids)
  np.testing.assert_array_equal(decode(panoptic.encode_ids(ids)), rgb)


def test_segment_map():
  numbered, areas = panoptic.segment_map(IDS, LISTED, 'x.png', (3, 4))
  assert numbered.dtype == np.int32
  assert numbered.tolist() == NUMBERED
  assert areas.tolist() == [3, 3, 4]
  numbered, areas = panoptic.segment_map(np.zeros((2, 3), int), [], 'x.png')
  assert not numbered.any() and areas.tolist() == []


@pytest.mark.parametrize(
  'listed, size, message',
  [
    (LISTED, (4, 3), r'x\.png is 4x3 pixels but its image is 3x4'),
    ([300, 5], None, r'x\.png has pixels of segment 70000, which is not in its list'),
    ([], None, r'x\.png has pixels of segment 70000, which is not in its list'),
    ([*LISTED, 6], None, r'x\.png has no pixel of segment 6, which is in its list'),
    ([6, *LISTED, 2**23], None, r'x\.png has no pixel of segment 6, which'),
    ([*LISTED, 300], None, r'x\.png has segment 300 twice in its list'),
    ([*LISTED, 0], None, r'x\.png has a segment of the id 0 in its list'),
  ],
)
def test_png_and_list_disagree(listed, size, message):
  with pytest.raises(SegjaxError, match=message):
    panoptic.segment_map(IDS, listed, 'x.png', size)


def check(segments, classes, crowd, ids=NUMBERED):
  np.testing.assert_array_equal(segments.ids, ids)
  assert segments.ids.dtype == segments.classes.dtype == np.int32
  assert segments.crowd.dtype == segments.valid.dtype == bool
  assert segments.classes.tolist() == classes
  assert segments.crowd.tolist() == crowd
  assert segments.valid.all() and len(segments.valid) == len(classes)


def test_reads_an_encoded_png():
  objects = {'id': LISTED, 'label': [4, 0, 7], 'iscrowd': [False, True, False]}
  example = {'panoptic': panoptic.encode_ids(IDS), 'segments': objects}
  check(panoptic.read_example(example, 'x'), [4, 0, 7], [False, True, False])
  check(panoptic.read_example(example, 'x', size=(3, 4)), [4, 0, 7], [False, True, False])
  with pytest.raises(SegjaxError, match='x is 4x3 pixels'):
    panoptic.read_example(example, 'x', size=(3, 5))
  with pytest.raises(SegjaxError, match='x cannot be decoded'):
    panoptic.read_example({**example, 'panoptic': example['panoptic'][:-40]}, 'x')
  with pytest.raises(SegjaxError, match=r'x: panoptic has pixels of \[1\] values, not of 3'):
    panoptic.read_example({**example, 'panoptic': IDS[..., None]}, 'x')


def tfds_example(features):
  """Of the features that TFDS's coco/2017_panoptic has."""
  box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  entry = {'bbox': box, 'area': 3}
  example = {
    'image': panoptic.encode_ids(IDS),
    'image/filename': '000000000009.jpg',
    'panoptic_image': panoptic.encode_ids(IDS),
    'panoptic_objects': [
      {'id': id, 'label': label, 'is_crowd': id == 5, **entry}
      for id, label in zip(LISTED, [4, 0, 7], strict=True)
    ],
  }
  return {key: example[key] for key in features}


def test_reads_what_tfds_prepares(write_dataset, tmp_path):
  """Features as in tensorflow_datasets/object_detection/coco.py."""
  features = {
    'image': tfds.features.Image(encoding_format='png'),
    'image/filename': tfds.features.Text(),
    'panoptic_image': tfds.features.Image(encoding_format='png'),
    'panoptic_objects': tfds.features.Sequence(
      {
        'id': np.int64,
        'area': np.int64,
        'bbox': tfds.features.BBoxFeature(),
        'label': tfds.features.ClassLabel(num_classes=133),
        'is_crowd': np.bool_,
      }
    ),
  }
  builder = write_dataset(tmp_path, features, {'val': [tfds_example(features)]})
  keys = {'panoptic_key': 'panoptic_image', 'segments_key': 'panoptic_objects'}
  for decoders in (None, {'panoptic_image': tfds.decode.SkipDecoding()}):
    example = builder.as_data_source('val', decoders=decoders)[0]
    segments = panoptic.read_example(example, 'x', **keys, crowd_key='is_crowd', size=(3, 4))
    check(segments, [4, 0, 7], [False, False, True])


def test_reads_scenes(tmp_path):
  config = scenes.ScenesConfig(name='few', num_train=1, num_val=3, size=48)
  builder = scenes.Builder(data_dir=tmp_path, config=config)
  builder.download_and_prepare(file_format='array_record')
  for decoders in (None, {'panoptic': tfds.decode.SkipDecoding()}):
    for example in builder.as_data_source('val', decoders=decoders):
      segments = panoptic.read_example(example, 'x', segments_key=None, size=(48, 48))
      classes = np.concatenate([[-1], segments.classes])
      np.testing.assert_array_equal(classes[segments.ids], example['label'][..., 0])
      assert not segments.crowd.any() and segments.valid.all()
      things = [builder.info.metadata['isthing'][c] for c in segments.classes]
      assert sum(things) == len(example['objects']['id'])
      # Each thing is one segment, and each class of stuff.
      for number in example['objects']['id']:
        inside = segments.ids[example['instance'][..., 0] == number]
        assert len(np.unique(inside)) == 1
      stuff = segments.classes[~np.array(things)]
      assert len(set(stuff.tolist())) == len(stuff)


def test_void_and_class_0_in_one_value():
  values = np.array([[0, 1, VOID * 256], [3 * 256, 3 * 256 + 2, VOID * 256 + 7]])
  segments = panoptic.read_example({'panoptic': values[..., None]}, 'x', segments_key=None)
  check(segments, [0, 0, 3, 3], [False] * 4, [[1, 2, 0], [3, 4, 0]])


def some_segments():
  return Segments(
    np.array(NUMBERED, np.int32),
    np.array([4, 0, 7], np.int32),
    np.array([False, True, False]),
    np.ones(3, bool),
  )
