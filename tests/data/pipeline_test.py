"""The streams of batches: what is in them, in which order, on how many hosts and workers."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data import datasets, pipeline, transforms
from segjax.data.pipeline import DataConfig
from segjax.data.weight_map import border_weight_map
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
CONFIG = DataConfig('tiny', batch_size=4, augment=AUGMENT)


def make_examples(count, size, prefix=''):
  """Pictures and labels of noise, to be told apart by a single pixel of either."""
  rng = np.random.default_rng(count)
  sizes = [size] * count if isinstance(size, tuple) else size
  return {
    f'{prefix}{i}': (
      rng.integers(0, 256, (*sizes[i], 3), dtype=np.uint8),
      rng.choice(np.array([0, 1, 2, IGNORE_LABEL], np.uint8), sizes[i]),
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
    encode = lambda x: x if isinstance(x, bytes) else png(x)
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
  return take(pipeline.train_batches(builder, config, spec, seed=seed, **kwargs), count)


def evaluate(builder, config=CONFIG, **kwargs):
  spec = datasets.spec(builder, config)
  return list(pipeline.eval_batches(builder, config, spec, **kwargs))


def names(batches):
  return [name for _, batch_names in batches for name in batch_names]


def assert_same(actual, expected):
  assert len(actual) == len(expected)
  for (a, a_names), (b, b_names) in zip(actual, expected, strict=True):
    assert a_names == b_names
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


# --- training ------------------------------------------------------------------------------------


def test_train_batch_without_augmentation(tiny):
  config = DataConfig('tiny', batch_size=4, mean=(10, 20, 30), std=(1, 2, 4))
  for batch, batch_names in train(tiny, 3, config):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      'image': ((4, 16, 24, 3), np.float32),
      'label': ((4, 16, 24), np.int32),
      'valid': ((4,), bool),
    }
    assert batch['valid'].all()
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      expected = (TRAIN[name][0] - np.float32([10, 20, 30])) / np.float32([1, 2, 4])
      np.testing.assert_array_equal(image, expected)
      np.testing.assert_array_equal(label, TRAIN[name][1])


def test_every_epoch_sees_every_example_once_in_its_own_order(tiny):
  seen = names(train(tiny, 10))
  epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
  assert all(sorted(epoch) == sorted(TRAIN) for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 4


def test_order_without_shuffling(tiny):
  config = dataclasses.replace(CONFIG, shuffle=False)
  seen = names(train(tiny, 5, config))
  assert sorted(seen[:10]) == sorted(TRAIN)
  assert seen[10:] == seen[:10]


def test_an_example_varies_from_epoch_to_epoch(tiny):
  config = dataclasses.replace(CONFIG, batch_size=10)
  (first, first_names), (second, second_names) = train(tiny, 2, config)
  for row, name in enumerate(first_names):
    assert (first['image'][row] != second['image'][second_names.index(name)]).any()


def test_the_seed_decides(tiny):
  assert_same(train(tiny, 3), train(tiny, 3))
  one, other = train(tiny, 3), train(tiny, 3, seed=4)
  assert names(one) != names(other)


def test_batch_larger_than_the_data_set(tiny):
  config = dataclasses.replace(CONFIG, batch_size=25)
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
  one = dataclasses.replace(CONFIG, workers=1)
  assert_same(train(tiny, 3, one), expected[:3])
  two = dataclasses.replace(CONFIG, workers=2)
  spec = datasets.spec(tiny, two)
  stream = pipeline.train_batches(tiny, two, spec, seed=3, start_step=2)
  assert_same([next(stream) for _ in range(5)], expected[2:])
  for process in multiprocessing.active_children():
    process.kill()
  with pytest.raises(SegjaxError, match=r'exit code -9.*config\.data\.workers'):
    for _ in range(20):
      next(stream)


def test_worker_passes_on_what_is_wrong_with_an_example(tmp_path, write):
  image, label = TRAIN['t0']
  builder = write(tmp_path, {'train': {'good': (image, label), 'bad': (b'not a PNG', label)}})
  config = DataConfig('tiny', batch_size=2, workers=1)
  with pytest.raises(SegjaxError, match='the image of bad cannot be decoded'):
    train(builder, 1, config)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads the processes from /proc')
def test_workers_end_with_a_killed_main_process(tiny):
  script = f"""if True:
    import multiprocessing, time
    from segjax.data import datasets, pipeline
    if __name__ == '__main__':
      config = pipeline.DataConfig('tiny', dir={str(tiny.data_dir_root)!r}, batch_size=4, workers=2)
      builder = datasets.load('tiny', config.dir)
      batches = pipeline.train_batches(builder, config, datasets.spec(builder, config), seed=0)
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
  config = DataConfig('tiny', batch_size=4, crop_size=(6, 8), mean=(0,), std=(1,))
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
  stretched = DataConfig('tiny', batch_size=2, image_size=(32, 24), mean=(100.2,), std=(1,))
  fitted = dataclasses.replace(stretched, resize='fit')
  for batch, batch_names in train(tiny, 2, stretched):
    image, label = TRAIN[batch_names[0]]
    np.testing.assert_array_equal(
      batch['image'][0],
      transforms.resize_image(image, (32, 24)).astype(np.float32) - np.float32(100.2),
    )
    np.testing.assert_array_equal(batch['label'][0], label.repeat(2, axis=0))
  for batch, batch_names in train(tiny, 2, fitted):
    image, label = TRAIN[batch_names[0]]
    np.testing.assert_array_equal(batch['label'][0][:16], label)
    assert (batch['label'][0][16:] == IGNORE_LABEL).all()
    np.testing.assert_allclose(batch['image'][0][:16], image - 100.2, atol=1e-4)
    np.testing.assert_allclose(batch['image'][0][16:], 0, atol=0.5)


