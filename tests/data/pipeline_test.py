"""The streams of batches: what is in them, in which order, on how many hosts and workers."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from inputs import changed, input_config
from small_datasets import ISTHING, OBJECT_SIZES, SEGMENT_SIZES, SEGMENTS

from segjax.data import datasets, geometry, order, pipeline
from segjax.data.batch import mean_color
from segjax.data.weight_map import border_weight_map
from segjax.ops.masks import unpack_masks
from segjax.types import IGNORE_LABEL, SegjaxError

CLASSES = 3
# Everything that can vary is on.
AUGMENT = {
  'flip_horizontal': 0.5,
  'rotate': 20,
  'scale': (0.8, 1.2),
  'elastic_sigma': 2,
  'shift': 2,
  'brightness': 0.2,
  'contrast': 0.2,
  'saturation': 0.2,
  'hue': 0.1,
}
CONFIG = input_config(batch_size=4, augment=AUGMENT)
OBJECTS = input_config(
  annotations=('objects',),
  batch_size=3,
  max_objects=8,
  shapes=((48, 32), (32, 48)),
  interpolation='bilinear',
)
PANOPTIC = input_config(
  annotations=('label', 'objects', 'segments'),
  batch_size=3,
  max_objects=4,
  max_segments=6,
  shapes=((48, 48),),
  interpolation='bilinear',
)


def make_examples(count, size, prefix=''):
  """Images and labels of noise, distinguishable by a single pixel of either."""
  rng = np.random.default_rng(count)
  sizes = [size] * count if isinstance(size, tuple) else size
  return {
    f'{prefix}{i}': (
      rng.integers(0, 256, (*sizes[i], 3), dtype=np.uint8),
      rng.choice(np.array([0, 1, 2, IGNORE_LABEL], np.uint16), sizes[i]),
    )
    for i in range(count)
  }


TRAIN = make_examples(10, (16, 24), 't')
VAL = make_examples(7, (16, 24), 'v')
# Two of (32, 64) when padded, three of (64, 64), one of (32, 32).
MIXED = make_examples(6, [(20, 40), (40, 64), (32, 64), (33, 60), (64, 33), (5, 6)], 'm')


@pytest.fixture(scope='module')
def write(write_dataset, png):
  """Writes splits of {name: (image, label)}; encoded images and labels may be given instead."""

  def write(folder, splits, channels=3):
    def encode(x):
      if isinstance(x, bytes):
        return x
      return png(np.where(x == IGNORE_LABEL, 255, x).astype(np.uint8))  # void as stored

    features = {
      'file_name': tfds.features.Text(),
      'image': tfds.features.Image(shape=(None, None, channels)),
      'label': tfds.features.LabeledImage(labels=CLASSES, shape=(None, None, 1)),
    }
    examples = {
      split: [
        {'file_name': name, 'image': encode(image), 'label': encode(label)}
        for name, (image, label) in content.items()
      ]
      for split, content in splits.items()
    }
    return write_dataset(folder, features, examples)

  return write


@pytest.fixture(scope='module')
def tiny(write, tmp_path_factory):
  return write(tmp_path_factory.mktemp('tiny'), {'train': TRAIN, 'val': VAL, 'mixed': MIXED})


def take(iterator, count):
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def train(builder, count, config=CONFIG, seed=3, **kwargs):
  spec = datasets.spec(builder, config)
  return take(pipeline.train_batches(builder, spec, config, seed=seed, **kwargs), count)


def evaluate(builder, config=CONFIG, **kwargs):
  spec = datasets.spec(builder, config)
  return list(pipeline.eval_batches(builder, spec, config, **kwargs))


def names(batches):
  return [name for _, batch_names in batches for name in batch_names]


def assert_same(actual, expected):
  assert len(actual) == len(expected)
  for (a, a_names), (b, b_names) in zip(actual, expected, strict=True):
    assert a_names == b_names
    assert a.keys() == b.keys()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      assert np.asarray(x).dtype == np.asarray(y).dtype
      np.testing.assert_array_equal(x, y)


# --- training ------------------------------------------------------------------------------------


def test_train_batch_without_augmentation(tiny):
  for batch, batch_names in train(tiny, 3, input_config(batch_size=4)):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      'image': ((4, 16, 24, 3), np.uint8),
      'label': ((4, 16, 24), np.int32),
      'seed': ((4,), np.uint32),
      'valid': ((4,), bool),
    }
    assert batch['valid'].all()
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      np.testing.assert_array_equal(image, TRAIN[name][0])
      np.testing.assert_array_equal(label, TRAIN[name][1])


def test_every_epoch_sees_every_example_once_in_its_own_order(tiny):
  seen = names(train(tiny, 10))
  epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
  assert all(sorted(epoch) == sorted(TRAIN) for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 4


def test_order_without_shuffling(tiny):
  config = changed(CONFIG, shuffle=False)
  seen = names(train(tiny, 5, config))
  assert sorted(seen[:10]) == sorted(TRAIN)
  assert seen[10:] == seen[:10]


def test_an_example_varies_from_epoch_to_epoch(tiny):
  config = changed(CONFIG, batch_size=10)
  (first, first_names), (second, second_names) = train(tiny, 2, config)
  for row, name in enumerate(first_names):
    assert (first['image'][row] != second['image'][second_names.index(name)]).any()


def test_the_seed_decides(tiny):
  assert_same(train(tiny, 3), train(tiny, 3))
  one, other = train(tiny, 3), train(tiny, 3, seed=4)
  assert names(one) != names(other)


def test_batch_larger_than_the_data_set(tiny):
  config = changed(CONFIG, batch_size=25)
  ((batch, batch_names),) = train(tiny, 1, config)
  assert batch['image'].shape[0] == 25
  assert sorted(batch_names[:20]) == sorted([*TRAIN, *TRAIN])


def test_resume_from_any_step(tiny):
  stream = train(tiny, 9)
  for start in (1, 5, 8):
    assert_same(train(tiny, 9 - start, start_step=start), stream[start:])


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_every_batch(tiny, hosts):
  whole = train(tiny, 4)
  parts = [train(tiny, 4, process_index=i, process_count=hosts) for i in range(hosts)]
  joined = [
    ({key: np.concatenate([batch[key] for batch, _ in step]) for key in step[0][0]}, names(step))
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


def test_workers_change_nothing_and_fail_in_words(tiny):
  """One test, because every worker takes a second or two to start."""
  expected = train(tiny, 7)
  one = changed(CONFIG, workers=1)
  assert_same(train(tiny, 3, one), expected[:3])
  two = changed(CONFIG, workers=2)
  spec = datasets.spec(tiny, two)
  stream = pipeline.train_batches(tiny, spec, two, seed=3, start_step=2)
  assert_same([next(stream) for _ in range(5)], expected[2:])
  for process in multiprocessing.active_children():
    process.kill()
  with pytest.raises(SegjaxError, match=r'exit code -9.*config\.batch\.workers'):
    for _ in range(20):
      next(stream)


def test_worker_passes_on_what_is_wrong_with_an_example(tmp_path, write):
  image, label = TRAIN['t0']
  builder = write(tmp_path, {'train': {'good': (image, label), 'bad': (b'not a PNG', label)}})
  config = input_config(batch_size=2, workers=1)
  with pytest.raises(SegjaxError, match='the image of bad cannot be decoded'):
    train(builder, 1, config)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads the processes from /proc')
def test_workers_end_with_a_killed_main_process(tiny):
  script = f"""if True:
    import multiprocessing, time
    from segjax.data import datasets, pipeline
    from segjax.data.config import BatchConfig, DataConfig, InputConfig
    if __name__ == '__main__':
      data = DataConfig('tiny', dir={str(tiny.data_dir_root)!r})
      config = InputConfig(data, batch=BatchConfig(size=4, workers=2))
      builder = datasets.load('tiny', data.dir)
      batches = pipeline.train_batches(builder, datasets.spec(builder, config), config, seed=0)
      next(batches), next(batches)
      print(*(p.pid for p in multiprocessing.active_children()), flush=True)
      time.sleep(60)
  """
  main = subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  with main:
    try:
      workers = [int(pid) for pid in main.stdout.readline().split()]
      assert len(workers) == 2
      # Batch systems signal the whole group: workers leave the answer to the main process.
      for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
      time.sleep(0.5)
      assert all(map(_alive, workers))
    finally:
      main.kill()
  deadline = time.monotonic() + 20
  while any(map(_alive, workers)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(map(_alive, workers))


def _alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_crop_with_margin(tiny):
  config = input_config(batch_size=4, crop_size=(6, 8), mean=(0,), std=(1,))
  for batch, batch_names in train(tiny, 3, config, margin=5):
    assert batch['image'].shape == (4, 16, 18, 3)
    assert batch['label'].shape == (4, 6, 8)
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      whole, whole_label = TRAIN[name]
      mirrored = np.pad(whole, ((5, 5), (5, 5), (0, 0)), mode='reflect')
      places = [
        (top, left)
        for top in range(11)
        for left in range(17)
        if np.array_equal(mirrored[top : top + 16, left : left + 18], image)
      ]
      assert len(places) == 1
      ((top, left),) = places
      np.testing.assert_array_equal(label, whole_label[top : top + 6, left : left + 8])


def test_stretch_and_fit(tiny):
  stretched = input_config(batch_size=2, image_size=(32, 24), mean=(100.2,), std=(1,))
  fitted = changed(stretched, resize='fit')
  for batch, batch_names in train(tiny, 2, stretched):
    image, label = TRAIN[batch_names[0]]
    np.testing.assert_array_equal(batch['image'][0], geometry.resize_image(image, (32, 24)))
    np.testing.assert_array_equal(batch['label'][0], label.repeat(2, axis=0))
  for batch, batch_names in train(tiny, 2, fitted):
    image, label = TRAIN[batch_names[0]]
    np.testing.assert_array_equal(batch['label'][0][:16], label)
    assert (batch['label'][0][16:] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(batch['image'][0][:16], image)
    assert (batch['image'][0][16:] == 100).all()


def test_weight_map_is_made_once_and_moves_with_the_label(tiny, monkeypatch):
  arguments = {'w0': 7.0, 'sigma': 2.0}
  config = input_config(batch_size=5, weight_map=arguments, flip_horizontal=1.0)
  calls = []

  def counted(label, **kwargs):
    calls.append(kwargs)
    return border_weight_map(label, **kwargs)

  monkeypatch.setattr(pipeline, 'border_weight_map', counted)
  # Threads that read two batches at once may both make a map.
  monkeypatch.setattr(pipeline, '_READ_THREADS', 1)
  for batch, batch_names in train(tiny, 6, config):
    assert batch['weight'].dtype == np.float32
    for weight, name in zip(batch['weight'], batch_names, strict=True):
      expected = border_weight_map(TRAIN[name][1], **arguments)[:, ::-1]
      assert expected.max() > 1
      np.testing.assert_array_equal(weight, expected)
  assert calls == [arguments] * 10


# --- evaluation ----------------------------------------------------------------------------------


def test_eval_sees_each_example_once_and_masks_the_rest(tiny):
  config = changed(CONFIG, eval_batch_size=3, mean=(100,), std=(1,))
  batches = evaluate(tiny, config)
  assert [batch['image'].shape for batch, _ in batches] == [(3, 16, 24, 3)] * 3
  stored = [e['file_name'].decode() for e in tiny.as_data_source('val')]
  assert names(batches) == [*stored, '', '']
  for batch, batch_names in batches:
    assert batch['valid'].tolist() == [name != '' for name in batch_names]
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      if name:
        np.testing.assert_array_equal(image, VAL[name][0])
        np.testing.assert_array_equal(label, VAL[name][1])
      else:
        assert (image == 100).all()
        assert (label == IGNORE_LABEL).all()


def test_eval_of_another_split_and_of_a_part(tiny):
  assert sorted(names(evaluate(tiny, split='train[:4]'))) == sorted(
    e['file_name'].decode() for e in tiny.as_data_source('train[:4]')
  )


@pytest.mark.parametrize('hosts', [2, 4])
def test_eval_hosts_have_as_many_batches_of_the_same_shapes(tiny, hosts):
  config = changed(CONFIG, eval_batch_size=4, eval_split='mixed')
  whole = evaluate(tiny, config)
  parts = [evaluate(tiny, config, process_index=i, process_count=hosts) for i in range(hosts)]
  joined = [
    ({key: np.concatenate([batch[key] for batch, _ in step]) for key in step[0][0]}, names(step))
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


def test_eval_batches_are_rounded_up_to_a_multiple(tiny):
  """To that of the devices: with real examples, of which each still comes once."""
  config = changed(CONFIG, eval_batch_size=3)
  (first, first_names), (second, second_names) = evaluate(tiny, config, multiple=4)
  assert first['valid'].tolist() == [True] * 4
  assert second['valid'].tolist() == [True] * 3 + [False]
  assert sorted(first_names + second_names[:3]) == sorted(VAL)
  parts = [
    evaluate(tiny, config, multiple=4, process_index=i, process_count=2)[1][1] for i in (0, 1)
  ]
  assert parts == [second_names[:2], second_names[2:]]


def test_shapes_of_batches(tiny):
  """Each with the name of an example."""
  spec = datasets.spec(tiny, CONFIG)
  shapes = pipeline.eval_shapes(tiny, spec, input_config(batch_size=2), 'mixed')
  found = [
    batch['image'].shape[1:3]
    for batch, _ in evaluate(tiny, input_config(batch_size=2), split='mixed')
  ]
  assert shapes.keys() == set(found)
  for shape, name in shapes.items():
    assert order.multiple_shape(MIXED[name][1].shape) == shape
  assert pipeline.train_shapes(tiny, spec, changed(CONFIG, crop_size=(8, 8))).keys() == {(8, 8)}
  mixed = input_config(batch_size=2, train_split='mixed')
  assert pipeline.train_shapes(tiny, spec, mixed).keys() == shapes.keys()


def test_eval_of_different_sizes(tiny):
  config = input_config(batch_size=2, eval_split='mixed', mean=(100,), std=(1,))
  batches = evaluate(tiny, config)
  shapes = [batch['label'].shape[1:] for batch, _ in batches]
  assert sorted(shapes) == [(32, 32), (32, 64), (64, 64), (64, 64)]
  assert sorted(filter(None, names(batches))) == sorted(MIXED)
  for batch, batch_names in batches:
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      if not name:
        continue
      expected, expected_label = MIXED[name]
      height, width = expected_label.shape
      np.testing.assert_array_equal(image[:height, :width], expected)
      np.testing.assert_array_equal(label[:height, :width], expected_label)
      outside = np.ones(label.shape, bool)
      outside[:height, :width] = False
      assert (image[outside] == 100).all()
      assert (label[outside] == IGNORE_LABEL).all()


def test_eval_of_one_native_size_is_not_padded(tiny):
  assert {batch['image'].shape for batch, _ in evaluate(tiny)} == {(4, 16, 24, 3)}


def test_eval_has_weight_maps(tiny):
  batches = evaluate(tiny, input_config(batch_size=4, weight_map={}))
  for batch, batch_names in batches:
    for weight, name in zip(batch['weight'], batch_names, strict=True):
      expected = border_weight_map(VAL[name][1]) if name else np.zeros((16, 24))
      np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize(
  'keys',
  [
    {'image_size': (32, 24)},
    {'image_size': (32, 24), 'resize': 'fit'},
    {'short_side': (20,), 'shapes': ((32, 32),), 'interpolation': 'bilinear'},
    {},
  ],
)
def test_predicting_reads_images_as_evaluation_does(tiny, keys):
  config = input_config(batch_size=1, **keys)
  for found, (name,) in evaluate(tiny, config):
    common = order.common_size(lambda: [(16, 24)] * 2, config)
    prepared, restore = pipeline.prepare_image(VAL[name][0], config, common)
    np.testing.assert_array_equal(prepared['image'], found['image'])
    assert restore(prepared['image'][0]).shape == (16, 24, 3)


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'image_size': (40, 60)},
    {'image_size': (64, 64), 'resize': 'fit'},
    {'short_side': (30,), 'shapes': ((64, 64),)},
  ],
)
@pytest.mark.parametrize('channels', [5, 150])
def test_restored_scores_are_on_the_image(kwargs, channels):
  """OpenCV resizes no more than 128 channels at once."""
  config = input_config(mean=(0,), std=(1,), **kwargs)
  y, x = np.mgrid[:20, :30]
  image = np.stack([6 * y, 6 * x, 3 * (x + y)], axis=-1).astype(np.uint8)
  prepared, restore = pipeline.prepare_image(image, config)
  restored = restore(np.tile(prepared['image'][0], channels // 3 + 1)[..., :channels])
  assert restored.shape == (20, 30, channels)
  inner = (slice(1, -1), slice(1, -1))
  np.testing.assert_allclose(restored[..., :3][inner], image[inner], atol=1)
  np.testing.assert_array_equal(restored[..., 3:], restored[..., : channels - 3])


def test_an_image_for_a_prediction():
  image = np.full((30, 60, 3), 200, np.uint8)
  config = input_config(short_side=(15,), shapes=((16, 32),), mean=(0,), std=(1,))
  prepared, _ = pipeline.prepare_image(image, config)
  assert prepared.keys() == {'image', 'size', 'native'}
  assert prepared['image'].shape == (1, 16, 32, 3)
  np.testing.assert_array_equal(prepared['size'], [[15, 30]])
  np.testing.assert_array_equal(prepared['native'], [[30, 60]])
  assert (prepared['image'][0, :15, :30] == 200).all()
  assert not prepared['image'][0, 15:].any()
  # One that fits into no shape has its own.
  large, _ = pipeline.prepare_image(image, changed(config, short_side=(40,)))
  assert large['image'].shape == (1, 64, 96, 3)
  panoptic, _ = pipeline.prepare_image(np.zeros((33, 20, 3), np.uint8), PANOPTIC)
  assert panoptic['image'].shape == (1, 48, 48, 3)
  assert panoptic['segments'].ids.shape == (1, 64, 32)
  assert not panoptic['segments'].valid.any() and not panoptic['segments'].ids.any()


def test_count_labels(tiny):
  pixels, image_pixels = pipeline.count_labels(tiny, datasets.spec(tiny, CONFIG), CONFIG)
  labels = np.stack([label for _, label in TRAIN.values()])
  for c in range(CLASSES):
    assert pixels[c] == (labels == c).sum()
    present = (labels == c).any(axis=(1, 2))
    assert image_pixels[c] == (labels[present] != IGNORE_LABEL).sum()


def test_count_labels_leaves_out_images_without_the_class(tmp_path, write):
  image = np.zeros((2, 3, 3), np.uint8)
  labels = np.array([[[0, 0, 1], [0, 0, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
  builder = write(tmp_path, {'train': {'a': (image, labels[0]), 'b': (image, labels[1])}})
  pixels, image_pixels = pipeline.count_labels(builder, datasets.spec(builder, CONFIG), CONFIG)
  assert pixels.tolist() == [10, 1, 0]
  assert image_pixels.tolist() == [11, 6, 0]


# --- objects --------------------------------------------------------------------------------------


def numbers(batch_names):
  return [int(name[1:]) for name in batch_names]


def test_a_batch_has_images_and_their_objects(objects_builder):
  seen = []
  for found, batch_names in train(objects_builder, 30, OBJECTS):
    shape = found['image'].shape[1:3]
    assert shape in OBJECTS.data.size.shapes
    assert found['image'].dtype == np.uint8
    assert found['valid'].all() and 'label' not in found
    assert found['seed'].dtype == np.uint32
    objects = found['instances']
    assert objects.masks.shape == (3, 8, shape[0], shape[1] // 8)
    for i, number in enumerate(numbers(batch_names)):
      height, width = OBJECT_SIZES[number]
      assert tuple(found['size'][i]) == (height, width)
      assert objects.valid[i].sum() == number
      assert objects.crowd[i].sum() == (number > 3)
      masks = np.unpackbits(objects.masks[i], axis=-1)
      np.testing.assert_array_equal(geometry.mask_boxes(masks), objects.boxes[i])
      np.testing.assert_array_equal(objects.classes[i, :number], np.arange(number) % 2)
      assert not masks[:, height:].any() and not masks[:, :, width:].any()
      assert (found['image'][i, height:] == mean_color(OBJECTS.data)).all()
    seen += numbers(batch_names)
  # Of each of the two shapes up to two examples wait for their batch to be full.
  counts = np.bincount(seen, minlength=8)
  assert counts.sum() == 90 and counts.max() - counts.min() <= 2
  seeds = [seed for found, _ in train(objects_builder, 16, OBJECTS) for seed in found['seed']]
  assert len(set(seeds)) == len(seeds)
  assert names(train(objects_builder, 8, OBJECTS, seed=4)) != names(
    train(objects_builder, 8, OBJECTS)
  )


# With every change on.
VARIED = changed(
  OBJECTS,
  augment={**AUGMENT, 'flip_vertical': 0.5, 'rotate90': True, 'copy_paste': 0.5},
  short_side=(14, 16, 20),
)


@pytest.mark.parametrize('start', [1, 7, 20])
def test_objects_resume_at_any_step(objects_builder, start):
  whole = train(objects_builder, start + 3, VARIED)
  assert_same(train(objects_builder, 3, VARIED, start_step=start), whole[start:])


def test_hosts_share_a_batch_of_objects(objects_builder):
  config = changed(VARIED, batch_size=4)
  whole = train(objects_builder, 5, config)
  parts = [train(objects_builder, 5, config, process_index=i, process_count=2) for i in range(2)]
  joined = [
    (jax.tree.map(lambda *x: np.concatenate(x), *(found for found, _ in step)), names(step))
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


def test_workers_change_nothing_of_objects(objects_builder):
  two = changed(VARIED, workers=2)
  assert_same(train(objects_builder, 4, two), train(objects_builder, 4, VARIED))


def test_short_side_scales_boxes_and_masks_together(objects_builder):
  config = changed(OBJECTS, short_side=(32,), longest_side=64, shapes=((64, 64),))
  for found, batch_names in train(objects_builder, 4, config):
    for i, number in enumerate(numbers(batch_names)):
      assert tuple(found['size'][i]) == geometry.short_side_size(OBJECT_SIZES[number], 32, 64)
      masks = np.asarray(unpack_masks(found['instances'].masks[i], 64)).astype(np.uint8)
      gap = found['instances'].boxes[i] - geometry.mask_boxes(masks)
      assert np.abs(gap).max() <= 1


@pytest.mark.parametrize(
  'keys',
  [
    {'augment': {'large_scale_jitter': (0.5, 2.0)}, 'image_size': (32, 32), 'resize': 'fit'},
    {'augment': {'scale': (0.5, 2.0), 'rotate90': True}, 'crop_size': (32, 32)},
    {'augment': {'rotate': 45.0, 'elastic_sigma': 3.0}, 'shapes': ((64, 64),)},
    {'augment': {'copy_paste': 1.0, 'flip_vertical': 0.5}, 'shapes': ((64, 64),)},
  ],
  ids=['jitter', 'crop', 'bend', 'paste'],
)
def test_objects_move_with_the_image(segments_builder, keys):
  """Label, masks and boxes of a panoptic task agree after any change."""
  config = changed(PANOPTIC, **{'shapes': None, **keys})
  sizes = set()
  for found, _ in train(segments_builder, 16, config):
    objects, shape = found['instances'], found['image'].shape[1:3]
    assert shape == (config.data.size.shapes or ((32, 32),))[0]
    masks = np.unpackbits(objects.masks, axis=-1, count=shape[1])
    for i in range(3):
      height, width = found['size'][i]
      sizes.add((height, width))
      assert (found['label'][i, height:] == IGNORE_LABEL).all()
      assert (found['label'][i, :, width:] == IGNORE_LABEL).all()
      valid = objects.valid[i]
      assert masks[i][valid].any((1, 2)).all() and not masks[i][~valid].any()
      if 'image_size' not in keys:  # boxes that are resized are so in proportion
        np.testing.assert_array_equal(objects.boxes[i], geometry.mask_boxes(masks[i]))
      classes = objects.classes[i] * 2 + 1
      for k in np.flatnonzero(valid):
        assert (found['label'][i][masks[i, k] == 1] == classes[k]).all()
      things = np.isin(found['label'][i], [1, 3])
      if not config.augment.copy_paste:  # which may paste more than there is room for
        np.testing.assert_array_equal(things, masks[i].any(0))
  assert len(sizes) > 10 or 'shapes' in keys


def test_copy_paste_adds_objects(objects_builder):
  count = lambda **keys: sum(
    found['instances'].valid.sum()
    for found, _ in train(objects_builder, 8, changed(OBJECTS, max_objects=20, **keys))
  )
  assert count(copy_paste=1.0) > count()


def test_objects_that_are_left_out_are_counted_and_reported(objects_builder):
  reports = []
  batches = train(objects_builder, 8, changed(OBJECTS, max_objects=5), report=reports.append)
  seen = [number for _, batch_names in batches for number in numbers(batch_names)]
  left_out = [max(0, n - 5) for n in seen]
  assert len(reports) == 2
  first = next(n for n in seen if n > 5)
  assert reports[0].startswith(
    f'e{first}: {first - 5} objects are left out (config.batch.max_objects=5'
  )
  assert reports[1].startswith(f'{sum(left_out)} objects of {np.count_nonzero(left_out)} images')
  for found, _ in batches:
    assert found['instances'].valid.sum(1).max() <= 5 and 'left_out' not in found
  reports.clear()
  train(objects_builder, 8, OBJECTS, report=reports.append)
  assert not reports


def test_of_more_objects_than_queries_the_largest_are_kept(objects_builder):
  """As with `max_objects`, and the key that says so is the network's."""
  reports = []
  config = dataclasses.replace(changed(OBJECTS, max_objects=8), queries=5)
  batches = train(objects_builder, 8, config, report=reports.append)
  expected = train(objects_builder, 8, changed(OBJECTS, max_objects=5))
  assert_same(batches, expected)
  assert len(reports) == 2
  assert all('objects' in text and '(config.model.queries=5)' in text for text in reports)


