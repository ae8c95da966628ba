"""EoMT: a plain ViT with queries, whose masked attention is annealed away."""

import functools

import jax
import numpy as np
import pytest
from networks import abstract, apply, filled

from segjax import run
from segjax.models import eomt
from segjax.models.eomt import EoMT, annealed_share, center_values
from segjax.nn import vit
from segjax.training.compile import jit
from segjax.types import SegjaxError

ATOM = vit.VitSize(12, 3, 3)
KEYWORDS = {
  'size': 'atom',
  'patch': 8,
  'queries': 6,
  'query_blocks': 2,
  'grid': (4, 4),
  'registers': 1,
  'annealing': ((2, 4), (3, 7)),
}
with pytest.MonkeyPatch.context() as _patch:
  _patch.setitem(vit.SIZES, 'atom', ATOM)
  MODEL = EoMT(5, **KEYWORDS)
IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope='module', autouse=True)
def atom():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(vit.SIZES, 'atom', ATOM)
    yield


@pytest.fixture(scope='module')
def variables(atom):
  return {'params': filled(abstract(MODEL, IMAGE.shape)[0]['params'])}


def masked(variables, share):
  return {**variables, 'masked': {'share': np.float32(share)}}


def test_shapes(variables):
  (last,) = apply(MODEL, variables, IMAGE)
  assert last.classes.shape == (2, 6, 6) and last.masks.shape == (2, 6, 8, 8)
  assert last.classes.dtype == last.masks.dtype == np.float32


@pytest.mark.parametrize(('patch', 'side'), [(4, 16), (8, 8), (16, 8), (32, 8)])
def test_masks_are_at_a_quarter_of_the_size(patch, side):
  model = MODEL.clone(patch=patch, grid=(32 // patch,) * 2, annealing=())
  (last,) = abstract(model, IMAGE.shape)[1]
  assert last.masks.shape[2:] == (side, side)


def test_an_image_of_another_size(variables):
  (last,) = abstract(MODEL.clone(annealing=()), (1, 48, 16, 3))[1]
  assert last.masks.shape == (1, 6, 12, 4)


def test_training_predicts_before_each_block_and_after_the_last(variables):
  found, state = apply(
    MODEL, variables, IMAGE, KEYS, step=np.int32(0), train=True, mutable=['masked']
  )
  assert len(found) == 3
  np.testing.assert_array_equal(state['masked']['share'], [1, 1])
  assert len(abstract(MODEL.clone(annealing=()), IMAGE.shape, train=True)[1]) == 3


def test_without_masks_it_is_a_plain_network(variables):
  """At the end of the annealing, in training and with the shares kept."""
  (plain,) = apply(MODEL, variables, IMAGE)
  *_, kept = apply(MODEL, masked(variables, [0, 0]), IMAGE)
  (*_, trained), state = apply(
    MODEL, variables, IMAGE, KEYS, step=np.int32(7), train=True, mutable=['masked']
  )
  for found in (kept, trained):
    np.testing.assert_allclose(found.masks, plain.masks, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.classes, plain.classes, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(state['masked']['share'], [0, 0])


def test_inference_after_the_annealing_is_that_of_a_plain_vit(variables):
  """The program is that of a network that never masked its attention; until then it is another."""
  program = lambda model, variables: str(jax.make_jaxpr(model.apply)(variables, IMAGE))
  plain = program(MODEL.clone(annealing=()), variables)
  finished = run._without_masking(masked(variables, [0, 0]))
  assert program(MODEL, finished) == plain
  assert ' where ' not in plain and 'select_n' not in plain and 'random' not in plain
  unfinished = run._without_masking(masked(variables, [0, 0.5]))
  assert 'select_n' in program(MODEL, unfinished)


def test_masks_change_what_queries_see(variables):
  (plain,) = apply(MODEL, variables, IMAGE)
  *_, found = apply(MODEL, masked(variables, [1, 1]), IMAGE)
  assert np.abs(found.classes - plain.classes).max() > 1e-3


def test_the_masked_queries_depend_on_the_image_alone(variables):
  """Not on its place in the batch."""
  half = masked(variables, [0.5, 0.5])
  *_, both = apply(MODEL, half, IMAGE, KEYS)
  *_, second = apply(MODEL, half, IMAGE[1:], KEYS[1:])
  np.testing.assert_allclose(both.masks[1:], second.masks, rtol=1e-4, atol=1e-4)
  *_, other = apply(MODEL, half, IMAGE, KEYS[::-1])
  assert np.abs(other.classes - both.classes).max() > 1e-4


def test_annealing_is_block_after_block():
  share = lambda step: np.asarray(annealed_share(np.int32(step), ((10, 20), (20, 40))))
  np.testing.assert_allclose(share(0), [1, 1])
  np.testing.assert_allclose(share(15), [0.5**0.9, 1], rtol=1e-6)
  np.testing.assert_allclose(share(30), [0, 0.5**0.9], rtol=1e-6)
  np.testing.assert_allclose(share(99), [0, 0])


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_values_at_the_centers_of_patches(factor):
  """Of a plane, which bilinear interpolation keeps."""
  y, x = np.mgrid[: 3 * factor, : 5 * factor] + 0.5
  plane = (2 * y - 3 * x)[None, None].astype(np.float32)
  at_y, at_x = np.mgrid[:3, :5] + 0.5
  found = center_values(plane, (3, 5))
  np.testing.assert_allclose(found[0, 0], factor * (2 * at_y - 3 * at_x), rtol=1e-5)


def test_remat_and_bfloat16(variables):
  (plain,) = apply(MODEL, variables, IMAGE)
  (again,) = apply(MODEL.clone(remat=True), variables, IMAGE)
  np.testing.assert_allclose(again.masks, plain.masks, rtol=1e-5, atol=1e-5)
  (low,) = apply(MODEL.clone(dtype='bfloat16'), variables, IMAGE)
  assert low.masks.dtype == np.float32
  assert np.corrcoef(low.masks.ravel(), plain.masks.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'query_blocks': 4}, 'query_blocks=4 must be at most 3'),
    ({'annealing': ((0, 1),)}, 'annealing has 1 entries.*each of the 2 blocks'),
    ({'annealing': ((0, 1), (3, 3))}, r'annealing\[1\]=\(3, 3\) must be .*the first must be less'),
  ],
)
def test_keys_that_do_not_fit(keys, message):
  with pytest.raises(SegjaxError, match=message):
    EoMT(5, **{**KEYWORDS, **keys})


