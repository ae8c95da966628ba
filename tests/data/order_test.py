"""Which example comes when, at which size, and padded to which shape."""

import pickle

import numpy as np
import pytest
from inputs import input_config

from segjax.data import order
from segjax.data.order import TrainOrder
from segjax.types import SegjaxError

# Upright, lying and square.
SIZES = [(40, 20), (20, 40), (30, 18), (16, 36), (24, 24), (44, 22), (20, 38), (28, 28)]
SHAPES = ((48, 32), (32, 48))
OBJECTS = {'annotations': ('objects',)}


def train_order(sizes=SIZES, seed=0, batch_size=3, **keys):
  config = input_config(batch_size=batch_size, **keys)
  return TrainOrder(len(sizes), lambda: sizes, config, seed, 'e{}'.format)


def unread():
  raise AssertionError('sizes are read')


@pytest.mark.parametrize(
  ('keys', 'shape'),
  [
    ({'crop_size': (20, 24)}, (20, 24)),
    ({'image_size': (64, 48)}, (64, 48)),
    ({'image_size': (64, 48), 'resize': 'fit'}, (64, 48)),
    ({'shapes': ((64, 48),)}, (64, 48)),
    ({'shapes': SHAPES, 'crop_size': (20, 24)}, (20, 24)),
    (
      {
        'image_size': (64, 48),
        'resize': 'fit',
        'augment': {'large_scale_jitter': (0.5, 2.0)},
        'shapes': SHAPES,
      },
      (64, 48),
    ),
  ],
)
@pytest.mark.parametrize('annotations', [('label',), ('objects',)])
def test_one_shape_is_a_formula_and_no_header_is_read(keys, shape, annotations):
  config = input_config(batch_size=3, annotations=annotations, **keys)
  plan = TrainOrder(8, unread, config, 7, 'e{}'.format)
  for step in (0, 1, 2, 3, 1_000_000):
    positions = [divmod(3 * step + row, 8) for row in range(3)]
    expected = [(epoch, order.permutation(7, epoch, 8)[i]) for epoch, i in positions]
    assert plan.batch(step) == (shape, expected)


@pytest.mark.parametrize(
  ('annotations', 'shape'), [(('label',), (30, 50)), (('objects',), (32, 64))]
)
def test_images_of_one_size_share_a_shape(annotations, shape):
  """Networks for objects want multiples of 32."""
  plan = train_order([(30, 50)] * 8, annotations=annotations)
  one = train_order([(30, 50)] * 8, shapes=((64, 64),))
  for step in range(10):
    assert plan.batch(step) == (shape, one.batch(step)[1])


def test_without_shuffling():
  plan = train_order(shuffle=False, crop_size=(8, 8))
  assert [plan.batch(step)[1] for step in range(3)] == [
    [(0, 0), (0, 1), (0, 2)],
    [(0, 3), (0, 4), (0, 5)],
    [(0, 6), (0, 7), (1, 0)],
  ]


@pytest.mark.parametrize('annotations', [('label',), ('objects',)])
def test_batches_are_of_one_shape_and_every_image_comes_once_an_epoch(annotations):
  plan = train_order(shapes=SHAPES, annotations=annotations)
  seen = np.zeros(8, int)
  for step in range(30):
    shape, chosen = plan.batch(step)
    assert shape in SHAPES and len(chosen) == 3
    for _, index in chosen:
      assert all(a <= b for a, b in zip(SIZES[index], shape, strict=True))
      seen[index] += 1
  # Of each of the two shapes up to two examples wait for their batch to be full.
  assert seen.sum() == 90 and seen.max() - seen.min() <= 2


def test_multiples_of_32_without_shapes():
  plan = train_order([(20, 40), (40, 64), (32, 64), (33, 60)], batch_size=1)
  shapes = {plan.batch(step)[1][0][1]: plan.batch(step)[0] for step in range(4)}
  assert shapes == {0: (32, 64), 1: (64, 64), 2: (32, 64), 3: (64, 64)}


def test_the_smallest_shape_that_fits_and_none():
  config = input_config(shapes=((64, 64), (48, 48), (32, 96)))
  assert order.fit_shape((30, 40), config, str) == (48, 48)
  assert order.fit_shape((30, 50), config, str) == (32, 96)
  with pytest.raises(
    SegjaxError,
    match=r'e3 of tiny is 65x9 pixels .* fits into none of config\.data\.size\.shapes=\(\(64, 64\)'
    r'.*: add a larger shape, or resize by config\.data\.size\.image_size',
  ):
    order.fit_shape((65, 9), config, lambda: 'e3')


