"""Results of the three tasks from a set of masks: against loops over queries in float64."""

import functools

import cv2
import jax
import numpy as np
import pytest

from segjax.ops import mask_sets
from segjax.ops.paste_masks import paste_regions

QUERIES, CLASSES, SIDE = 12, 5, 16
CANVAS = (64, 64)
THINGS = (1, 3, 4)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def enlarge(masks, size):
  return np.stack([cv2.resize(m.astype(float), size[::-1]) for m in masks])


@functools.cache
def make_set(seed):
  """Class logits, some of them sure, and masks that are blobs, which overlap."""
  rng = np.random.default_rng(seed)
  classes = rng.normal(0, 4, (QUERIES, CLASSES + 1)).astype(np.float32)
  y, x = np.mgrid[:SIDE, :SIDE] + 0.5
  center, radius = rng.uniform(0, SIDE, (2, QUERIES, 1, 1)), rng.uniform(1, 8, (QUERIES, 1, 1))
  masks = 2 * (radius - np.hypot(y - center[0], x - center[1])) + rng.normal(0, 0.3, (SIDE, SIDE))
  masks[0] = -5  # no pixel
  return classes, masks.astype(np.float32)


def reference_segments(classes, masks, size, native, threshold, mask_threshold, overlap):
  """The public post-processing: queries one after the other."""
  probability = softmax(classes.astype(float))
  large = enlarge(masks, CANVAS)[:, : size[0], : size[1]]
  large = sigmoid(enlarge(large, native))
  kept = [
    q for q in range(QUERIES)
    if probability[q].argmax() < CLASSES and probability[q].max() > threshold
  ]  # fmt: skip
  ids = np.zeros(native, int)
  if not kept:
    return ids, {}
  weighted = np.stack([probability[q].max() * large[q] for q in kept])
  owner = np.array(kept)[weighted.argmax(0)]
  found, stuff = {}, {}
  for q in kept:
    won, mask = owner == q, large[q] >= mask_threshold
    if not (won & mask).any() or won.sum() / mask.sum() <= overlap:
      continue
    kind = int(probability[q].argmax())
    number = q + 1
    if kind not in THINGS:
      number = stuff.setdefault(kind, number)
    ids[won & mask] = number
    found[number] = kind
  return ids, found


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize(
  ('size', 'native', 'thresholds'),
  [
    ((64, 64), (64, 64), (0.8, 0.5, 0.8)),
    ((64, 48), (80, 60), (0.5, 0.5, 0.3)),
    ((40, 64), (20, 32), (0.0, 0.3, 0.5)),
    ((64, 64), (64, 64), (1.0, 0.5, 0.8)),
  ],
)
def test_segments(seed, size, native, thresholds):
  classes, masks = make_set(seed)
  names = ('score_threshold', 'mask_threshold', 'overlap_threshold')
  shape = (96, 96)
  find = functools.partial(mask_sets.find_segments, canvas=CANVAS, shape=shape, things=THINGS)
  ids, kinds, scores, valid = map(
    np.asarray,
    jax.jit(find)(
      classes, masks, size=np.array(size), native=np.array(native),
      **dict(zip(names, np.float32(thresholds), strict=True)),
    ),
  )  # fmt: skip
  expected, found = reference_segments(classes, masks, size, native, *thresholds)
  differs = (ids[: native[0], : native[1]] != expected).mean()
  assert differs < 2e-3, differs  # pixels where two are equal to rounding
  assert {int(i) + 1: int(kinds[i]) for i in np.flatnonzero(valid)} == found
  assert not ids[native[0] :].any() and not ids[:, native[1] :].any()
  np.testing.assert_allclose(scores, softmax(classes).max(-1), rtol=1e-5)


@pytest.mark.parametrize('seed', range(3))
def test_objects(seed):
  classes, masks = make_set(seed)
  size, count = (64, 50), 20
  find = functools.partial(mask_sets.find_objects, canvas=CANVAS, count=count)
  found = jax.device_get(jax.jit(find)(classes, masks, size=np.array(size)))
  large = enlarge(masks, CANVAS)[:, :, : size[1]]
  quality = [(sigmoid(m) * (m > 0)).sum() / ((m > 0).sum() + 1e-6) for m in large]
  scores = softmax(classes.astype(float))[:, :-1]
  pairs = np.argsort(-scores.ravel())[:count]
  pairs = sorted(pairs, key=lambda i: -scores.ravel()[i] * quality[i // CLASSES])
  expected = [scores.ravel()[i] * quality[i // CLASSES] for i in pairs]
  np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-7)
  sure = np.array(expected) > 1e-6  # ties of zeros are in any order
  np.testing.assert_array_equal(found.classes[sure], np.array(pairs)[sure] % CLASSES)
  np.testing.assert_array_equal(found.masks[sure], masks[np.array(pairs)[sure] // CLASSES])
  for k in range(count):
    pixels = enlarge(found.masks[k : k + 1], CANVAS)[0, :, : size[1]] > 0
    assert found.valid[k] == pixels.any()
    if pixels.any():
      y, x = np.nonzero(pixels)
      box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
      np.testing.assert_array_equal(found.boxes[k], box)


def test_masks_of_objects_are_pasted_as_they_were_measured():
  """At the size of the network's input; the masks also cover its padding."""
  _, masks = make_set(0)
  whole = np.tile(np.float32([0, 0, *CANVAS]), (QUERIES, 1))
  large = enlarge(masks, CANVAS)[:, :, :50]
  regions = paste_regions(masks, whole, (64, 50), rule='logits', threshold=0.0)
  for (region, values), expected in zip(regions, large, strict=True):
    assert region == (slice(0, 64), slice(0, 50))
    assert (values == (expected > 0)).mean() > 0.999


def test_semantic_scores():
  classes, masks = make_set(1)
  found = jax.jit(mask_sets.semantic_scores, static_argnums=2)(classes, masks, (64, 32))
  large = sigmoid(enlarge(masks, (64, 32)))
  expected = np.einsum('qc,qhw->hwc', softmax(classes.astype(float))[:, :-1], large)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ('rows', 'columns', 'box'),
  [((2, 5), (1, 2), (1, 2, 2, 5)), ((0, 9), (0, 7), (0, 0, 7, 9)), ((3, 3), (0, 0), (0, 0, 0, 0))],
)
def test_box_around(rows, columns, box):
  pixels = np.zeros((9, 7), bool)
  pixels[slice(*rows), slice(*columns)] = True
  assert np.asarray(mask_sets.box_around(pixels)).tolist() == list(box)
