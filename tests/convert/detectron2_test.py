"""Synthetic files with Detectron2's names: complete tables, and what changes its order.

No file of Detectron2 is here; its names and layouts are written down once more, independently of
the tables.
"""

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import make_model
from synthetic import synthetic

from segjax.convert import detectron2
from segjax.convert.load import (
  SOURCES,
  Pretrained,
  convert_file,
  flat_paths,
  load_into,
  read_pretrained,
)
from segjax.convert.table import convert
from segjax.convert.weights import read_metadata
from segjax.nn.box_head import BoxHead, BoxHeadConfig
from segjax.nn.resnet import ResNet
from segjax.training.compile import jit
from segjax.types import SegjaxError

FEATURES, HIDDEN, CLASSES = 4, 6, 3
ZOO = {
  f'detectron2/{network}_{name}': (variant, c4, network.startswith('mask'))
  for network in ('mask_rcnn', 'faster_rcnn')
  for name, variant, c4 in (
    ('R_50_FPN', 'resnet50', False),
    ('R_101_FPN', 'resnet101', False),
    ('X_101_32x8d_FPN', 'resnext101_32x8d', False),
    ('R_50_C4', 'resnet50', True),
    ('R_101_C4', 'resnet101', True),
  )
}
IMAGENET = {
  f'{kind}/{name}': variant
  for kind in ('detectron2', 'detectron')
  for name, variant in (
    ('R-50', 'resnet50'),
    ('R-101', 'resnet101'),
    ('X-101-32x8d', 'resnext101_32x8d'),
  )
}

# Our paths, one kind of layer after the other -> the names of Detectron2's modules.
MODULES = (
  (r'^fpn/(lateral|output)(\d)', r'backbone.fpn_\1\2'),
  (r'^rpn/conv1', 'proposal_generator.rpn_head.conv'),
  (r'^rpn/objectness', 'proposal_generator.rpn_head.objectness_logits'),
  (r'^rpn/deltas', 'proposal_generator.rpn_head.anchor_deltas'),
  (r'^box/fc6', 'roi_heads.box_head.fc1'),
  (r'^box/fc7', 'roi_heads.box_head.fc2'),
  (r'^box/score', 'roi_heads.box_predictor.cls_score'),
  (r'^box/deltas', 'roi_heads.box_predictor.bbox_pred'),
  (r'^mask/conv(\d)', r'roi_heads.mask_head.mask_fcn\1'),
  (r'^mask/upconv', 'roi_heads.mask_head.deconv'),
  (r'^mask/score', 'roi_heads.mask_head.predictor'),
  (r'^backbone/stem', 'BOTTOM.stem.conv1'),
  (r'^backbone/res(\d)_(\d+)_(\w+?)(?=_norm|/)', r'BOTTOM.res\1.\2.\3'),
  (r'_norm(?=/)', '.norm'),
)
# The same of the ImageNet networks.
CAFFE2 = (
  (r'^backbone/stem_norm', 'res_conv1_bn'),
  (r'^backbone/stem', 'conv1'),
  (r'^backbone/(res\d_\d+)_shortcut', r'\1_branch1'),
  *(
    (rf'^backbone/(res\d_\d+)_conv{i}', rf'\1_branch2{letter}') for i, letter in enumerate('abc', 1)
  ),
  (r'_norm(?=/)', '_bn'),
)
ARRAYS = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
CAFFE2_ARRAYS = {
  'detectron2': {
    'kernel': '_w',
    'scale': '_gamma',
    'bias': '_beta',
    'mean': '_running_mean',
    'var': '_running_var',
  },
  'detectron': {'kernel': '_w', 'scale': '_s', 'bias': '_b', 'mean': None, 'var': None},
}


def renamed(path, patterns):
  """(module, array) of one of our paths, such as params/rpn/conv1/kernel."""
  name, _, array = path.partition('/')[2].rpartition('/')
  name += '/'
  for pattern, replacement in patterns:
    name = re.sub(pattern, replacement, name)
  return name.removesuffix('/'), array


def zoo_name(path, *, c4):
  module, array = renamed(path, MODULES)
  bottom = 'backbone' if c4 else 'backbone.bottom_up'
  module = module.replace('BOTTOM.res5', 'roi_heads.res5' if c4 else f'{bottom}.res5')
  return f'{module.replace("BOTTOM", bottom)}.{ARRAYS.get(array, array)}'


