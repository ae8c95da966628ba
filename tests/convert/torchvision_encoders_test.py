"""torchvision's AlexNet and GoogLeNet: complete on both sides, and equal outputs."""

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.convert.load import SOURCES, Pretrained, flat_paths, load_into
from segjax.convert.table import convert, leftovers, matches
from segjax.convert.torchvision import linear_to_6x6
from segjax.models.fcn import FCNAlexNet, FCNGoogLeNet
from segjax.nn import alexnet, googlenet
from segjax.ops.upsample import bilinear_kernel
from segjax.types import SegjaxError

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'helpers'))

from synthetic import synthetic  # noqa: E402

MODELS = {
  'torchvision/alexnet': FCNAlexNet(3, 'torchvision'),
  'torchvision/googlenet': FCNGoogLeNet(3, 'torchvision'),
}
NARROW_ALEXNET = FCNAlexNet(5, 'torchvision', width=1 / 32, fc_features=5)


class Encoder(nn.Module):
  """The features alone, padded as in torchvision."""

  network: str

  @nn.compact
  def __call__(self, image):
    if self.network == 'alexnet':
      form = alexnet.FORMS['torchvision']
      return alexnet.encode(image, form, width=1.0, padding=2, dtype='float32')
    form = googlenet.FORMS['torchvision']
    return googlenet.encode(image, form, width=1.0, padding=3, train=False, dtype='float32')


@pytest.fixture(scope='module')
def golden():
  """Written by golden/make.py."""
  with np.load(pathlib.Path(__file__).parent / 'golden' / 'encoders.npz') as file:
    return dict(file)


def shapes(golden, name):
  sizes = (shape.split('x') if shape else [] for shape in golden[f'{name}/shapes'].tolist())
  return {
    key: tuple(map(int, size))
    for key, size in zip(golden[f'{name}/names'].tolist(), sizes, strict=True)
  }


def converted(arrays, source):
  table = SOURCES[source]
  return Pretrained(source, convert(arrays, SOURCES, source, source), table.new, table.spare)


def abstract(model):
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return dict(jax.eval_shape(model.init, jax.random.key(0), image))


def loaded(model, pretrained):
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract(model))
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


def nested(arrays):
  """{'params': {'conv1': {'kernel': …}}} of {'params/conv1/kernel': …}."""
  tree = {}
  for path, array in arrays.items():
    collection, layer, name = path.split('/')
    tree.setdefault(collection, {}).setdefault(layer, {})[name] = array
  return tree


@pytest.mark.parametrize(
  ('source', 'count'), [('torchvision/alexnet', 14), ('torchvision/googlenet', 285)]
)
def test_every_array_of_either_side_is_accounted_for(golden, source, count):
  table, theirs = SOURCES[source], shapes(golden, source.partition('/')[2])
  assert leftovers(theirs, table) == ([], [])
  # Each pattern is there for some array, so that none can hide a mistake.
  assert all(any(matches(name, [p]) for name in theirs) for p in table.left_out)
  # One number in the memory of each array, so that only shapes are compared.
  arrays = {key: np.broadcast_to(np.float32(1), shape) for key, shape in theirs.items()}
  ours = {path: x.shape for path, x in flat_paths(abstract(MODELS[source])).items()}
  taken = {row.path: row.transform(arrays[row.key]).shape for row in table.rows}
  assert len(taken) == len(table.rows) == count
  assert taken == {path: shape for path, shape in ours.items() if path in taken}
  assert ours.keys() - taken.keys() == {'params/score_fr/kernel', 'params/score_fr/bias'}
  assert all(matches(path, table.new) for path in ours.keys() - taken.keys())


def test_fcn_sees_what_torchvisions_alexnet_sees(golden):
  """fc7, read through scores that hand it on and a bilinear kernel as known."""
  arrays = {key: synthetic(key, shape) for key, shape in shapes(golden, 'narrow_alexnet').items()}
  variables, report = loaded(NARROW_ALEXNET, converted(arrays, 'torchvision/alexnet'))
  assert len(report.loaded) == 14
  variables['params']['score_fr']['kernel'] = np.eye(5, dtype='f4')[None, None]
  image = 100 * synthetic('image', (1, 3, 67, 90)).transpose(0, 2, 3, 1)[:, :28, :28]
  logits = jax.jit(NARROW_ALEXNET.apply)(variables, image)
  kernel = bilinear_kernel(63, 1)[18:46, 18:46, 0]
  fc7 = golden['narrow_alexnet/fc7']
  assert np.ptp(fc7) > 0.1
  np.testing.assert_allclose(logits[0], kernel * fc7, rtol=1e-4, atol=1e-6)


