"""Samples packed into the arrays of a batch."""

import numpy as np
import pytest
from inputs import input_config

from segjax.data import batch, geometry
from segjax.data.sample import Objects
from segjax.types import IGNORE_LABEL, SegjaxError, Segments


def make_objects(size, count, seed=0):
  rng = np.random.default_rng(seed)
  masks = (rng.random((count, *size)) < rng.random((count, 1, 1))).astype(np.uint8)
  return Objects(
    geometry.mask_boxes(masks), np.arange(count, dtype=np.int32), masks, rng.random(count) < 0.5
  )


def test_everything_is_in_the_upper_left_corner_of_what_fills_it():
  config = input_config(
    mean=(1.2, 2, 3), annotations=('label', 'objects'), weight_map={}, max_objects=4
  )
  fields = batch.fields(config, 3, (16, 20), train=True)
  assert fields.keys() == {
    'image',
    'label',
    'weight',
    'size',
    'instances',
    'seed',
    'left_out',
  }
  objects = make_objects((9, 13), 2)
  image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
  part = {
    'image': image,
    'label': np.full((9, 13), 7, np.uint16),
    'weight': np.full((9, 13), 0.5, np.float32),
    'instances': batch.pack_objects(objects),
    'size': (9, 13),
    'seed': np.uint32(2**32 - 1),
    'left_out': (1, 2),
    'segments': None,
  }
  packed = batch.pack(fields, [part], 2)
  assert packed['image'].shape == (2, 16, 20, 3)
  np.testing.assert_array_equal(packed['image'][0, :9, :13], image)
  assert (packed['image'][0, 9:] == [1, 2, 3]).all() and (packed['image'][1] == [1, 2, 3]).all()
  assert (packed['label'][0, :9, :13] == 7).all()
  assert (packed['label'][0, :, 13:] == IGNORE_LABEL).all()
  assert packed['weight'].sum() == 0.5 * 9 * 13
  np.testing.assert_array_equal(packed['size'], [[9, 13], [16, 20]])
  np.testing.assert_array_equal(packed['seed'], [2**32 - 1, 0])
  np.testing.assert_array_equal(packed['valid'], [True, False])
  found = packed['instances']
  np.testing.assert_array_equal(found.valid, [[True, True, False, False], [False] * 4])
  assert found.masks.shape == (2, 4, 16, 3)
  masks = np.unpackbits(found.masks, axis=-1)
  np.testing.assert_array_equal(masks[0, :2, :9, :13], objects.masks)
  assert masks.sum() == objects.masks.sum()
  np.testing.assert_array_equal(found.boxes[0, :2], objects.boxes)
  np.testing.assert_array_equal(found.crowd[0, :2], objects.crowd)
  assert {k: v.dtype for k, v in found._asdict().items()} == {
    'boxes': np.float32,
    'classes': np.int32,
    'masks': np.uint8,
    'crowd': bool,
    'valid': bool,
  }


def test_many_zeros_are_aligned_zeros_that_can_be_written_to():
  fields = {'label': batch.Field((1024, 700), np.uint16), 'mask': batch.Field((1, 3), np.uint8)}
  part = {'label': np.full((1000, 600), 7, np.uint16), 'mask': np.ones((1, 3), np.uint8)}
  packed = batch.pack(fields, [part], 2)
  label = packed['label']
  assert label.shape == (2, 1024, 700) and label.flags.writeable
  assert label.ctypes.data % 64 == 0
  assert (label[0, :1000, :600] == 7).all() and label.sum() == 7 * 1000 * 600
  assert packed['mask'].tolist() == [[[1, 1, 1]], [[0, 0, 0]]]


@pytest.mark.parametrize(
  ('annotations', 'train', 'canvas', 'keys'),
  [
    (('label',), True, None, {'image', 'label', 'seed'}),
    (('label',), False, None, {'image', 'label', 'size'}),
    (('objects',), True, None, {'image', 'size', 'instances', 'seed', 'left_out'}),
    (('objects',), False, None, {'image', 'size'}),
    (
      ('label', 'objects', 'segments'),
      False,
      (9, 9),
      {'image', 'size', 'segments', 'native'},
    ),
  ],
)
def test_what_a_batch_has(annotations, train, canvas, keys):
  config = input_config(annotations=annotations)
  fields = batch.fields(config, 1, (8, 8), train=train, margin=3, canvas=canvas)
  assert fields.keys() == keys
  assert fields['image'].shape == (14, 14, 1)


def test_the_largest_stay_in_their_order():
  objects = make_objects((20, 20), 6)
  areas = objects.masks.sum((1, 2))
  kept = batch.largest(objects, 3)
  expected = np.sort(np.argsort(-areas)[:3])
  np.testing.assert_array_equal(kept.masks, objects.masks[expected])
  assert batch.largest(objects, 6) is objects


def test_segments_without_a_pixel_are_not_valid():
  ids = np.array([[0, 1], [3, 3]], np.int32)
  three = Segments(ids, np.arange(3, dtype=np.int32), np.zeros(3, bool), np.ones(3, bool))
  np.testing.assert_array_equal(batch.pack_segments(three, 5, 'e1').valid, [True, False, True])
  with pytest.raises(
    SegjaxError, match=r'e1 has 3 segments, more than config\.batch\.max_segments=2: raise it'
  ):
    batch.pack_segments(three, 2, 'e1')
  fields = {'segments': batch.segments_field((3, 4), 5)}
  packed = batch.pack(fields, [{'segments': batch.pack_segments(three, 5, 'e1')}], 1)['segments']
  assert packed.ids.shape == (1, 3, 4) and packed.ids.sum() == 7
  np.testing.assert_array_equal(packed.valid, [[True, False, True, False, False]])
  np.testing.assert_array_equal(packed.classes, [[0, 1, 2, 0, 0]])


@pytest.mark.parametrize('copy', [False, True])
def test_finished_batches_have_the_types_of_a_batch(copy):
  image = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
  label = np.full((2, 4, 5), IGNORE_LABEL, np.uint16)
  item = {'image': image, 'label': label, 'valid': np.array([True, False]), 'annotations': [1, 2]}
  finished, names = batch.finish((item, ['a', '']), copy=copy)
  assert finished['image'].dtype == np.uint8
  np.testing.assert_array_equal(finished['image'], image)
  assert np.shares_memory(finished['image'], image) == (not copy)
  assert finished['label'].dtype == np.int32 and (finished['label'] == IGNORE_LABEL).all()
  assert finished['annotations'] == [1, 2] and names == ['a', '']


@pytest.mark.parametrize('mean', [(100.4,), (100.4, 3, 7.6), (-5, 300, 0)])
def test_mean_color_is_a_color(mean):
  color = batch.mean_color(input_config(mean=mean).data)
  np.testing.assert_array_equal(color, np.clip(np.rint(mean), 0, 255))
  assert color.dtype == np.uint8
