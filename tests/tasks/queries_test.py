"""The three tasks around a network that predicts masks."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from networks import abstract, filled

from segjax.losses import queries as losses
from segjax.models.eomt import EoMT, InferenceConfig, MatchingConfig, Prediction
from segjax.nn import vit
from segjax.ops.masks import pack_masks
from segjax.tasks import instance, panoptic, queries, semantic
from segjax.training import sharding
from segjax.training.compile import jit
from segjax.training.state import init_state
from segjax.training.step import make_eval_step, make_train_step, mean
from segjax.types import IGNORE_LABEL, Instances, SegjaxError, Segments

SIZE, CLASSES, THINGS = 32, 5, (1, 3, 4)
NAMES = ('sky', 'ball', 'hill', 'box', 'tree')
TASKS = {'semantic': semantic, 'instance': instance, 'panoptic': panoptic}
LOSSES = {name: getattr(losses, name) for name in ('query_class', 'query_mask', 'query_dice')}
MATCHING = MatchingConfig(points=256)


@pytest.fixture(scope='module', autouse=True)
def atom():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(vit.SIZES, 'atom', vit.VitSize(12, 2, 3))
    yield


def make_model(**keys):
  given = {
    'size': 'atom',
    'patch': 8,
    'queries': 8,
    'query_blocks': 1,
    'grid': (4, 4),
    'registers': 0,
    'matching': MATCHING,
  }
  return EoMT(CLASSES, **{**given, **keys})


with pytest.MonkeyPatch.context() as _patch:
  _patch.setitem(vit.SIZES, 'atom', vit.VitSize(12, 2, 3))
  MASKED = make_model(annealing=((5, 9),))


def make_task(kind, model=None, **keys):
  module = TASKS[kind]
  return module.make_task(
    model or make_model(),
    module.EvalConfig(**keys),
    class_names=NAMES,
    losses=LOSSES,
    things=THINGS,
    draw=lambda *_, **__: {},
  )


def make_batch(kind, count=2, objects=3, seed=0):
  """Stuff in the two halves of an image, rectangles of the things on it."""
  rng = np.random.default_rng(seed)
  label = np.where(np.arange(SIZE) < SIZE // 2, 0, 2) * np.ones((count, SIZE, 1), np.int32)
  masks = np.zeros((count, objects + 1, SIZE, SIZE), bool)
  classes = rng.integers(0, 3, (count, objects + 1)).astype(np.int32)
  for i, k in np.ndindex(count, objects):
    y, x = rng.integers(0, SIZE - 12, 2)
    masks[i, :k, y : y + 12, x : x + 8] = False
    masks[i, k, y : y + 12, x : x + 8] = True
    label[i, y : y + 12, x : x + 8] = THINGS[classes[i, k]]
  valid = np.tile(np.arange(objects + 1) < objects, (count, 1)) & masks.any((2, 3))
  packed = np.asarray(pack_masks(masks))
  boxes = np.zeros((count, objects + 1, 4), np.float32)
  ids = np.zeros((count, SIZE, SIZE), np.int32)
  blank = np.zeros((count, 1), bool)
  batch = {
    'image': rng.normal(size=(count, SIZE, SIZE, 3)).astype(np.float32),
    'label': label.astype(np.int32),
    'instances': Instances(boxes, classes, packed, np.zeros_like(valid), valid),
    'size': np.full((count, 2), SIZE, np.int32),
    'native': np.full((count, 2), SIZE, np.int32),
    'segments': Segments(ids, np.zeros((count, 1), np.int32), blank, blank),
    'seed': rng.integers(2**32, size=count, dtype=np.uint32),
    'valid': np.ones(count, bool),
  }
  return {key: value for key, value in batch.items() if key in make_task(kind).batch_spec}


@functools.cache
def random_variables():
  return filled(abstract(make_model(), (1, SIZE, SIZE, 3))[0])


def targets_of(kind, batch, most=8):
  stuff = [i for i in range(CLASSES) if i not in THINGS]
  given = {
    'semantic': (None, range(CLASSES)),
    'instance': (range(3), ()),
    'panoptic': (THINGS, stuff),
  }
  things, by_label = given[kind]
  return queries.make_targets(batch, things=things, by_label=by_label, most=most)


def whole_masks(targets):
  """f32[B, N, H, W]: the masks of targets at the centers of all pixels."""
  y, x = (np.mgrid[:SIZE, :SIZE].reshape(2, -1) + 0.5) / SIZE
  points = np.stack([x, y], -1).astype(np.float32)
  values = jax.vmap(queries.Targets.values_at, in_axes=(0, None))(targets, points)
  return np.asarray(values).reshape(*values.shape[:2], SIZE, SIZE)


@pytest.mark.parametrize('kind', TASKS)
def test_the_ground_truth_of_a_task(kind):
  """A mask for each class, for each object, or for each object and each class of stuff."""
  batch = make_batch(kind)
  targets = targets_of(kind, batch)
  masks = whole_masks(targets)
  for i, label in enumerate(batch.get('label', [None, None])):
    if kind == 'semantic':
      assert targets.classes[i].tolist() == list(range(CLASSES))
      expected = label == np.arange(CLASSES)[:, None, None]
      np.testing.assert_array_equal(targets.valid[i], expected.any((1, 2)))
      np.testing.assert_allclose(masks[i], expected, atol=1e-5)
      continue
    valid = batch['instances'].valid[i]
    np.testing.assert_array_equal(targets.valid[i, -4:], valid)
    numbers = range(3) if kind == 'instance' else THINGS
    classes = np.array(numbers)[batch['instances'].classes[i]]
    np.testing.assert_array_equal(targets.classes[i, -4:], classes)
    bits = np.unpackbits(batch['instances'].masks[i], axis=-1)
    np.testing.assert_allclose(masks[i, -4:], bits, atol=1e-5)
    if kind == 'panoptic':
      assert targets.classes[i, :-4].tolist() == [0, 2]
      np.testing.assert_allclose(masks[i, :-4], [label == 0, label == 2], atol=1e-5)


def test_void_crowds_and_padding_are_no_targets():
  batch = make_batch('panoptic')
  label = np.where(batch['label'] == 2, IGNORE_LABEL, batch['label'])
  crowd = np.arange(4) == 1
  found = targets_of(
    'panoptic',
    {
      **batch,
      'label': label,
      'instances': batch['instances']._replace(crowd=np.tile(crowd, (2, 1))),
      'valid': np.array([True, False]),
    },
  )
  before = batch['instances'].valid[0] & ~crowd
  np.testing.assert_array_equal(found.valid, [[True, False, *before], [False] * 6])


def test_of_more_classes_than_queries_the_largest_are_kept():
  batch = make_batch('semantic')
  found = targets_of('semantic', batch, most=2)
  for i, label in enumerate(batch['label']):
    pixels = np.bincount(label.ravel(), minlength=CLASSES)
    assert sorted(pixels[found.classes[i]]) == sorted(pixels)[-2:]
  np.testing.assert_allclose(
    whole_masks(found)[0, 0], batch['label'][0] == found.classes[0, 0], atol=1e-5
  )


@pytest.mark.parametrize('kind', ['instance', 'panoptic'])
@pytest.mark.parametrize('most', [1, 2, 3])
def test_of_more_masks_than_queries_the_largest_are_kept(kind, most):
  """Objects and classes of stuff alike; each has a query."""
  batch = make_batch(kind)
  every, found = targets_of(kind, batch), targets_of(kind, batch, most=most)
  areas = np.where(every.valid, whole_masks(every).round().sum((2, 3)), 0)
  kept = np.where(found.valid, whole_masks(found).round().sum((2, 3)), 0)
  for before, after in zip(areas, kept, strict=True):
    assert sorted(after[after > 0]) == sorted(before[before > 0])[-most:]
  keys = jax.random.split(jax.random.key(0), 2)
  given = perfect(every, np.arange(8))
  prediction = Prediction(given.classes[:, :most], given.masks[:, :most])
  run = functools.partial(queries.match, config=MATCHING, example=np.ones(2, bool))
  target = np.asarray(jit(run, once=True)([prediction], found, keys).target)[0]
  for i in range(2):
    classes = np.asarray(found.classes[i])[np.asarray(found.valid[i])]
    assert sorted(target[i][target[i] != CLASSES]) == sorted(classes)


@pytest.mark.parametrize('kind', TASKS)
def test_images_without_an_object_or_with_masks_without_a_pixel(kind):
  """They are no targets, and losses and gradients are finite; without any, of classes alone."""
  batch, task = make_batch(kind), make_task(kind)
  nothing = (
    {**batch, 'label': np.full_like(batch['label'], IGNORE_LABEL)} if 'label' in batch else batch
  )
  if kind != 'semantic':
    objects = batch['instances']
    nothing['instances'] = objects._replace(
      masks=np.zeros_like(objects.masks), valid=np.ones_like(objects.valid)
    )
  halved = jax.tree.map(lambda full, none: np.concatenate([full[:1], none[1:]]), batch, nothing)
  assert not np.asarray(targets_of(kind, nothing).valid).any()

  @functools.partial(jit, once=True)
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss_of(params, batch):
    outputs, _ = task.forward({'params': params}, batch, train=True, step=np.int32(0))
    parts = task.losses(outputs, batch)
    return sum(mean(part) for part in parts.values()), parts

  params = random_variables()['params']
  for given, count in ((nothing, 0), (halved, int(targets_of(kind, halved).valid.sum()))):
    (loss, parts), gradient = loss_of(params, given)
    assert np.isfinite(loss) and loss > 0 and parts['query_mask'].count == count
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    of_head = np.abs(gradient['head']['upscale_0']['up']['kernel']).max()
    assert (of_head > 0) == (count > 0)


def test_the_cost_of_a_match_by_its_definition():
  """Mask2Former, §3.2: -p(class), binary cross-entropy and dice over the points, by loops."""
  rng = np.random.default_rng(0)
  logits, masks = rng.normal(size=(4, 6)), 2 * rng.normal(size=(4, 9))
  classes, truth = np.array([5, 0, 2]), (rng.random((3, 9)) < 0.4).astype(float)
  truth[2] = 0  # without a pixel
  terms = {'class_weight': [], 'mask_weight': [], 'dice_weight': []}
  for n, q in itertools.product(range(3), range(4)):
    p, t = 1 / (1 + np.exp(-masks[q])), truth[n]
    terms['class_weight'].append(-np.exp(logits[q, classes[n]]) / np.exp(logits[q]).sum())
    terms['mask_weight'].append(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)))
    terms['dice_weight'].append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
  weights = {'class_weight': 2.0, 'mask_weight': 5.0, 'dice_weight': 3.0}
  arrays = [np.asarray(x, np.float32) for x in (logits, masks)]
  found = lambda **keys: queries.matching_cost(
    *arrays, classes, truth.astype(np.float32), MatchingConfig(**keys)
  )
  expected = sum(weight * np.reshape(terms[key], (3, 4)) for key, weight in weights.items())
  np.testing.assert_allclose(found(**weights), expected, rtol=1e-5)
  for key in weights:  # each alone
    alone = dict.fromkeys(weights, 0.0) | {key: 1.0}
    np.testing.assert_allclose(found(**alone), np.reshape(terms[key], (3, 4)), rtol=1e-5)


def perfect(targets, order, queries_=8):
  """Predictions that say what is true, by the queries `order`."""
  masks = np.full((2, queries_, SIZE, SIZE), -30, np.float32)
  classes = np.zeros((2, queries_, CLASSES + 1), np.float32)
  classes[..., CLASSES] = 30
  truth = whole_masks(targets)
  for i, k in np.argwhere(np.asarray(targets.valid)):
    masks[i, order[k]] = 60 * truth[i, k] - 30
    classes[i, order[k]] = 30 * (np.arange(CLASSES + 1) == targets.classes[i, k])
  return Prediction(classes, masks)


@pytest.mark.parametrize('kind', TASKS)
def test_each_object_is_matched_with_the_query_that_has_it(kind):
  targets = targets_of(kind, make_batch(kind))
  order = np.random.default_rng(0).permutation(8)
  keys = jax.random.split(jax.random.key(0), 2)
  run = functools.partial(queries.match, config=MATCHING, example=np.ones(2, bool))
  found = jit(run, once=True)([perfect(targets, order)] * 2, targets, keys)
  for i, k in np.argwhere(np.asarray(targets.valid)):
    assert (found.target[:, i, order[k]] == targets.classes[i, k]).all()
  assert (np.asarray(found.target) != CLASSES).sum() == 2 * np.asarray(targets.valid).sum()
  values = {name: loss({'matched': found}) for name, loss in LOSSES.items()}
  assert values['query_class'].sum < 1e-4
  # At points where masks are least certain: between pixels, bits and logits are not the same.
  assert values['query_dice'].sum / values['query_dice'].count < 0.4


def test_the_gradient_of_what_is_matched_is_a_finite_difference():
  """With points at random, which do not move with the masks, and a matching that stays."""
  targets = targets_of('panoptic', make_batch('panoptic'))
  rng = np.random.default_rng(0)
  noisy = lambda x: x.clip(-2, 2) + rng.normal(0, 0.1, x.shape).astype(np.float32)
  given = jax.tree.map(noisy, perfect(targets, np.arange(8)))
  keys = jax.random.split(jax.random.key(0), 2)
  config = dataclasses.replace(MATCHING, points=64, importance=0.0)

  @functools.partial(jit, once=True)
  @jax.value_and_grad
  def loss_of(prediction):
    matched = queries.match([prediction] * 2, targets, keys, config, np.ones(2, bool))
    return sum(mean(loss({'matched': matched})) for loss in LOSSES.values())

  move = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), given)
  up, down = (
    loss_of(jax.tree.map(lambda x, d, step=step: x + step * d, given, move))[0]
    for step in (1e-2, -1e-2)
  )
  along = jax.tree.map(lambda g, d: (g * d).sum(), loss_of(given)[1], move)
  assert abs(sum(along)) > 0.01
  np.testing.assert_allclose((up - down) / 2e-2, sum(along), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('kind', TASKS)
def test_the_result_of_perfect_predictions(kind):
  """Equal to the ground truth, which it came from."""
  batch, model = make_batch(kind), make_model()
  targets = targets_of(kind, batch)
  prediction = perfect(targets, np.arange(8))
  if kind == 'instance':
    found = jit(functools.partial(queries.predict_objects, model), once=True)(
      {'prediction': prediction}, batch
    )
    for i in range(2):
      n = int(targets.valid[i].sum())
      assert found['scores'][i, n - 1] > 0.99 > 0.01 > found['scores'][i, n]
      own = np.flatnonzero(targets.valid[i])
      masks, true = found['masks'][i, :n] > 0, whole_masks(targets)[i, own] > 0.5
      iou = [[(a & b).sum() / (a | b).sum() for b in true] for a in masks]
      row, of = np.nonzero(np.array(iou) > 0.95)
      assert row.tolist() == list(range(n)) and sorted(of) == list(range(n))
      np.testing.assert_array_equal(found['classes'][i, :n], targets.classes[i, own[of]])
      spans = [[np.flatnonzero(mask.any(axis)) for axis in (0, 1)] for mask in masks]
      boxes = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in spans]
      np.testing.assert_allclose(found['boxes'][i, :n], boxes, atol=1e-4)
  elif kind == 'panoptic':
    run = jit(functools.partial(queries.predict_segments, model, THINGS), once=True)
    segments = run({'prediction': prediction}, batch)['segments']
    classes = np.pad(segments.classes, ((0, 0), (1, 0)), constant_values=-1)
    found = np.take_along_axis(classes, segments.ids.reshape(2, -1), 1).reshape(
      batch['label'].shape
    )
    assert (found == batch['label']).mean() > 0.98
  else:

    class Fixed:
      patch = 8

      def apply(self, variables, image):
        return (prediction,)

    logits = queries.PerPixelModel(Fixed()).apply({}, batch['image'])
    np.testing.assert_array_equal(np.argmax(logits, -1), batch['label'])


def test_tuning_measures_each_setting_as_evaluation_does():
  """Of uncertain queries, a lower threshold finds more; the best setting, set, has its PQ."""
  batch = make_batch('panoptic')
  classes, masks = perfect(targets_of('panoptic', batch), np.arange(8))
  outputs = {'prediction': Prediction(classes / 12, masks)}
  # One segment a class.
  there = np.stack([(batch['label'] == k).any((1, 2)) for k in range(CLASSES)], 1)
  numbers = np.tile(np.arange(CLASSES, dtype=np.int32), (2, 1))
  batch['segments'] = Segments(batch['label'] + 1, numbers, np.zeros_like(there), there)

  def measured(model):
    tuning = make_task('panoptic', model).tuning
    counted = jit(tuning.count, once=True)(outputs, batch, np.array(tuning.settings, np.float32))
    each = [jax.tree.map(lambda x, i=i: x[i], counted) for i in range(len(tuning.settings))]
    return tuning, [tuning.metric.compute(one)[tuning.measure] for one in each]

  tuning, found = measured(make_model())
  assert (tuning.group, tuning.names) == (
    'model.inference',
    ('score_threshold', 'overlap_threshold'),
  )
  assert tuning.settings[0] == (0.8, 0.8) and len(set(tuning.settings)) == len(tuning.settings)
  best = tuning.settings[int(np.argmax(found))]
  assert max(found) > found[0]
  own = InferenceConfig(**dict(zip(tuning.names, best, strict=True)))
  task = make_task('panoptic', make_model(inference=own))
  (metric,) = task.metrics
  counted = jit(lambda: metric.from_batch(task.predict(outputs, batch), batch), once=True)()
  assert metric.compute(counted)['pq'] == max(found)


@pytest.mark.parametrize('kind', TASKS)
def test_a_task_trains_and_predicts(kind):
  """Losses in training alone; padding examples change no loss."""
  task, variables = make_task(kind), random_variables()
  batch = make_batch(kind, count=4)

  @functools.partial(jit, once=True)
  def losses_of(batch):
    outputs, _ = task.forward(variables, batch, train=True, step=np.int32(0))
    return task.losses(outputs, batch)

  @functools.partial(jit, once=True)
  def predict(batch):
    outputs, _ = task.forward(variables, batch, train=False)
    assert task.losses(outputs, batch) == {}
    return task.predict(outputs, batch)

  first = jax.tree.map(lambda x: x[:2], batch)
  padded = {**batch, 'valid': np.arange(4) < 2}
  for name, (total, count) in losses_of(first).items():
    with_padding = losses_of(padded)[name]
    np.testing.assert_allclose(with_padding, (total, count), rtol=1e-4, err_msg=name)
    assert count > 0
  found = predict(batch)
  shapes = {
    'semantic': ('probability', (4, SIZE, SIZE, CLASSES)),
    'instance': ('masks', (4, 40, 8, 8)),
    'panoptic': ('scores', (4, 8)),
  }
  key, shape = shapes[kind]
  assert found[key].shape == shape


@pytest.mark.parametrize('kind', ['instance', 'panoptic'])
def test_places_for_more_objects_change_no_loss(kind):
  """Nor the points, which are random."""
  batch = make_batch(kind, objects=7)

  @functools.partial(jit, once=True)
  def losses_of(batch):
    outputs, _ = make_task(kind).forward(random_variables(), batch, train=True, step=np.int32(0))
    return make_task(kind).losses(outputs, batch)

  more = lambda x: np.pad(x, ((0, 0), (0, 8), *[(0, 0)] * (x.ndim - 2)))
  few, many = map(
    losses_of, (batch, {**batch, 'instances': jax.tree.map(more, batch['instances'])})
  )
  for name, found in few.items():
    np.testing.assert_allclose(many[name], found, rtol=1e-5, err_msg=name)


def test_symmetries_of_semantic_segmentation():
  """As for any network: the mean over the image and its flip."""
  batch = make_batch('semantic')
  flipped = {**batch, 'image': batch['image'][:, :, ::-1]}
  task = make_task('semantic', test_time_augmentation='flip')
  run = jit(
    lambda batch: task.predict(task.forward(random_variables(), batch, train=False)[0], batch)
  )
  here, there = run(batch)['probability'], run(flipped)['probability']
  np.testing.assert_allclose(here, there[:, :, ::-1], rtol=1e-4, atol=1e-5)


def test_windows_of_semantic_segmentation():
  """The mean of the scores of two windows, within the padding of the image, as published."""
  wide = np.random.default_rng(0).normal(size=(1, SIZE, 64, 3)).astype(np.float32)
  batch = {'image': wide, 'size': np.array([[SIZE, 52]], np.int32)}
  task = make_task('semantic', window=(SIZE, SIZE))
  run = jit(lambda batch: task.forward(random_variables(), batch, train=False)[0]['logits'])
  found = np.exp(run(batch))[:, :, :52]
  of_window = jit(lambda x: queries.PerPixelModel(make_model()).apply(random_variables(), x))
  left, right = (np.exp(of_window(wide[:, :, x : x + SIZE])) for x in (0, 20))
  both = (left[:, :, 20:] + right[:, :, :12]) / 2
  expected = np.concatenate([left[:, :, :20], both, right[:, :, 12:]], 2)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ('kind', 'keys', 'message'),
  [
    ('instance', {'scales': (1.0, 2.0)}, 'config.eval.scales is for networks that detect boxes'),
    ('panoptic', {'score_threshold': 0.3}, 'config.eval.score_threshold is for'),
    ('panoptic', {'metrics': ('pq', 'coco')}, 'EoMT has none'),
  ],
)
def test_keys_of_other_networks(kind, keys, message):
  with pytest.raises(SegjaxError, match=message):
    make_task(kind, **keys)


# --- several devices ------------------------------------------------------------------------------


@functools.cache
def state_of(kind):
  """Of a network whose attention is masked for half of the queries, on the host."""
  task = dataclasses.replace(make_task(kind, MASKED), init=lambda key, batch: masked_variables())
  return jax.device_get(init_state(task, optax.sgd(0.1), jax.random.key(0), {}, ema=False))


def masked_variables():
  shapes = abstract(MASKED, (1, SIZE, SIZE, 3))[0]
  return {'params': filled(shapes['params']), 'masked': {'share': np.full(1, 0.5, np.float32)}}


@functools.cache
def trained(kind, mesh, accumulate):
  """The state after a step on one batch, and its scalars."""
  *mesh, fsdp = mesh
  mesh = sharding.make_mesh(sharding.MeshConfig(*mesh, fsdp))
  task, state = make_task(kind, MASKED), state_of(kind)
  places = sharding.state_shardings(state, mesh, fsdp=fsdp)
  if fsdp:
    task = sharding.gathered(task, mesh)
    shared = [x for x in jax.tree.leaves(places.params) if not x.is_fully_replicated]
    assert len(shared) > 20
  rate = optax.constant_schedule(0.1)
  step = make_train_step(task, optax.sgd(0.1), rate, seed=0, accumulate=accumulate)
  # Of one image there is a single object, so that devices and parts have different counts.
  batch = make_batch(kind, count=8)
  if 'instances' in batch:
    batch['instances'].valid[0, 1:] = False
  batch = sharding.put_batch(batch, mesh, task.batch_spec)
  step = jit(step, once=True, out_shardings=(places, sharding.replicated(mesh)))
  return jax.device_get(step(sharding.put(state, places), batch))


# The first one has all at once.
LAYOUTS = [((4, 1, True), 2), ((4, 1, False), 1), ((1, 1, False), 4)]


@pytest.mark.parametrize(
  ('kind', 'mesh', 'accumulate'),
  [
    ('panoptic', *LAYOUTS[0]),
    *(pytest.param('panoptic', *layout, marks=pytest.mark.slow) for layout in LAYOUTS[1:]),
    *(pytest.param(kind, *LAYOUTS[0], marks=pytest.mark.slow) for kind in ('semantic', 'instance')),
  ],
)
def test_devices_and_parts_change_nothing(monkeypatch, kind, mesh, accumulate):
  """Four devices that share the parameters, and a batch in two parts; each of it alone.

  Points and masked queries are drawn by image, and losses are sums and counts: the losses, and the
  parameters after a step, which are the gradient, are those of one device to rounding.
  """
  monkeypatch.setattr(sharding, '_SMALLEST', 1)
  one, scalars = trained(kind, (1, 1, False), 1)
  state, other = trained(kind, mesh, accumulate)
  assert scalars['finite'] and scalars['grad_norm'] > 0.1
  assert len(scalars) == 8, 'three losses beside the others'
  for name, value in scalars.items():
    assert other[name] == pytest.approx(value, rel=1e-4), name
  start = state_of(kind).params
  for a, b, before in zip(*map(jax.tree.leaves, (state.params, one.params, start)), strict=True):
    np.testing.assert_allclose(a - before, b - before, rtol=1e-3, atol=1e-5)
  np.testing.assert_array_equal(state.model_state['masked']['share'], [1])


@pytest.mark.parametrize('kind', TASKS)
def test_devices_do_not_change_the_result(kind):
  """Of an evaluation, with attention that is masked."""
  task, batch = make_task(kind, MASKED), make_batch(kind, count=4)
  found = []
  for devices in (1, 4):
    mesh = sharding.make_mesh(sharding.MeshConfig(devices))
    variables = sharding.put_replicated(masked_variables(), mesh)
    step = sharding.on_mesh(jit(make_eval_step(task), once=True), mesh)
    found.append(step(variables, sharding.put_batch(batch, mesh, task.batch_spec))[1:3])
  (states, one), (other_states, four) = jax.device_get(found)
  for a, b in zip(*map(jax.tree.leaves, (states, other_states)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), one, four)