def test_googlenet_encodes_as_torchvisions_does(golden):
  arrays = {key: synthetic(key, shape) for key, shape in shapes(golden, 'googlenet').items()}
  variables = nested(converted(arrays, 'torchvision/googlenet').arrays)
  image = 100 * synthetic('image', (1, 3, 67, 90)).transpose(0, 2, 3, 1)
  features = jax.jit(Encoder('googlenet').apply)(variables, image)
  expected = golden['googlenet/features'].transpose(0, 2, 3, 1)
  assert expected.shape == (1, 2, 3, 256)
  np.testing.assert_allclose(features[..., ::4], expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize(
  ('source', 'model', 'message'),
  [
    ('torchvision/alexnet', FCNAlexNet(3), r'conv1/bias of shape \(64,\) where .* \(96,\)'),
    ('torchvision/googlenet', FCNGoogLeNet(3), r'3a_5x5/kernel of shape \(3, 3, 16, 32\) where'),
  ],
)
def test_the_form_has_to_fit(golden, source, model, message):
  arrays = {
    key: np.broadcast_to(np.float32(1), shape)
    for key, shape in shapes(golden, source.partition('/')[2]).items()
  }
  variables = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), abstract(model))
  table = SOURCES[source]
  taken = {row.path: row.transform(arrays[row.key]) for row in table.rows}
  with pytest.raises(SegjaxError, match=message + '.*: change config.model'):
    load_into(variables['params'], {}, Pretrained('a.pth', taken, table.new, table.spare))
  assert 'config.model.form=torchvision' in table.input


def test_linear_layers_are_convolutions_over_the_map_they_flattened():
  rng = np.random.default_rng(0)
  chw, weight = rng.normal(size=(2, 6, 6)), rng.normal(size=(5, 72))
  hwio = linear_to_6x6(weight)
  assert hwio.shape == (6, 6, 2, 5)
  np.testing.assert_allclose(
    np.einsum('hwi,hwio->o', chw.transpose(1, 2, 0), hwio), weight @ chw.ravel()
  )


# --- torchvision itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'options', 'size'),
  [
    ('alexnet', {}, (63, 127)),
    ('alexnet', {}, (157, 124)),  # Each pooling has a partial last window.
    ('googlenet', {'init_weights': False}, (63, 127)),
  ],
)
def test_features_equal_torchvisions_on_random_weights(name, options, size):
  models = pytest.importorskip('torchvision').models
  import torch

  theirs = getattr(models, name)(weights=None, **options).eval()
  state = theirs.state_dict()
  generator = torch.Generator().manual_seed(0)
  for key, value in state.items():
    if value.ndim > 1:
      value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    elif value.is_floating_point():
      low = 0.5 if 'running_var' in key or key.endswith('bn.weight') else -0.5
      value.uniform_(low, low + 1, generator=generator)
  arrays = {key: value.numpy() for key, value in state.items()}
  rows = [row for row in SOURCES[f'torchvision/{name}'].rows if 'classifier' not in row.key]
  variables = nested({row.path: row.transform(arrays[row.key]) for row in rows})
  image = torch.randn(2, 3, *size, generator=generator)
  seen = []
  theirs.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
  with torch.no_grad():
    theirs(image)
  features = jax.jit(Encoder(name).apply)(variables, image.numpy().transpose(0, 2, 3, 1))
  expected = seen[0].numpy().transpose(0, 2, 3, 1)
  assert features.shape == expected.shape
  assert expected.std() > 0.1
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_the_input_that_googlenet_wants_is_what_torchvision_makes_of_its_own():
  """The mean and standard deviation of the module's docstring, on pixels of 0 to 255."""
  models = pytest.importorskip('torchvision').models
  import torch

  theirs = models.GoogLeNet(transform_input=True, init_weights=False)
  pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 3)).astype('f4')
  imagenet = (pixels - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
  network_input = theirs._transform_input(torch.tensor(imagenet.transpose(0, 3, 1, 2)))
  ours = (pixels - 127.5) / 127.5
  np.testing.assert_allclose(network_input.numpy().transpose(0, 2, 3, 1), ours, atol=1e-6)
