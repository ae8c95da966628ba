"""EoMT's tables: complete on both sides; logits, losses and results equal to transformers'.

The comparison needs torch and transformers, which segjax does not depend on; else it is skipped.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.convert import eomt
from segjax.convert.load import SOURCES, Pretrained, flat_paths, load_into
from segjax.convert.table import convert
from segjax.losses import queries as losses
from segjax.models.eomt import EoMT, MatchingConfig
from segjax.nn import vit
from segjax.ops import mask_sets
from segjax.ops.masks import pack_masks
from segjax.tasks import queries
from segjax.types import SegjaxError

CLASSES, QUERIES, SIDE = 5, 6, 64
OTHERS = {'size': 'atom', 'queries': QUERIES, 'query_blocks': 1, 'grid': (4, 4)}


@functools.cache
def shapes(size, **keys):
  """Of the parameters of a network, by path."""
  model = EoMT(CLASSES, size=size, queries=QUERIES, grid=(4, 4), **keys)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32)
  )
  return flat_paths(variables)


@pytest.mark.parametrize('name', eomt.SOURCES)
def test_rows_are_the_parameters_of_the_network(name):
  """Each of them once, but for those that a source says are new."""
  kind, _, size = name.partition('/')
  size, _, registers = size.removeprefix('eomt_').partition('_')
  keys = {'registers': 0} if kind == 'dinov2' and not registers else {}
  paths = [row.path for row in SOURCES[name].rows]
  assert len(set(paths)) == len(paths)
  rest = set(shapes(size, **keys)) - set(paths)
  assert set(paths) <= set(shapes(size, **keys))
  heads = {path for path in rest if path.startswith(('params/head/', 'params/query'))}
  assert rest == heads and bool(heads) == (kind == 'dinov2')


def random_dinov2(width=12, depth=2, patch=14, side=3):
  """Arrays as a file of DINOv2 with register tokens has them."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  arrays = {
    'cls_token': draw(1, 1, width),
    'register_tokens': draw(1, 4, width),
    'mask_token': draw(1, width),
    'pos_embed': draw(1, 1 + side**2, width),
    'patch_embed.proj.weight': draw(width, 3, patch, patch),
    'patch_embed.proj.bias': draw(width),
    'norm.weight': draw(width),
    'norm.bias': draw(width),
  }
  for i in range(depth):
    layers = {'attn.qkv': (3, 1), 'attn.proj': (1, 1), 'mlp.fc1': (4, 1), 'mlp.fc2': (1, 4)}
    for layer, (out, into) in layers.items():
      arrays[f'blocks.{i}.{layer}.weight'] = draw(out * width, into * width)
      arrays[f'blocks.{i}.{layer}.bias'] = draw(out * width)
    for name in ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias'):
      arrays[f'blocks.{i}.{name}'] = draw(width)
    arrays |= {f'blocks.{i}.ls{k}.gamma': draw(width) for k in (1, 2)}
  return arrays


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setitem(vit.SIZES, 'atom', vit.VitSize(12, 2, 3))
  return 'atom'


def load_dinov2(size, arrays, **keys):
  """A new network with the arrays of a file."""
  source = eomt.dinov2_source(size, registers=True)
  converted = convert(arrays, {'it': source}, 'it', 'a file')
  model = EoMT(CLASSES, size=size, queries=QUERIES, query_blocks=1, **keys)
  image = np.zeros((1, SIDE, SIDE, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(variables))
  params = zeros.pop('params')
  pretrained = Pretrained('a file', converted, source.new, source.spare, source.resized)
  return load_into(params, zeros, pretrained)


def test_a_file_of_dinov2_is_resized_to_the_network(small):
  arrays = random_dinov2()
  params, _, report = load_dinov2(small, arrays, grid=(4, 4), annealing=((1, 2),))
  embedding = params['embedding']
  assert embedding['patches']['kernel'].shape == (16, 16, 3, 12)
  token = arrays['cls_token'][0, 0] + arrays['pos_embed'][0, 0]
  np.testing.assert_array_equal(embedding['class_token'], token)
  assert embedding['position'].shape == (4, 4, 12)
  # Interpolation keeps the mean, nearly.
  before, after = arrays['pos_embed'][0, 1:].mean(0), embedding['position'].mean((0, 1))
  assert np.corrcoef(before, after)[0, 1] > 0.9
  assert all(path.startswith(('params/head', 'params/query', 'masked')) for path in report.new)
  value = params['block1']['attention']['value']['kernel']
  np.testing.assert_array_equal(value, arrays['blocks.1.attn.qkv.weight'][24:].T)


def test_a_resized_kernel_has_the_same_product_with_resized_patches():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(14, 14, 3, 5)).astype(np.float32)
  patch = rng.normal(size=(14, 14, 3)).astype(np.float32)
  large = jax.image.resize(patch, (16, 16, 3), 'cubic', precision='highest')
  found = np.einsum('ijc,ijcd->d', large, eomt.resize_patches(kernel, (16, 16)))
  np.testing.assert_allclose(found, np.einsum('ijc,ijcd->d', patch, kernel), rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(eomt.resize_patches(kernel, (14, 14)), kernel, atol=1e-4)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'patch_embed.proj.bias': None}, 'has no patch_embed.proj.bias'),
    ({'head.weight': np.zeros(3)}, 'has head.weight'),
    ({'pos_embed': np.zeros((1, 9, 12), np.float32)}, 'its pos_embed is 1x9x12'),
  ],
)
def test_a_file_of_another_network(small, change, message):
  arrays = {**random_dinov2(), **change}
  arrays = {key: value for key, value in arrays.items() if value is not None}
  with pytest.raises(SegjaxError, match=message):
    load_dinov2(small, arrays, grid=(4, 4))


