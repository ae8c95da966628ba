"""Attention against its definition, and in the form for CPUs against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from segjax.ops import attention as ops
from segjax.ops.attention import attention
from segjax.training.compile import jit

# Name: B, T, S, H, d.
SHAPES = {
  'one head': (1, 5, 5, 1, 4),
  'heads and images': (3, 7, 7, 3, 8),
  'more keys than queries': (2, 3, 9, 2, 4),
  'one key': (2, 4, 1, 2, 4),
}


def arrays(name, masked=False, dtype='f4'):
  """query, key, value, and a mask of which the last query of an image attends to nothing."""
  batch, queries, keys, heads, channels = SHAPES[name]
  rng = np.random.default_rng(0)
  q = rng.normal(size=(batch, queries, heads, channels)).astype(dtype)
  k, v = rng.normal(size=(2, batch, keys, heads, channels)).astype(dtype)
  if not masked:
    return q, k, v
  mask = rng.random((batch, queries, keys)) < 0.6
  mask[:, -1] = False
  return q, k, v, mask


def plain(q, k, v, mask=None):
  return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None])


def by_hand(q, k, v, mask=None):
  out = np.zeros(q.shape)
  for b, t, h in np.ndindex(*q.shape[:3]):
    scores = k[b, :, h].astype(float) @ q[b, t, h] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    if mask is not None and mask[b, t].any():
      weights *= mask[b, t]
    elif mask is not None:
      weights[:] = 1
    out[b, t, h] = weights / weights.sum() @ v[b, :, h]
  return out


@pytest.fixture(params=[None, 11], ids=['at once', 'in turns'])
def turns(request, monkeypatch):
  """With few scores at once, which do not divide the queries."""
  if request.param:
    monkeypatch.setattr(ops, '_MOST_SCORES', request.param)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.usefixtures('turns')
def test_equals_the_definition(name, masked):
  given = arrays(name, masked)
  np.testing.assert_allclose(attention(*given), by_hand(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.usefixtures('turns')
def test_equals_jax_forwards_and_backwards(name, masked):
  given = arrays(name, masked)
  g = np.random.default_rng(1).normal(size=given[0].shape).astype('f4')

  def both(function, q, k, v, *mask):
    y, pullback = jax.vjp(lambda q, k, v: function(q, k, v, *mask), q, k, v)
    return y, *pullback(g)

  ours, theirs = jit(lambda *a: (both(attention, *a), both(plain, *a)), once=True)(*given)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert a.dtype == jnp.float32


@pytest.mark.parametrize('masked', [False, True])
def test_numerical_gradient_to_second_order(masked):
  q, k, v, *mask = (a[:1] for a in arrays('heads and images', masked))
  function = jax.jit(lambda q, k, v: attention(q, k, v, *mask))
  check_grads(function, (q, k, v), 2, ['rev'], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('form', ['cpu', 'default'])
def test_many_queries_take_no_memory_for_all_scores(form, monkeypatch):
  """Neither forwards nor backwards, in both forms."""
  if form == 'default':
    choose = lambda *args, cpu, default: default(*args)
    monkeypatch.setattr(ops.lax, 'platform_dependent', choose)
  shape = lambda tokens: jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)
  queries, keys = 2**15, 2**11
  loss = lambda q, k, v: (attention(q, k, v) ** 2).sum()
  for function in (attention, jax.grad(loss, (0, 1, 2))):
    program = jit(function, once=True).lower(shape(queries), shape(keys), shape(keys)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.6 * 4 * queries * keys


def test_scores_too_large_for_an_exponential():
  q, k, v = arrays('heads and images')
  assert np.isfinite(attention(1e3 * q, k, v)).all()
  gradient = jax.grad(lambda q, k, v: attention(q, k, v).sum(), (0, 1, 2))(1e3 * q, k, v)
  assert all(np.isfinite(a).all() for a in gradient)


def test_keeps_bfloat16():
  given = arrays('heads and images', masked=True)
  coarse = [jnp.asarray(a, None if a.dtype == bool else jnp.bfloat16) for a in given]
  loss = lambda q, k, v, mask: (attention(q, k, v, mask).astype(jnp.float32) ** 2).sum()
  found = (attention(*coarse), *jax.grad(loss, (0, 1, 2))(*coarse))
  wanted = (attention(*given), *jax.grad(loss, (0, 1, 2))(*given))
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.abs(np.asarray(a, np.float32) - b).max() < 0.03 * np.abs(b).max()


def test_under_vmap():
  q, k, v, mask = arrays('heads and images', masked=True)
  gradient = jax.grad(lambda q, k, v, mask: (attention(q, k, v, mask) ** 2).sum(), (0, 1, 2))
  one = jax.vmap(lambda *a: gradient(*(x[None] for x in a)))
  for a, b in zip(one(q, k, v, mask), gradient(q, k, v, mask), strict=True):
    np.testing.assert_allclose(a[:, 0], b, rtol=1e-4, atol=1e-5)


def test_is_defined_on_every_platform():
  given = arrays('heads and images', masked=True)
  gradient = jax.grad(lambda q, k, v, mask: attention(q, k, v, mask).sum(), (0, 1, 2))
  exported = jax.export.export(jax.jit(gradient), platforms=('cpu', 'cuda', 'tpu'))(*given)
  assert exported.platforms == ('cpu', 'cuda', 'tpu')


def test_devices_share_the_batch_without_an_exchange():
  q, k, v = (np.concatenate([a, a])[:4] for a in arrays('heads and images'))
  batch = NamedSharding(jax.make_mesh((4,), ('data',)), PartitionSpec('data'))
  gradient = jax.grad(lambda q, k, v: (attention(q, k, v) ** 2).sum(), (0, 1, 2))
  shared = jax.jit(gradient, in_shardings=batch, out_shardings=batch).lower(q, k, v).compile()
  assert not any(word in shared.as_text() for word in ('all-gather', 'all-to-all', 'all-reduce'))
  for a, b in zip(shared(*jax.device_put((q, k, v), batch)), gradient(q, k, v), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_under_checkpoint():
  given = arrays('heads and images', masked=True)
  loss = lambda *a: (attention(*a) ** 2).sum()
  again = jax.grad(jax.checkpoint(loss), (0, 1, 2))(*given)
  for a, b in zip(again, jax.grad(loss, (0, 1, 2))(*given), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('masked', [False, True])
def test_a_step_keeps_the_scores_of_no_head(masked):
  """On a CPU: 24 heads, whose scores of T · T floats would be most of its memory."""
  tokens, heads = 128, 24
  x = jax.ShapeDtypeStruct((1, tokens, heads, 2), jnp.float32)
  mask = (jax.ShapeDtypeStruct((1, tokens, tokens), bool),) if masked else ()
  gradient = jit(jax.grad(lambda *a: attention(*a).sum(), (0, 1, 2)))
  program = gradient.lower(x, x, x, *mask).compile()
  assert program.memory_analysis().temp_size_in_bytes < heads / 2 * 4 * tokens**2
