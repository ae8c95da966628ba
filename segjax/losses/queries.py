"""Losses of a network that predicts a set of masks with classes (Mask2Former, arXiv 2112.01527).

They read the training outputs of such a network, `Matched`: L predictions (a network is supervised
after several of its blocks), each matched with the ground truth on its own. Their sums are over all
L, their counts are those of one, as losses of the blocks add up (EoMT, §3.2).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from segjax.types import Array, NonNegativeFloat, SumCount


class Matched(NamedTuple):
  """Predictions and their targets.

  Attributes:
    classes: f32[L, B, Q, C + 1], logits; "no object" comes last.
    target: i32[L, B, Q], classes; C for "no object".
    points: f32[L, B, N, P], mask logits at points, of the query that is matched with each object.
    mask: f32[L, B, N, P], the object's mask at these points, from 0 to 1.
    valid: bool[B, N], False for padding.
    example: bool[B], False for padding examples.
  """

  classes: Array
  target: Array
  points: Array
  mask: Array
  valid: Array
  example: Array


def query_class(outputs: Mapping[str, Any], *, no_object: NonNegativeFloat = 0.1) -> SumCount:
  """Cross-entropy of the classes of all queries, divided by their weights.

  Args:
    outputs: of the task in training, with `matched`.
    no_object: weight of queries that are matched with no object.
  """
  matched: Matched = outputs['matched']
  none = matched.classes.shape[-1] - 1
  weight = jnp.where(matched.target == none, no_object, 1.0)
  weight = jnp.where(matched.example[:, None], weight, 0.0)
  loss = optax.softmax_cross_entropy_with_integer_labels(matched.classes, matched.target)
  return SumCount((weight * loss).sum(), weight[0].sum())


def query_mask(outputs: Mapping[str, Any]) -> SumCount:
  """Cross-entropy of the masks at the sampled points, averaged over the points of an object."""
  matched: Matched = outputs['matched']
  loss = optax.sigmoid_binary_cross_entropy(matched.points, matched.mask).mean(-1)
  return _of_objects(loss, matched.valid)


def query_dice(outputs: Mapping[str, Any]) -> SumCount:
  """1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) over the points of each object (Milletari et al. 2016)."""
  matched: Matched = outputs['matched']
  p, t = jax.nn.sigmoid(matched.points), matched.mask
  loss = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
  return _of_objects(loss, matched.valid)


def _of_objects(loss: Array, valid: Array) -> SumCount:
  return SumCount(jnp.where(valid, loss, 0.0).sum(), valid.sum().astype(jnp.float32))