def test_a_file_of_another_width(small, monkeypatch):
  monkeypatch.setitem(vit.SIZES, small, vit.VitSize(24, 2, 3))
  with pytest.raises(SegjaxError, match=r'shape .*12.* where this network has .*24'):
    load_dinov2(small, random_dinov2(), grid=(4, 4))


@pytest.mark.parametrize('kind', ['eomt/{}', 'transformers/eomt_{}', 'dinov2/{}_reg4'])
def test_a_file_of_another_size(kind):
  arrays = {row.key: np.zeros((1, 1, 1)) for row in SOURCES[kind.format('large')].rows}
  source = kind.format('small')
  with pytest.raises(SegjaxError, match=rf'FILE is not {source}.*: use the source .*_?large'):
    convert(arrays, SOURCES, source, 'FILE')


@pytest.mark.parametrize(
  ('keys', 'path'),
  [({'patch': 8}, 'patches/kernel'), ({'queries': 9}, 'query'), ({'grid': (8, 8)}, 'position')],
)
def test_a_run_of_another_network(small, keys, path):
  """But for how its attention is masked, which is the new run's to say."""
  make = lambda **keys: EoMT(CLASSES, **{**OTHERS, **keys})
  image = np.zeros((1, SIDE, SIDE, 3), np.float32)

  def zeros(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))

  pretrained = Pretrained('runs/a', flat_paths({'params': zeros(make())['params']}))
  state = zeros(make(annealing=((0, 1),)))
  _, state, report = load_into(state.pop('params'), state, pretrained)
  assert report.new == ('masked/share',)
  other = zeros(make(**keys))
  with pytest.raises(
    SegjaxError, match=f'runs/a has params/.*{path} of shape .*change config.model'
  ):
    load_into(other.pop('params'), {}, pretrained)


