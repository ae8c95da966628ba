"""Test-time views: mapping of images and boxes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data import geometry
from segjax.tasks import detection
from segjax.training.compile import jit
from segjax.types import Detections


def test_views_are_all_scales_with_all_flips():
  assert detection.make_views((1.0,), 'none') == ((1.0, False),)
  views = ((0.5, False), (0.5, True), (1.0, False), (1.0, True))
  assert detection.make_views((0.5, 1.0), 'flip') == views


def test_flip_inside_leaves_the_padding_where_it_is():
  image = jnp.arange(2 * 2 * 5, dtype=jnp.float32).reshape(2, 2, 5, 1) + 1
  flipped = np.asarray(detection.flip_inside(image, jnp.array([[2, 5], [2, 3]])))
  np.testing.assert_array_equal(flipped[0], image[0, :, ::-1])
  np.testing.assert_array_equal(flipped[1, :, :3], image[1, :, 2::-1])
  assert not flipped[1, :, 3:].any()


class Seer:
  """Detects one rectangle by its pixel values; its mask is the content of the box."""

  masks = True
  box_head = types.SimpleNamespace(max_detections=3, nms_iou=0.5)

  def __call__(self, image, size, given=None):
    if given is None:
      bright = image[..., 0] > 0.5
      columns, rows = bright.any(1), bright.any(2)
      edge = lambda line: (jnp.argmax(line, 1), line.shape[1] - jnp.argmax(line[:, ::-1], 1))
      (x0, x1), (y0, y1) = edge(columns), edge(rows)
      boxes = jnp.stack([x0, y0, x1, y1], -1)[:, None].astype(jnp.float32)
      one = jnp.ones((len(image), 1))
      return {'detections': Detections(boxes, one.astype(int), 0.9 * one, None, one > 0)}
    # Boxes in which masks are predicted, in pixels of the second row.
    left_half = jnp.arange(28) < 14
    masks = jnp.zeros((1, 3, 28, 28)) + left_half
    return {'detections': given._replace(masks=masks.at[0, 1, 0, :4].set(given.boxes[0, 0]))}


@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('flip', [False, True])
def test_a_view_finds_what_is_in_the_image(scale, flip):
  image = np.zeros((1, 64, 96, 3), np.float32)
  left, right = 12, 52  # whole pixels of each view
  image[0, 8:40, left:right] = 1
  size = np.array([[50, 72]], np.int32)
  seer = Seer()
  run = jit(
    lambda *inputs: detection.detect_in_views(seer, seer, *inputs, [(scale, flip)]), once=True
  )
  found = jax.device_get(run(image, size))
  np.testing.assert_array_equal(found.valid, [[True, False, False]])
  np.testing.assert_allclose(found.boxes[0, 0], [left, 8, right, 40], atol=1e-4)
  # Masks were predicted at the location of the object in the view.
  seen = np.array([72 - right, 8, 72 - left, 40] if flip else [left, 8, right, 40])
  noted = found.masks[0, 1, 0]
  noted = noted[::-1][:4] if flip else noted[:4]
  np.testing.assert_allclose(noted, scale * seen, atol=1e-4)
  mask = np.broadcast_to((np.arange(28) < 14) != flip, (28, 28))
  np.testing.assert_array_equal(found.masks[0, 0], mask)


@pytest.mark.parametrize('scale', [0.3, 0.75, 1.3])
def test_a_view_is_the_image_resized_without_its_padding(scale):
  """To whole pixels, as the data is."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 40, 48, 3)).astype(np.float32)
  sizes = np.array([[31, 43], [40, 17]])
  view = jax.jit(lambda image, size: detection._view(image, size, scale, False))
  found, seen = jax.device_get(view(pixels, sizes))
  for image, (h, w), (height, width), shown in zip(pixels, sizes, seen, found, strict=True):
    assert [height, width] == [round(h * scale), round(w * scale)]
    expected = geometry.resize_image(image[:h, :w], (height, width))
    np.testing.assert_allclose(shown[:height, :width], expected, atol=0.02)
    assert not shown[height:].any()
    assert not shown[:, width:].any()


@pytest.mark.parametrize(('side', 'scale'), [(1088, 0.53), (1344, 0.81), (288, 0.67), (32, 0.01)])
def test_a_view_fits_into_its_canvas(side, scale):
  image, size = jnp.zeros((1, side, 32, 1)), jnp.array([[side, 32]])
  found, seen = jax.jit(lambda *inputs: detection._view(*inputs, scale, False))(image, size)
  assert (np.asarray(seen[0]) <= found.shape[1:3]).all()
  assert (np.asarray(seen[0]) >= 1).all()
  assert abs(int(seen[0, 0]) - side * scale) < 1


@pytest.mark.parametrize('flip', [False, True])
def test_boxes_follow_the_image_to_whole_pixels_and_back(flip):
  size, seen = jnp.array([[31, 43]]), jnp.array([[23, 32]])
  whole, box = [0, 0, 43, 31], [4, 2, 10, 20]
  mapped = detection._to_view(jnp.array([[whole, box]], jnp.float32), size, seen, flip)
  np.testing.assert_allclose(mapped[0, 0], [0, 0, 32, 23], rtol=1e-6)
  found = Detections(mapped, *[jnp.zeros((1, 2))] * 2, None, jnp.ones((1, 2), bool))
  back = detection._in_image(found, size, seen, flip).boxes
  np.testing.assert_allclose(back[0], [whole, box], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('flip', [False, True])
def test_masks_of_views_are_averaged(flip):
  """Each view of `Seer` has the left half of its own box, which is the right one if flipped."""
  image = np.zeros((1, 64, 96, 3), np.float32)
  image[0, 8:40, 12:52] = 1
  size = np.array([[50, 72]], np.int32)
  seer, views = Seer(), ((1.0, False), (2.0, flip))
  run = jit(lambda *inputs: detection.detect_in_views(seer, seer, *inputs, views), once=True)
  left = np.broadcast_to(np.arange(28) < 14, (28, 28))
  expected = (left + left[:, ::-1]) / 2 if flip else left
  np.testing.assert_array_equal(run(image, size).masks[0, 0], expected)