def test_an_order_answers_in_any_order_and_pickled():
  in_order = train_order(shapes=SHAPES, **OBJECTS)
  expected = [in_order.batch(step) for step in range(2000)]
  plan = pickle.loads(pickle.dumps(in_order))
  for step in (1999, 3, 1500, 0, 700):
    assert plan.batch(step) == expected[step]
  assert [train_order(shapes=SHAPES, seed=1).batch(s) for s in range(9)] != expected[:9]


def test_an_order_keeps_two_epochs(monkeypatch):
  """At an epoch's end threads ask for batches of both; to deal again each time would take long."""
  monkeypatch.setattr(order, '_KEPT_BATCHES', 1)
  plan = train_order(shapes=SHAPES)
  expected = [plan.batch(step) for step in range(40)]
  dealt = len(plan._ends)
  assert [plan.batch(step) for step in (39, 38, 37)] == expected[:36:-1]
  assert len(plan._ends) == dealt


def test_short_sides_are_sampled_for_each_epoch_and_example():
  config = input_config(short_side=(14, 16, 20), longest_side=30)
  sizes = {
    (epoch, index): order.train_size((40, 60), config, 3, epoch, index, 50)
    for epoch in range(4)
    for index in range(50)
  }
  assert set(sizes.values()) == {(14, 21), (16, 24), (20, 30)}
  counts = np.unique([h for h, _ in sizes.values()], return_counts=True)[1]
  assert counts.min() > 40
  assert [sizes[0, i] for i in range(50)] != [sizes[1, i] for i in range(50)]
  assert order.eval_size((40, 60), config) == (20, 30)


def test_large_scale_jitter_multiplies_the_size_that_fits():
  config = input_config(
    image_size=(64, 64), resize='fit', augment={'large_scale_jitter': (0.5, 2.0)}
  )
  sizes = np.array([order.train_size((40, 60), config, 3, 0, i, 500) for i in range(500)])
  assert 32 <= sizes[:, 1].min() < 34 and 126 < sizes[:, 1].max() <= 128
  np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 43 / 64, atol=0.02)
  assert order.eval_size((40, 60), config) == (43, 64)


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    ({}, (40, 60)),
    ({'image_size': (32, 32)}, (32, 32)),
    ({'image_size': (32, 32), 'resize': 'fit'}, (21, 32)),
    ({'short_side': (20,)}, (20, 30)),
  ],
)
def test_size_in_evaluation(keys, expected):
  assert order.eval_size((40, 60), input_config(**keys)) == expected
  assert order.train_size((40, 60), input_config(**keys), 0, 0, 0, 1) == expected


def test_evaluation_groups():
  config = input_config(batch_size=2, shapes=SHAPES, **OBJECTS)
  batches = order.eval_order(8, lambda: SIZES, config, 'e{}'.format)
  assert sorted(i for batch in batches for i in batch.indices) == list(range(8))
  for batch in batches:
    assert len(batch.indices) <= 2 and batch.canvas is None
    for index in batch.indices:
      assert all(a <= b for a, b in zip(SIZES[index], batch.shape, strict=True))


def test_evaluation_reads_sizes_only_where_it_must():
  config = input_config(batch_size=3, image_size=(16, 16))
  assert order.eval_order(4, unread, config, str) == [
    ((16, 16), None, [0, 1, 2]),
    ((16, 16), None, [3]),
  ]
  segments = input_config(
    batch_size=3, image_size=(16, 16), annotations=('label', 'objects', 'segments')
  )
  (batch,) = order.eval_order(3, lambda: SIZES[:3], segments, str)
  assert batch.canvas == (40, 40), 'the largest height and width'


def test_evaluation_of_one_size_is_not_padded():
  sizes = lambda: [(30, 50)] * 2
  assert order.eval_order(2, sizes, input_config(), str)[0].shape == (30, 50)
  assert order.eval_order(2, sizes, input_config(short_side=(20,)), str)[0].shape == (20, 33)
  assert order.eval_order(2, sizes, input_config(**OBJECTS), str)[0].shape == (32, 64)
