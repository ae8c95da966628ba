"""The instance task: invariances of the losses, and test-time views."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from instance_batch import SHALLOW, SIZE, TINY, make_model
from networks import abstract, filled

from segjax.data.formats import coco
from segjax.losses import detection
from segjax.nn.resnet import VARIANTS
from segjax.ops.masks import pack_masks
from segjax.tasks import detection as shared
from segjax.tasks import instance
from segjax.training import compile, evaluate, sharding, step
from segjax.training.state import init_state
from segjax.types import Detections, Instances, SegjaxError

NAMES = ('a', 'b', 'c')
# Fewer samples than candidates, so that sampling matters.
MODEL = make_model(
  TINY
  | {
    'backbone.norm': 'group',
    'rpn.samples': 32,
    'rpn.anchor_sizes': (8, 16, 32, 64, 128),
    'box_head.samples': 8,
    'box_head.score_threshold': 0.0,
  }
)
LOSSES = {
  name: getattr(detection, name)
  for name in ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask')
}


def make_task(model=MODEL, draw=None, **keys):
  """`keys` are those of `config.eval`."""
  config = instance.EvalConfig(**keys)
  return instance.make_task(model, config, class_names=NAMES, losses=LOSSES, draw=draw)


def make_batch(images=4, padding=0, seed=0):
  """Image i has i rectangles."""
  rng = np.random.default_rng(seed)
  total = images + padding
  masks = np.zeros((images, total, SIZE, SIZE), bool)
  boxes = np.zeros((images, total, 4), np.float32)
  valid = np.arange(total) < np.arange(images)[:, None]
  for i, k in zip(*np.nonzero(valid), strict=True):
    (x0, y0), (w, h) = rng.integers(0, 40, 2), rng.integers(8, 24, 2)
    masks[i, k, y0 : y0 + h, x0 : x0 + w] = True
    boxes[i, k] = x0, y0, x0 + w, y0 + h
  classes = np.where(valid, np.arange(total) % 3, 0).astype(np.int32)
  packed = np.asarray(pack_masks(jnp.asarray(masks)))
  return {
    'image': rng.normal(size=(images, SIZE, SIZE, 3)).astype(np.float32),
    'size': np.array([[SIZE, SIZE], [50, 60]] * images, np.int32)[:images],
    'instances': Instances(boxes, classes, packed, np.zeros_like(valid), valid),
    'seed': rng.integers(2**32, size=images, dtype=np.uint32),
    'valid': np.ones(images, bool),
  }


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, 'shallow', SHALLOW)
    yield


@pytest.fixture(scope='module')
def variables():
  return filled(abstract(MODEL, *(make_batch()[key] for key in ('image', 'size')))[0])


# Programs run once or twice, so compile time dominates.
jit = functools.partial(compile.jit, once=True)


@functools.partial(jit, static_argnames='accumulate')
def losses(variables, batch, accumulate=1):
  """The sums and counts, as in the train step."""
  parts, _ = step.sum_losses(
    make_task(), variables['params'], {}, batch, jax.random.key(0), accumulate
  )
  return parts


@jit
def gradient(params, batch):
  """Gradient of the sum of the mean losses, and the losses."""

  def total(params):
    parts, _ = step.sum_losses(make_task(), params, {}, batch, jax.random.key(0), 1)
    means = {name: step.mean(part) for name, part in parts.items()}
    return sum(means.values()), means

  return jax.grad(total, has_aux=True)(params)


def assert_same_losses(a, b, rtol=1e-4):
  assert a.keys() == b.keys() == LOSSES.keys()
  for name in a:
    np.testing.assert_allclose(a[name].sum, b[name].sum, rtol=rtol, err_msg=name)
    assert a[name].count == b[name].count, name


def test_losses_are_finite_and_count_something(variables):
  for name, (total, count) in losses(variables, make_batch()).items():
    assert np.isfinite(total), name
    assert total > 0, name
    assert count > 0, name


def test_padding_the_ground_truth_changes_no_loss(variables):
  few, many = (losses(variables, make_batch(padding=p)) for p in (0, 4))
  assert_same_losses(few, many)


def test_accumulation_changes_no_loss(variables):
  """The samples of an image do not depend on its microbatch."""
  whole, parts = (losses(variables, make_batch(), accumulate=n) for n in (1, 2))
  assert_same_losses(whole, parts)


def test_the_order_of_the_images_changes_no_loss(variables):
  batch = make_batch()
  order = np.array([2, 0, 3, 1])
  assert_same_losses(
    losses(variables, batch), losses(variables, jax.tree.map(lambda x: x[order], batch))
  )


def test_other_seeds_sample_other_boxes(variables):
  batch = make_batch()
  again = {**batch, 'seed': batch['seed'] + np.uint32(1)}
  a, b = losses(variables, batch), losses(variables, again)
  assert a['rpn_class'].sum != b['rpn_class'].sum


def test_four_devices_agree_with_one(variables):
  if jax.device_count() < 4:
    pytest.fail('conftest.py makes four CPU devices')
  batch = make_batch()
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4))
  put = sharding.put_batch(batch, mesh, make_task().batch_spec)
  split = jax.device_get(losses(sharding.put_replicated(variables, mesh), put))
  assert_same_losses(losses(variables, batch), split)


def test_images_without_objects_train(variables):
  """Losses and gradients are finite; the background is still trained."""
  batch = make_batch(2)
  batch['instances'] = jax.tree.map(np.zeros_like, batch['instances'])
  grads, means = gradient(variables['params'], batch)
  assert means['mask'] == means['box_regression'] == means['rpn_box'] == 0
  assert means['box_class'] > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_compiles_once_for_a_shape():
  """A step is traced once per batch shape, and keeps the dtypes of the state."""
  traced = []

  def forward(variables, batch, **kwargs):
    traced.append(batch['image'].shape)
    return task.forward(variables, batch, **kwargs)

  task, optimizer = make_task(), optax.sgd(0.01)
  counted = dataclasses.replace(task, forward=forward)
  train_step = jax.jit(
    step.make_train_step(counted, optimizer, optax.constant_schedule(0.01), seed=0)
  )
  init = functools.partial(init_state, task, optimizer, ema=False)
  state = jax.eval_shape(init, jax.random.key(0), make_batch())
  other = make_batch(2)
  for batch in (make_batch(), other, make_batch(seed=1), other):
    state, _ = train_step.eval_shape(state, batch)
  assert traced == [(4, SIZE, SIZE, 3), (2, SIZE, SIZE, 3)]


# --- evaluation -----------------------------------------------------------------------------------


def make_annotations(batch):
  """As from the pipeline, for images resized to half."""
  annotations = []
  for i in range(len(batch['image'])):
    height, width = (2 * int(s) for s in batch['size'][i])
    masks = np.unpackbits(batch['instances'].masks[i], axis=-1)
    objects = []
    for k in np.flatnonzero(batch['instances'].valid[i]):
      large = np.kron(masks[k], np.ones((2, 2), np.uint8))[:height, :width]
      found = coco.mask_object(large > 0, id=k, label=0, category_id=0)
      objects.append(
        {
          'id': int(k),
          'category': int(batch['instances'].classes[i, k]),
          'bbox': [float(x) for x in found['bbox']],
          'area': found['area'],
          'iscrowd': False,
          'rle': {'size': [height, width], 'counts': found['segmentation']},
        }
      )
    annotations.append(
      {'image_id': i, 'height': height, 'width': width, 'scale': (0.5, 0.5), 'objects': objects}
    )
  return annotations


class Oracle:
  """Detects exactly the ground truth."""

  masks = True

  def apply(self, variables, image, size):
    del variables, size
    return {'detections': self.found}


def test_a_network_that_finds_everything_has_an_average_precision_of_1():
  batch = make_batch()
  truth = batch['instances']
  model = Oracle()
  model.found = Detections(
    truth.boxes, truth.classes, np.where(truth.valid, 0.9, 0), np.ones((4, 4, 28, 28)), truth.valid
  )
  task = make_task(model)
  local = {k: v for k, v in batch.items() if k not in ('instances', 'seed')}
  local['annotations'] = make_annotations(batch)
  local['valid'] = np.array([True, True, True, False])
  local['annotations'][3] = None
  found = evaluate.evaluate(
    step.make_eval_step(task),
    {},
    [(local, ['', '', '', ''])],
    task,
    lambda b: {k: v for k, v in b.items() if k in task.batch_spec},
  )
  assert found.metrics['box_ap'] == pytest.approx(1)
  assert found.metrics['mask_ap50'] == pytest.approx(1)
  assert 'loss' not in found.metrics
  assert (found.measure, [score for _, score in found.scores]) == ('f1', [1.0, 1.0])


def test_pictures_get_what_was_found_and_what_is_there():
  batch = make_batch()
  seen = []

  def draw(image, size, annotation, detections, *, paste, threshold):
    seen.append((image.shape, size, annotation, detections['classes'], threshold))
    return {'image': np.zeros((1, 1, 3), np.uint8)}

  task = make_task(draw=draw, draw_threshold=0.3)
  batch['valid'][0] = False
  batch['annotations'] = make_annotations(batch)
  images = task.visualize(batch, {'classes': np.arange(8).reshape(4, 2)}, [1, 2])
  assert len(images) == len(seen) == 2
  assert seen[0][:3] == ((SIZE, SIZE, 3), (50, 60), batch['annotations'][1])
  np.testing.assert_array_equal(seen[0][3], [2, 3])
  assert seen[0][4] == 0.3


def test_masks_are_measured_only_where_there_are_some():
  with pytest.raises(SegjaxError, match='use coco_box'):
    make_task(MODEL.clone(masks=False))
  make_task(MODEL.clone(masks=False), metrics=('coco_box',))
  with pytest.raises(
    SegjaxError, match='config.eval.metrics: unknown metric cocoa: did you mean coco'
  ):
    make_task(metrics=('cocoa',))


# --- several views --------------------------------------------------------------------------------


@functools.cache
def detector(**keys):
  """(variables, batch) -> detections, compiled once for each `config.eval`."""
  task = make_task(**keys)
  return jit(lambda v, b: task.forward(v, b, train=False)[0]['detections'])


def detect(variables, batch, **keys):
  seen = {key: batch[key] for key in ('image', 'size')}
  return jax.device_get(detector(**keys)(variables, seen))


def test_views_of_a_flipped_image_are_flipped(variables):
  """Detections of a flipped image are the flipped detections."""
  batch = make_batch(1)
  mirrored = {**batch, 'image': batch['image'][:, :, ::-1]}
  a = detect(variables, batch, test_time_augmentation='flip')
  b = detect(variables, mirrored, test_time_augmentation='flip')
  assert a.valid.all()
  np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)
  x0, y0, x1, y1 = np.moveaxis(np.asarray(b.boxes), -1, 0)
  np.testing.assert_allclose(a.boxes, np.stack([SIZE - x1, y0, SIZE - x0, y1], -1), atol=1e-2)
  np.testing.assert_allclose(a.masks, b.masks[..., ::-1], atol=1e-3)


def test_one_view_through_the_merging_is_that_view(variables):
  batch = make_batch(2)
  views = [(1.0, False)]

  @jit
  def both(variables, image, size):
    apply = functools.partial(MODEL.apply, variables)
    merged = shared.detect_in_views(apply, MODEL, image, size, views)
    return apply(image, size)['detections'], merged

  plain, merged = both(variables, batch['image'], batch['size'])
  for name, a, b in zip(plain._fields, plain, merged, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)


def test_several_scales_have_one_set_of_detections(variables):
  found = detect(variables, make_batch(2), scales=(0.5, 1.0))
  assert found.boxes.shape == (2, 6, 4)
  assert found.masks.shape == (2, 6, 28, 28)
  assert ((found.masks >= 0) & (found.masks <= 1)).all()


def test_no_scale_sees_no_image():
  with pytest.raises(SegjaxError, match=r'config.eval.scales=\(\)'):
    instance.EvalConfig(scales=())
