"""What Mask R-CNN's Table 2 varies: shapes, parameters, and what is learnt."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, SIZE, TINY, make_batch

from segjax.losses import detection
from segjax.models.mask_rcnn import MaskRCNN
from segjax.nn.resnet import VARIANTS, ResNet, Variant
from segjax.train.compile import jit
from segjax.train.optim import parameter_paths
from segjax.types import Detections, SegjaxError

CLASSES = TINY['classes']
C4 = {'feature_maps': 'c4'}
# Fields, the side of the masks and their channels.
CASES = {
  'c4, paper': (C4, 14, 3),
  'c4, detectron2': (
    {**C4, 'box_bins': 14, 'res5_stride': 2, 'anchors': 'detectron2', 'sampling_ratio': 0},
    14,
    3,
  ),
  'c4, softmax': ({**C4, 'mask_activation': 'softmax', 'backbone': 'resnext'}, 14, 4),
  'c4, softmax, agnostic': ({**C4, 'mask_activation': 'softmax', 'mask_agnostic': True}, 14, 2),
  'c4, RoIPool': ({**C4, 'roi': 'roi_pool'}, 14, 3),
  'c4, RoIWarp': ({**C4, 'roi': 'roi_warp'}, 14, 3),
  'c4, RoIAlign max': ({**C4, 'roi_mode': 'max', 'aligned': True}, 14, 3),
  'c5': ({'feature_maps': 'c5', 'stride_in_1x1': True, 'backbone': 'resnext'}, 28, 3),
  'fpn, MLP': ({'mask_mlp': (16, 16)}, 28, 3),
  'fpn, adaptive': ({'sampling_ratio': 0, 'max_samples': 4, 'anchors': 'detectron2'}, 28, 3),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  monkeypatch.setitem(VARIANTS, 'shallow', SHALLOW)
  resnext = Variant('bottleneck', (1, 1, 1, 1), groups=2, group_width=32)
  monkeypatch.setitem(VARIANTS, 'resnext', resnext)


def abstract(model, **kwargs):
  """Shapes of the variables and of the outputs."""
  image, size, instances = make_batch()
  variables = jax.eval_shape(model.init, jax.random.key(0), image, size)
  arguments = (instances, KEYS) if kwargs.get('train') else ()
  apply = functools.partial(model.apply, **kwargs)
  return variables, jax.eval_shape(apply, variables, image, size, *arguments)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('case', CASES)
def test_shapes(case):
  fields, side, channels = CASES[case]
  model = MaskRCNN(**TINY | fields)
  assert model.mask_size == side
  _, outputs = abstract(model, train=True, mutable=['batch_stats'])
  outputs = outputs[0]
  assert outputs['rpn'].logits.shape == (2, 64)
  assert outputs['box'].logits.shape == (2, 16, 1 + CLASSES)
  assert outputs['box'].deltas.shape == (2, 16, CLASSES, 4)
  assert outputs['mask'].logits.shape == (2, 8, side, side, channels)
  assert outputs['mask'].target.shape == (2, 8, side, side)
  _, found = abstract(model)
  assert found['detections'].boxes.shape == (2, 6, 4)
  assert found['detections'].masks.shape == (2, 6, side, side)


@pytest.mark.parametrize('feature_maps', ['fpn', 'c4', 'c5'])
def test_without_masks_it_is_faster_rcnn(feature_maps):
  fields = TINY | {'feature_maps': feature_maps}
  with_masks = abstract(MaskRCNN(**fields))[0]['params']
  model = MaskRCNN(**fields, masks=False)
  variables, found = abstract(model)
  assert set(with_masks) - set(variables['params']) == {'mask'}
  assert found['detections'].masks is None
  _, (outputs, _) = abstract(model, train=True, mutable=['batch_stats'])
  assert set(outputs) == {'rpn', 'box'}


def random_variables(model):
  """Without the cost of compiling `init`."""
  rng = np.random.default_rng(1)

  def draw(path, x):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 1.5, x.shape).astype('f4')
    return rng.normal(0, np.sqrt(2 / max(1, np.prod(x.shape[:-1]))), x.shape).astype('f4')

  return jax.tree_util.tree_map_with_path(draw, dict(abstract(model)[0]))


@pytest.mark.parametrize(
  ('fields', 'activation'),
  [
    ({**C4, 'norm': 'frozen', 'frozen_stages': 1, 'mask_activation': 'softmax'}, 'softmax'),
    (
      {
        'feature_maps': 'c5',
        'norm': 'batch',
        'frozen_stages': 2,
        'roi': 'roi_pool',
        'mask_mlp': (16,),
        'mask_agnostic': True,
      },
      'sigmoid',
    ),
  ],
)
def test_learns_all_but_what_is_frozen(fields, activation):
  """By the real losses; the gradient of what `frozen_parameters` does not name reaches it."""
  image, size, instances = make_batch()
  # Every anchor and more regions than there are, so that all parts have something to learn.
  model = MaskRCNN(**TINY | {'rpn_samples': 1024, 'anchor_sizes': (8, 16, 32, 64, 128)} | fields)
  variables = random_variables(model)

  def loss(params):
    outputs, state = model.apply(
      {**variables, 'params': params},
      image,
      size,
      instances,
      KEYS,
      train=True,
      mutable=['batch_stats'],
    )
    parts = [
      detection.rpn_class(outputs),
      detection.rpn_box(outputs),
      detection.box_class(outputs),
      detection.box_regression(outputs),
      detection.mask(outputs, activation=activation),
    ]
    return sum(part.sum for part in parts), (parts, state)

  grads, (parts, state) = jit(jax.grad(loss, has_aux=True), once=True)(variables['params'])
  assert all(part.count > 0 for part in parts)
  for path, grad in zip(
    jax.tree.leaves(parameter_paths(grads)), jax.tree.leaves(grads), strict=True
  ):
    frozen = any(re.search(pattern, path) for pattern in model.frozen_parameters)
    assert jnp.isfinite(grad).all(), path
    assert jnp.any(grad != 0) != frozen, path
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)),
    dict(state.get('batch_stats', {})),
    variables.get('batch_stats', {}),
  )
  for path, changed in jax.tree_util.tree_leaves_with_path(moved):
    layer = jax.tree_util.keystr(path, simple=True, separator='/')
    assert changed == (fields['norm'] == 'batch' and not re.search('stem|res2', layer)), layer


def test_res5_of_regions_learns_no_statistics():
  model = MaskRCNN(**TINY | C4 | {'norm': 'batch', 'frozen_stages': 2})
  with pytest.raises(SegjaxError, match=r"config.model.norm='batch': res5"):
    abstract(model)
  abstract(model.clone(frozen_stages=5))


def test_softmax_masks_are_the_probability_of_the_class():
  model = MaskRCNN(classes=2, mask_activation='softmax')
  logits = jnp.log(jnp.array([0.5, 0.2, 0.3])) * jnp.ones((1, 2, 1, 1, 1))
  found = Detections(None, jnp.array([[0, 1]]), None, None, None)
  np.testing.assert_allclose(model._with_masks(found, logits).masks[0, :, 0, 0], [0.2, 0.3], 1e-6)


def test_one_mask_for_all_classes():
  model = MaskRCNN(classes=2, mask_agnostic=True)
  found = Detections(None, jnp.array([[0, 1]]), None, None, None)
  masks = model._with_masks(found, jnp.zeros((1, 2, 1, 1, 1))).masks
  np.testing.assert_allclose(masks, 0.5 * jnp.ones((1, 2, 1, 1)))


def test_anchors_of_one_map():
  """15 a place, of stride 16; Detectron2's by size, then by ratio, and not rounded."""
  model = MaskRCNN(classes=1, feature_maps='c4', anchors='detectron2')
  (anchors,) = model._anchors((SIZE, 2 * SIZE), [(4, 8)])
  assert anchors.shape == (4 * 8 * 15, 4)
  places = anchors.reshape(4, 8, 5, 3, 4)
  centres = (places[..., :2] + places[..., 2:]) / 2
  np.testing.assert_allclose(centres[3, 7], np.broadcast_to([7 * 16, 3 * 16], (5, 3, 2)), atol=1e-4)
  width, height = np.moveaxis(places[0, 0, :, :, 2:] - places[0, 0, :, :, :2], -1, 0)
  np.testing.assert_allclose(np.sqrt(width * height)[:, 0], [32, 64, 128, 256, 512], rtol=1e-6)
  np.testing.assert_allclose(height[0] / width[0], [0.5, 1, 2], rtol=1e-6)


