"""The panoptic task: channel labels, merging at the original size, tuning."""

import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.losses import panoptic as losses
from segjax.tasks import panoptic
from segjax.training import compile, evaluate, sharding, step
from segjax.types import IGNORE_LABEL, Detections, SegjaxError, Segments

NAMES, THINGS = ('sky', 'cat', 'sea', 'dog'), (1, 3)
jit = functools.partial(compile.jit, once=True)
VARIABLES = {'params': {'score': np.float32(3)}}


class Known(nn.Module):
  """Detects one cat, at half the image size, and sky above the sea; the sky's score is learned."""

  semantic_things: bool = False
  masks: typing.ClassVar = True

  @nn.compact
  def __call__(self, image, size, instances=None, keys=None, *, train=False):
    score = self.param('score', nn.initializers.constant(3.0), ())
    upper = (jnp.arange(image.shape[1]) < 4)[None, :, None]
    upper = jnp.broadcast_to(upper, image.shape[:3]).astype(jnp.float32)
    # "other" and things have the lowest score.
    channels = {'sky': score * upper, 'sea': 2 * (1 - upper)}
    names = NAMES if self.semantic_things else ('other', 'sky', 'sea')
    logits = jnp.stack([channels.get(name, jnp.full_like(upper, -1)) for name in names], -1)
    if train:
      return {'semantic': logits}
    batch = image.shape[0]
    found = Detections(
      boxes=jnp.tile(jnp.float32([[[1, 1, 3, 3], [5, 5, 7, 7]]]), (batch, 1, 1)),
      classes=jnp.zeros((batch, 2), jnp.int32),
      scores=jnp.tile(jnp.float32([[0.9, 0.45]]), (batch, 1)),
      masks=jnp.ones((batch, 2, 4, 4)),
      valid=jnp.ones((batch, 2), bool),
    )
    return {'detections': found, 'semantic': logits}


def make_task(model=None, draw=None, **keys):
  """`keys` are those of `config.eval`."""
  config = panoptic.EvalConfig(**{'stuff_area': 8.0, **keys})
  options = {'losses': {'semantic': losses.semantic}, 'draw': draw}
  return panoptic.make_task(model or Known(), config, class_names=NAMES, things=THINGS, **options)


def truth(cats=((2, 2, 6, 6),)):
  """Images of 16 x 12, padded to 16 x 16: sky, sea, and cats as (y0, x0, y1, x1)."""
  ids = np.zeros((1, 16, 16), np.int32)
  ids[:, :8, :12], ids[:, 8:, :12] = 1, 2
  for k, (y0, x0, y1, x1) in enumerate(cats, 3):
    ids[:, y0:y1, x0:x1] = k
  classes = np.array([[0, 2, *[1] * len(cats), *[0] * (3 - len(cats))]], np.int32)
  valid = np.arange(5)[None] < 2 + len(cats)
  return Segments(ids, classes, np.zeros_like(valid), valid)


def make_batch(**kwargs):
  return {
    'image': np.zeros((1, 8, 8, 3), np.float32),
    'size': np.array([[8, 6]], np.int32),
    'native': np.array([[16, 12]], np.int32),
    'segments': truth(**kwargs),
    'valid': np.ones(1, bool),
  }


def found(task, batch):
  @jit
  def run(batch):
    variables = task.init(jax.random.key(0), batch)
    outputs, _ = task.forward(variables, batch, train=False)
    return task.predict(outputs, batch)

  return jax.device_get(run(batch))


@pytest.mark.parametrize('semantic_things', [False, True])
def test_merges_at_the_images_own_size(semantic_things):
  """The second cat's score is below the threshold."""
  batch = make_batch()
  task = make_task(Known(semantic_things))
  segments = found(task, batch)['segments']
  assert segments.ids.shape == (1, 16, 16)
  assert (segments.ids[0, :, 12:] == 0).all(), 'padding is void'
  assert sorted(segments.classes[segments.valid]) == [0, 1, 2]
  [metric] = task.metrics
  scores = metric.compute(jax.device_get(metric.from_batch({'segments': segments}, batch)))
  assert scores['pq'] == 1
  assert scores['per_class']['cat']['tp'] == 1


def test_labels_of_the_channels():
  """Things are one class, the first, unless `semantic_things`; void stays void."""
  batch = make_batch()
  label = np.tile(np.array([0, 1, 2, 3, IGNORE_LABEL, 0, 1, 2], np.int32), (1, 8, 1))
  batch |= {'label': label, 'seed': np.zeros(1, np.uint32), 'instances': None}
  for model, expected in (
    (Known(), [1, 0, 2, 0, IGNORE_LABEL, 1, 0, 2]),
    (Known(semantic_things=True), label[0, 0].tolist()),
  ):
    task = make_task(model)
    outputs, _ = task.forward(VARIABLES, batch, train=True)
    _, channels = outputs['semantic']
    assert channels[0, 0].tolist() == expected
    total, count = task.losses(outputs, batch)['semantic']
    assert count == 56 and total > 0
    assert task.losses({'detections': None}, batch) == {}


def test_labels_of_more_classes_than_a_byte_holds():
  """Stuff starts at 1, things are 0; values without a class are void."""
  channels, classes = panoptic._channels(1000, (0, 300), semantic_things=False)
  label = np.array([0, 1, 299, 300, 301, 999, 1000, IGNORE_LABEL], np.int32)
  found = panoptic._channel_label(label, channels)
  assert found.tolist() == [0, 1, 299, 0, 300, 998, IGNORE_LABEL, IGNORE_LABEL]
  assert classes[:2] + classes[-1:] == [None, 1, 999] and len(classes) == 999


