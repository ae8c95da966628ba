"""The semantic task: sizes, tiles, symmetries, masking."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract, filled
from tiny_task import make_batch, make_task

from segjax.losses import dense
from segjax.models.fcn import FCN, FCNResNet
from segjax.models.segnet import SegNet, SegNetBasic
from segjax.models.unet import UNet
from segjax.nn import resnet
from segjax.tasks import semantic
from segjax.training.compile import jit
from segjax.types import SegjaxError

LOSSES = {'softmax_cross_entropy': dense.softmax_cross_entropy}


# At this depth valid tile sizes (8k + 4) are not multiples of the stride.
UNPADDED = UNet(classes=2, width=2, depth=3)


def task_of(model, **keys):
  """`keys` are those of `config.eval`."""
  config = semantic.EvalConfig(**keys)
  return semantic.make_task(model, config, class_names=('a', 'b'), losses=LOSSES)


def outputs_of(model, variables, image, **keys):
  """The outputs of the task outside training."""
  task = task_of(model, **keys)
  run = lambda variables, image: task.forward(variables, {'image': image}, train=False)[0]
  return jax.device_get(jit(run, once=True)(variables, image))


def images(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  return filled(abstract(UNPADDED, (1, 92, 92, 1))[0])


def test_unpadded_evaluation_is_the_network_on_the_reflected_image(variables):
  size, margin = UNPADDED.output_size(20), UNPADDED.margin
  image = images(2, size, size, 1)
  padded = np.pad(image, [(0, 0), (margin,) * 2, (margin,) * 2, (0, 0)], mode='reflect')
  expected = jit(UNPADDED.apply, once=True)(variables, padded)
  found = outputs_of(UNPADDED, variables, image)['logits']
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(37, 50), (5, 7), (1, 1)])
def test_tiles_equal_the_whole_image(variables, size):
  """Overlap-tile inference is seamless: no pixel depends on where the tiles are."""
  image = images(2, *size, 1)
  whole = outputs_of(UNPADDED, variables, image)['logits']
  assert whole.shape == (2, *size, 2)
  for tile in ((12, 20), (8, 8)):
    tiled = outputs_of(UNPADDED, variables, image, tile=tile)['logits']
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('symmetries', ['none', 'flip'])
def test_windows_average_probabilities(symmetries):
  """Of two windows of 16 on 24 columns; of symmetries within a window."""
  model = UNet(classes=2, width=2, depth=1, padding='same')
  image = images(1, 16, 24, 1)
  variables = filled(abstract(model, image.shape)[0])
  options = {'test_time_augmentation': symmetries}
  found = outputs_of(model, variables, image, window=(16, 16), **options)['logits']
  left, right = (
    jax.nn.softmax(outputs_of(model, variables, part, **options)['logits'])
    for part in (image[:, :, :16], image[:, :, 8:])
  )
  expected = np.concatenate(
    [left[:, :, :8], (left[:, :, 8:] + right[:, :, :8]) / 2, right[:, :, 8:]], 2
  )
  np.testing.assert_allclose(jax.nn.softmax(found), expected, rtol=1e-4, atol=1e-5)


def test_windows_are_not_for_networks_with_a_margin():
  with pytest.raises(SegjaxError, match='eval.window: the output of UNet is smaller'):
    task_of(UNPADDED, window=(16, 16))


def test_same_padded_tiles_equal_the_whole_image_away_from_the_border():
  model = UNet(classes=2, width=2, depth=1, padding='same')
  image = images(1, 40, 40, 1)
  variables = filled(abstract(model, image)[0])
  inner = np.s_[:, 10:-10, 10:-10]
  whole = outputs_of(model, variables, image)['logits']
  for overlap in (16, 15):  # rounded up to the stride, 2
    tiled = outputs_of(model, variables, image, tile=(8, 8), overlap=overlap)['logits']
    np.testing.assert_allclose(tiled[inner], whole[inner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['flip', 'dihedral'])
def test_symmetric_average_does_not_care_for_the_symmetry(kind):
  kernel = images(3, 3, 1, 2)
  apply = lambda x: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  average = lambda x: semantic.symmetric_average(apply, x, kind)

  @functools.partial(jit, once=True)
  def run(x):
    """(of x, of x flipped, of x turned), the last two back, and of x and x flipped by one pass."""
    flipped, turned = average(x[:, :, ::-1])[:, :, ::-1], average(jnp.rot90(x, 1, (1, 2)))
    back = jnp.rot90(turned, -1, (1, 2))
    return average(x), flipped, back, apply(x), apply(x[:, :, ::-1])[:, :, ::-1]

  plain, flipped, turned, once, once_flipped = map(np.asarray, run(images(1, 6, 9, 1)))
  np.testing.assert_allclose(flipped, plain, rtol=1e-5, atol=1e-6)
  if kind == 'dihedral':
    np.testing.assert_allclose(turned, plain, rtol=1e-5, atol=1e-6)
  assert not np.allclose(once, once_flipped)
  np.testing.assert_allclose(np.exp(plain).sum(-1), 1, rtol=1e-5)


def test_label_of_another_size_names_the_key():
  task = task_of(UNPADDED)
  with pytest.raises(SegjaxError, match='4x4 for labels of 6x6.*config.data.size.crop_size'):
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


def test_pictures_are_of_the_chosen_examples():
  task, batch = make_task(), {**make_batch(3), 'size': np.array([(8, 8)] * 3)}
  predictions = {'label': batch['label']}
  images = task.visualize(batch, predictions, [2, 0])
  np.testing.assert_array_equal([p['image'] for p in images], batch['image'][[2, 0]])


def test_unknown_metric_names_those_there_are():
  with pytest.raises(SegjaxError, match='config.eval.metrics: unknown metric iou: '):
    make_task(metrics=('iou',))


def test_monte_carlo_is_mean_and_variance_of_the_samples():
  kernel = images(1, 4, 5, 3)
  infer = lambda key: kernel + jax.random.normal(key, kernel.shape)

  @functools.partial(jit, once=True)
  def run():
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(6)]
    samples = jnp.stack([jax.nn.softmax(infer(key), -1) for key in keys])
    outputs = semantic.monte_carlo(infer, 6)
    return samples, jax.nn.softmax(outputs['logits'], -1), outputs['uncertainty']

  samples, mean, uncertainty = map(np.asarray, run())
  np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-5)
  np.testing.assert_allclose(uncertainty, samples.var(0).mean(-1), rtol=1e-4, atol=1e-7)


def bayesian(dropout):
  return SegNetBasic(classes=2, width=3, dropout=dropout, input_norm='none')


def test_samples_differ_where_the_network_drops():
  image = images(1, 18, 20, 3)
  model = bayesian(0.5)
  variables = filled(abstract(model, image)[0])
  outputs = outputs_of(model, variables, image, samples=3)
  assert outputs['uncertainty'].shape == (1, 18, 20)
  assert (outputs['uncertainty'] > 0).mean() > 0.9
  predictions = task_of(model).predict(outputs, {'image': image})
  assert set(predictions) == {'label', 'probability', 'uncertainty'}

  plain = outputs_of(model, variables, image)
  assert 'uncertainty' not in plain
  outputs = outputs_of(bayesian(1e-12), variables, image, samples=3)
  np.testing.assert_allclose(outputs['uncertainty'], 0, atol=1e-10)
  a, b = (np.exp(o['logits'] - o['logits'].max(-1, keepdims=True)) for o in (outputs, plain))
  a, b = (x / x.sum(-1, keepdims=True) for x in (a, b))
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_samples_of_a_network_without_dropout_at_test_time_name_the_key():
  with pytest.raises(SegjaxError, match='config.eval.samples=4: UNet has no dropout at test time'):
    make_task(samples=4)
  with pytest.raises(SegjaxError, match=r'samples of a SegNet with config\.model\.dropout=0 are'):
    semantic.make_task(
      SegNet(classes=3, dropout=0.0), semantic.EvalConfig(samples=4), class_names='abc', losses={}
    )


def test_panels_are_of_the_image_without_its_padding():
  seen = []
  task = dataclasses.replace(
    make_task(),
    visualize=functools.partial(semantic._visualize, lambda *arrays: seen.append(arrays) or {}),
  )
  batch = {**make_batch(2), 'size': np.array([(8, 8), (5, 6)], np.int32)}
  uncertainty = np.zeros((2, 8, 8), np.float32)
  task.visualize(batch, {'label': batch['label'], 'uncertainty': uncertainty}, [1])
  assert [array.shape for array in seen[0]] == [(5, 6, 3), (5, 6), (5, 6), (5, 6)]
  np.testing.assert_array_equal(seen[0][0], batch['image'][1, :5, :6])


def test_batch_statistics_are_those_of_the_batch():
  task, batch = make_task('batch'), make_batch(4)
  seen = {'image': batch['image']}
  variables = filled(jax.eval_shape(task.init, jax.random.key(0), seen))

  @functools.partial(jit, once=True)
  def run(variables, batch):
    kernel = variables['params']['down0']['conv1']['kernel']
    x = jax.lax.conv_general_dilated(
      batch['image'], kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    statistics = task.batch_statistics(variables, batch, jax.random.key(1))['batch_stats']
    return x, statistics['down0']['norm1']

  x, found = jax.device_get(run(variables, seen))
  np.testing.assert_allclose(found['mean'], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found['var'], x.var((0, 1, 2)), rtol=1e-4)


def test_batch_statistics_of_a_model_that_keeps_none_name_the_key():
  with pytest.raises(SegjaxError, match='recompute_batch_norm: FCN has no bn_momentum: add it'):
    task_of(FCN(classes=2)).batch_statistics({'params': {}}, {}, jax.random.key(0))


def test_an_auxiliary_classifier_has_losses_in_training(monkeypatch):
  monkeypatch.setitem(resnet.VARIANTS, 'shallow', resnet.Variant('basic', (1, 1, 1, 1)))
  model = FCNResNet(classes=2, variant='shallow', width=4, auxiliary=True, auxiliary_scale=0.4)
  task, batch = task_of(model), {'image': images(2, 32, 32, 3), 'label': np.zeros((2, 32, 32), int)}
  variables = filled(jax.eval_shape(task.init, jax.random.key(0), batch))

  @functools.partial(jit, once=True)
  def run(params, batch):
    def total(params):
      key = jax.random.key(0)
      outputs, _ = task.forward({**variables, 'params': params}, batch, train=True, key=key)
      losses = task.losses(outputs, batch)
      return sum(loss.sum / loss.count for loss in losses.values()), (outputs, losses)

    return jax.grad(total, has_aux=True)(params)

  gradient, (outputs, losses) = run(variables['params'], batch)
  assert losses.keys() == {'softmax_cross_entropy', 'auxiliary_softmax_cross_entropy'}
  alone = LOSSES['softmax_cross_entropy'](outputs['auxiliary'], batch['label'], None)
  found = losses['auxiliary_softmax_cross_entropy']
  np.testing.assert_allclose([found.sum, found.count], [0.4 * alone.sum, alone.count], rtol=1e-5)
  assert np.abs(gradient['aux_classifier_score']['kernel']).max() > 0
  # Outside training it is not computed.
  outside = task.forward(variables, batch, train=False)[0]
  assert outside.keys() == {'logits'}