def test_what_a_query_attends_to_by_its_definition():
  """Queries see all tokens but the patches in whose center their mask is not positive."""
  rng = np.random.default_rng(0)
  masks, grid = rng.normal(size=(2, 3, 4, 6)).astype(np.float32), (2, 3)
  queries, patches, between = 3, 6, 2
  tokens = queries + between + patches
  keys = jax.random.split(jax.random.key(1), 2)
  draws = [jax.random.uniform(jax.random.fold_in(key, 7), (queries,)) for key in keys]
  share = np.float32(np.sort(np.ravel(draws))[2:4].mean())  # three of the six are masked
  find = lambda share, keys: np.asarray(eomt._attention_mask(masks, grid, tokens, share, keys, 7))
  found, all_masked, none_masked = (find(np.float32(s), keys) for s in (share, 1, 0))
  for image in range(2):
    for token in range(tokens):
      for other in range(tokens):
        positive = True
        if token < queries and other >= tokens - patches:
          row, column = divmod(other - (tokens - patches), grid[1])
          middle = masks[image, token, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
          positive = middle.mean() > 0
        drawn = token >= queries or draws[image][token] < share
        assert all_masked[image, token, other] == positive
        assert found[image, token, other] == (positive or not drawn)
  assert none_masked.all()
  assert (~found).any(2).sum() <= 3 < (~all_masked).any(2).sum()
  # Without keys each image is masked as the others.
  same = eomt._attention_mask(np.stack([masks[0]] * 2), grid, tokens, np.float32(0.3), None, 7)
  np.testing.assert_array_equal(same[0], same[1])
  masked, maskable = (~np.asarray(same[0])).any(1).sum(), (~all_masked[0]).any(1).sum()
  assert 0 < masked < maskable


def test_gradients_with_remat(variables):
  """Activations that are computed again give the same gradient, and each block is."""

  def loss(model):
    def total(params):
      (last,) = model.apply({'params': params}, IMAGE)
      return (last.masks**2).mean() + (last.classes**2).mean()

    return total

  def count(jaxpr):
    """Computations that are done again, also in the blocks, which are functions of their own."""
    parts = [x.jaxpr for e in jaxpr.eqns for x in e.params.values() if hasattr(x, 'jaxpr')]
    return sum('prevent_cse' in e.params for e in jaxpr.eqns) + sum(map(count, parts))

  plain, again = MODEL.clone(annealing=()), MODEL.clone(annealing=(), remat=True)
  traced = (jax.make_jaxpr(jax.grad(loss(m)))(variables['params']) for m in (plain, again))
  assert [count(one.jaxpr) for one in traced] == [0, ATOM.depth]
  expected, found = (
    jit(jax.grad(loss(model)), once=True)(variables['params']) for model in (plain, again)
  )
  # That of a key's bias is 0 but for rounding.
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * largest)
  jax.tree.map(same, found, expected)