def test_accumulation_and_order_change_no_loss():
  """Images have different numbers of labeled pixels."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, 4, (4, 8, 8)).astype(np.int32)
  for i in range(4):
    label[i, : 2 * i] = IGNORE_LABEL
  batch = {
    'image': np.zeros((4, 8, 8, 3), np.float32),
    'size': np.full((4, 2), 8, np.int32),
    'label': label,
    'seed': np.zeros(4, np.uint32),
    'instances': None,
  }
  task = make_task()

  @functools.partial(jit, static_argnames='accumulate')
  def loss(batch, accumulate=1):
    parts, _ = step.sum_losses(task, VARIABLES['params'], {}, batch, jax.random.key(0), accumulate)
    return parts['semantic']

  whole = loss(batch)
  for other in (loss(batch, 2), loss(jax.tree.map(lambda x: x[::-1], batch))):
    assert other.count == whole.count == (label != IGNORE_LABEL).sum()
    np.testing.assert_allclose(other.sum, whole.sum, rtol=1e-5)


def test_tuning_measures_each_setting_as_evaluation_does():
  """With two cats in the ground truth, a lower score threshold is better."""
  batch = make_batch(cats=((2, 2, 6, 6), (10, 10, 14, 12)))
  task = make_task()
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
  put = functools.partial(sharding.put_batch, mesh=mesh, spec=task.batch_spec)
  tune_step = jit(step.make_tune_step(task))
  # Two batches, so that counts are accumulated.
  batches = [(batch, ['a']), (batch, ['b'])]
  measured = evaluate.tune(tune_step, VARIABLES, batches, task, put)
  tuning = task.tuning
  assert tuning.names == ('score_threshold', 'overlap_threshold', 'stuff_area')
  assert tuning.settings[0] == (0.5, 0.5, 8.0)
  assert len(set(tuning.settings)) == len(tuning.settings) == len(measured)
  by_score = {s[0]: m['pq'] for s, m in zip(tuning.settings, measured, strict=True) if s[2] == 8}
  assert by_score[0.4] == by_score[0.3] > by_score[0.5]
  chosen = tuning.settings[measured.index(max(measured, key=lambda m: m[tuning.measure]))]
  task = make_task(**dict(zip(tuning.names, chosen, strict=True)))
  evaluated = evaluate.evaluate(jit(step.make_eval_step(task)), VARIABLES, batches, task, put)
  assert evaluated.metrics['pq'] == max(m['pq'] for m in measured)


@pytest.mark.parametrize(
  ('own', 'areas'), [(8.0, [0, 0.5, 2, 8, 32]), (0.0, [0, 256, 1024, 4096, 16384])]
)
def test_tuning_searches_areas_of_stuff(own, areas):
  """A configured area of 0 has no multiples: those of the default are used."""
  settings = make_task(stuff_area=own).tuning.settings
  assert settings[0] == (0.5, 0.5, own)
  assert sorted({area for _, _, area in settings}) == areas


def test_the_rules_of_pq_reach_the_metric():
  """A prediction over two crowds of its class: 'last' considers one, 'all' both."""
  segments = truth(cats=((0, 0, 8, 5), (0, 7, 8, 12)))
  crowd = (segments.classes == 1) & segments.valid
  batch = {'segments': segments._replace(crowd=crowd), 'valid': np.ones(1, bool)}
  ids = np.zeros((1, 16, 16), np.int32)
  ids[:, :8, :12] = 1
  one = np.ones((1, 1), np.int32)
  prediction = {'segments': Segments(ids, one, one < 0, one > 0)}
  wrong = {}
  for rule in ('last', 'all'):
    [metric] = make_task(crowds=rule).metrics
    wrong[rule] = int(metric.from_batch(prediction, batch)['fp'][1])
  assert wrong == {'last': 1, 'all': 0}


def test_coco_reads_what_was_found_before_the_merging():
  batch = make_batch()
  task = make_task(metrics=('pq', 'coco'))
  predictions = found(task, batch)
  pq, coco = task.metrics
  assert pq.device and not coco.device
  annotation = {'image_id': 1, 'height': 16, 'width': 12, 'scale': (0.5, 0.5), 'objects': []}
  state = coco.from_batch(predictions, {**batch, 'annotations': [annotation]})
  assert len(state['score']) == 2
  np.testing.assert_allclose(state['box_area'][0], 4 * 4)
  values = coco.compute(state)
  assert set(values['per_thing']) == {'cat', 'dog'}
  assert 'per_class' not in values


def test_pictures_are_drawn_of_the_chosen_examples():
  batch = make_batch()
  task = make_task(draw=lambda *args: args)
  predictions = found(task, batch)
  [(image, size, native, true, predicted)] = task.visualize(batch, predictions, [0])
  assert image.shape == (8, 8, 3) and size == (8, 6) and native == (16, 12)
  assert true.ids.shape == predicted.ids.shape == (16, 16)
  assert task.visualize(batch, predictions, []) == []


def test_wrong_arguments():
  with pytest.raises(SegjaxError, match='config.eval.metrics: unknown metric pqq: did you mean pq'):
    make_task(metrics=('pqq',))

  class Boxes(Known):
    masks = False

  with pytest.raises(SegjaxError, match='config.model.masks'):
    make_task(Boxes())
