"""The variants of Mask R-CNN's Table 2: shapes, parameters, and trained layers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, SIZE, TINY, make_batch, make_model
from networks import abstract, count, filled

from segjax.convert.torchvision_detection import V2
from segjax.losses import detection
from segjax.models import mask_rcnn
from segjax.nn.resnet import VARIANTS, ResNet, Variant
from segjax.training.compile import jit
from segjax.training.optim import parameter_paths
from segjax.types import SegjaxError

CLASSES = TINY['classes']
C4 = {'feature_maps': 'c4'}
# Keys, size and channels of the masks.
CASES = {
  'c4, paper': (C4, 14, 3),
  'c4, detectron2': (
    {
      **C4,
      'box_head.resolution': 14,
      'box_head.res5_stride': 2,
      'rpn.anchor_style': 'detectron2',
      'roi.sampling_ratio': 0,
    },
    14,
    3,
  ),
  'c4, softmax': ({**C4, 'mask_head.activation': 'softmax', 'backbone.name': 'resnext'}, 14, 4),
  'c4, softmax, agnostic': (
    {**C4, 'mask_head.activation': 'softmax', 'mask_head.class_agnostic': True},
    14,
    2,
  ),
  'c4, RoIPool': ({**C4, 'roi.op': 'roi_pool'}, 14, 3),
  'c4, RoIWarp': ({**C4, 'roi.op': 'roi_warp'}, 14, 3),
  'c4, RoIAlign max': ({**C4, 'roi.mode': 'max', 'roi.aligned': True}, 14, 3),
  'c5': (
    {'feature_maps': 'c5', 'backbone.stride_in_1x1': True, 'backbone.name': 'resnext'},
    28,
    3,
  ),
  'fpn, MLP': ({'mask_head.mlp': (16, 16)}, 28, 3),
  'fpn, adaptive': (
    {'roi.sampling_ratio': 0, 'roi.max_samples': 4, 'rpn.anchor_style': 'detectron2'},
    28,
    3,
  ),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  monkeypatch.setitem(VARIANTS, 'shallow', SHALLOW)
  resnext = Variant('bottleneck', (1, 1, 1, 1), groups=2, group_width=32)
  monkeypatch.setitem(VARIANTS, 'resnext', resnext)


def training(model):
  """Shapes of the variables and of the outputs in training."""
  image, size, instances = make_batch()
  variables, nothing = abstract(model, image, size, instances, KEYS, train=True)
  assert nothing == {}
  return variables, outputs(model, variables, instances, KEYS, train=True, mutable='batch_stats')[0]


def outputs(model, variables, *more, **options):
  """Shapes of what the network gives."""
  apply = functools.partial(model.apply, **options)
  return jax.eval_shape(apply, variables, *make_batch()[:2], *more)


@pytest.mark.parametrize('case', CASES)
def test_shapes(case):
  fields, side, channels = CASES[case]
  model = make_model(TINY | fields)
  assert model.mask_size == side
  variables, trained = training(model)
  assert trained['rpn'].logits.shape == (2, 64)
  assert trained['box'].logits.shape == (2, 16, 1 + CLASSES)
  assert trained['box'].deltas.shape == (2, 16, CLASSES, 4)
  assert trained['mask'].logits.shape == (2, 8, side, side, channels)
  assert trained['mask'].target.shape == (2, 8, side, side)
  found = outputs(model, variables)
  assert found['detections'].boxes.shape == (2, 6, 4)
  assert found['detections'].masks.shape == (2, 6, side, side)


def test_training_and_evaluation_have_their_own_numbers_of_proposals(monkeypatch):
  seen, propose = [], mask_rcnn.propose

  def record(*args, pre_nms, post_nms, **options):
    seen.append((pre_nms, post_nms))
    return propose(*args, pre_nms=pre_nms, post_nms=post_nms, **options)

  monkeypatch.setattr(mask_rcnn, 'propose', record)
  proposals = {'rpn.train_proposals': (30, 10), 'rpn.test_proposals': (20, 5)}
  model = make_model(TINY | proposals)
  variables, _ = training(model)
  outputs(model, variables)
  assert seen == [(30, 10), (20, 5)]


@pytest.mark.parametrize('feature_maps', ['fpn', 'c4', 'c5'])
def test_without_masks_it_is_faster_rcnn(feature_maps):
  fields = TINY | {'feature_maps': feature_maps}
  with_masks = abstract(make_model(fields), *make_batch()[:2])[0]['params']
  model = make_model({**fields, 'masks': False})
  variables, _ = abstract(model, *make_batch()[:2])
  assert set(with_masks) - set(variables['params']) == {'mask'}
  assert outputs(model, variables)['detections'].masks is None
  assert set(training(model)[1]) == {'rpn', 'box'}


@pytest.mark.parametrize(
  ('fields', 'activation'),
  [
    (
      {
        **C4,
        'backbone.norm': 'frozen',
        'backbone.frozen_stages': 1,
        'mask_head.activation': 'softmax',
        'mask_head.mlp': (16,),
      },
      'softmax',
    ),
    (
      {
        'feature_maps': 'c5',
        'backbone.norm': 'batch',
        'backbone.frozen_stages': 2,
        'roi.op': 'roi_pool',
        'box_head.convs': 1,
        'box_head.norm': 'batch',
        'mask_head.norm': 'batch',
        'mask_head.class_agnostic': True,
      },
      'sigmoid',
    ),
  ],
)
def test_learns_all_but_what_is_frozen(fields, activation):
  """With the real losses, all parameters but `frozen_parameters` have a gradient."""
  image, size, instances = make_batch()
  # All anchors and RoIs are sampled, so that all parts have a gradient.
  anchors = {'rpn.samples': 1024, 'rpn.anchor_sizes': (8, 16, 32, 64, 128)}
  model = make_model(TINY | anchors | fields)
  variables = filled(abstract(model, image, size)[0])

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
    assert changed == (fields['backbone.norm'] == 'batch' and not re.search('stem|res2', layer)), (
      layer
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      C4 | {'backbone.norm': 'batch', 'backbone.frozen_stages': 2},
      "backbone.norm='batch': the ",
    ),
    ({'roi.op': 'roi_pool'}, 'roi.op=roi_pool needs a single map'),
    ({'roi.op': 'roi_warp'}, 'roi.op=roi_warp needs a single map'),
    ({'rpn.anchor_sizes': (8.0,)}, r'rpn.anchor_sizes=\(8.0,\): the FPN has 5 levels'),
  ],
)
def test_parts_that_do_not_fit_each_other(fields, message):
  with pytest.raises(SegjaxError, match=f'config.model.{message}'):
    make_model(TINY | fields)


def test_parts_that_do():
  """Frozen res5, and a single map with any number of sizes."""
  make_model(TINY | C4 | {'backbone.norm': 'batch', 'backbone.frozen_stages': 5})
  make_model(TINY | C4 | {'rpn.anchor_sizes': (8.0,)})


def parameters(**fields):
  """Parameters of a full-size network by part; frozen norms are buffers in torch, not counted."""
  model = make_model({'classes': 90} | fields)
  image, size = np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((1, 2), np.int32)
  params = abstract(model, image, size)[0]['params']
  trained = lambda part: {k: v for k, v in part.items() if not k.endswith('_norm')}
  return {name: count(trained(part)) for name, part in params.items()}


def test_parameters_of_torchvisions_faster_rcnn():
  """fasterrcnn_resnet50_fpn has 41,755,286, with the boxes of the background."""
  assert sum(parameters(masks=False).values()) + 4 * (1024 + 1) == 41_755_286


@pytest.mark.parametrize(('masks', 'parameters'), [(True, 46_359_409), (False, 43_712_278)])
def test_parameters_of_torchvisions_second_version(masks, parameters):
  """Those on its pages, norms too; ours lacks the boxes and the masks of the background."""
  model = make_model({'classes': 90, 'masks': masks, **V2})
  image, size = np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((1, 2), np.int32)
  background = 4 * (1024 + 1) + masks * (256 + 1)
  assert count(abstract(model, image, size)[0]['params']) + background == parameters


@pytest.mark.parametrize('backbone', ['resnet50', 'resnet101', 'resnext101_32x8d'])
def test_the_pyramid_takes_each_backbone_whole(backbone):
  alone = abstract(ResNet(backbone), (1, 32, 32, 3))[0]['params']
  convolutions = count({k: v for k, v in alone.items() if not k.endswith('_norm')})
  found = parameters(**{'backbone.name': backbone})
  assert found['backbone'] == convolutions
  assert found['fpn'] == sum(c * 256 + 256 + 9 * 256**2 + 256 for c in (256, 512, 1024, 2048))


def test_parameters_of_c4_are_those_of_figure_4():
  """The full ResNet, an RPN on 1024 channels with 15 anchors, one layer, and 14x14x256 masks."""
  found = parameters(classes=80, feature_maps='c4')
  whole = abstract(ResNet('resnet50'), (1, 32, 32, 3))[0]['params']
  assert found == {
    'backbone': count({k: v for k, v in whole.items() if not k.endswith('_norm')}),
    'rpn': 9 * 1024**2 + 1024 + 15 * 5 * (1024 + 1),
    'box': (81 + 4 * 80) * (2048 + 1),
    'mask': 4 * 2048 * 256 + 256 + 80 * (256 + 1),
  }
  detectron2 = {'box_head.resolution': 14, 'box_head.res5_stride': 2}
  assert parameters(classes=80, feature_maps='c4', **detectron2) == found


def test_parameters_of_the_mlps_of_table_2e():
  for hidden in ((1024, 1024), (1024, 1024, 1024)):
    sizes = (256 * 14**2, *hidden, 80 * 28**2)
    layers = zip(sizes[:-1], sizes[1:], strict=True)
    found = parameters(**{'classes': 80, 'mask_head.mlp': hidden})['mask']
    assert found == sum(i * o + o for i, o in layers)
