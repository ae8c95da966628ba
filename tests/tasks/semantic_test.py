"""The semantic task: sizes, tiles, symmetries, masking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import make_batch, make_task

from segjax.losses import dense
from segjax.models.unet import UNet
from segjax.tasks import semantic
from segjax.types import SegjaxError

LOSSES = {'softmax_cross_entropy': dense.softmax_cross_entropy}


def unpadded(**kwargs):
  # Of this depth the sizes of a tile (8k + 4) are no multiples of the stride.
  model = UNet(classes=2, width=2, depth=3)
  return model, semantic.make_task(model, class_names=('a', 'b'), losses=LOSSES, **kwargs)


def forward(task, variables, image):
  return task.forward(variables, {'image': image}, train=False)[0]


@pytest.fixture(scope='module')
def variables():
  model, _ = unpadded()
  return model.init(jax.random.key(0), jnp.zeros((1, 92, 92, 1)))


def test_unpadded_evaluation_is_the_network_on_the_mirrored_image(variables):
  model, task = unpadded()
  size = model.output_size(20)
  image = jax.random.normal(jax.random.key(1), (2, size, size, 1))
  pad = [(0, 0), (model.margin,) * 2, (model.margin,) * 2, (0, 0)]
  expected = model.apply(variables, jnp.pad(image, pad, mode='reflect'))
  np.testing.assert_allclose(forward(task, variables, image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(37, 50), (5, 7), (1, 1)])
@pytest.mark.parametrize('tile', [(12, 20), (8, 8)])
def test_tiles_equal_the_whole_image(variables, size, tile):
  """Overlap-tile inference is seamless: no pixel depends on where the tiles fall."""
  image = jax.random.normal(jax.random.key(1), (2, *size, 1))
  whole = forward(unpadded()[1], variables, image)
  tiled = forward(unpadded(tile=tile)[1], variables, image)
  assert whole.shape == (2, *size, 2)
  np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)


def test_same_padded_tiles_equal_the_whole_image_away_from_the_border():
  model = UNet(classes=2, width=2, depth=1, padding='same')
  whole = semantic.make_task(model, class_names=('a', 'b'), losses=LOSSES)
  tiled = semantic.make_task(model, class_names=('a', 'b'), losses=LOSSES, tile=(8, 8), overlap=16)
  image = jax.random.normal(jax.random.key(1), (1, 40, 40, 1))
  variables = model.init(jax.random.key(0), image)
  inner = np.s_[:, 10:-10, 10:-10]
  np.testing.assert_allclose(
    forward(tiled, variables, image)[inner],
    forward(whole, variables, image)[inner],
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize('kind', ['flip', 'dihedral'])
def test_symmetric_average_does_not_care_for_the_symmetry(kind):
  key = jax.random.key(0)
  kernel = jax.random.normal(key, (3, 3, 1, 2))
  apply = lambda x: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  image = jax.random.normal(jax.random.key(1), (1, 6, 9, 1))
  average = lambda x: semantic.symmetric_average(apply, x, kind)
  np.testing.assert_allclose(
    average(image[:, :, ::-1]), average(image)[:, :, ::-1], rtol=1e-5, atol=1e-6
  )
  if kind == 'dihedral':
    np.testing.assert_allclose(
      average(jnp.rot90(image, 1, (1, 2))),
      jnp.rot90(average(image), 1, (1, 2)),
      rtol=1e-5,
      atol=1e-6,
    )
  assert not np.allclose(apply(image[:, :, ::-1]), apply(image)[:, :, ::-1])
  np.testing.assert_allclose(jnp.exp(average(image)).sum(-1), 1, rtol=1e-5)


def test_label_of_another_size_names_the_key(variables):
  _, task = unpadded()
  with pytest.raises(SegjaxError, match='4x4 for labels of 6x6.*config.data.crop_size'):
    task.losses(jnp.zeros((1, 4, 4, 2)), {'label': jnp.zeros((1, 6, 6), jnp.int32)})


def test_weight_of_the_batch_reaches_the_loss():
  task, batch = make_task(), make_batch(2)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  plain = task.losses(logits, batch)['softmax_cross_entropy']
  heavy = task.losses(logits, {**batch, 'weight': np.full((2, 8, 8), 3.0, np.float32)})
  np.testing.assert_allclose(heavy['softmax_cross_entropy'].sum, 3 * plain.sum, rtol=1e-6)
  assert heavy['softmax_cross_entropy'].count == plain.count


def test_padded_examples_leave_no_trace():
  task, batch = make_task(), make_batch(3)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)
  batch['valid'][2] = False
  first = {k: v[:2] for k, v in batch.items()}
  for a, b in zip(
    jax.tree.leaves(task.losses(logits, batch)),
    jax.tree.leaves(task.losses(logits[:2], first)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_pictures_are_of_valid_examples():
  task, batch = make_task(), make_batch(3)
  batch['valid'][0] = False
  predictions = {'label': batch['label']}
  pictures = task.pictures(batch, predictions, 5)
  np.testing.assert_array_equal([p['image'] for p in pictures], batch['image'][1:])
  assert len(task.pictures(batch, predictions, 1)) == 1


def test_unknown_metric_names_those_there_are():
  with pytest.raises(SegjaxError, match='config.eval.metrics: there is no iou: known are'):
    make_task(metrics=('iou',))
