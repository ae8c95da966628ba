"""What is counted in a split, against the arrays that the data set was made of."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from inputs import input_config
from small_datasets import OBJECT_SIZES, SEGMENT_SIZES

from segjax.data import datasets, read, statistics
from segjax.data.geometry import mask_boxes
from segjax.types import SegjaxError

OBJECTS = input_config(annotations=('objects',))
PANOPTIC = input_config(annotations=('label', 'objects', 'segments'))
LABELS = input_config(annotations=('label',))


def reader(builder, config, split='train'):
  return read.Reader(builder, split, config, datasets.spec(builder, config))


def semantic_builder(write_dataset, png, folder, pairs, classes=('background', 'cell', 'rare')):
  features = {
    'file_name': tfds.features.Text(),
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.LabeledImage(
      labels=list(classes), shape=(None, None, 1), dtype=np.uint8
    ),
  }
  examples = [
    {'file_name': f'e{i}', 'image': png(image), 'label': png(label)}
    for i, (image, label) in enumerate(pairs)
  ]
  return write_dataset(folder, features, {'train': examples})


def random_pairs():
  rng = np.random.default_rng(0)
  sizes = [(6, 8), (10, 4), (5, 5), (7, 9)]
  labels = [rng.choice([0, 0, 1, 255], size).astype(np.uint8) for size in sizes]
  return [(rng.integers(0, 256, (*label.shape, 3), np.uint8), label) for label in labels]


def test_a_semantic_split(tmp_path, write_dataset, png):
  pairs = random_pairs()
  found = statistics.collect(reader(semantic_builder(write_dataset, png, tmp_path, pairs), LABELS))
  pixels = np.concatenate([image.reshape(-1, 3) for image, _ in pairs]).astype(np.float64)
  np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-9)
  np.testing.assert_array_equal(found.object_counts, [0, 0, 0])
  by_name = {example.name: example for example in found.examples}
  assert len({example.digest for example in found.examples}) == len(pairs)
  for i, (image, label) in enumerate(pairs):
    example = by_name[f'e{i}']
    assert example.size == label.shape and example.objects == example.smallest == 0
    assert example.pixels.tolist() == [int((label == k).sum()) for k in range(3)]
    assert example.ignored == (label == 255).sum()
    np.testing.assert_allclose(example.brightness, image.mean())
  assert found.ignored == sum((label == 255).sum() for _, label in pairs)
  assert found.pixels.sum() + found.ignored == sum(label.size for _, label in pairs)


def test_objects(objects_builder):
  """Example e<i> has i rectangles of 5 columns, of the classes 0 and 1 in turn."""
  examples = reader(objects_builder, OBJECTS)
  found = statistics.collect(examples)
  counts = {example.name: example.objects for example in found.examples}
  assert counts == {f'e{i}': i for i in range(len(OBJECT_SIZES))}
  assert found.object_counts.tolist() == [16, 12]
  masks = {e.name: e.objects.masks for e in (examples[i] for i in range(len(examples)))}
  for example in found.examples:
    areas = np.sum(masks[example.name], (1, 2))
    assert example.smallest == (areas.min() if len(areas) else 0)
    assert example.pixels.tolist() == [areas[k::2].sum() for k in (0, 1)]
    assert example.outside == example.ignored == 0
    boxes = mask_boxes(masks[example.name])
    np.testing.assert_array_equal(example.boxes, boxes[:, 2:] - boxes[:, :2])
  assert statistics.suspicious(found)['no annotation'] == ['e0']


def test_panoptic_counts_are_those_of_the_label_and_the_things(segments_builder):
  examples = reader(segments_builder, PANOPTIC)
  found = statistics.collect(examples)
  for i in range(len(SEGMENT_SIZES)):
    example = examples[i]
    described = next(e for e in found.examples if e.name == example.name)
    expected = [int((example.label == k).sum()) for k in range(4)]
    assert described.pixels.tolist() == expected
    assert described.ignored == example.label.size - sum(expected)
    assert described.objects == len(example.objects.classes)
    boxes = example.objects.boxes
    np.testing.assert_array_equal(described.boxes, boxes[:, 2:] - boxes[:, :2])
  # One cat in each example, a dog in two, and another cat in the last.
  assert found.object_counts.tolist() == [0, 4, 0, 2]


@pytest.mark.parametrize('config', [OBJECTS, PANOPTIC])
def test_count_classes_is_the_same_without_images(objects_builder, segments_builder, config):
  examples = reader(objects_builder if config is OBJECTS else segments_builder, config)
  found, counts = statistics.collect(examples), statistics.count_classes(examples)
  np.testing.assert_array_equal(counts.pixels, found.pixels)
  np.testing.assert_array_equal(counts.objects, found.object_counts)
  assert (counts.ignored, counts.examples, counts.total) == (found.ignored, *[len(examples)] * 2)


def test_a_sample_is_spread_over_the_split(objects_builder):
  examples = reader(objects_builder, OBJECTS)
  found = statistics.collect(examples, limit=4)
  assert [e.name for e in found.examples] == [examples.name(i) for i in (0, 2, 4, 6)]
  counts = statistics.count_classes(examples, limit=4)
  assert (counts.examples, counts.total) == (4, len(OBJECT_SIZES))
  assert len(statistics.collect(examples, limit=100).examples) == len(OBJECT_SIZES)


def test_suspicious_examples_come_worst_first(tmp_path, write_dataset, png):
  rng = np.random.default_rng(1)
  noise = lambda: rng.integers(100, 200, (8, 8, 3), np.uint8)
  mixed = np.eye(8, dtype=np.uint8)
  ignored = np.full((8, 8), 255, np.uint8)
  partly = [np.where(np.arange(64).reshape(8, 8) < n, mixed, 255) for n in (20, 10)]
  twin = noise()
  pairs = [
    (twin, mixed),
    (np.full((8, 8, 3), 3, np.uint8), mixed),
    (np.zeros((8, 8, 3), np.uint8), mixed),
    (noise(), np.zeros((8, 8), np.uint8)),
    (noise(), ignored),
    *((noise(), label.astype(np.uint8)) for label in partly),
    (twin, mixed),
  ]
  builder = semantic_builder(write_dataset, png, tmp_path, pairs)
  found = statistics.collect(reader(builder, LABELS))
  assert statistics.duplicates(found) == [sorted(['e0', 'e7'], key=order(found))]
  suspects = statistics.suspicious(found)
  suspects['duplicate images'].sort()
  assert suspects == {
    'no annotation': ['e4'],
    'a single class': ['e3'],
    'more than 50% of the pixels ignored': ['e6', 'e5'],
    'nearly black': ['e2', 'e1'],
    'duplicate images': ['e0', 'e7'],
  }


def order(found):
  """The position of an example in its split, by its name."""
  return [example.name for example in found.examples].index


def test_one_class_alone_is_not_suspicious(tmp_path, write_dataset, png):
  """Where every label map has the same single class, none of them stands out."""
  pairs = [(image, np.zeros_like(label)) for image, label in random_pairs()]
  builder = semantic_builder(write_dataset, png, tmp_path, pairs)
  assert statistics.suspicious(statistics.collect(reader(builder, LABELS))) == {}


def test_what_is_wrong_with_objects():
  """Boxes that leave the image, and empty masks."""
  example = Stub((20, 30))
  rle = lambda mask: {
    'size': [20, 30],
    'counts': read.coco.mask_object(mask, **KEYS)['segmentation'],
  }
  full, empty = rle(np.ones((20, 30), bool)), {'size': [20, 30], 'counts': 'h2'}
  corner = np.zeros((20, 30), bool)
  corner[:3, :4] = True
  entry = lambda box, rle=full: {'bbox': box, 'category': 1, 'rle': rle}
  entries = [
    entry([0.0, 0.0, 30.0, 20.0]),
    entry([-1.0, 0.0, 30.0, 20.9]),  # rounded
    entry([-1.5, 0.0, 10.0, 10.0]),
    entry([25.0, 0.0, 10.0, 10.0]),
    entry([0.0, 15.0, 3.0, 8.0]),
    entry([1.0, 1.0, 3.0, 4.0], rle(corner)),
    entry([1.0, 1.0, 3.0, 4.0], empty),
  ]
  found = statistics._count_objects(example, entries)
  assert found.outside == 4
  assert found.smallest == 12
  assert found.without_mask == 2
  assert found.objects.tolist() == [0, 7]
  assert found.pixels.tolist() == [0, 5 * 600 + 12]


KEYS = {'id': 1, 'label': 0, 'category_id': 0, 'iscrowd': False}


class Stub:
  """An example of a size and two classes, and of three stored objects, two without a mask."""

  record = {'objects': {'segmentation': [b'', b'x', b'']}}
  reader = types.SimpleNamespace(
    spec=types.SimpleNamespace(num_classes=2),
    config=OBJECTS,
  )

  def __init__(self, size):
    self.image = np.zeros((*size, 3), np.uint8)


def test_an_error_names_the_example(tmp_path, write_dataset, png):
  image = np.zeros((4, 4, 3), np.uint8)
  builder = semantic_builder(write_dataset, png, tmp_path, [(image, np.full((4, 4), 7, np.uint8))])
  for count in (statistics.collect, statistics.count_classes):
    with pytest.raises(SegjaxError, match='the label of e0 has the value 7'):
      count(reader(builder, LABELS))


@pytest.mark.parametrize(
  ('pixels', 'ignored', 'objects', 'examples', 'sentence'),
  [
    ([5, 5, 5], 0, [0, 0, 0], 9, ''),
    ([5, 0, 5], 0, [0, 0, 0], 9, 'in val, 1 of 3 classes never occur (b)'),
    ([5, 4, 6], 5, [0, 0, 0], 9, 'in val, 25.0% of the pixels are ignored'),
    (
      [0, 4, 0],
      4,
      [1, 0, 0],
      9,
      'in val, 1 of 3 classes never occur (c) and 50.0% of the pixels are ignored',
    ),
    (
      [0, 0, 0],
      7,
      [0, 0, 0],
      9,
      'in val, 3 of 3 classes never occur (a, b, c) and 100.0% of the pixels are ignored',
    ),
    ([0, 0, 1], 0, [0, 0, 1], 8, 'in 8 of the 9 images of val, 2 of 3 classes never occur (a, b)'),
  ],
)
def test_what_a_metric_cannot_measure(pixels, ignored, objects, examples, sentence):
  counts = statistics.ClassCounts(np.array(pixels), ignored, np.array(objects), examples, 9)
  assert statistics.describe_missing(counts, ('a', 'b', 'c'), 'val') == sentence


def test_of_many_classes_a_few_are_named():
  counts = statistics.ClassCounts(np.zeros(30, int), 0, np.zeros(30, int), 1, 1)
  names = tuple(map(str, range(30)))
  sentence = statistics.describe_missing(counts, names, 'val')
  assert sentence == 'in val, 30 of 30 classes never occur (0, 1, 2, 3, 4, …)'
