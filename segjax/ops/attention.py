"""Attention of queries to keys and values (Vaswani et al., arXiv 1706.03762, §3.2.1)."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from segjax.types import Array

# Scores of a head and an image; of more, queries take turns.
_MOST_SCORES = 2**23


def attention(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None = None,
  *,
  recompute: bool = False,
) -> Array:
  """softmax(Q Kᵀ / √d) V of each head: `jax.nn.dot_product_attention`, or `by_heads` on a CPU.

  The softmax is computed in float32, on a CPU in float32 at least. A query whose mask is False for
  all keys attends to all alike. With more than 2^23 pairs of a query and a key, such as those of
  Mix Transformers in large images, the queries take turns, and the backward pass computes the
  scores again: memory grows with the number of queries alone. Supports reverse mode only.

  Args:
    query: f[B, T, H, d].
    key, value: f[B, S, H, d].
    mask: bool[B, T, S], whether a query attends to a key; None for all.
    recompute: whether the backward pass computes the scores again, as on a CPU and for many pairs
      it always does: less memory, one product more.

  Returns:
    f[B, T, H, d].
  """
  masks = () if mask is None else (mask,)
  scores = query.shape[1] * key.shape[1]
  # `jax.export` calls a number that is not known by a name.
  if isinstance(scores, int) and scores > _MOST_SCORES:
    return _in_turns(-(-scores // _MOST_SCORES), query, key, value, *masks)
  plain = jax.checkpoint(_plain) if recompute else _plain
  return lax.platform_dependent(query, key, value, *masks, cpu=by_heads, default=plain)


def _plain(query, key, value, *mask):
  mask = mask[0][:, None] if mask else None
  return jax.nn.dot_product_attention(query, key, value, mask=mask)


def _in_turns(turns, query, key, value, *mask):
  """`attention`, every so many queries at once, of which devices that share an image have some."""
  tokens = query.shape[1]
  pads = [(0, 0), (0, -tokens % turns)]

  def split(x):
    x = jnp.pad(x, [*pads, *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, turns, *x.shape[2:]), 2, 0)

  plain = jax.checkpoint(lambda q, *mask: _plain(q, key, value, *mask))
  heads = lambda q, *mask: by_heads(q, key, value, *mask)
  one = lambda parts: lax.platform_dependent(*parts, cpu=heads, default=plain)
  out = jnp.moveaxis(lax.map(one, tuple(map(split, (query, *mask)))), 0, 2)
  return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :tokens]


def by_heads(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
  """`attention`, one head after the other, whose scores the backward pass computes again.

  XLA computes all heads at once, whose scores leave the caches of a CPU between a product and the
  softmax, and keeps them for the backward pass. The batch stays an axis, which devices can share.
  """
  first = lambda x: jnp.moveaxis(x, 2, 0)  # [H, B, T, d]
  one = lambda qkv: _head(*qkv, mask)
  return jnp.moveaxis(lax.map(one, (first(query), first(key), first(value))), 0, 2)


@jax.custom_vjp
def _head(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
  """Of one head: f[B, T, d], f[B, S, d] twice and the mask -> f[B, T, d]."""
  return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):
  scores = _scores(query, key, mask)
  top = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - top)
  share = 1 / weights.sum(-1, keepdims=True)
  out = (_product('bts,bsd->btd', weights.astype(value.dtype), value) * share).astype(value.dtype)
  return out, (query, key, value, mask, out, top, share)


def _backward(residuals, g):
  query, key, value, mask, out, top, share = residuals
  # Without `share`, which costs less in g than in the scores.
  weights = jnp.exp(_scores(query, key, mask) - top)
  g = g * share
  dvalue = _product('bts,btd->bsd', weights.astype(value.dtype), g.astype(value.dtype))
  # Of the softmax: w (dw - Σ w dw), whose sum over the keys is that of g · out over the channels.
  mean = (g * out).sum(-1, keepdims=True)
  dscores = weights * (_product('btd,bsd->bts', g.astype(value.dtype), value) - mean)
  if mask is not None:
    dscores = jnp.where(mask, dscores, 0)
  dscores = (dscores / math.sqrt(query.shape[-1])).astype(query.dtype)
  dquery = _product('bts,bsd->btd', dscores, key)
  dkey = _product('bts,btd->bsd', dscores, query)
  return dquery.astype(query.dtype), dkey.astype(key.dtype), dvalue.astype(value.dtype), None


_head.defvjp(_forward, _backward)


def _scores(query, key, mask):
  scores = _product('btd,bsd->bts', query, key) / math.sqrt(query.shape[-1])
  # Finite, so that a query that attends to nothing has no NaN.
  return scores if mask is None else jnp.where(mask, scores, -1e30)


def _product(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
