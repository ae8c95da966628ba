"""Values at points: against SciPy, and three kinds of masks against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from segjax.ops import points
from segjax.ops.masks import pack_masks

HEIGHT, WIDTH = 7, 11  # no multiple of 8 wide
RNG = np.random.default_rng(0)
# Also beyond the image.
SHARED = RNG.uniform(-0.1, 1.1, (40, 2)).astype(np.float32)
OWN = RNG.uniform(-0.1, 1.1, (3, 40, 2)).astype(np.float32)
EITHER = pytest.mark.parametrize('where', [SHARED, OWN], ids=['shared', 'own'])


@EITHER
def test_maps_are_bilinear_between_centers_and_zero_beyond(where):
  maps = RNG.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)
  found = jax.jit(points.sample_maps)(maps, where)
  for values, one, at in zip(found, maps, np.broadcast_to(where, (3, 40, 2)), strict=True):
    position = at[:, ::-1].T * [[HEIGHT], [WIDTH]] - 0.5
    expected = ndimage.map_coordinates(one, position, order=1, mode='grid-constant')
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)


@EITHER
def test_bits_and_classes_are_masks(where):
  label = RNG.integers(0, 4, (HEIGHT, WIDTH)).astype(np.int32)
  classes = np.array([0, 3, 2], np.int32)
  masks = label == classes[:, None, None]
  expected = points.sample_maps(jnp.asarray(masks, jnp.float32), where)
  packed = points.sample_packed(pack_masks(jnp.asarray(masks)), WIDTH, where)
  by_class = points.sample_classes(label, classes, where)
  np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-6)
  np.testing.assert_allclose(by_class, expected, rtol=0, atol=1e-6)


def test_points_are_drawn_where_masks_are_uncertain():
  """The logit is zero at x = 1/4 of one mask, x = 3/4 of the other."""
  zero = np.array([0.25, 0.75])[:, None]
  logits = lambda at: at[..., 0] - zero
  draw = functools.partial(points.uncertain_points, logits_at=logits, count=100, masks=2)
  found = np.asarray(draw(jax.random.key(0), oversample=4.0, importance=0.6))
  assert found.shape == (2, 100, 2) and (found >= 0).all() and (found <= 1).all()
  distance = np.abs(found[..., 0] - zero)
  # 60 of 400 are the nearest 15 %, on either side 7.5 %; the other 40 are anywhere.
  assert distance[:, :60].max() < 0.12 and distance[:, 60:].max() > 0.4
  assert np.abs(distance[:, 60:].mean() - 5 / 16) < 0.1


@EITHER
def test_gradients_are_finite_differences(where):
  """Also of points beyond the image, which give a map none."""
  maps = RNG.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)
  of_maps = lambda maps: jnp.sin(points.sample_maps(maps, where))
  check_grads(jax.jit(of_maps), (maps,), order=1, modes=['rev'], eps=1e-2, atol=1e-2, rtol=1e-2)
  gradient = jax.jit(jax.grad(lambda maps: points.sample_maps(maps, where + 2).sum()))(maps)
  assert not np.asarray(gradient).any()


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1)])
def test_maps_of_a_row_or_a_column(size):
  """At their centers they are as they are; in a corner, a quarter of the nearest value."""
  maps = RNG.normal(size=(2, *size)).astype(np.float32)
  y, x = (np.mgrid[: size[0], : size[1]].reshape(2, -1) + 0.5) / np.array(size)[:, None]
  centers = np.stack([x, y], -1).astype(np.float32)
  np.testing.assert_allclose(points.sample_maps(maps, centers), maps.reshape(2, -1), atol=1e-6)
  corner = points.sample_maps(maps, np.ones((1, 2), np.float32))[:, 0]
  np.testing.assert_allclose(corner, maps[:, -1, -1] / 4, rtol=1e-5)
  label = np.zeros(size, np.int32)
  values = points.sample_classes(label, np.array([0, 1], np.int32), centers)
  np.testing.assert_allclose(values, [[1] * len(x), [0] * len(x)], atol=1e-6)


@pytest.mark.parametrize('importance', [0.0, 1.0])
@pytest.mark.parametrize('count', [1, 7])
def test_all_points_at_random_or_none(importance, count):
  logits = lambda at: at[..., 0] - 0.5
  draw = functools.partial(points.uncertain_points, jax.random.key(0), logits, count, 3)
  found = np.asarray(draw(oversample=9.0, importance=importance))
  assert found.shape == (3, count, 2) and (found >= 0).all() and (found < 1).all()
  if importance and count == 7:
    assert np.abs(found[..., 0] - 0.5).max() < 0.2, 'the nearest ninth'


def test_the_index_of_a_pixel_is_exact():
  """Of maps with more pixels than a float32 counts."""
  size = (4097, 4099)
  last = jnp.array([[(size[1] - 1.5) / size[1], 1 - 0.5 / size[0]]], jnp.float32)
  found = [int(index[0]) for index, _ in points.corners(last, size)]
  assert found[:2] == [4096 * 4099 + 4097, 4096 * 4099 + 4098]


# By image, the rows that are valid; of 20 rows there are three blocks.
VALID = [(), (17,), (0, 3, 19)]


def test_blocks_without_a_valid_row_are_left_out():
  """Of a batch, as many as the image with the most needs; the others have zeros."""
  rng, valid = np.random.default_rng(0), np.zeros((3, 20), bool)
  for row, columns in zip(valid, VALID, strict=True):
    row[list(columns)] = True
  x = rng.normal(size=(3, 20, 2)).astype(np.float32)
  blocks = points.find_blocks(jnp.asarray(valid))
  assert blocks.count == 2
  assert blocks.order.tolist() == [[0, 1, 2], [2, 0, 1], [0, 2, 1]]
  twice = lambda order, x: points.over_blocks(
    lambda block, x: 2 * x + 100 * block, points.Blocks(order, blocks.count), x
  )
  found = np.asarray(jax.vmap(twice)(blocks.order, x))
  block = np.arange(20) // 8
  expected = 2 * x + 100 * block[:, None]
  for image, left_out in enumerate((2, 1, 1)):
    expected[image, block == left_out] = 0
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('rows', [1, 8])
def test_a_single_block(rows):
  blocks = points.find_blocks(jnp.ones((2, rows), bool))
  assert blocks.count == 1 and blocks.order.tolist() == [[0], [0]]
  one = points.Blocks(blocks.order[0], blocks.count)
  x = np.arange(rows, dtype=np.float32)
  np.testing.assert_array_equal(points.over_blocks(lambda _, x: x + 1, one, x), x + 1)


def test_the_gradient_by_blocks_is_the_gradient():
  """Of the valid rows, which alone have one from above; a block is left out."""
  rng, valid = np.random.default_rng(0), np.zeros((2, 19), bool)
  valid[0, [0, 2, 18]], valid[1, 9] = True, True
  maps = rng.normal(size=(2, 19, 5, 6)).astype(np.float32)
  where = rng.uniform(-0.1, 1.1, (2, 19, 7, 2)).astype(np.float32)
  order, count = points.find_blocks(jnp.asarray(valid))

  def total(maps, sample):
    values = jax.vmap(sample)(maps, where, order)
    return (jnp.sin(values) * valid[..., None]).sum()

  by_blocks = lambda maps, at, order: points.sample_valid(maps, at, points.Blocks(order, count))
  whole = lambda maps, at, order: points.sample_maps(maps, at)
  assert count == 2
  everything = jax.grad(lambda maps: jax.vmap(by_blocks)(maps, where, order).sum())(maps)
  assert everything[0, :8].any() and not everything[0, 8:16].any(), 'its block is left out'
  (a, da), (b, db) = (jax.value_and_grad(total)(maps, f) for f in (by_blocks, whole))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-6)