def test_detectron2s_anchors_have_the_strides_of_the_network():
  """Where torchvision's have 61 for the 13 rows of P6."""
  grids = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
  for kind, stride in (('torchvision', 61), ('detectron2', 64)):
    levels = MaskRCNN(classes=1, anchors=kind)._anchors((800, 1216), grids)
    rows = levels[-1].reshape(13, 19, 3, 4)[:, 0, 0]
    np.testing.assert_allclose(np.diff(rows[:, 1]), stride, rtol=1e-6)


@pytest.mark.parametrize('roi', ['roi_pool', 'roi_warp'])
def test_other_operations_take_one_map(roi):
  with pytest.raises(SegjaxError, match=f'config.model.roi={roi}'):
    abstract(MaskRCNN(**TINY, roi=roi))


def parameters(**fields):
  """Of a network at full size, by its parts; frozen norms are buffers elsewhere and not counted."""
  model = MaskRCNN(**{'classes': 90} | fields)
  init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
  params = init(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32))['params']
  learnt = lambda part: {k: v for k, v in part.items() if not k.endswith('_norm')}
  return {name: count(learnt(part)) for name, part in params.items()}


def test_parameters_of_torchvisions_faster_rcnn():
  """fasterrcnn_resnet50_fpn has 41,755,286, with the boxes of the background."""
  assert sum(parameters(masks=False).values()) + 4 * (1024 + 1) == 41_755_286