def test_weight_map_is_made_once_and_moves_with_the_label(tiny, monkeypatch):
  arguments = {'w0': 7.0, 'sigma': 2.0}
  config = DataConfig('tiny', batch_size=5, weight_map=arguments, augment={'flip_horizontal': 1.0})
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
  config = dataclasses.replace(CONFIG, eval_batch_size=3, mean=(100,), std=(1,))
  batches = evaluate(tiny, config)
  assert [batch['image'].shape for batch, _ in batches] == [(3, 16, 24, 3)] * 3
  stored = [e['file_name'].decode() for e in tiny.as_data_source('val')]
  assert names(batches) == [*stored, '', '']
  for batch, batch_names in batches:
    assert batch['valid'].tolist() == [name != '' for name in batch_names]
    for image, label, name in zip(batch['image'], batch['label'], batch_names, strict=True):
      if name:
        np.testing.assert_array_equal(image, VAL[name][0] - np.float32(100))
        np.testing.assert_array_equal(label, VAL[name][1])
      else:
        assert (image == 0).all()
        assert (label == IGNORE_LABEL).all()


def test_eval_of_another_split_and_of_a_part(tiny):
  assert sorted(names(evaluate(tiny, split='train[:4]'))) == sorted(
    e['file_name'].decode() for e in tiny.as_data_source('train[:4]')
  )


@pytest.mark.parametrize('hosts', [2, 4])
def test_eval_hosts_have_as_many_batches_of_the_same_shapes(tiny, hosts):
  config = dataclasses.replace(CONFIG, eval_batch_size=4, eval_split='mixed')
  whole = evaluate(tiny, config)
  parts = [evaluate(tiny, config, process_index=i, process_count=hosts) for i in range(hosts)]
  joined = [
    ({key: np.concatenate([batch[key] for batch, _ in step]) for key in step[0][0]}, names(step))
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


def test_eval_of_different_sizes(tiny):
  config = DataConfig('tiny', batch_size=2, eval_split='mixed', mean=(100,), std=(1,))
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
      np.testing.assert_array_equal(image[:height, :width], expected - np.float32(100))
      np.testing.assert_array_equal(label[:height, :width], expected_label)
      outside = np.ones(label.shape, bool)
      outside[:height, :width] = False
      assert (image[outside] == 0).all()
      assert (label[outside] == IGNORE_LABEL).all()


def test_eval_of_one_native_size_is_not_padded(tiny):
  assert {batch['image'].shape for batch, _ in evaluate(tiny)} == {(4, 16, 24, 3)}


def test_eval_has_weight_maps(tiny):
  batches = evaluate(tiny, DataConfig('tiny', batch_size=4, weight_map={}))
  for batch, batch_names in batches:
    for weight, name in zip(batch['weight'], batch_names, strict=True):
      expected = border_weight_map(VAL[name][1]) if name else np.zeros((16, 24))
      np.testing.assert_array_equal(weight, expected)


def test_predicting_reads_images_as_evaluation_does(tiny):
  for resize in ('stretch', 'fit'):
    config = DataConfig('tiny', batch_size=1, image_size=(32, 24), resize=resize)
    for batch, (name,) in evaluate(tiny, config):
      image, restore = pipeline.prepare_image(VAL[name][0], config)
      np.testing.assert_array_equal(image, batch['image'][0])
      assert restore(image).shape == (16, 24, 3)


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'image_size': (40, 60)},
    {'image_size': (64, 64), 'resize': 'fit'},
  ],
)
def test_restored_scores_lie_on_the_image(kwargs):
  config = DataConfig('tiny', mean=(0,), std=(1,), **kwargs)
  y, x = np.mgrid[:20, :30]
  image = np.stack([6 * y, 6 * x, 3 * (x + y)], axis=-1).astype(np.uint8)
  prepared, restore = pipeline.prepare_image(image, config)
  scores = np.concatenate([prepared, prepared[..., :2]], axis=-1)
  restored = restore(scores)
  assert restored.shape == (20, 30, 5)
  inner = (slice(1, -1), slice(1, -1))
  np.testing.assert_allclose(restored[..., :3][inner], image[inner], atol=1)


