"""A merged network: each part has its own preprocessing."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data import geometry
from segjax.models.merged import Merged
from segjax.types import SegjaxError


class Echo(nn.Module):
  """Returns its input as scores."""

  margin: int = 0

  @nn.compact
  def __call__(self, image, *, train=False):
    assert not train
    return image + self.param('bias', nn.initializers.zeros, ())


class Finder(nn.Module):
  masks: bool = False

  @nn.compact
  def __call__(self, image, size):
    return {'detections': (image * self.param('scale', nn.initializers.ones, ()), size)}


IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
SIZE = np.array([[32, 32], [24, 20]], np.int32)
INSIDE = np.ones(IMAGE.shape, bool)
INSIDE[1, 24:] = INSIDE[1, :, 20:] = False
IMAGE[~INSIDE] = 0.1  # the mean color, rounded
PARAMS = {'params': {'semantic': {'bias': 0.0}, 'instance': {'scale': 1.0}}}


def apply(**kwargs):
  return Merged(semantic=Echo(), instance=Finder(), **kwargs).apply(PARAMS, IMAGE, SIZE)


def test_both_see_the_image():
  outputs = apply()
  np.testing.assert_array_equal(outputs['semantic'], np.where(INSIDE, IMAGE, 0))
  np.testing.assert_array_equal(outputs['detections'][0], IMAGE)
  np.testing.assert_array_equal(outputs['detections'][1], SIZE)
  model = Merged(semantic=Echo(), instance=Finder())
  assert not model.masks
  variables = model.init(jnp.zeros(2, jnp.uint32), IMAGE, SIZE)
  assert set(variables['params']) == {'semantic', 'instance'}


def test_the_semantic_network_has_a_normalization_of_its_own():
  """Pixels normalized by (mean, std) = (100, 50) are turned into those by (80, 40), padding too."""
  outputs = apply(semantic_scale=(1.25,), semantic_shift=(0.5, 0.5, 0.5))
  pixels = np.where(INSIDE, IMAGE * 50 + 100, 80)
  np.testing.assert_allclose(outputs['semantic'], (pixels - 80) / 40, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(outputs['detections'][0], IMAGE)


@pytest.mark.parametrize('resize', ['stretch', 'fit'])
def test_the_semantic_network_sees_the_image_at_the_size_it_was_trained_at(resize):
  class Seen(Echo):
    def __call__(self, image, *, train=False):
      seen.append(image)
      return image

  seen = []
  model = Merged(Seen(), Finder(), semantic_size=(16, 12), semantic_resize=resize)
  outputs = model.apply(PARAMS, IMAGE, SIZE)
  [seen] = seen
  assert seen.shape == (2, 16, 12, 3)
  for i, size in enumerate(SIZE.tolist()):
    target = geometry.fit_size(tuple(size), (16, 12)) if resize == 'fit' else (16, 12)
    expected = geometry.resize_image(IMAGE[i, : size[0], : size[1]], target)
    np.testing.assert_allclose(seen[i, : target[0], : target[1]], expected, atol=1e-5)
    back = geometry.resize_image(expected, tuple(size))
    np.testing.assert_allclose(
      outputs['semantic'][i, : size[0], : size[1]], back, rtol=1e-4, atol=1e-5
    )
    assert not seen[i, target[0] :].any() and not seen[i, :, target[1] :].any()


def test_what_cannot_be():
  with pytest.raises(SegjaxError, match='config.train.steps: a merged network cannot be trained'):
    Merged(Echo(), Finder()).apply(PARAMS, IMAGE, SIZE, train=True)
  with pytest.raises(
    SegjaxError, match='config.model.semantic has an output smaller than its input'
  ):
    Merged(Echo(margin=4), Finder()).apply(PARAMS, IMAGE, SIZE)
