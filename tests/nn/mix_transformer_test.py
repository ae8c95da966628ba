"""Mix Transformers: sizes as published, a block by loops, what is left out at random."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract, apply, count, filled
from scipy.special import erf, softmax

from segjax.nn import mix_transformer as mit
from segjax.types import SegjaxError


def draw(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Parameters as the paper's code has them, without a classifier.
@pytest.mark.parametrize(
  ('size', 'millions'),
  [('b0', 3.3), ('b1', 13.2), ('b2', 24.2), ('b3', 44.1), ('b4', 60.8), ('b5', 81.4)],
)
def test_sizes_are_those_of_the_paper(size, millions):
  variables, features = abstract(mit.MixTransformer(size), (1, 64, 96, 3))
  assert round(count(variables['params']) / 1e6, 1) == millions
  widths = mit.SIZES[size].widths
  strides = (4, 8, 16, 32)
  expected = [(1, 64 // s, 96 // s, d) for s, d in zip(strides, widths, strict=True)]
  assert [x.shape for x in features] == expected


@pytest.mark.parametrize('size', [(29, 29), (33, 63), (75, 101)])
def test_any_size_from_29_on(size):
  _, features = abstract(mit.MixTransformer('b0'), (1, *size, 3))
  expected = [tuple(-(-n // s) for n in size) for s in (4, 8, 16, 32)]
  assert [x.shape[1:3] for x in features] == expected


@pytest.mark.parametrize('size', [(28, 64), (64, 28)])
def test_a_stage_without_a_key_is_an_error(size):
  with pytest.raises(SegjaxError, match=f'{size[0]}x{size[1]} is too small .* at least 29x29'):
    abstract(mit.MixTransformer('b0'), (1, *size, 3))


@pytest.mark.parametrize('reduction', [1, 2])
def test_a_block_by_hand(reduction):
  """Eq. 2 and 3 in float64, a token after the other; the last row fills no window."""
  heads, width, h, w = 2, 6, 5, 4
  block = mit.Block(heads, reduction)
  x = draw((1, h, w, width))
  variables = filled(abstract(block, x.shape)[0])
  p = jax.tree.map(lambda a: a.astype(float), variables['params'])

  def norm(x, q):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * q['scale'] + q['bias']

  def linear(x, q):
    return x @ q['kernel'] + q['bias']

  x = x[0].astype(float)
  y = norm(x, p['norm1'])
  others = y.reshape(-1, width)
  if reduction > 1:
    windows = [
      np.einsum('ijc,ijcd->d', y[i : i + 2, j : j + 2], p['reduce']['kernel'])
      for i in range(0, h - 1, 2)
      for j in range(0, w - 1, 2)
    ]
    others = norm(np.array(windows) + p['reduce']['bias'], p['reduce_norm'])
    assert others.shape == (4, width)
  q, k, v = (
    linear(tokens, p['attention'][name]).reshape(-1, heads, width // heads)
    for name, tokens in (('query', y.reshape(-1, width)), ('key', others), ('value', others))
  )
  joined = np.zeros((h * w, heads, width // heads))
  for t, head in np.ndindex(h * w, heads):
    weights = softmax(k[:, head] @ q[t, head] / np.sqrt(width // heads))
    joined[t, head] = weights @ v[:, head]
  x = x + linear(joined.reshape(h, w, width), p['attention']['out'])

  y = linear(norm(x, p['norm2']), p['mlp']['fc1'])
  padded = np.pad(y, ((1, 1), (1, 1), (0, 0)))
  kernel = p['mlp']['depthwise']['kernel'][:, :, 0]
  for i, j in np.ndindex(h, w):
    y[i, j] = (padded[i : i + 3, j : j + 3] * kernel).sum((0, 1))
  y += p['mlp']['depthwise']['bias']
  x = x + linear(y * (1 + erf(y / np.sqrt(2))) / 2, p['mlp']['fc2'])
  np.testing.assert_allclose(apply(block, variables, draw((1, h, w, width)))[0], x, rtol=1e-4)


def test_parts_of_a_block_are_left_out_for_whole_images():
  """Each of the two on its own, at the rate; otherwise they are divided by 1 - rate."""
  x, block = draw((256, 2, 3, 4)), mit.Block(1)
  variables = filled(abstract(block, x.shape)[0])
  # Each part adds its last bias, and the same to all tokens.
  params = jax.tree.map(np.zeros_like, variables['params'])
  params['attention']['out']['bias'] = np.ones(4, np.float32)
  params['mlp']['fc2']['bias'] = np.full(4, 10, np.float32)
  run = functools.partial(block.apply, rngs={'dropout': jax.random.key(0)})
  added = np.asarray(jax.jit(run)({'params': params}, x, np.float32(0.25))) - x
  assert np.ptp(added, (1, 2, 3)).max() < 1e-4, 'all of an image alike'
  values, counts = np.unique((0.75 * added[:, 0, 0, 0]).round(3), return_counts=True)
  np.testing.assert_allclose(values, [0, 1, 10, 11], atol=1e-3)
  # Four standard deviations around 16, 48, 48 and 144.
  for found, (least, most) in zip(counts, [(1, 31), (24, 72), (24, 72), (112, 176)], strict=True):
    assert least <= found <= most


def test_mean_of_what_is_left_out():
  """In bfloat16 too, in which the result is."""
  x = jnp.ones((4096, 1, 2), jnp.bfloat16)
  y = mit.drop_path(jax.random.key(0), x, np.float32(0.5))
  assert y.dtype == jnp.bfloat16
  assert set(np.unique(np.asarray(y, np.float32))) == {0.0, 2.0}
  assert abs(np.asarray(y, np.float32).mean() - 1) < 4 / 64
  np.testing.assert_array_equal(mit.drop_path(jax.random.key(0), x, np.float32(0)), x)


def test_rates_rise_to_the_last_block(monkeypatch):
  """Linearly from 0, and are 0 in evaluation."""
  found = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, mit.Block) and context.method_name == '__call__':
      found.append(args[1])
    return call(*args, **kwargs)

  monkeypatch.setattr(nn, 'jit', lambda block: block)  # else they are traced
  model = mit.MixTransformer('b0', drop_path=0.14)
  variables, _ = abstract(model, (1, 32, 32, 3))
  run = functools.partial(model.apply, rngs={'dropout': jax.random.key(0)})
  for train in (True, False):
    with nn.intercept_methods(note):
      jax.eval_shape(functools.partial(run, train=train), variables, np.zeros((1, 32, 32, 3)))
  np.testing.assert_allclose(found[:8], np.arange(8) * 0.02, atol=1e-7)
  assert found[8:] == [None] * 8
