"""torchvision's ResNets, and FCN and DeepLabV3 on them: complete tables, and equal outputs
(golden/make.py).
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from synthetic import synthetic

from segjax.convert.load import (
  SOURCES,
  Pretrained,
  convert_file,
  flat_paths,
  load_into,
  read_pretrained,
)
from segjax.convert.table import convert, leftovers, matches
from segjax.convert.torchvision import segmentation_source
from segjax.models.deeplab import DeepLabV3
from segjax.models.fcn import FCNResNet
from segjax.nn.resnet import VARIANTS, ResNet, Variant
from segjax.training.compile import jit
from segjax.types import SegjaxError

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'resnet.npz'
NETWORKS = {'fcn': FCNResNet, 'deeplabv3': DeepLabV3}
SEGMENTATION = [f'{network}_{name}' for network in NETWORKS for name in ('resnet50', 'resnet101')]
# The network in the golden file that each source is of.
SOURCE_FILES = {
  **{f'torchvision/{name}': name for name in VARIANTS},
  **{f'torchvision/{name}': name for name in SEGMENTATION},
  **{f'torchvision/{name}_main': name for name in SEGMENTATION},
}


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


def shapes_of(golden, name):
  """{name: shape} of the arrays of one of torchvision's networks."""
  shapes = golden[f'{name}/shapes'].tolist()
  shapes = [tuple(map(int, s.split('x'))) if s else () for s in shapes]
  return dict(zip(golden[f'{name}/names'].tolist(), shapes, strict=True))


@functools.cache
def zeros(model):
  """Zero variables of a model, without a compilation, that take no memory."""
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), dict(shapes))


def in_backbone(variables):
  """A ResNet's variables as those of a network that has nothing else."""
  return {kind: {'backbone': tree} for kind, tree in variables.items()}


def network(source):
  """(model, its variables by the paths of the source)."""
  kind, _, name = SOURCE_FILES[source].rpartition('_')
  if kind not in NETWORKS:
    name = SOURCE_FILES[source]
    return ResNet(name), in_backbone(zeros(ResNet(name)))
  model = NETWORKS[kind](21, name, auxiliary=not source.endswith('_main'))
  return model, zeros(model)


def loaded(variables, pretrained):
  variables = dict(variables)
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


@pytest.mark.parametrize('source', SOURCE_FILES)
def test_every_array_of_either_side_is_accounted_for(golden, source):
  table, theirs = SOURCES[source], shapes_of(golden, SOURCE_FILES[source])
  assert leftovers(theirs, table) == ([], [])
  ours = {path: x.shape for path, x in flat_paths(network(source)[1]).items()}
  taken = {
    row.path: row.transform(np.broadcast_to(np.float32(0), theirs[row.key])).shape
    for row in table.rows
  }
  assert taken == ours
  # Each pattern is there for some array, and what is left out is what it is meant to be.
  assert all(any(matches(name, [p]) for name in theirs) for p in table.left_out)
  left = theirs.keys() - {row.key for row in table.rows}
  whole = SOURCE_FILES[source] in SEGMENTATION
  expected = {'num_batches_tracked'} | (set() if whole else {'weight', 'bias'})
  if not source.endswith('_main'):
    assert {name.rpartition('.')[2] for name in left} == expected
    assert sum(not name.endswith('tracked') for name in left) == len(expected) - 1
  else:
    assert all(name.endswith('tracked') or name.startswith('aux_classifier.') for name in left)


def test_sources_are_those_tested_here():
  ours = {s for s in SOURCES if s.startswith('torchvision/') and 'resne' in s and '_fpn' not in s}
  assert ours == {*SOURCE_FILES}


def filled(golden, name):
  return {key: synthetic(key, shape) for key, shape in shapes_of(golden, name).items()}


