"""Test-time views: mapping of images and boxes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
  """Also if the scaled size is fractional."""
  image = np.zeros((1, 64, 96, 3), np.float32)
  left, right = (13, 51) if flip else (12, 52)  # whole pixels of each view
  image[0, 8:40, left:right] = 1
  size = np.array([[50, 71]], np.int32)
  seer = Seer()
  run = jit(
    lambda *inputs: detection.detect_in_views(seer, seer, *inputs, [(scale, flip)]), once=True
  )
  found = jax.device_get(run(image, size))
  np.testing.assert_array_equal(found.valid, [[True, False, False]])
  np.testing.assert_allclose(found.boxes[0, 0], [left, 8, right, 40], atol=1e-4)
  # Masks were predicted at the location of the object in the view.
  seen = np.array([71 - right, 8, 71 - left, 40] if flip else [left, 8, right, 40])
  noted = found.masks[0, 1, 0]
  noted = noted[::-1][:4] if flip else noted[:4]
  np.testing.assert_allclose(noted, scale * seen, atol=1e-4)
  mask = np.broadcast_to((np.arange(28) < 14) != flip, (28, 28))
  np.testing.assert_array_equal(found.masks[0, 0], mask)
