"""What is read from the features of a data set, of each kind."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from inputs import changed, input_config
from small_datasets import (
  ISTHING,
  OBJECT_SIZES,
  SEGMENT_CLASSES,
  SEGMENT_FEATURES,
  SEGMENT_SIZES,
  SEGMENTS,
  segment_example,
)

from segjax.data import datasets, images, pipeline, read
from segjax.data.geometry import mask_boxes
from segjax.data.sample import Objects
from segjax.types import IGNORE_LABEL, SegjaxError

OBJECTS = input_config(annotations=('objects',))
PANOPTIC = input_config(annotations=('label', 'objects', 'segments'))


def reader(builder, config, split='train'):
  return read.Reader(builder, split, config, datasets.spec(builder, config))


# --- label maps -----------------------------------------------------------------------------------


def write_labels(write_dataset, png, folder, labels, classes=3, size=None):
  features = {
    'file_name': tfds.features.Text(),
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.LabeledImage(
      labels=classes, shape=(None, None, 1), dtype=labels[0].dtype
    ),
  }
  examples = [
    {
      'file_name': f'l{i}',
      'image': png(np.zeros((*(size or label.shape[:2]), 3), np.uint8)),
      'label': png(label),
    }
    for i, label in enumerate(labels)
  ]
  return write_dataset(folder, features, {'train': examples})


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('offset', [0, -1])
def test_stored_void_and_negative_labels_are_ignored(tmp_path, write_dataset, png, dtype, offset):
  stored = np.array([[0, 1, 2, 255]], dtype)
  builder = write_labels(write_dataset, png, tmp_path, [stored])
  names = ('a', 'b', 'c')[: 3 + offset]
  config = input_config(label_offset=offset, class_names=names)
  label = reader(builder, config)[0].label
  assert label.dtype == np.uint16
  first = 0 if offset == 0 else IGNORE_LABEL
  np.testing.assert_array_equal(label, [[first, 1 + offset, 2 + offset, IGNORE_LABEL]])


def test_more_than_255_classes(tmp_path, write_dataset, png):
  """255 is then a class as any other, and void is 65535."""
  stored = np.array([[0, 254, 255], [256, 899, 65_535]], np.uint16)
  builder = write_labels(write_dataset, png, tmp_path, [stored], classes=900)
  config = input_config(batch_size=1)
  np.testing.assert_array_equal(reader(builder, config)[0].label, stored)
  spec = datasets.spec(builder, config)
  batches = pipeline.train_batches(builder, spec, config, seed=0)
  batch, _ = next(batches)
  batches.close()
  assert batch['label'].dtype == np.int32
  np.testing.assert_array_equal(batch['label'][0], stored)
  assert IGNORE_LABEL == 65_535
  pixels, _ = pipeline.count_labels(builder, spec, config)
  assert pixels.sum() == 5 and pixels[[0, 254, 255, 256, 899]].tolist() == [1] * 5
  with pytest.raises(SegjaxError, match='the label of l0 has the value 899 .* 899 classes'):
    _ = reader(builder, changed(config, class_names=tuple(map(str, range(899)))))[0].label


def test_a_bool_label(tmp_path, write_dataset, png):
  label = np.array([[True, False, True]])
  builder = write_labels(write_dataset, png, tmp_path, [label.astype(np.uint8)])
  found = reader(builder, input_config())[0]
  found.record['label'] = png(label)
  np.testing.assert_array_equal(found.label, label)


def test_annotations_have_the_size_of_the_image(tmp_path, write_dataset, png):
  builder = write_labels(write_dataset, png, tmp_path, [np.zeros((4, 5), np.uint8)], size=(3, 5))
  with pytest.raises(SegjaxError, match='l0: the image is 3x5 and its label 4x5 pixels'):
    reader(builder, input_config())[0].sample(train=True)


# --- objects --------------------------------------------------------------------------------------


def test_run_lengths_are_decoded(objects_builder):
  examples = reader(objects_builder, OBJECTS)
  for index in range(len(examples)):
    example = examples[index]
    number = int(example.name[1:])
    assert example.image_id == 100 + number
    assert example.image.shape == (*OBJECT_SIZES[number], 3)
    objects = example.objects
    assert objects.masks.shape == (number, *OBJECT_SIZES[number])
    np.testing.assert_array_equal(objects.boxes, mask_boxes(objects.masks))
    np.testing.assert_array_equal(objects.classes, np.arange(number) % 2)
    np.testing.assert_array_equal(np.flatnonzero(objects.crowd), [3] if number > 3 else [])
    assert [entry['id'] for entry in example.annotations] == [
      10 * number + k for k in range(number)
    ]


def test_readers_share_what_is_parsed(objects_builder):
  """Each evaluation of a training opens one, and TFDS keeps the features that it has parsed."""
  one, other = (reader(objects_builder, OBJECTS) for _ in range(2))
  assert one._features is other._features and one._header is other._header


def test_objects_of_other_classes_are_left_out(objects_builder):
  examples = reader(objects_builder, changed(OBJECTS, things=(1,)))
  for index in range(len(examples)):
    objects = examples[index].objects
    assert len(objects.classes) == int(examples.name(index)[1:]) // 2
    assert not objects.classes.any()


def test_objects_survive_run_lengths():
  masks = np.zeros((2, 8, 10), np.uint8)
  masks[0, 1:4, 2:7], masks[1, 5:8, 0:3] = 1, 1
  objects = Objects(mask_boxes(masks), np.int32([1, 0]), masks, np.array([False, True]))
  entries = read.encode_objects(objects)
  assert [entry['id'] for entry in entries] == [1, 2]
  assert [entry['category'] for entry in entries] == [1, 0]
  assert entries[0]['bbox'] == [2, 1, 5, 3] and entries[0]['area'] == 15
  assert entries[1]['iscrowd'] is True
  assert entries[1]['rle']['size'] == [8, 10]
  for a, b in zip(objects, read.decode_objects(entries, (8, 10)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_scenes_have_a_map_of_objects(tmp_path):
  builder = datasets.load('scenes/tiny', tmp_path)
  config = input_config('scenes/tiny', annotations=('objects',))
  spec = datasets.spec(builder, config)
  assert spec.class_names == ('ball', 'box', 'tree', 'ring', 'star')
  assert spec.things == (4, 5, 6, 7, 8)
  examples = reader(builder, config)
  found = [examples[i].objects for i in range(4)]
  for i, objects in enumerate(found):
    assert objects.classes.size and objects.classes.max() < 5
    np.testing.assert_array_equal(objects.boxes, mask_boxes(objects.masks))
    decoded = read.decode_objects(examples[i].annotations, (64, 64))
    for a, b in zip(objects, decoded, strict=True):
      np.testing.assert_array_equal(a, b)
  # Of the other tasks: the same pixels.
  panoptic = reader(builder, changed(PANOPTIC, name='scenes/tiny', segments_key=None))
  semantic = reader(builder, input_config('scenes/tiny'))
  for i, objects in enumerate(found):
    np.testing.assert_array_equal(panoptic[i].label, semantic[i].label)
    one, other = (np.sort(np.sum(x.masks, (1, 2))) for x in (panoptic[i].objects, objects))
    np.testing.assert_array_equal(one, other)


def test_boxes_without_masks(write_dataset, png, tmp_path):
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'objects': tfds.features.Sequence(
      {'bbox': tfds.features.BBoxFeature(), 'label': tfds.features.ClassLabel(num_classes=2)}
    ),
  }
  box = tfds.features.BBox(ymin=0.25, xmin=0.1, ymax=0.75, xmax=0.4)
  example = {
    'image': png(np.zeros((8, 20, 3), np.uint8)),
    'objects': [{'bbox': box, 'label': 1}],
  }
  builder = write_dataset(tmp_path, features, {'train': [example]})
  config = changed(OBJECTS, name_key=None)
  with pytest.raises(
    SegjaxError, match=r'no object of tiny has a mask.*config\.model\.masks=False'
  ):
    reader(builder, config)
  found = reader(builder, dataclasses.replace(config, masks=False))[0]
  np.testing.assert_allclose(found.objects.boxes, [[2, 2, 8, 6]], rtol=1e-6)
  assert np.sum(found.objects.masks) == found.objects.masks[0, 2:6, 2:8].sum() == 24
  [entry] = found.annotations
  assert entry['area'] == pytest.approx(24)
  assert not entry['iscrowd']
  assert entry['category'] == 1


# --- segments -------------------------------------------------------------------------------------


def class_map(number):
  """i[h, w] of an example of segments."""
  label = np.full(SEGMENT_SIZES[number], IGNORE_LABEL)
  for _, index, _, (y0, x0, y1, x1) in SEGMENTS[: number + 2]:
    label[y0:y1, x0:x1] = index
  return label


def test_label_and_objects_of_segments(segments_builder):
  examples = reader(segments_builder, PANOPTIC)
  for i in range(3):
    example = examples[i]
    number = int(example.name[1:])
    listed = SEGMENTS[: number + 2]
    np.testing.assert_array_equal(example.label, class_map(number))
    things = [
      (c // 2, crowd, [x0, y0, x1, y1]) for _, c, crowd, (y0, x0, y1, x1) in listed if ISTHING[c]
    ]
    objects = example.objects
    assert objects.classes.tolist() == [index for index, _, _ in things]
    assert objects.crowd.tolist() == [crowd for _, crowd, _ in things]
    assert objects.boxes.tolist() == [box for _, _, box in things]
    np.testing.assert_array_equal(np.any(objects.masks, 0), np.isin(example.label, [1, 3]))
    assert len(example.annotations) == len(things)
    assert example.segments.classes.tolist() == [c for _, c, _, _ in listed]


def test_a_semantic_task_has_the_classes_of_the_segments(segments_builder):
  """Things and stuff alike, as a panoptic data set has no other label."""
  config = input_config()
  spec = datasets.spec(segments_builder, config)
  assert spec.class_names == tuple(SEGMENT_CLASSES) and spec.things is None
  assert spec.palette.tolist() == datasets.spec(segments_builder, PANOPTIC).palette.tolist()
  examples = reader(segments_builder, config)
  for i in range(3):
    np.testing.assert_array_equal(examples[i].label, class_map(int(examples.name(i)[1:])))
  pixels, _ = pipeline.count_labels(segments_builder, spec, config)
  labels = np.concatenate([class_map(i).ravel() for i in range(3)])
  assert pixels.tolist() == [np.sum(labels == c) for c in range(4)]
  for keys, message in (
    ({'label_key': 'classes'}, 'data.label_key=classes: tiny has no such feature'),
    ({'segments_key': 'list'}, 'config.data.segments_key=list: tiny has no such feature'),
  ):
    with pytest.raises(SegjaxError, match=message):
      datasets.spec(segments_builder, changed(config, **keys))


def test_the_spec_has_all_classes_and_says_which_are_things(segments_builder):
  spec = datasets.spec(segments_builder, PANOPTIC)
  assert spec.class_names == tuple(SEGMENT_CLASSES)
  assert spec.things == (1, 3)
  assert spec.category_ids == (0, 10, 20, 30)
  assert spec.palette.shape == (4, 3)
  assert datasets.spec(segments_builder, changed(PANOPTIC, things=(2, 0))).things == (0, 2)
  numbered = datasets.spec(segments_builder, changed(PANOPTIC, category_ids=(1, 3, 92, 4)))
  assert numbered.category_ids == (1, 3, 92, 4)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'panoptic_key': 'panoptik'}, 'config.data.panoptic_key=panoptik: tiny has no such feature'),
    ({'segments_key': 'list'}, 'config.data.segments_key=list: tiny has no such feature'),
    ({'things': (4,)}, 'config.data.things=.* has 4 but tiny has the classes 0 to 3'),
    ({'category_ids': (1, 3)}, r'category_ids=\(1, 3\) must be 4 different numbers, one for each'),
    ({'category_ids': (1, 3, 3, 4)}, 'config.data.category_ids=.* must be 4 different numbers'),
  ],
)
def test_a_wrong_key_is_one_sentence(segments_builder, change, match):
  with pytest.raises(SegjaxError, match=match):
    datasets.spec(segments_builder, changed(PANOPTIC, **change))


def test_a_data_set_that_does_not_say_what_is_a_thing(write_dataset, tmp_path):
  builder = write_dataset(tmp_path, SEGMENT_FEATURES, {'val': [segment_example(0)]})
  with pytest.raises(SegjaxError, match='set config.data.things'):
    datasets.spec(builder, PANOPTIC)


def test_a_class_that_the_data_set_does_not_have(segments_builder):
  config = changed(PANOPTIC, class_names=('sky', 'cat'), things=(1,), category_ids=(1, 2))
  examples = reader(segments_builder, config)
  index = next(i for i in range(3) if examples.name(i) == 'e1')
  with pytest.raises(SegjaxError, match='segments of e1 have the class 3 but tiny has 2 classes'):
    _ = examples[index].segments


def test_keys_of_another_layout(write_dataset, tmp_path):
  """TFDS's coco/2017_panoptic."""
  example = segment_example(2)
  segments = [
    {'id': s['id'], 'label': s['label'], 'is_crowd': s['iscrowd']} for s in example['segments']
  ]
  features = {
    'image': SEGMENT_FEATURES['image'],
    'image/filename': tfds.features.Text(),
    'panoptic_image': SEGMENT_FEATURES['panoptic'],
    'panoptic_objects': tfds.features.Sequence(
      {
        'id': np.int64,
        'label': tfds.features.ClassLabel(num_classes=4),
        'is_crowd': np.bool_,
      }
    ),
  }
  theirs = {
    'image': example['image'],
    'image/filename': 'e2',
    'panoptic_image': example['panoptic'],
    'panoptic_objects': segments,
  }
  config = changed(
    PANOPTIC,
    name_key='image/filename',
    panoptic_key='panoptic_image',
    segments_key='panoptic_objects',
    crowd_key='is_crowd',
    things=(1, 3),
  )
  builder = write_dataset(tmp_path, features, {'val': [theirs]})
  assert datasets.spec(builder, config).category_ids is None
  example = reader(builder, config, 'val')[0]
  assert example.name == 'e2' and example.image_id == 0
  assert example.segments.classes.tolist() == [0, 1, 3, 1]
  assert example.segments.crowd.tolist() == [False, False, True, False]


# --- headers --------------------------------------------------------------------------------------


def test_sizes_of_a_split_are_read_once(objects_builder, monkeypatch):
  examples = lambda: reader(objects_builder, OBJECTS, 'val')
  sizes = examples().sizes
  assert sorted(sizes) == sorted(OBJECT_SIZES[:5])
  monkeypatch.setattr(images, 'read_size', None)
  assert examples().sizes == sizes
  monkeypatch.undo()
  kept = examples()._sizes_path
  whole = kept.read_bytes()
  for length in (0, 100, len(whole) - 1):  # truncated: read again
    kept.write_bytes(whole[:length])
    assert examples().sizes == sizes
  part = reader(objects_builder, OBJECTS, 'val[:2]')
  assert part.sizes == sizes[:2] and part._sizes_path is None


@pytest.mark.parametrize('key', ['mean', 'std'])
def test_mean_and_std_are_one_number_or_one_for_each_channel(objects_builder, key):
  with pytest.raises(SegjaxError, match=rf'config\.data\.{key}=\(1\.0, 2\.0\).* 3 channels'):
    reader(objects_builder, changed(OBJECTS, **{key: (1.0, 2.0)}))