def assert_close(actual, expected):
  assert np.ptp(expected, (1, 2)).max() > 0.01 * np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_resnet18_sees_what_torchvision_sees(golden):
  source = 'torchvision/resnet18'
  pretrained = Pretrained('FILE', convert(filled(golden, 'resnet18'), SOURCES, source, 'FILE'))
  model, variables = network(source)
  variables, _ = loaded(variables, pretrained)
  variables = {kind: tree['backbone'] for kind, tree in variables.items()}
  features = jit(model.apply, once=True)(variables, golden['image'].transpose(0, 2, 3, 1))
  for name, actual in features.items():
    assert_close(actual[..., ::16], golden[f'resnet18/{name}'].transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_fcn_resnet50_sees_what_torchvision_sees(golden):
  source = 'torchvision/fcn_resnet50'
  pretrained = Pretrained('FILE', convert(filled(golden, 'fcn_resnet50'), SOURCES, source, 'FILE'))
  model, variables = network(source)
  variables, _ = loaded(variables, pretrained)
  run = functools.partial(model.apply, with_auxiliary=True)
  logits = jit(run, once=True)(variables, golden['image'].transpose(0, 2, 3, 1))
  for name, actual in zip(('out', 'aux'), logits, strict=True):
    expected = golden[f'fcn_resnet50/{name}'].transpose(0, 2, 3, 1)
    assert_close(actual[:, ::8, ::8, ::4], expected)


def test_a_shallow_deeplab_sees_what_torchvision_sees(golden, monkeypatch):
  """The channels of ResNet-50, with one block in each stage."""
  monkeypatch.setitem(VARIANTS, 'shallow', Variant('bottleneck', (1, 1, 1, 1)))
  source = segmentation_source('deeplabv3', 'shallow', auxiliary=True)
  arrays = convert(filled(golden, 'deeplabv3_shallow'), {'SOURCE': source}, 'SOURCE', 'FILE')
  model = DeepLabV3(21, 'shallow', auxiliary=True)
  variables, _ = loaded(zeros(model), Pretrained('FILE', arrays))
  run = functools.partial(model.apply, with_auxiliary=True)
  logits = jit(run, once=True)(variables, golden['image'].transpose(0, 2, 3, 1))
  for name, actual in zip(('out', 'aux'), logits, strict=True):
    expected = golden[f'deeplabv3_shallow/{name}'].transpose(0, 2, 3, 1)
    assert_close(actual[:, ::8, ::8, ::4], expected)


# --- init_from -----------------------------------------------------------------------------------


def pretrained(source, model):
  """Ones for all arrays of a source, as large as a network has them."""
  shapes = {path: x.shape for path, x in flat_paths(zeros(model)).items()}
  arrays = {row.path: np.ones(shapes.get(row.path, ()), 'f4') for row in SOURCES[source].rows}
  return Pretrained('FILE', arrays, SOURCES[source].new, SOURCES[source].spare)


def tiny(variant='resnet50', **kwargs):
  return FCNResNet(21, variant, width=1, **kwargs)


@pytest.mark.parametrize('norm', ['batch', 'frozen'])
def test_imagenet_s_resnet_fills_the_backbone(norm):
  model = tiny('resnet18', norm=norm, auxiliary=True)
  variables, report = loaded(zeros(model), pretrained('torchvision/resnet18', model))
  for path, value in flat_paths(variables).items():
    assert np.all(value == (1 if '/backbone/' in path else 0)), path
  assert report.unused == ()
  assert {path.split('/')[1].rpartition('_')[0] for path in report.new} >= {
    'classifier',
    'aux_classifier',
  }


def test_a_resnet_of_another_depth_or_norm_is_an_error():
  with pytest.raises(SegjaxError, match='FILE does not have .*/backbone/res2_2_conv1'):
    model = tiny('resnet34')
    loaded(zeros(model), pretrained('torchvision/resnet18', model))
  with pytest.raises(SegjaxError, match='FILE has .*/backbone/res2_2_conv1.* does not have'):
    model = tiny('resnet18')
    loaded(zeros(model), pretrained('torchvision/resnet34', model))
  with pytest.raises(SegjaxError, match='FILE has batch_stats/backbone/.* does not have'):
    model = tiny('resnet18', norm='group')
    loaded(zeros(model), pretrained('torchvision/resnet18', model))


@pytest.mark.parametrize('auxiliary', [False, True])
@pytest.mark.parametrize('suffix', ['', '_main'])
def test_a_whole_fcn_fills_everything_with_or_without_the_auxiliary_classifier(auxiliary, suffix):
  model = tiny(auxiliary=auxiliary)
  weights = pretrained(f'torchvision/fcn_resnet50{suffix}', tiny(auxiliary=True))
  variables, report = loaded(zeros(model), weights)
  missing = auxiliary and suffix == '_main'
  for path, value in flat_paths(variables).items():
    assert np.all(value == (0 if missing and '/aux_classifier_' in path else 1)), path
  surplus = not auxiliary and not suffix
  assert {path.split('/')[1] for path in report.unused} == (
    {'aux_classifier_conv', 'aux_classifier_conv_norm', 'aux_classifier_score'}
    if surplus
    else set()
  )


def test_a_whole_fcn_needs_its_classes_and_its_classifier():
  weights = pretrained('torchvision/fcn_resnet50', tiny(auxiliary=True))
  with pytest.raises(SegjaxError, match=r'params/classifier_score/bias of shape \(21,\) .*\(11,\)'):
    loaded(zeros(tiny().clone(classes=11)), weights)
  less = {path: x for path, x in weights.arrays.items() if '/classifier_conv/' not in path}
  with pytest.raises(SegjaxError, match='FILE does not have params/classifier_conv/kernel'):
    loaded(zeros(tiny()), dataclasses.replace(weights, arrays=less))


def test_a_file_without_auxiliary_classifier_names_its_source(golden):
  theirs = {name: np.zeros(()) for name in shapes_of(golden, 'fcn_resnet50')}
  main = {name: x for name, x in theirs.items() if not name.startswith('aux_classifier')}
  with pytest.raises(
    SegjaxError, match='no aux_classifier.0.weight and .* use the source .*/fcn_resnet50_main$'
  ):
    convert(main, SOURCES, 'torchvision/fcn_resnet50', 'FILE')
  with pytest.raises(SegjaxError, match='use the source torchvision/fcn_resnet50 or'):
    convert(theirs, SOURCES, 'torchvision/resnet50', 'FILE')


def test_a_converted_file_goes_into_a_network(golden, tmp_path):
  """From a .safetensors file by torchvision's names, whose channels are cut to a tiny network's."""
  model = tiny('resnet18')
  ours = flat_paths(zeros(model))
  arrays = {}
  for row in SOURCES['torchvision/resnet18'].rows:
    shape = ours[row.path].shape
    arrays[row.key] = synthetic(row.key, (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape)
  arrays |= {'fc.weight': np.zeros((5, 8), 'f4'), 'bn1.num_batches_tracked': np.zeros((), 'i8')}
  safetensors.numpy.save_file(arrays, tmp_path / 'resnet18.safetensors')
  converted = tmp_path / 'converted.safetensors'
  convert_file('torchvision/resnet18', tmp_path / 'resnet18.safetensors', converted)
  variables, report = loaded(zeros(model), read_pretrained(converted))
  assert len(report.loaded) == 20 * 5
  kernel = variables['params']['backbone']['res3_0_shortcut']['kernel']
  np.testing.assert_array_equal(kernel[0, 0], arrays['layer2.0.downsample.0.weight'][:, :, 0, 0].T)


# --- the original --------------------------------------------------------------------------------


def torch_network(make, seed=0):
  """In inference mode, with random running statistics, scales and shifts."""
  torch = pytest.importorskip('torch')
  torch.manual_seed(seed)
  model = make()
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if value.ndim == 1:
        positive = name.endswith(('running_var', 'weight'))
        value.uniform_(0.5, 1.5) if positive else value.uniform_(-0.5, 0.5)
  return model.eval()


def image_pair():
  torch = pytest.importorskip('torch')
  image = np.random.default_rng(0).normal(size=(2, 3, 65, 46)).astype('f4')
  return torch.tensor(image), image.transpose(0, 2, 3, 1)


def from_torch(model, source, variables):
  arrays = {name: x.numpy() for name, x in model.state_dict().items()}
  converted = convert(arrays, SOURCES, source, 'FILE')
  return loaded(variables, Pretrained('FILE', converted, SOURCES[source].new, ()))[0]


@pytest.mark.parametrize(
  'name, stride_in_1x1, dilate',
  [
    ('resnet18', False, ()),
    ('resnet34', False, ()),
    ('resnet50', False, (4, 5)),
    ('resnet50', False, (5,)),
    ('resnet50', True, ()),
    pytest.param('resnet101', False, (), marks=pytest.mark.slow),
    pytest.param('resnext101_32x8d', False, (), marks=pytest.mark.slow),
  ],
)
def test_features_equal_torchvision_s(name, stride_in_1x1, dilate):
  models = pytest.importorskip('torchvision').models
  torch = pytest.importorskip('torch')
  dilation = [stage in dilate for stage in (3, 4, 5)]
  options = {'replace_stride_with_dilation': dilation} if dilate else {}
  original = torch_network(lambda: getattr(models, name)(weights=None, **options))
  if stride_in_1x1:
    for layer in (original.layer2, original.layer3, original.layer4):
      layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
  tensor, image = image_pair()
  layers = {f'layer{i}': f'c{i + 1}' for i in (1, 2, 3, 4)}
  with torch.no_grad():
    getter = models._utils.IntermediateLayerGetter(original, layers)
    expected = {key: x.numpy().transpose(0, 2, 3, 1) for key, x in getter(tensor).items()}

  model = ResNet(name, stride_in_1x1=stride_in_1x1, dilate=dilate)
  variables = from_torch(original, f'torchvision/{name}', in_backbone(zeros(model)))
  variables = {kind: tree['backbone'] for kind, tree in variables.items()}
  actual = jit(model.apply, once=True)(variables, image)
  assert actual.keys() == expected.keys()
  for key in expected:
    assert_close(actual[key], expected[key])


@pytest.mark.parametrize(
  'name',
  ['fcn_resnet50', 'deeplabv3_resnet50', pytest.param('fcn_resnet101', marks=pytest.mark.slow)],
)
def test_logits_equal_torchvision_s(name):
  segmentation = pytest.importorskip('torchvision').models.segmentation
  torch = pytest.importorskip('torch')
  make = functools.partial(
    getattr(segmentation, name),
    weights=None,
    weights_backbone=None,
    aux_loss=True,
    num_classes=21,
  )
  original = torch_network(make)
  tensor, image = image_pair()
  with torch.no_grad():
    expected = original(tensor)
  source = f'torchvision/{name}'
  model, variables = network(source)
  variables = from_torch(original, source, variables)
  logits = jit(functools.partial(model.apply, with_auxiliary=True), once=True)(variables, image)
  for name, actual in zip(('out', 'aux'), logits, strict=True):
    assert_close(actual, expected[name].numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
  'name', ['resnet18', pytest.param('resnext101_32x8d', marks=pytest.mark.slow)]
)
def test_training_equals_torchvision_s(name):
  """Gradients of kernels, and running means; float64, where no ReLU opens by a rounding error."""
  models = pytest.importorskip('torchvision').models
  original = torch_network(lambda: getattr(models, name)(weights=None))
  variables = from_torch(original, f'torchvision/{name}', in_backbone(zeros(ResNet(name))))
  tensor, image = image_pair()
  original.double().train()
  stages = models._utils.IntermediateLayerGetter(original, {'layer2': 'c3'})
  (stages(tensor.double())['c3'] ** 2).mean().backward()

  with jax.enable_x64(True):
    model = ResNet(name, dtype='float64')
    variables = {k: jax.tree.map(np.float64, tree['backbone']) for k, tree in variables.items()}

    @functools.partial(jit, once=True)
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
      features, state = model.apply(
        {**variables, 'params': params},
        image.astype(np.float64),
        stages=(1, 2, 3),
        train=True,
        mutable=['batch_stats'],
      )
      return (features['c3'] ** 2).mean(), state

    gradients, state = jax.tree.map(np.asarray, gradient(variables['params']))

  for ours, theirs in (
    ('stem', original.conv1),
    ('res2_0_conv2', original.layer1[0].conv2),
    ('res3_0_shortcut', original.layer2[0].downsample[0]),
    ('res3_0_conv2', original.layer2[0].conv2),
  ):
    expected = theirs.weight.grad.numpy().transpose(2, 3, 1, 0)
    actual = gradients[ours]['kernel']
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
  mean = state['batch_stats']['res3_1_conv2_norm']['mean']
  np.testing.assert_allclose(mean, original.layer2[1].bn2.running_mean, rtol=1e-6, atol=1e-6)