def test_of_more_masks_than_queries_the_rest_is_counted_and_reported(tiny, segments_builder):
  """Of classes, and of objects and classes of stuff together."""
  reports = []
  config = input_config(batch_size=4, shuffle=False)
  [(found, _)] = train(tiny, 1, dataclasses.replace(config, queries=2), report=reports.append)
  assert all(set(range(CLASSES)) < set(np.unique(label)) for label in found['label'])
  assert found['image'].shape == (4, 32, 32, 3), 'whole patches, though all images are of one size'
  assert ': 1 masks are left out (config.model.queries=2, one for each object and' in reports[0]
  assert reports[1].startswith('4 masks of 4 images')

  reports.clear()
  config = dataclasses.replace(changed(PANOPTIC, max_objects=1), queries=1)
  spec = datasets.spec(segments_builder, config)
  [(found, _)] = train(segments_builder, 1, config, report=reports.append)
  stuff = set(range(spec.num_classes)) - set(spec.things)
  objects = found['instances']
  count = (objects.valid & ~objects.crowd).sum(1)
  count += [len(set(np.unique(label)) & stuff) for label in found['label']]
  left_out = np.maximum(count - 1, 0)
  assert left_out.any() and any(r.startswith(f'{left_out.sum()} masks of ') for r in reports)
  reports.clear()
  train(segments_builder, 1, dataclasses.replace(PANOPTIC, queries=20), report=reports.append)
  assert not reports


