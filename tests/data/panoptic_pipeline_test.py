"""Batches of panoptic tasks: the things among the segments, the label of all, the segments."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data import datasets, instance_pipeline, pipeline
from segjax.data.formats import panoptic
from segjax.data.pipeline import DataConfig
from segjax.ops.masks import unpack_masks
from segjax.types import IGNORE_LABEL, SegjaxError

# Index 1 and 3 are things.
NAMES, ISTHING = ['sky', 'cat', 'sea', 'dog'], [False, True, False, True]
SIZES = [(40, 20), (20, 40), (24, 30)]
CONFIG = DataConfig('tiny', batch_size=3, instances=4, segments=6, shapes=((48, 48),))
# Of example i: (id, class, crowd) and its rectangle (y0, x0, y1, x1); the corner is void.
SEGMENTS = [
  (70000, 0, False, (0, 0, 10, 18)),
  (5, 1, False, (10, 2, 18, 9)),
  (300, 3, True, (10, 10, 18, 16)),
  (6, 1, False, (2, 3, 7, 8)),  # on top of the sky
]


def make_example(i, encode):
  height, width = SIZES[i]
  ids = np.zeros((height, width), np.int32)
  listed = SEGMENTS[: i + 2]
  for number, _, _, (y0, x0, y1, x1) in listed:
    ids[y0:y1, x0:x1] = number
  image = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
  segments = [
    panoptic.segment_entry(
      id=number, label=label, category_id=10 * label, iscrowd=crowd, area=1, bbox=[0, 0, 1, 1]
    )
    for number, label, crowd, _ in listed
  ]
  return panoptic.panoptic_example(
    f'e{i}', 7 + i, encode(image), panoptic.encode_ids(ids), segments
  )


FEATURES = {
  'file_name': tfds.features.Text(),
  'image_id': np.int64,
  'image': tfds.features.Image(shape=(None, None, 3)),
  'panoptic': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
  'segments': tfds.features.Sequence(
    {
      'id': np.int64,
      'label': tfds.features.ClassLabel(names=NAMES),
      'category_id': np.int64,
      'iscrowd': np.bool_,
      'area': np.int64,
      'bbox': tfds.features.Tensor(
        shape=(4,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
      ),
    }
  ),
}


@pytest.fixture(scope='module')
def builder(write_dataset, png, tmp_path_factory):
  examples = [make_example(i, png) for i in range(len(SIZES))]
  return write_dataset(
    tmp_path_factory.mktemp('tiny'),
    FEATURES,
    {'train': examples, 'val': examples},
    metadata={'isthing': ISTHING, 'category_ids': [0, 10, 20, 30]},
  )


def train(builder, config=CONFIG):
  spec = datasets.spec(builder, config)
  batches = instance_pipeline.train_batches(builder, config, spec, seed=0)
  batch, names = next(batches)
  batches.close()
  return batch, [int(name[1:]) for name in names]


def evaluate(builder, config=CONFIG):
  spec = datasets.spec(builder, config)
  return list(instance_pipeline.eval_batches(builder, config, spec))


def test_the_spec_has_all_classes_and_says_which_are_things(builder):
  spec = datasets.spec(builder, CONFIG)
  assert spec.class_names == tuple(NAMES)
  assert spec.things == (1, 3)
  assert spec.category_ids == (0, 10, 20, 30)
  assert spec.palette.shape == (4, 3)
  chosen = datasets.spec(builder, dataclasses.replace(CONFIG, things=(2, 0)))
  assert chosen.things == (0, 2)
  numbered = datasets.spec(builder, dataclasses.replace(CONFIG, category_ids=(1, 3, 92, 4)))
  assert numbered.category_ids == (1, 3, 92, 4)


def test_training_has_the_things_and_the_label_of_all(builder):
  batch, numbers = train(builder)
  assert batch['label'].shape == (3, 48, 48) and batch['label'].dtype == np.int32
  assert 'segments' not in batch
  found = batch['instances']
  for i, number in enumerate(numbers):
    expected = np.full((48, 48), IGNORE_LABEL)
    things = []
    for _, label, crowd, (y0, x0, y1, x1) in SEGMENTS[: number + 2]:
      expected[y0:y1, x0:x1] = label
      if ISTHING[label]:
        things.append((label // 2, crowd, [x0, y0, x1, y1]))
    np.testing.assert_array_equal(batch['label'][i], expected)
    n = len(things)
    assert found.valid[i].sum() == n
    assert found.classes[i, :n].tolist() == [index for index, _, _ in things]
    assert found.crowd[i, :n].tolist() == [crowd for _, crowd, _ in things]
    assert found.boxes[i, :n].tolist() == [box for _, _, box in things]
    masks = np.asarray(unpack_masks(found.masks[i, :n], 48))
    np.testing.assert_array_equal(masks.any(0), np.isin(expected, [1, 3]))


def test_label_and_objects_move_with_the_image(builder):
  config = dataclasses.replace(
    CONFIG, augment={'flip_horizontal': 1.0}, short_side=(40,), shapes=((80, 80),)
  )
  batch, numbers = train(builder, config)
  for i, number in enumerate(numbers):
    height, width = batch['size'][i]
    assert min(height, width) == 40, number
    masks = np.asarray(unpack_masks(batch['instances'].masks[i], 80)).any(0)
    np.testing.assert_array_equal(masks, np.isin(batch['label'][i], [1, 3]))
    x1 = width - np.flatnonzero(masks.any(0)).max() - 1
    scale = 40 / min(SIZES[number])
    assert abs(x1 - 2 * scale) <= 1, 'the leftmost thing started at column 2 before the flip'


@pytest.mark.parametrize('short_side', [None, (10,)])
def test_evaluation_has_the_segments_at_their_own_size(builder, short_side):
  config = dataclasses.replace(CONFIG, eval_batch_size=2, short_side=short_side)
  batches = evaluate(builder, config)
  assert sorted(name for _, names in batches for name in names) == ['', 'e0', 'e1', 'e2']
  for batch, names in batches:
    segments = batch['segments']
    assert segments.ids.shape == (2, 40, 40), 'the largest height and width of the three'
    assert segments.classes.shape == (2, 6)
    assert 'label' not in batch and 'instances' not in batch
    for i, name in enumerate(names):
      if not name:
        assert not segments.valid[i].any() and not batch['valid'][i]
        continue
      number = int(name[1:])
      listed = SEGMENTS[: number + 2]
      assert tuple(batch['native'][i]) == SIZES[number]
      assert min(batch['size'][i]) == (10 if short_side else min(SIZES[number]))
      assert segments.valid[i].sum() == len(listed)
      assert segments.classes[i, : len(listed)].tolist() == [s[1] for s in listed]
      assert segments.crowd[i, : len(listed)].tolist() == [s[2] for s in listed]
      expected = np.zeros((40, 40))
      for k, (*_, (y0, x0, y1, x1)) in enumerate(listed, 1):
        expected[y0:y1, x0:x1] = k
      np.testing.assert_array_equal(segments.ids[i], expected)
      annotation = batch['annotations'][i]
      assert annotation['image_id'] == 7 + number
      assert len(annotation['objects']) == sum(ISTHING[s[1]] for s in listed)


def class_map(number, size):
  """i[h, w] of an example, padded to `size`."""
  label = np.full(size, IGNORE_LABEL)
  for _, index, _, (y0, x0, y1, x1) in SEGMENTS[: number + 2]:
    label[y0:y1, x0:x1] = index
  return label


def test_a_dense_task_has_the_classes_of_the_segments(builder):
  """Things and stuff alike, as a panoptic data set has no other label."""
  config = DataConfig('tiny', batch_size=3, crop_size=(48, 48), shuffle=False)
  spec = datasets.spec(builder, config)
  assert spec.class_names == tuple(NAMES) and spec.things is None
  assert spec.palette.tolist() == datasets.spec(builder, CONFIG).palette.tolist()
  found = {
    name: label
    for batch, names in pipeline.eval_batches(builder, config, spec)
    for name, label in zip(names, batch['label'], strict=True)
  }
  del found['']
  assert sorted(found) == ['e0', 'e1', 'e2']
  for name, label in found.items():
    np.testing.assert_array_equal(label, class_map(int(name[1:]), label.shape))
  batches = pipeline.train_batches(builder, config, spec, seed=0)
  batch, _ = next(batches)
  batches.close()
  assert set(np.unique(batch['label'])) == {0, 1, 3, IGNORE_LABEL}
  pixels, _ = pipeline.count_labels(builder, config, spec)
  expected = sum(np.bincount(class_map(i, SIZES[i]).ravel(), minlength=256)[:4] for i in range(3))
  assert pixels.tolist() == expected.tolist()
  with pytest.raises(SegjaxError, match='data.label_key=classes: tiny has no such feature'):
    datasets.spec(builder, dataclasses.replace(config, label_key='classes'))
  with pytest.raises(SegjaxError, match='config.data.segments_key=list: tiny has no such feature'):
    datasets.spec(builder, dataclasses.replace(config, segments_key='list'))


def test_more_objects_than_there_is_room_for(builder):
  batch, numbers = train(builder, dataclasses.replace(CONFIG, instances=1))
  assert batch['instances'].valid.sum() == 3, 'the largest of each image'
  with pytest.raises(SegjaxError, match=r'has [34] segments and there is room for 2: raise config'):
    evaluate(builder, dataclasses.replace(CONFIG, segments=2))


def test_an_image_to_predict(builder):
  del builder
  image = np.zeros((33, 20, 3), np.uint8)
  batch = instance_pipeline.prepare_panoptic(image, CONFIG)
  assert batch['image'].shape == (1, 48, 48, 3)
  assert batch['native'].tolist() == [[33, 20]]
  assert batch['segments'].ids.shape == (1, 64, 32)
  assert not batch['segments'].valid.any()


def test_scenes_without_a_list(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scenes')
  config = DataConfig(
    'scenes/tiny', dir=str(folder), batch_size=4, instances=12, segments=16, segments_key=None
  )
  builder = datasets.load(config.name, config.dir)
  spec = datasets.spec(builder, config)
  assert spec.num_classes == 9 and spec.things == (4, 5, 6, 7, 8)
  dense = datasets.spec(builder, DataConfig('scenes/tiny', dir=str(folder)))
  assert spec.class_names == dense.class_names
  batch, _ = next(
    instance_pipeline.eval_batches(builder, dataclasses.replace(config, eval_split='train'), spec)
  )
  again, _ = next(
    instance_pipeline.train_batches(
      builder, dataclasses.replace(config, shuffle=False), spec, seed=0
    )
  )
  segments = batch['segments']
  classes = np.concatenate([np.full((4, 1), IGNORE_LABEL), segments.classes], axis=1)
  label = np.take_along_axis(classes, segments.ids.reshape(4, -1), 1).reshape(segments.ids.shape)
  np.testing.assert_array_equal(again['label'], label)
  things = np.isin(segments.classes, spec.things) & segments.valid
  np.testing.assert_array_equal(things.sum(1), again['instances'].valid.sum(1))


def test_keys_of_another_layout(write_dataset, png, tmp_path):
  """TFDS's coco/2017_panoptic."""
  example = make_example(2, png)
  segments = [
    {'id': s['id'], 'label': s['label'], 'is_crowd': s['iscrowd']} for s in example['segments']
  ]
  features = {
    'image': FEATURES['image'],
    'image/filename': tfds.features.Text(),
    'panoptic_image': FEATURES['panoptic'],
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
  config = dataclasses.replace(
    CONFIG,
    name_key='image/filename',
    panoptic_key='panoptic_image',
    segments_key='panoptic_objects',
    crowd_key='is_crowd',
    things=(1, 3),
    eval_batch_size=1,
  )
  builder = write_dataset(tmp_path, features, {'val': [theirs]})
  assert datasets.spec(builder, config).category_ids is None
  named = dataclasses.replace(config, category_ids=(1, 18, 92, 200))
  assert datasets.spec(builder, named).category_ids == (1, 18, 92, 200)
  [(batch, [name])] = evaluate(builder, config)
  assert name == 'e2'
  assert batch['segments'].classes[0].tolist() == [0, 1, 3, 1, 0, 0]
  assert batch['segments'].crowd[0].tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'panoptic_key': 'panoptik'}, 'config.data.panoptic_key=panoptik: tiny has no such feature'),
    ({'segments_key': 'list'}, 'config.data.segments_key=list: tiny has no such feature'),
    ({'things': (4,)}, 'config.data.things=.* has 4 but tiny has the classes 0 to 3'),
    ({'category_ids': (1, 3)}, r'category_ids=\(1, 3\) must be 4 different numbers, one for each'),
    ({'category_ids': (1, 3, 3, 4)}, 'config.data.category_ids=.* must be 4 different numbers'),
  ],
)
def test_a_wrong_key_is_one_sentence(builder, change, told):
  with pytest.raises(SegjaxError, match=told):
    datasets.spec(builder, dataclasses.replace(CONFIG, **change))


def test_a_data_set_that_does_not_say_what_is_a_thing(write_dataset, png, tmp_path):
  builder = write_dataset(tmp_path, FEATURES, {'val': [make_example(0, png)]})
  with pytest.raises(SegjaxError, match='set config.data.things'):
    datasets.spec(builder, CONFIG)


def test_keys_belong_together():
  with pytest.raises(SegjaxError, match='config.data.segments is for instance tasks'):
    DataConfig('tiny', segments=3)
  with pytest.raises(SegjaxError, match='config.data.category_ids is for instance tasks'):
    DataConfig('tiny', category_ids=(1, 2))
  with pytest.raises(SegjaxError, match='config.data.segments=0 must be 1 or more'):
    DataConfig('tiny', instances=3, segments=0)