def their_shape(path, shape):
  """OIHW, [out, in] of linear layers, IOHW of the transposed convolution."""
  if len(shape) == 4:
    kernel, (inputs, outputs) = shape[:2], shape[2:]
    pair = (inputs, outputs) if '/upconv/' in path else (outputs, inputs)
    return (*pair, *kernel)
  return shape[::-1]


@functools.cache
def zeros(model):
  init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
  shapes = init(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32))
  return jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), dict(shapes))


def network(variant, *, c4=False, masks=True):
  fields = {'backbone.name': variant, 'backbone.width': 2, 'box_head.hidden': HIDDEN}
  fields |= {f'{part}.features': FEATURES for part in ('neck', 'box_head', 'mask_head')}
  fields |= detectron2.ZOO | (detectron2.C4 if c4 else {})
  return make_model({'classes': CLASSES, 'masks': masks} | fields)


def zoo_file(model, *, c4):
  """The arrays of a file for `model`."""
  shapes = {
    zoo_name(path, c4=c4): their_shape(path, x.shape)
    for path, x in flat_paths(zeros(model)).items()
  }
  return {key: synthetic(key, shape) for key, shape in shapes.items()}


def imagenet_file(kind, variant):
  arrays = {}
  for path, x in flat_paths(zeros(network(variant))).items():
    if '/backbone/' in path:
      module, array = renamed(path, CAFFE2)
      if suffix := CAFFE2_ARRAYS[kind][array]:
        arrays[module + suffix] = synthetic(path, their_shape(path, x.shape))
  extra = {'fc1000_w': (1000, 64), 'fc1000_b': (1000,), 'conv1_b': (2,)}
  return arrays | {key: synthetic(key, shape) for key, shape in extra.items()}


def loaded(variables, pretrained):
  variables = dict(variables)
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


def pretrained(arrays, source):
  table = SOURCES[source]
  return Pretrained('FILE', convert(arrays, SOURCES, source, 'FILE'), table.new, table.spare)


def test_sources_are_those_tested_here():
  ours = {*ZOO, *(f'{source}_body' for source in ZOO), *IMAGENET}
  assert {s for s in SOURCES if s.startswith('detectron')} == ours


@pytest.mark.parametrize(
  'source', [pytest.param(s, marks=[pytest.mark.slow] * ('R_101' in s)) for s in ZOO]
)
def test_a_network_of_the_zoo_is_filled(source):
  variant, c4, masks = ZOO[source]
  model = network(variant, c4=c4, masks=masks)
  arrays = zoo_file(model, c4=c4)
  buffers = {'pixel_mean': np.zeros((3, 1, 1), 'f4')}
  buffers['proposal_generator.anchor_generator.cell_anchors.0'] = np.zeros((3, 4), 'f4')
  _, report = loaded(zeros(model), pretrained(arrays | buffers, source))
  assert len(report.loaded) == len(arrays)
  assert report.new == report.unused == ()
  # All but the class-specific head layers.
  _, report = loaded(zeros(model), pretrained(arrays, f'{source}_body'))
  unmatched = {'params/box/score', 'params/box/deltas', *['params/mask/score'] * masks}
  assert {path.rpartition('/')[0] for path in report.new} == unmatched


def test_a_body_fills_a_network_of_other_classes():
  arrays = zoo_file(network('resnet50'), c4=False)
  other = network('resnet50').clone(classes=CLASSES + 1)
  _, report = loaded(zeros(other), pretrained(arrays, 'detectron2/mask_rcnn_R_50_FPN_body'))
  assert len(report.loaded) == len(arrays) - 6


@pytest.mark.parametrize('source', IMAGENET)
def test_a_resnet_of_imagenet_fills_the_backbone(source):
  kind, variant = source.split('/')[0], IMAGENET[source]
  arrays = imagenet_file(kind, variant)
  variables, report = loaded(zeros(network(variant)), pretrained(arrays, source))
  assert report.unused == ()
  assert not any('/backbone/' in path for path in report.new)
  bias = variables['params']['backbone']['res4_5_conv3_norm']['bias']
  suffix = CAFFE2_ARRAYS[kind]['bias']
  np.testing.assert_array_equal(bias, arrays[f'res4_5_branch2c_bn{suffix}'])