def test_count_labels(tiny):
  pixels, image_pixels = pipeline.count_labels(tiny, CONFIG, datasets.spec(tiny, CONFIG))
  labels = np.stack([label for _, label in TRAIN.values()])
  for c in range(CLASSES):
    assert pixels[c] == (labels == c).sum()
    present = (labels == c).any(axis=(1, 2))
    assert image_pixels[c] == (labels[present] != IGNORE_LABEL).sum()


def test_count_labels_leaves_out_images_without_the_class(tmp_path, write):
  image = np.zeros((2, 3, 3), np.uint8)
  labels = np.array([[[0, 0, 1], [0, 0, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
  builder = write(tmp_path, {'train': {'a': (image, labels[0]), 'b': (image, labels[1])}})
  pixels, image_pixels = pipeline.count_labels(builder, CONFIG, datasets.spec(builder, CONFIG))
  assert pixels.tolist() == [10, 1, 0]
  assert image_pixels.tolist() == [11, 6, 0]


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
    train(builder, 1, DataConfig('tiny', batch_size=2))
  with pytest.raises(SegjaxError, match=message):
    evaluate(builder, DataConfig('tiny', batch_size=2, eval_split='train', image_size=(16, 24)))


def test_label_offset_keeps_void(tmp_path, write):
  label = np.array([[0, 1, 3, 255]], np.uint8)
  builder = write(tmp_path, {'train': {'a': (np.zeros((1, 4, 3), np.uint8), label)}})
  config = DataConfig('tiny', batch_size=1, label_offset=-1, class_names=('a', 'b', 'c'))
  ((batch, _),) = train(builder, 1, config)
  assert batch['label'].tolist() == [[[IGNORE_LABEL, 0, 2, IGNORE_LABEL]]]


def test_images_of_different_sizes_cannot_share_a_batch(tiny):
  config = DataConfig('tiny', batch_size=6, train_split='mixed')
  with pytest.raises(SegjaxError, match=r'differ in size.*config\.data\.crop_size'):
    train(tiny, 1, config)
  ((batch, _),) = train(tiny, 1, dataclasses.replace(config, crop_size=(32, 32)))
  assert batch['image'].shape == (6, 32, 32, 3)


def test_examples_without_a_name_feature(tiny):
  config = DataConfig('tiny', batch_size=2, name_key=None, shuffle=False)
  assert names(train(tiny, 1, config)) == ['example 0', 'example 1']


@pytest.mark.parametrize(
  ('changes', 'kwargs', 'message'),
  [
    ({'train_split': 'trian'}, {}, "tiny has no split 'trian': did you mean train"),
    ({'train_split': 'train[:0]'}, {}, r"split 'train\[:0\]' of tiny is empty"),
    ({}, {'process_count': 3}, r'config\.data\.batch_size=4 does not divide among 3'),
    ({'mean': (1.0, 2.0)}, {}, r'config\.data\.mean=\(1\.0, 2\.0\).* 3 channels'),
    ({}, {'seed': -1}, r'config\.train\.seed'),
  ],
)
def test_errors_come_before_the_first_batch(tiny, changes, kwargs, message):
  config = dataclasses.replace(CONFIG, **changes)
  spec = datasets.spec(tiny, CONFIG)
  with pytest.raises(SegjaxError, match=message):
    pipeline.train_batches(tiny, config, spec, **{'seed': 0, **kwargs})


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('batch_size', 0),
    ('eval_batch_size', 0),
    ('workers', -1),
    ('image_size', (0, 5)),
    ('crop_size', (1, 2, 3)),
    ('resize', 'squash'),
    ('std', (0.0,)),
    ('std', ()),
  ],
)
def test_impossible_values_name_their_key(key, value):
  with pytest.raises(SegjaxError, match=rf'config\.data\.{key}'):
    DataConfig('tiny', **{key: value})


def test_config_takes_lists_and_mappings():
  config = DataConfig('tiny', image_size=[8, 9], mean=[1, 2, 3], augment={'scale': [0.5, 2]})
  assert config.image_size == (8, 9)
  assert config.mean == (1, 2, 3)
  assert config.augment == transforms.Augment(scale=(0.5, 2))
  assert DataConfig('tiny').augment == transforms.Augment()
