"""The semantic task: sizes, tiles, symmetries, masking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import make_batch, make_task

from segjax.losses import dense
from segjax.models.fcn import FCN
from segjax.models.segnet import SegNetBasic
from segjax.models.unet import UNet
from segjax.tasks import semantic
from segjax.types import SegjaxError

LOSSES = {'softmax_cross_entropy': dense.softmax_cross_entropy}


def unpadded(**kwargs):
  # Of this depth the sizes of a tile (8k + 4) are no multiples of the stride.
  model = UNet(classes=2, width=2, depth=3)
  return model, semantic.make_task(model, class_names=('a', 'b'), losses=LOSSES, **kwargs)


def forward(task, variables, image):
  return task.forward(variables, {'image': image}, train=False)[0]['logits']


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
    task.losses({'logits': jnp.zeros((1, 4, 4, 2))}, {'label': jnp.zeros((1, 6, 6), jnp.int32)})


def test_weight_of_the_batch_reaches_the_loss():
  task, batch = make_task(), make_batch(2)
  outputs = {'logits': jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))}
  plain = task.losses(outputs, batch)['softmax_cross_entropy']
  heavy = task.losses(outputs, {**batch, 'weight': np.full((2, 8, 8), 3.0, np.float32)})
  np.testing.assert_allclose(heavy['softmax_cross_entropy'].sum, 3 * plain.sum, rtol=1e-6)
  assert heavy['softmax_cross_entropy'].count == plain.count


def test_padded_examples_leave_no_trace():
  task, batch = make_task(), make_batch(3)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)
  batch['valid'][2] = False
  first = {k: v[:2] for k, v in batch.items()}
  for a, b in zip(
    jax.tree.leaves(task.losses({'logits': logits}, batch)),
    jax.tree.leaves(task.losses({'logits': logits[:2]}, first)),
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


def test_monte_carlo_is_mean_and_variance_of_the_samples():
  kernel = jax.random.normal(jax.random.key(5), (1, 4, 5, 3))
  infer = lambda key: kernel + jax.random.normal(key, kernel.shape)
  outputs = semantic.monte_carlo(infer, 6)
  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(6)]
  probabilities = np.stack([jax.nn.softmax(infer(key), -1) for key in keys])
  mean = jax.nn.softmax(outputs['logits'], -1)
  np.testing.assert_allclose(mean, probabilities.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    outputs['uncertainty'], probabilities.var(0).mean(-1), rtol=1e-4, atol=1e-7
  )


def bayesian(dropout, **kwargs):
  model = SegNetBasic(classes=2, width=3, dropout=dropout)
  return model, semantic.make_task(model, class_names=('a', 'b'), losses=LOSSES, **kwargs)


def test_samples_differ_where_the_network_drops():
  image = jax.random.normal(jax.random.key(1), (1, 18, 20, 3))
  model, plain = bayesian(0.5)
  variables = model.init(jax.random.key(0), image)
  outputs, _ = bayesian(0.5, samples=3)[1].forward(variables, {'image': image}, train=False)
  assert outputs['uncertainty'].shape == (1, 18, 20)
  assert (outputs['uncertainty'] > 0).mean() > 0.9
  predictions = plain.predict(outputs, {'image': image})
  assert set(predictions) == {'label', 'probability', 'uncertainty'}
  assert 'uncertainty' not in plain.forward(variables, {'image': image}, train=False)[0]

  outputs, _ = bayesian(0.0, samples=3)[1].forward(variables, {'image': image}, train=False)
  np.testing.assert_allclose(outputs['uncertainty'], 0, atol=1e-10)
  np.testing.assert_allclose(
    jax.nn.softmax(outputs['logits'], -1),
    jax.nn.softmax(forward(plain, variables, image), -1),
    rtol=1e-5,
  )


def test_samples_of_a_network_without_dropout_at_test_time_name_the_key():
  with pytest.raises(SegjaxError, match='config.eval.samples=4: UNet has no dropout at test time'):
    make_task(samples=4)


def test_batch_statistics_are_those_of_the_batch():
  task, batch = make_task('batch'), make_batch(4)
  variables = task.init(jax.random.key(0), batch)
  statistics = task.batch_statistics(variables, batch, jax.random.key(1))['batch_stats']
  kernel = variables['params']['down0']['conv1']['kernel']
  x = jax.lax.conv_general_dilated(
    batch['image'], kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  found = statistics['down0']['norm1']
  np.testing.assert_allclose(found['mean'], x.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found['var'], x.var((0, 1, 2)), rtol=1e-4)


def test_batch_statistics_of_a_model_that_keeps_none_name_the_key():
  task = semantic.make_task(FCN(classes=2), class_names=('a', 'b'), losses=LOSSES)
  with pytest.raises(SegjaxError, match='config.train.recompute_batch_norm: FCN has no bn_mom'):
    task.batch_statistics({}, {}, jax.random.key(0))