# --- transformers ---------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=['mlp', 'swiglu'])
def pair(request, monkeypatch):
  """(transformers' network with random weights, ours, the variables of ours)."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  monkeypatch.setitem(vit.SIZES, 'atom', vit.VitSize(32, 3, 4, request.param))
  config = transformers.EomtConfig(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=SIDE,
    num_blocks=2,
    num_queries=QUERIES,
    use_swiglu_ffn=request.param,
    id2label={i: str(i) for i in range(CLASSES)},
    attn_implementation='eager',
  )
  torch.manual_seed(0)
  theirs = transformers.EomtForUniversalSegmentation(config).double().eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.15)
  arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
  source = eomt.transformers_source('atom')
  converted = convert(arrays, {'it': source}, 'it', 'a file')
  model = EoMT(CLASSES, size='atom', queries=QUERIES, query_blocks=2, grid=(4, 4))
  image = np.zeros((1, SIDE, SIDE, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(variables))['params']
  pretrained = Pretrained('a file', converted, (), (), ())
  params, _, report = load_into(params, {}, pretrained)
  assert not report.new and not report.unused
  return theirs, model, {'params': params}


def test_logits_are_those_of_transformers(pair):
  import torch

  theirs, model, variables = pair
  image = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
  pixels = torch.tensor(image.transpose(0, 3, 1, 2)).double()
  for share in (0.0, 1.0):
    with torch.no_grad():
      theirs.attn_mask_probs.fill_(share)
      expected = theirs(pixel_values=pixels)
    state = {'masked': {'share': jnp.full(2, share)}} if share else {}
    ours = model.clone(annealing=((1, 2), (1, 2))) if share else model
    *_, found = jax.jit(ours.apply)({**variables, **state}, image)
    for a, b in (
      (found.classes, expected.class_queries_logits),
      (found.masks, expected.masks_queries_logits),
    ):
      np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5 * np.abs(b.numpy()).max())


def test_losses_and_gradients_are_those_of_transformers(pair, monkeypatch):
  """With the same points, all queries masked in attention; in float64, but for the predictions."""
  import torch
  from transformers.models.eomt import modeling_eomt

  theirs, model, variables = pair
  count, objects, rng = 64, 3, np.random.default_rng(0)
  image = rng.normal(size=(2, SIDE, SIDE, 3))
  masks = rng.random((2, objects, SIDE, SIDE)) < 0.3
  classes = rng.integers(0, CLASSES, (2, objects))
  of_matching, of_losses = rng.random((2, count, 2))

  # The criterion's points; of the matching, one set for all masks.
  monkeypatch.setattr(modeling_eomt.torch, 'rand', lambda *_, **__: torch.tensor(of_matching)[None])
  theirs.criterion.sample_points_using_uncertainty = lambda logits, *_: torch.tensor(
    of_losses
  ).expand(len(logits), -1, -1)
  theirs.train()
  theirs.attn_mask_probs.fill_(1.0)
  out = theirs(
    pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
    mask_labels=list(torch.tensor(masks).double()),
    class_labels=list(torch.tensor(classes)),
  )
  out.loss.backward()
  gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  source = {'it': eomt.transformers_source('atom')}
  expected = convert(gradients, source, 'it', 'a file')

  def uniform(key, shape, *_):
    return jnp.asarray(of_matching) if shape == (count, 2) else jnp.zeros(shape)

  monkeypatch.setattr(jax.random, 'uniform', uniform)
  monkeypatch.setattr(
    queries.point_ops,
    'uncertain_points',
    lambda key, logits_at, count, n, **_: jnp.broadcast_to(jnp.asarray(of_losses), (n, count, 2)),
  )
  model = model.clone(
    annealing=((1, 2), (1, 2)), matching=MatchingConfig(points=count), dtype='float64'
  )

  def total(params):
    keys = jax.random.split(jax.random.key(0), 2)
    state = {'params': params, 'masked': {'share': jnp.ones(2)}}
    predictions, _ = model.apply(state, image, keys, step=0, train=True, mutable=['masked'])
    none = jnp.zeros((2, 0), jnp.int32)
    targets = queries.Targets(
      jnp.asarray(classes, jnp.int32),
      jnp.ones((2, objects), bool),
      pack_masks(masks),
      jnp.zeros((2, SIDE, SIDE), jnp.int32),
      none,
    )
    matched = queries.match(predictions, targets, keys, model.matching, jnp.ones(2, bool))
    terms = ((losses.query_class, 2), (losses.query_mask, 5), (losses.query_dice, 5))
    parts = [(loss({'matched': matched}), scale) for loss, scale in terms]
    return sum(scale * part.sum / part.count for part, scale in parts)

  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables['params'])
    loss, found = jax.value_and_grad(total)(params)
  np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-6)
  found = flat_paths({'params': found})
  assert found.keys() == expected.keys()
  largest = max(np.abs(x).max() for x in expected.values())
  for path, gradient in expected.items():
    tolerance = 1e-5 * max(np.abs(gradient).max(), 1e-3 * largest)
    np.testing.assert_allclose(found[path], gradient, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize('seed', range(4))
def test_results_are_those_of_transformers(seed):
  """Of its image processor, at the size of the network's input."""
  torch = pytest.importorskip('torch')
  processing = pytest.importorskip('transformers.models.eomt.image_processing_eomt')
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:16, :16] + 0.5
  center, radius = rng.uniform(0, 16, (2, QUERIES, 1, 1)), rng.uniform(2, 8, (QUERIES, 1, 1))
  masks = (2 * (radius - np.hypot(y - center[0], x - center[1]))).astype(np.float32)
  classes = rng.normal(0, 5, (QUERIES, CLASSES + 1)).astype(np.float32)
  size, native = {'shortest_edge': SIDE, 'longest_edge': SIDE}, (SIDE, SIDE)
  processor = processing.EomtImageProcessor(size=size)

  class outputs:  # noqa: N801 -- what it reads of a network
    masks_queries_logits = torch.tensor(masks)[None]
    class_queries_logits = torch.tensor(classes)[None]
    patch_offsets = None

  (expected,) = processor.post_process_semantic_segmentation(outputs, [native], size)
  scores = mask_sets.semantic_scores(classes, masks, native)
  assert (np.argmax(scores, -1) == expected.numpy()).mean() > 0.999

  things = (1, 3, 4)
  stuff = [i for i in range(CLASSES) if i not in things]
  (expected,) = processor.post_process_panoptic_segmentation(
    outputs, [native], threshold=0.4, stuff_classes=stuff, size=size
  )
  whole = np.array(native)
  ids, kinds, _, valid = mask_sets.find_segments(
    classes, masks, native, whole, whole, native, things=things,
    score_threshold=0.4, mask_threshold=0.5, overlap_threshold=0.8,
  )  # fmt: skip
  info = expected['segments_info']
  assert [s['label_id'] for s in info] == np.asarray(kinds)[np.asarray(valid)].tolist()
  place = np.concatenate([[-1], np.cumsum(valid) - 1])
  assert (place[np.asarray(ids)] == expected['segmentation'].numpy()).mean() > 0.999

  (expected,) = processor.post_process_instance_segmentation(
    outputs, [native], threshold=0.05, size=size
  )
  found = mask_sets.find_objects(classes, masks, native, whole, QUERIES * CLASSES)
  for segment in expected['segments_info']:
    same = np.asarray(found.classes) == segment['label_id']
    np.testing.assert_allclose(
      np.abs(np.asarray(found.scores)[same] - segment['score']).min(), 0, atol=2e-6
    )
