"""SegFormer's tables: complete on both sides; logits and gradients equal to transformers'.

Where transformers is installed, whole networks are compared; golden/segformer.npz has the names and
shapes of its arrays, and the logits of a narrow one (golden/make_segformer.py).
"""

import pathlib

import jax
import numpy as np
import pytest
from networks import abstract
from synthetic import synthetic

from segjax.convert import segformer
from segjax.convert.load import SOURCES, Pretrained, flat_paths, load_into
from segjax.convert.table import Source, convert, leftovers
from segjax.convert.weights import read_weights
from segjax.losses.dense import softmax_cross_entropy
from segjax.models.segformer import FEATURES, SegFormer
from segjax.nn import mix_transformer as mit
from segjax.training.compile import jit
from segjax.types import SegjaxError

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'segformer.npz'
NARROW = mit.MitSize((4, 8, 20, 32), (1, 2, 1, 1))


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@pytest.fixture
def narrow(monkeypatch):
  """(network, source) of the narrow one in the golden file."""
  monkeypatch.setitem(mit.SIZES, 'narrow', NARROW)
  rows = (*segformer.encoder_rows('narrow'), *segformer.decoder_rows())
  known = SOURCES['transformers/segformer_b0']
  source = Source(rows, known.left_out, known.new, known.spare, known.input)
  return SegFormer(3, 'narrow', features=8), source


def shapes_of(golden, name):
  """{name: shape} of the arrays in a file."""
  shapes = [tuple(map(int, s.split('x'))) if s else () for s in golden[f'{name}/shapes'].tolist()]
  return dict(zip(golden[f'{name}/names'].tolist(), shapes, strict=True))


def load(model, source, arrays):
  """The variables of a network from the arrays of a file."""
  converted = convert(arrays, {'it': source}, 'it', 'a file')
  shapes = dict(abstract(model, (1, 64, 64, 3))[0])
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  params = zeros.pop('params')
  pretrained = Pretrained('a file', converted, source.new, source.spare)
  params, state, report = load_into(params, zeros, pretrained)
  assert not report.unused
  return {'params': params, **state}, report


@pytest.mark.parametrize('name', segformer.SOURCES)
def test_every_array_of_either_side_is_accounted_for(golden, name):
  table, theirs = SOURCES[name], shapes_of(golden, name.removeprefix('transformers/'))
  assert leftovers(theirs, table) == ([], [])
  left = theirs.keys() - {row.key for row in table.rows}
  whole = 'segformer' in name
  counter = {'decode_head.batch_norm.num_batches_tracked'}
  assert left == (counter if whole else {'classifier.weight', 'classifier.bias'})
  model = SegFormer(150, name[-2:])
  ours = {path: x.shape for path, x in flat_paths(abstract(model, (1, 64, 64, 3))[0]).items()}
  taken = {
    row.path: row.transform(np.broadcast_to(np.float32(0), theirs[row.key])).shape
    for row in table.rows
  }
  assert len(taken) == len(table.rows)
  in_backbone = {path: shape for path, shape in ours.items() if '/backbone/' in path}
  assert taken == (ours if whole else in_backbone)