def test_objects_that_leave_the_image_are_counted_and_reported(objects_builder):
  reports = []
  batches = train(objects_builder, 8, changed(OBJECTS, crop_size=(12, 12)), report=reports.append)
  seen = sum(n for _, batch_names in batches for n in numbers(batch_names))
  kept = sum(found['instances'].valid.sum() for found, _ in batches)
  assert kept < seen
  assert len(reports) == 2
  assert 'left out (no pixel left by resizing and augmentation)' in reports[0]
  assert reports[1].startswith(f'{seen - kept} objects of ')


def test_an_image_that_fits_no_shape_names_itself(objects_builder):
  for shapes in (((32, 48),), ((32, 48), (16, 16))):
    with pytest.raises(
      SegjaxError, match=r'e\d of tiny .* fits into none of config\.data\.size\.shapes=\(\(32, 48'
    ):
      train(objects_builder, 4, changed(OBJECTS, shapes=shapes))


def test_evaluation_shows_every_image_once_with_its_annotations(objects_builder):
  seen = {}
  for found, batch_names in evaluate(objects_builder, changed(OBJECTS, short_side=(16,))):
    assert found['image'].shape[0] == 3 and 'instances' not in found and 'seed' not in found
    for i, name in enumerate(batch_names):
      annotation = found['annotations'][i]
      if not found['valid'][i]:
        assert (name, annotation) == ('', None)
        assert (found['image'][i] == mean_color(OBJECTS.data)).all()
        continue
      number = int(name[1:])
      seen[name] = annotation
      native, size = OBJECT_SIZES[number], found['size'][i]
      assert annotation['image_id'] == 100 + number
      assert (annotation['height'], annotation['width']) == native
      assert annotation['scale'] == (size[0] / native[0], size[1] / native[1])
      assert len(annotation['objects']) == number
  assert sorted(seen) == [f'e{i}' for i in range(5)]


