"""Batches of images with their objects: which come when, in which shape, and what is in them."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data import datasets, instance_pipeline, instances, pipeline
from segjax.data.formats import coco
from segjax.data.instance_pipeline import Plan
from segjax.data.pipeline import DataConfig
from segjax.ops.masks import unpack_masks
from segjax.types import SegjaxError

# Upright, lying and square; the number of objects is the example's index.
SIZES = [(40, 20), (20, 40), (30, 18), (16, 36), (24, 24), (44, 22), (20, 38), (28, 28)]
SHAPES = ((48, 32), (32, 48))
CONFIG = DataConfig('tiny', batch_size=3, instances=8, shapes=SHAPES, name_key='file_name')


def make_example(i, encode):
  rng = np.random.default_rng(i)
  height, width = SIZES[i]
  objects = []
  for k in range(i):
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, (height - 6, width - 6))
    mask[y : y + 3 + k % 4, x : x + 5] = True
    objects.append(
      coco.mask_object(mask, id=10 * i + k, label=k % 2, category_id=k % 2, iscrowd=k == 3)
    )
  image = rng.integers(0, 256, (height, width, 3), np.uint8)
  return coco.instance_example(f'e{i}', 100 + i, encode(image), (height, width), objects)


@pytest.fixture(scope='module')
def builder(write_dataset, png, tmp_path_factory):
  exact = {'dtype': np.float64, 'encoding': tfds.features.Encoding.BYTES}
  features = {
    'file_name': tfds.features.Text(),
    'image_id': np.int64,
    'image': tfds.features.Image(shape=(None, None, 3)),
    'height': np.int64,
    'width': np.int64,
    'objects': tfds.features.Sequence(
      {
        'id': np.int64,
        'label': tfds.features.ClassLabel(names=['a', 'b']),
        'category_id': np.int64,
        'bbox': tfds.features.Tensor(shape=(4,), **exact),
        'area': tfds.features.Tensor(shape=(), **exact),
        'iscrowd': np.bool_,
        'segmentation': tfds.features.Text(),
      }
    ),
  }
  examples = [make_example(i, png) for i in range(len(SIZES))]
  return write_dataset(
    tmp_path_factory.mktemp('tiny'), features, {'train': examples, 'val': examples[:5]}
  )


def train(builder, count, config=CONFIG, seed=3, **kwargs):
  spec = datasets.spec(builder, config)
  batches = instance_pipeline.train_batches(builder, config, spec, seed=seed, **kwargs)
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken


def evaluate(builder, config=CONFIG, **kwargs):
  spec = datasets.spec(builder, config)
  return list(instance_pipeline.eval_batches(builder, config, spec, **kwargs))


def assert_same(actual, expected):
  for (a, a_names), (b, b_names) in zip(actual, expected, strict=True):
    assert a_names == b_names
    assert a.keys() == b.keys()
    for key in a:
      for x, y in zip(
        *([f] if isinstance(f, np.ndarray) else f for f in (a[key], b[key])), strict=True
      ):
        np.testing.assert_array_equal(x, y)


def test_a_batch_holds_images_and_their_objects(builder):
  for batch, names in train(builder, 4):
    shape = batch['image'].shape[1:3]
    assert shape in SHAPES
    assert batch['image'].dtype == np.float32
    assert batch['valid'].all()
    assert batch['draw'].dtype == np.uint32
    found = batch['instances']
    assert found.masks.shape == (3, 8, shape[0], shape[1] // 8)
    for i, name in enumerate(names):
      number = int(name[1:])
      assert tuple(batch['size'][i]) == SIZES[number]
      assert found.valid[i].sum() == number
      assert found.crowd[i].sum() == (number > 3)
      masks = np.asarray(unpack_masks(found.masks[i], shape[1]))
      np.testing.assert_array_equal(instances.mask_boxes(masks), found.boxes[i])
      np.testing.assert_array_equal(found.classes[i, :number], np.arange(number) % 2)
      height, width = SIZES[number]
      assert not masks[:, height:].any()
      assert not masks[:, :, width:].any()
      padding = batch['image'][i, height:]
      assert (abs(padding) < 0.01).all(), 'the mean colour, rounded'


def test_every_image_comes_once_an_epoch(builder):
  """Eight images in batches of three of one shape: 24 examples are three epochs."""
  names = [name for _, batch_names in train(builder, 30) for name in batch_names]
  counts = np.bincount([int(name[1:]) for name in names], minlength=8)
  # Of each of the two shapes up to two examples wait for their batch to be full.
  assert counts.sum() == 90
  assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize('start', [1, 7, 20])
def test_goes_on_at_any_step(builder, start):
  config = dataclasses.replace(
    CONFIG, augment={'flip_horizontal': 0.5, 'brightness': 0.2}, short_side=(14, 16, 20)
  )
  whole = train(builder, start + 3, config)
  assert_same(train(builder, 3, config, start_step=start), whole[start:])


def test_hosts_share_a_batch(builder):
  config = dataclasses.replace(CONFIG, batch_size=4)
  whole = train(builder, 5, config)
  parts = [train(builder, 5, config, process_index=i, process_count=2) for i in range(2)]
  for (batch, names), *shares in zip(whole, *parts, strict=True):
    assert names == [name for _, share in shares for name in share]
    np.testing.assert_array_equal(batch['image'], np.concatenate([s['image'] for s, _ in shares]))
    np.testing.assert_array_equal(batch['draw'], np.concatenate([s['draw'] for s, _ in shares]))


def test_worker_processes_change_nothing(builder):
  config = dataclasses.replace(CONFIG, short_side=(16, 20), augment={'flip_horizontal': 0.5})
  assert_same(train(builder, 4, dataclasses.replace(config, workers=2)), train(builder, 4, config))


def test_a_plan_answers_in_any_order(builder):
  examples = instance_pipeline._Examples(builder, 'train', CONFIG, datasets.spec(builder, CONFIG))
  in_order = Plan(examples, 0)
  expected = [in_order.batch(step) for step in range(2000)]
  plan = Plan(examples, 0)
  for step in (1999, 3, 1500, 0, 700):
    assert plan.batch(step) == expected[step]


def test_epochs_and_seeds_differ(builder):
  names = lambda batches: [n for _, batch in batches for n in batch]
  assert names(train(builder, 8)) != names(train(builder, 8, seed=4))
  draws = [d for batch, _ in train(builder, 16) for d in batch['draw'].tolist()]
  assert len(set(draws)) == len(draws)


def test_short_side_scales_boxes_and_masks_together(builder):
  config = dataclasses.replace(CONFIG, short_side=(32,), longest_side=64, shapes=((64, 64),))
  for batch, names in train(builder, 4, config):
    for i, name in enumerate(names):
      native, size = SIZES[int(name[1:])], batch['size'][i]
      assert tuple(size) == instances.short_side_size(native, 32, 64)
      masks = np.asarray(unpack_masks(batch['instances'].masks[i], 64))
      gap = batch['instances'].boxes[i] - instances.mask_boxes(masks)
      assert np.abs(gap).max() <= 1


def test_jitter_crops_to_the_first_shape(builder):
  config = dataclasses.replace(CONFIG, jitter=(0.5, 2.0), shapes=((32, 32),))
  sizes = []
  for batch, _ in train(builder, 8, config):
    assert batch['image'].shape == (3, 32, 32, 3)
    sizes += batch['size'].tolist()
    masks = np.asarray(unpack_masks(batch['instances'].masks, 32))
    seen = masks.any((2, 3))
    assert (batch['instances'].valid | ~seen).all()
  assert len({tuple(s) for s in sizes}) > 10


def test_copy_paste_adds_objects(builder):
  count = lambda config: sum(b['instances'].valid.sum() for b, _ in train(builder, 8, config))
  assert count(dataclasses.replace(CONFIG, copy_paste=1.0, instances=20)) > count(
    dataclasses.replace(CONFIG, instances=20)
  )


def test_what_there_is_no_room_for_is_counted_and_told(builder):
  told = []
  batches = train(builder, 8, dataclasses.replace(CONFIG, instances=5), report=told.append)
  numbers = [int(name[1:]) for _, names in batches for name in names]
  left_out = [max(0, n - 5) for n in numbers]
  assert len(told) == 2
  first = next(n for n in numbers if n > 5)
  assert told[0].startswith(f'e{first} has {first} objects')
  assert f'left out {sum(left_out)} objects of {np.count_nonzero(left_out)} images' in told[1]
  for batch, _ in batches:
    assert batch['instances'].valid.sum(1).max() <= 5
  assert not any('left out' in text for text in _told(builder, instances=8))


def _told(builder, **kwargs):
  told = []
  train(builder, 8, dataclasses.replace(CONFIG, **kwargs), report=told.append)
  return told


def test_evaluation_shows_every_image_once_with_its_annotations(builder):
  batches = evaluate(builder, dataclasses.replace(CONFIG, short_side=(16,)))
  seen = {}
  for batch, names in batches:
    assert batch['image'].shape[0] == 3
    for i, name in enumerate(names):
      annotation = batch['annotations'][i]
      if not batch['valid'][i]:
        assert (name, annotation) == ('', None)
        assert not batch['image'][i].any()
        continue
      number = int(name[1:])
      seen[name] = annotation
      native, size = SIZES[number], batch['size'][i]
      assert annotation['image_id'] == 100 + number
      assert (annotation['height'], annotation['width']) == native
      assert annotation['scale'] == (size[0] / native[0], size[1] / native[1])
      assert len(annotation['objects']) == number
  assert sorted(seen) == [f'e{i}' for i in range(5)]


def test_hosts_evaluate_as_many_batches(builder):
  parts = [
    evaluate(
      builder, dataclasses.replace(CONFIG, eval_batch_size=2), process_index=i, process_count=2
    )
    for i in range(2)
  ]
  assert len(parts[0]) == len(parts[1])
  names = [n for part in parts for _, batch_names in part for n in batch_names if n]
  assert sorted(names) == [f'e{i}' for i in range(5)]


def test_scenes_are_read_from_their_pictures(tmp_path):
  builder = datasets.load('scenes/tiny', tmp_path)
  config = DataConfig('scenes/tiny', instances=16, shapes=((64, 64),), batch_size=4)
  spec = datasets.spec(builder, config)
  assert spec.class_names == ('ball', 'box', 'tree', 'ring', 'star')
  assert spec.things == (4, 5, 6, 7, 8)
  assert datasets.DatasetSpec.from_json(spec.to_json()).things == spec.things
  [(batch, _)] = train(builder, 1, config)
  found = batch['instances']
  assert found.valid.any()
  assert found.classes.max() < 5
  for masks, boxes in zip(found.masks, found.boxes, strict=True):
    np.testing.assert_array_equal(instances.mask_boxes(np.unpackbits(masks, axis=-1)), boxes)


def test_an_image_for_a_prediction_is_scaled_and_padded():
  image = np.full((30, 60, 3), 200, np.uint8)
  config = DataConfig(
    'tiny', instances=1, short_side=(15,), shapes=((16, 32),), mean=(0,), std=(1,)
  )
  batch = instance_pipeline.prepare_image(image, config)
  assert batch['image'].shape == (1, 16, 32, 3)
  np.testing.assert_array_equal(batch['size'], [[15, 30]])
  assert (batch['image'][0, :15, :30] == 200).all()
  # One that fits into no shape has its own.
  large = dataclasses.replace(config, short_side=(40,))
  assert instance_pipeline.prepare_image(image, large)['image'].shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'image_size': (8, 8)}, 'config.data.image_size is for dense tasks'),
    ({'instances': 0}, 'must be 1 or more'),
    ({'jitter': (0.5, 2.0), 'shapes': None}, 'config.data.jitter'),
    ({'copy_paste': 2.0}, 'config.data.copy_paste'),
    ({'short_side': (0,)}, 'config.data.short_side'),
    ({'short_side': (9,), 'jitter': (0.5, 2.0)}, 'config.data.jitter and short_side'),
    ({'shapes': ((8,),)}, 'config.data.shapes'),
    ({'augment': {'rotate': 10}}, 'boxes follow a horizontal flip alone'),
  ],
)
def test_wrong_keys_are_told(change, told):
  with pytest.raises(SegjaxError, match=told):
    dataclasses.replace(CONFIG, **change)


def test_keys_of_instance_tasks_want_instances():
  with pytest.raises(SegjaxError, match=r'config.data.short_side is for instance tasks'):
    DataConfig('tiny', short_side=(8,))


def test_an_image_that_fits_no_shape_is_told(builder):
  config = dataclasses.replace(CONFIG, shapes=((32, 48),))
  with pytest.raises(
    SegjaxError, match=r'e\d of tiny .* fits into none of config.data.shapes=\(\(32, 48\),\)'
  ):
    train(builder, 4, config)


def test_normalises_as_dense_tasks_do(builder):
  config = dataclasses.replace(CONFIG, mean=(10, 20, 30), std=(2, 4, 8), shuffle=False)
  [(batch, _)] = train(builder, 1, config)
  spec = datasets.spec(builder, config)
  examples = instance_pipeline._Examples(builder, 'train', config, spec)
  image = examples[int(batch['index'][0])].image
  expected = pipeline.normalize(image[None], config)[0]
  np.testing.assert_array_equal(batch['image'][0, : image.shape[0], : image.shape[1]], expected)


def test_sizes_of_a_split_are_read_once(builder, monkeypatch):
  examples = lambda: instance_pipeline._Examples(
    builder, 'val', CONFIG, datasets.spec(builder, CONFIG)
  )
  sizes = examples().sizes
  assert sorted(sizes) == sorted(SIZES[:5])
  monkeypatch.setattr(pipeline.images, 'read_size', None)
  assert examples().sizes == sizes
  monkeypatch.undo()
  kept = examples()._sizes_path
  whole = kept.read_bytes()
  for length in (0, 100, len(whole) - 1):  # cut short: read again
    kept.write_bytes(whole[:length])
    assert examples().sizes == sizes


def test_objects_of_other_classes_are_left_out(builder):
  config = dataclasses.replace(CONFIG, things=(1,))
  for batch, names in train(builder, 4, config):
    found = batch['instances']
    assert found.valid.sum() == sum(int(name[1:]) // 2 for name in names)
    assert not found.classes.any()


def test_a_plan_keeps_two_epochs(builder, monkeypatch):
  """At an epoch's end threads ask for batches of both; to deal anew each time would take long."""
  monkeypatch.setattr(instance_pipeline, '_KEPT_BATCHES', 1)
  examples = instance_pipeline._Examples(builder, 'train', CONFIG, datasets.spec(builder, CONFIG))
  plan = Plan(examples, 0)
  expected = [plan.batch(step) for step in range(40)]
  dealt = len(plan._ends)
  assert [plan.batch(step) for step in (39, 38, 37)] == expected[:36:-1]
  assert len(plan._ends) == dealt