def test_logits_are_those_of_transformers(golden, narrow):
  """Of a quarter of the image's size, before they are resized to it."""
  model, source = narrow
  arrays = {k: synthetic(k, shape) for k, shape in shapes_of(golden, 'segformer_narrow').items()}
  variables, report = load(model, source, arrays)
  assert not report.new
  image = synthetic('image', (1, 3, 75, 101)).transpose(0, 2, 3, 1)
  logits, state = jit(
    lambda v, x: model.apply(
      v,
      x,
      capture_intermediates=lambda module, _: module.name == 'classifier_score',
      mutable=['intermediates'],
    ),
    once=True,
  )(variables, image)
  [scores] = state['intermediates']['classifier_score']['__call__']
  expected = golden['logits'].transpose(0, 2, 3, 1)
  assert np.ptp(expected, (0, 1, 2)).min() > 0.1
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
  resized = jax.image.resize(expected, (1, 75, 101, 3), 'linear')
  np.testing.assert_allclose(logits, resized, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_imagenet_leaves_the_decoder_as_it_is(golden):
  theirs = shapes_of(golden, 'mit_b0')
  arrays = {name: np.ones(shape, np.float32) for name, shape in theirs.items()}
  variables, report = load(SegFormer(3), SOURCES['transformers/mit_b0'], arrays)
  assert all(np.all(x == 1) for x in jax.tree.leaves(variables['params']['backbone']))
  kept = {path.split('/')[1] for path in report.new}
  projections = {f'project{i}' for i in (1, 2, 3, 4)}
  assert kept == {*projections, 'fuse', 'fuse_norm', 'classifier_score'}


def test_a_file_of_another_size(golden):
  arrays = {n: np.zeros(s, np.float32) for n, s in shapes_of(golden, 'segformer_b1').items()}
  name = 'transformers/segformer_{}'.format
  message = f'patch_embeddings.0.proj.weight is 64x3x7x7: .*, or the source {name("b1")}'
  with pytest.raises(SegjaxError, match=message):
    convert(arrays, SOURCES, name('b0'), 'a file')


def test_the_last_stage_comes_first_in_their_product():
  theirs = np.arange(2 * 8, dtype=np.float32).reshape(2, 8, 1, 1)
  ours = segformer.fused(theirs)
  rng = np.random.default_rng(0)
  stages = rng.normal(size=(4, 2))
  expected = theirs[:, :, 0, 0] @ np.concatenate(stages[::-1])
  np.testing.assert_allclose(np.einsum('if,ifg->g', stages, ours), expected, rtol=1e-6)
  with pytest.raises(ValueError, match='not a 1x1 convolution'):
    segformer.fused(np.zeros((2, 6, 1, 1), np.float32))


@pytest.mark.parametrize('size', ['b0', 'b2'])
def test_loss_and_gradients_are_those_of_whole_networks(size, golden, tmp_path):
  """The loss of transformers, a mean over the pixels, without dropout."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  name = f'segformer_{size}'
  model, source = SegFormer(150, size), SOURCES[f'transformers/{name}']
  arrays = {key: synthetic(key, shape) for key, shape in shapes_of(golden, name).items()}
  variables, _ = load(model, source, arrays)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, 64, 80, 3)).astype(np.float32)
  label = rng.integers(0, 150, (2, 64, 80))

  widths, depths = mit.SIZES[size]
  transformers.SegformerConfig(
    num_labels=150, hidden_sizes=widths, depths=depths, decoder_hidden_size=FEATURES[size]
  ).save_pretrained(tmp_path)
  torch.save({k: torch.tensor(x) for k, x in arrays.items()}, tmp_path / 'pytorch_model.bin')
  theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
  pixels = torch.tensor(image.transpose(0, 3, 1, 2))
  expected = theirs(pixel_values=pixels, labels=torch.tensor(label)).loss
  expected.backward()
  for parameter in theirs.parameters():  # to be saved under the names of files
    parameter.data = parameter.grad
  theirs.save_pretrained(tmp_path / 'gradients')
  gradients = read_weights(tmp_path / 'gradients/model.safetensors')

  def loss(params):
    logits = model.apply({**variables, 'params': params}, image)
    total, count = softmax_cross_entropy(logits, label)
    return total / count

  value, gradient = jit(jax.value_and_grad(loss), once=True)(variables['params'])
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  ours = flat_paths({'params': gradient})
  for row in source.rows:
    if row.path.startswith('params/') and not row.path.endswith('key/bias'):  # those are 0
      g = row.transform(gradients[row.key])
      near = {'rtol': 1e-3, 'atol': 1e-4 * np.abs(g).max()}
      np.testing.assert_allclose(ours[row.path], g, **near, err_msg=row.path)