def test_hosts_evaluate_as_many_batches_of_objects(objects_builder):
  config = changed(OBJECTS, eval_batch_size=2)
  parts = [evaluate(objects_builder, config, process_index=i, process_count=2) for i in range(2)]
  assert len(parts[0]) == len(parts[1])
  seen = [name for part in parts for name in names(part) if name]
  assert sorted(seen) == [f'e{i}' for i in range(5)]


# --- segments -------------------------------------------------------------------------------------


def test_training_has_the_things_and_the_label_of_all(segments_builder):
  [(found, batch_names)] = train(segments_builder, 1, PANOPTIC)
  assert found['label'].shape == (3, 48, 48) and found['label'].dtype == np.int32
  assert 'segments' not in found and 'native' not in found
  objects = found['instances']
  for i, number in enumerate(numbers(batch_names)):
    expected = np.full((48, 48), IGNORE_LABEL)
    things = 0
    for _, label, _, (y0, x0, y1, x1) in SEGMENTS[: number + 2]:
      expected[y0:y1, x0:x1] = label
      things += ISTHING[label]
    np.testing.assert_array_equal(found['label'][i], expected)
    assert objects.valid[i].sum() == things
    masks = np.asarray(unpack_masks(objects.masks[i, :things], 48))
    np.testing.assert_array_equal(masks.any(0), np.isin(expected, [1, 3]))


