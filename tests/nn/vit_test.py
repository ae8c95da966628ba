"""Vision transformers: sizes as published, tokens in order, attention that can be masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract, apply, count, filled
from scipy.special import erf

from segjax.nn import vit
from segjax.types import SegjaxError

SIZE = vit.VitSize(12, 2, 3)


@pytest.mark.parametrize(
  ('size', 'millions'), [('small', 22.1), ('base', 86.6), ('large', 304.4), ('giant', 1136.5)]
)
def test_sizes_are_those_of_dinov2(size, millions):
  """With patches of 14, 37 x 37 of them, and a norm at the end."""
  width, depth, *_ = vit.SIZES[size]
  block = abstract(vit.Block(vit.SIZES[size]), (1, 5, width))[0]
  embedding = abstract(vit.Embedding(width, 14, (37, 37), registers=0), (1, 518, 518, 3))[0]
  total = depth * count(block) + count(embedding) + 2 * width
  assert round(total / 1e6, 1) == millions


def test_tokens_are_the_class_then_registers_then_patches_by_rows():
  model = vit.Embedding(4, 8, (2, 3), registers=2)
  variables = filled(abstract(model, (1, 16, 24, 3))[0])
  params = {k: np.zeros_like(v) if k == 'position' else v for k, v in variables['params'].items()}
  image = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
  found = np.asarray(apply(model, {'params': params}, image))
  assert found.shape == (2, 3 + 6, 4)
  np.testing.assert_array_equal(found[0, 0], params['class_token'])
  np.testing.assert_array_equal(found[1, 1:3], params['registers'])
  patch = image[1, 8:, 8:16].reshape(-1)  # row 1, column 1
  kernel, bias = params['patches']['kernel'], params['patches']['bias']
  np.testing.assert_allclose(
    found[1, 3 + 4], patch @ kernel.reshape(-1, 4) + bias, rtol=1e-4, atol=1e-5
  )


def test_positions_of_another_size_are_interpolated():
  position = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None] * np.ones((8, 6, 2), np.float32)
  assert vit.resize_positions(position, (8, 6)) is position
  large = np.asarray(vit.resize_positions(jnp.asarray(position), (16, 6)))
  np.testing.assert_allclose(large[4:-4, 0, 0], (np.arange(4, 12) - 0.5) / 14, atol=1e-3)


def test_no_whole_number_of_patches():
  model = vit.Embedding(4, 16, (2, 2))
  with pytest.raises(SegjaxError, match='40x32 is not a multiple of config.model.patch=16'):
    abstract(model, (1, 40, 32, 3))


@pytest.mark.parametrize('swiglu', [False, True])
def test_masked_tokens_have_no_influence(swiglu):
  block = vit.Block(SIZE._replace(swiglu=swiglu))
  x = np.random.default_rng(0).normal(size=(1, 6, 12)).astype(np.float32)
  variables = filled(abstract(block, x.shape)[0])
  mask = np.ones((1, 6, 6), bool)
  mask[:, :4, 4:] = False  # the last two are seen by none of the others
  whole = np.asarray(apply(block, variables, x, mask))
  part = np.asarray(apply(block, variables, x[:, :4]))
  np.testing.assert_allclose(whole[:, :4], part, rtol=1e-5, atol=1e-5)
  seen = np.asarray(apply(block, variables, x))
  assert np.abs(seen[:, :4] - part).max() > 1e-3


def test_a_block_by_hand():
  """x + s1 attention(norm1(x)), then + s2 mlp(norm2(x)), in float64."""
  block = vit.Block(SIZE)
  x = np.random.default_rng(0).normal(size=(1, 5, 12)).astype(np.float32)
  variables = filled(abstract(block, x.shape)[0])
  p = jax.tree.map(lambda a: a.astype(float), variables['params'])

  def linear(x, q):
    return x @ q['kernel'] + q['bias']

  def norm(x, q):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * q[
      'scale'
    ] + q['bias']

  def heads(x):
    return x.reshape(5, 3, 4).transpose(1, 0, 2)

  y = norm(x[0].astype(float), p['norm1'])
  q, k, v = (heads(linear(y, p['attention'][name])) for name in ('query', 'key', 'value'))
  e = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(4))
  y = (e / e.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(5, 12)
  out = x[0] + p['scale1'] * linear(y, p['attention']['out'])
  hidden = linear(norm(out, p['norm2']), p['mlp']['fc1'])
  out += p['scale2'] * linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p['mlp']['fc2'])
  np.testing.assert_allclose(apply(block, variables, x)[0], out, rtol=1e-4, atol=1e-4)


def test_the_hidden_size_of_swiglu():
  assert vit.mlp_width(1536, swiglu=True) == 4096 and vit.mlp_width(384, swiglu=False) == 1536