def test_detectron_s_normalization_is_a_scale_and_a_shift():
  arrays = convert(imagenet_file('detectron', 'resnet50'), SOURCES, 'detectron/R-50', 'FILE')
  name = 'backbone/res2_0_conv1_norm'
  mean, var = (arrays[f'batch_stats/{name}/{x}'] for x in ('mean', 'var'))
  np.testing.assert_array_equal(mean, 0)
  np.testing.assert_allclose(var + np.float32(ResNet.bn_epsilon), 1, rtol=1e-7)


def test_a_file_of_the_other_kind_names_its_source():
  arrays = imagenet_file('detectron', 'resnet50')
  with pytest.raises(SegjaxError, match='use the source detectron/R-50$'):
    convert(arrays, SOURCES, 'detectron2/R-50', 'FILE')


def linear(x, weight, bias):
  return x @ weight.T + bias


def test_the_stem_takes_rgb_where_detectron2_takes_bgr():
  arrays = imagenet_file('detectron2', 'resnet50')
  kernel = convert(arrays, SOURCES, 'detectron2/R-50', 'FILE')['params/backbone/stem/kernel']
  rgb = np.random.default_rng(0).normal(size=(7, 7, 3))
  theirs = (rgb[..., ::-1].transpose(2, 0, 1) * arrays['conv1_w']).sum((1, 2, 3))
  np.testing.assert_allclose((rgb[..., None] * kernel).sum((0, 1, 2)), theirs, rtol=1e-5)


def test_the_heads_see_what_detectron2_s_see():
  """The box head by its definition on a region CHW, and the background last."""
  model = network('resnet50')
  arrays = zoo_file(model, c4=False)
  variables, _ = loaded(zeros(model), pretrained(arrays, 'detectron2/mask_rcnn_R_50_FPN'))
  region = np.random.default_rng(0).normal(size=(FEATURES, 7, 7))
  x, box = region.ravel(), 'roi_heads.box_head'
  for layer in ('fc1', 'fc2'):
    x = np.maximum(linear(x, arrays[f'{box}.{layer}.weight'], arrays[f'{box}.{layer}.bias']), 0)
  score, deltas = (
    linear(x, arrays[f'{name}.weight'], arrays[f'{name}.bias'])
    for name in ('roi_heads.box_predictor.cls_score', 'roi_heads.box_predictor.bbox_pred')
  )
  seen = region.transpose(1, 2, 0)[None, None].astype(np.float32)
  head = BoxHead(CLASSES, BoxHeadConfig(hidden=HIDDEN))
  logits, boxes = jit(head.apply, once=True)({'params': variables['params']['box']}, seen)
  np.testing.assert_allclose(logits[0, 0], [score[-1], *score[:-1]], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(boxes[0, 0], deltas.reshape(CLASSES, 4), rtol=1e-4, atol=1e-5)


def test_a_file_of_the_zoo_goes_into_a_network(tmp_path):
  """As a pickle of the zoo's form, converted, and back."""
  source, model = 'detectron2/mask_rcnn_R_50_FPN', network('resnet50')
  arrays = zoo_file(model, c4=False)
  tree = {'model': arrays, '__author__': 'Detectron2 Model Zoo', 'matching_heuristics': True}
  path = tmp_path / 'model_final.pkl'
  path.write_bytes(pickle.dumps(tree, 2))
  assert convert_file(source, path, tmp_path / 'x.safetensors') == len(arrays)
  variables, report = loaded(zeros(model), read_pretrained(tmp_path / 'x.safetensors'))
  assert len(report.loaded) == len(arrays)
  kernel = variables['params']['mask']['upconv']['kernel']
  theirs = arrays['roi_heads.mask_head.deconv.weight']
  np.testing.assert_array_equal(kernel[1, 0, 2, 3], theirs[2, 3, 1, 0])
  note = read_metadata(tmp_path / 'x.safetensors')['input']
  assert 'config.data.mean=(123.675, 116.28, 103.53), config.data.std=(1.0,)' in note
  assert 'config.model.backbone.stride_in_1x1=True' in note