@pytest.mark.parametrize('short_side', [None, (10,)])
def test_evaluation_has_the_segments_at_their_own_size(segments_builder, short_side):
  config = changed(PANOPTIC, eval_batch_size=2, short_side=short_side)
  batches = evaluate(segments_builder, config)
  assert sorted(names(batches)) == ['', 'e0', 'e1', 'e2']
  for found, batch_names in batches:
    segments = found['segments']
    assert segments.ids.shape == (2, 40, 40), 'the largest height and width of the three'
    assert segments.classes.shape == (2, 6)
    assert 'label' not in found and 'instances' not in found
    for i, name in enumerate(batch_names):
      if not name:
        assert not segments.valid[i].any() and not found['valid'][i]
        continue
      number = int(name[1:])
      listed = SEGMENTS[: number + 2]
      assert tuple(found['native'][i]) == SEGMENT_SIZES[number]
      assert min(found['size'][i]) == (10 if short_side else min(SEGMENT_SIZES[number]))
      assert segments.valid[i].sum() == len(listed)
      assert segments.classes[i, : len(listed)].tolist() == [s[1] for s in listed]
      assert segments.crowd[i, : len(listed)].tolist() == [s[2] for s in listed]
      expected = np.zeros((40, 40))
      for k, (*_, (y0, x0, y1, x1)) in enumerate(listed, 1):
        expected[y0:y1, x0:x1] = k
      np.testing.assert_array_equal(segments.ids[i], expected)
      annotation = found['annotations'][i]
      assert annotation['image_id'] == 7 + number
      assert len(annotation['objects']) == sum(ISTHING[s[1]] for s in listed)