@pytest.mark.parametrize('backbone', ['resnet50', 'resnet101', 'resnext101_32x8d'])
def test_the_pyramid_takes_each_backbone_whole(backbone):
  image = jnp.zeros((1, 32, 32, 3))
  alone = jax.eval_shape(ResNet(backbone).init, jax.random.key(0), image)['params']
  convolutions = count({k: v for k, v in alone.items() if not k.endswith('_norm')})
  found = parameters(backbone=backbone)
  assert found['backbone'] == convolutions
  assert found['fpn'] == sum(c * 256 + 256 + 9 * 256**2 + 256 for c in (256, 512, 1024, 2048))


def test_parameters_of_c4_are_those_of_figure_4():
  """The whole ResNet, the RPN on 1024 channels with 15 anchors, one layer, and 14x14x256 masks."""
  found = parameters(classes=80, feature_maps='c4')
  assert found == {
    'backbone': parameters(classes=80)['backbone'],
    'rpn': 9 * 1024**2 + 1024 + 15 * 5 * (1024 + 1),
    'box': (81 + 4 * 80) * (2048 + 1),
    'mask': 4 * 2048 * 256 + 256 + 80 * (256 + 1),
  }
  detectron2 = parameters(classes=80, feature_maps='c4', box_bins=14, res5_stride=2)
  assert detectron2 == found


def test_parameters_of_the_mlps_of_table_2e():
  for hidden in ((1024, 1024), (1024, 1024, 1024)):
    sizes = (256 * 14**2, *hidden, 80 * 28**2)
    layers = zip(sizes[:-1], sizes[1:], strict=True)
    assert parameters(classes=80, mask_mlp=hidden)['mask'] == sum(i * o + o for i, o in layers)