def test_more_objects_and_segments_than_there_is_room_for(segments_builder):
  [(found, _)] = train(segments_builder, 1, changed(PANOPTIC, max_objects=1))
  assert found['instances'].valid.sum() == 3, 'the largest of each image'
  with pytest.raises(SegjaxError, match=r'has [34] segments, more than config\.batch\.max_seg'):
    evaluate(segments_builder, changed(PANOPTIC, max_segments=2))


def test_a_weight_map_of_a_panoptic_task(segments_builder):
  config = changed(PANOPTIC, weight_map={'foreground': 1}, augment={'flip_vertical': 1.0})
  [(found, _)] = train(segments_builder, 1, config)
  weight = found['weight']
  assert weight.shape == (3, 48, 48)
  np.testing.assert_array_equal(weight > 0, found['label'] != IGNORE_LABEL)


# --- the user's own transforms --------------------------------------------------------------------


def darken(rng, sample, by):
  """For the test below, which names it by its module."""
  return sample._replace(image=sample.image // np.uint8(by))


def test_own_transforms_are_applied_last(tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, 'own', sys.modules[__name__])
  config = input_config(batch_size=4, mean=(0,), std=(1,))
  plain = train(tiny, 2, config)
  darker = train(tiny, 2, changed(config, transforms=({'name': 'own.darken', 'by': 4},)))
  for (a, _), (b, _) in zip(plain, darker, strict=True):
    np.testing.assert_array_equal(b['image'], a['image'] // 4)
    np.testing.assert_array_equal(b['label'], a['label'])


# --- prefetching ---------------------------------------------------------------------------------


def test_prefetch_keeps_two_ahead_and_closes_its_source():
  events = []

  def source():
    try:
      for i in range(5):
        events.append(f'read {i}')
        yield i
    finally:
      events.append('closed')

  moved = pipeline.prefetch_to_device(source(), lambda x: -x, size=2)
  assert next(moved) == 0
  assert events == ['read 0', 'read 1']
  assert next(moved) == -1
  assert events[2:] == ['read 2']
  assert list(moved) == [-2, -3, -4]
  assert events[-1] == 'closed'

  events.clear()
  moved = pipeline.prefetch_to_device(source(), abs)
  next(moved)
  moved.close()
  assert events[-1] == 'closed'


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('image', 'label', 'message'),
  [
    (TRAIN['t0'][0], np.full((16, 24), 3, np.uint8), 'label of bad has the value 3 .* 3 classes'),
    (TRAIN['t0'][0][1:], TRAIN['t0'][1], 'bad: the image is 15x24 and its label 16x24'),
    (b'\xff\xd8\xff junk', TRAIN['t0'][1], 'image of bad cannot be decoded'),
    (TRAIN['t0'][0], TRAIN['t0'][0], 'label of bad has pixels of uint8'),
  ],
  ids=['value', 'size', 'image', 'label'],
)
def test_bad_examples_name_themselves(tmp_path, write, image, label, message):
  builder = write(tmp_path, {'train': {'good': TRAIN['t0'], 'bad': (image, label)}})
  with pytest.raises(SegjaxError, match=message):
    train(builder, 1, input_config(batch_size=2))
  with pytest.raises(SegjaxError, match=message):
    evaluate(builder, input_config(batch_size=2, eval_split='train', image_size=(16, 24)))


def test_label_offset_keeps_void(tmp_path, write):
  label = np.array([[0, 1, 3, 255]], np.uint8)
  builder = write(tmp_path, {'train': {'a': (np.zeros((1, 4, 3), np.uint8), label)}})
  config = input_config(batch_size=1, label_offset=-1, class_names=('a', 'b', 'c'))
  ((batch, _),) = train(builder, 1, config)
  assert batch['label'].tolist() == [[[IGNORE_LABEL, 0, 2, IGNORE_LABEL]]]


def test_images_of_different_sizes_are_grouped_or_cropped(tiny):
  config = input_config(batch_size=2, train_split='mixed', mean=(100,), std=(1,))
  batches = train(tiny, 12, config)
  assert {found['label'].shape for found, _ in batches} == {(2, 32, 32), (2, 32, 64), (2, 64, 64)}
  counts = [names(batches).count(name) for name in MIXED]
  assert max(counts) - min(counts) <= 1
  for found, batch_names in batches:
    for image, label, name in zip(found['image'], found['label'], batch_names, strict=True):
      expected, expected_label = MIXED[name]
      height, width = expected_label.shape
      np.testing.assert_array_equal(image[:height, :width], expected)
      np.testing.assert_array_equal(label[:height, :width], expected_label)
      assert (image[height:] == 100).all() and (image[:, width:] == 100).all()
      assert (label[height:] == IGNORE_LABEL).all() and (label[:, width:] == IGNORE_LABEL).all()
  ((found, _),) = train(tiny, 1, changed(config, crop_size=(32, 32)))
  assert found['image'].shape == (2, 32, 32, 3)


def test_examples_without_a_name_feature(tiny):
  config = input_config(batch_size=2, name_key=None, shuffle=False)
  assert names(train(tiny, 1, config)) == ['example 0', 'example 1']


@pytest.mark.parametrize(
  ('changes', 'kwargs', 'message'),
  [
    ({'train_split': 'trian'}, {}, "tiny has no split 'trian': did you mean train"),
    ({'train_split': 'train[:0]'}, {}, r"split 'train\[:0\]' of tiny is empty"),
    ({}, {'process_count': 3}, r'config\.batch\.size=4 does not divide among 3'),
    ({'mean': (1.0, 2.0)}, {}, r'config\.data\.mean=\(1\.0, 2\.0\).* 3 channels'),
    ({'transforms': ({'name': 'no.such'},)}, {}, 'there is no module no'),
  ],
)
def test_errors_come_before_the_first_batch(tiny, changes, kwargs, message):
  config = changed(CONFIG, **changes)
  spec = datasets.spec(tiny, CONFIG)
  with pytest.raises(SegjaxError, match=message):
    pipeline.train_batches(tiny, spec, config, **{'seed': 0, **kwargs})
