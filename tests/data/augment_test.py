"""Sampled warps, colors, copy-paste and the user's own transforms."""

import math
import sys
import types

import numpy as np
import pytest

from segjax.data import augment, geometry
from segjax.data.config import Augment
from segjax.data.sample import Objects, Sample
from segjax.types import SegjaxError

OFF = Augment()


def sample_warp(seed, in_size, out_size, clip=False, **keys):
  return augment.sample_warp(
    np.random.default_rng(seed), Augment(**keys), in_size, out_size, clip=clip
  )


# --- warps ----------------------------------------------------------------------------------------


def test_flip_probability():
  flips = [sample_warp(seed, (4, 4), (4, 4), flip_horizontal=0.25).matrix for seed in range(400)]
  assert 0.18 < np.mean([matrix[0, 0] == -1 for matrix in flips]) < 0.32
  assert all(matrix[1, 1] == 1 for matrix in flips)


def test_quarter_turns_are_exact_and_equally_likely():
  image = np.random.default_rng(0).integers(0, 256, (11, 11, 3), np.uint8)
  turns = [np.rot90(image, k) for k in range(4)]
  counts = np.zeros(4, int)
  for seed in range(200):
    move = sample_warp(seed, (11, 11), (11, 11), rotate90=True)
    out = geometry.warp(Sample(image), move).image
    match = [np.array_equal(out, turn) for turn in turns]
    assert sum(match) == 1
    counts[match.index(True)] += 1
  assert counts.min() > 30


def test_quarter_turn_crops_a_turned_window_inside_the_image():
  sideways = 0
  for seed in range(50):
    positions = sample_warp(seed, (9, 9), (4, 9), rotate90=True).positions()
    assert positions.min() >= 0 and positions.max() <= 8
    sideways += positions[0, 0, 1] != positions[0, 1, 1]
  assert 10 < sideways < 40


def test_rotation_and_scale_are_similarities_in_range():
  angles, scales = [], []
  for seed in range(200):
    move = sample_warp(seed, (80, 80), (20, 30), rotate=25, scale=(0.5, 2))
    positions = move.positions()
    across, down = np.diff(positions, axis=1), np.diff(positions, axis=0)
    (xx, yx), (xy, yy) = across[0, 0], down[0, 0]
    np.testing.assert_allclose(across, np.broadcast_to([xx, yx], across.shape), atol=1e-4)
    np.testing.assert_allclose([xy, yy], [-yx, xx], atol=1e-4)
    angles.append(math.degrees(math.atan2(yx, xx)))
    scales.append(1 / math.hypot(xx, yx))
  assert -25.01 < min(angles) < -23 and 23 < max(angles) < 25.01
  assert 0.499 < min(scales) < 0.52 and 1.97 < max(scales) < 2.001


@pytest.mark.parametrize('scale', [0.6, 3.0])
def test_scaled_crop_is_anywhere_in_the_image(scale):
  low, high = np.full(2, np.inf), np.zeros(2)
  for seed in range(300):
    positions = sample_warp(seed, (50, 70), (20, 24), scale=(scale, scale)).positions()
    positions = positions.reshape(-1, 2)
    low, high = np.minimum(low, positions.min(axis=0)), np.maximum(high, positions.max(axis=0))
  # Half an output pixel further on are the borders of the outermost pixels, at -0.5 and 49.5, 69.5.
  low, high = low - 0.5 / scale, high + 0.5 / scale
  np.testing.assert_allclose(low, -0.5, atol=1e-3)
  # The upper end is short of the border by less than the pixel that positions are rounded to.
  assert (high < (69.501, 49.501)).all() and (high > (68.5, 48.5)).all()


@pytest.mark.parametrize('scale', [0.3, 0.5, 0.77, 1.0, 1.3, 3.0])
def test_a_clipped_output_is_of_image_alone(scale):
  for seed, in_size in enumerate([(50, 70), (33, 21), (10, 90), (4, 7)] * 5):
    move = sample_warp(seed, in_size, (40, 60), clip=True, scale=(scale, scale), rotate90=True)
    positions = move.positions()
    assert positions.min() > -0.51 / min(scale, 1)
    assert (positions.max((0, 1)) < np.array(in_size[::-1]) - 0.49).all()
    fits = {
      tuple(max(1, min(b, int(s * scale))) for s, b in zip(x, (40, 60), strict=True))
      for x in (in_size, in_size[::-1])
    }
    assert move.size in fits


def test_elastic_statistics_at_the_nodes():
  """Independent Gaussians of the given standard deviation at 3 × 3 nodes."""
  nodes = [sample_warp(seed, (41, 61), (41, 61), elastic_sigma=10.0).nodes for seed in range(600)]
  nodes = np.reshape(nodes, (600, -1))
  assert nodes.shape[1] == 2 * 9
  np.testing.assert_allclose(nodes.std(axis=0), 10, rtol=0.1)
  np.testing.assert_allclose(nodes.mean(axis=0), 0, atol=1.5)
  assert np.abs(np.corrcoef(nodes.T) - np.eye(18)).max() < 0.2


def test_the_generator_decides():
  keys = {'flip_horizontal': 0.5, 'rotate': 30, 'scale': (0.8, 1.2), 'elastic_sigma': 3, 'shift': 4}
  first, again, other = (sample_warp(seed, (40, 50), (32, 32), **keys) for seed in (1, 1, 2))
  for a, b, c in zip(first[1:5], again[1:5], other[1:5], strict=True):
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


# --- colors ---------------------------------------------------------------------------------------


class Fixed:
  """A generator whose uniform samples are at the upper end."""

  def uniform(self, low, high, size):
    del low
    return np.full(size, float(high))


def shifted(image, sign=1, **kwargs):
  changes = Augment(**kwargs)
  rng = Fixed()
  if sign < 0:
    rng.uniform = lambda low, high, size: np.full(size, float(low))
  return augment.shift_color(rng, image, changes).astype(int)


def test_color_off_returns_the_image():
  image = np.zeros((2, 2, 3), np.uint8)
  assert augment.shift_color(np.random.default_rng(0), image, OFF) is image


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_brightness_and_contrast(channels):
  image = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
  luma = image @ ([0.299, 0.587, 0.114] if channels == 3 else np.full(channels, 1 / channels))
  np.testing.assert_allclose(
    shifted(image, brightness=0.2), np.clip(image.astype(int) + 51, 0, 255), atol=1
  )
  expected = np.clip((image - luma.mean()) * 1.5 + luma.mean(), 0, 255)
  np.testing.assert_allclose(shifted(image, contrast=0.5), expected, atol=1)
  np.testing.assert_allclose(shifted(image, sign=-1, contrast=1.0), luma.mean(), atol=1)


def test_saturation_scales_the_distance_from_gray():
  image = np.random.default_rng(0).integers(64, 192, (16, 16, 3), dtype=np.uint8)
  luma = (image @ [0.299, 0.587, 0.114])[..., None]
  np.testing.assert_allclose(
    shifted(image, saturation=0.5), np.clip(luma + 1.5 * (image - luma), 0, 255), atol=1
  )
  np.testing.assert_allclose(
    shifted(image, sign=-1, saturation=1.0), np.broadcast_to(luma, image.shape), atol=1
  )


def test_hue_turns_colors_and_keeps_grays():
  image = np.random.default_rng(0).integers(100, 150, (16, 16, 3), dtype=np.uint8)
  turned = shifted(image, hue=0.25)
  np.testing.assert_allclose(turned @ [0.299, 0.587, 0.114], image @ [0.299, 0.587, 0.114], atol=1)
  assert np.abs(turned - image.astype(int)).mean() > 5
  # Two half turns, and one whole turn, lead back.
  half = shifted(image, hue=0.5).clip(0, 255).astype(np.uint8)
  np.testing.assert_allclose(shifted(half, hue=0.5), image, atol=3)
  np.testing.assert_allclose(shifted(image, hue=1.0), image, atol=1)
  gray = np.repeat(image[..., :1], 3, axis=-1)
  np.testing.assert_allclose(shifted(gray, hue=0.3, saturation=0.5), gray, atol=1)


def test_gray_images_have_no_hue_or_saturation():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
  np.testing.assert_array_equal(shifted(image, hue=0.3, saturation=0.5), image)


# --- copy-paste -----------------------------------------------------------------------------------


def make_sample(size, count, seed):
  """Rectangles that overlap, each with its box, on noise."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, *size), np.uint8)
  for mask in masks:
    (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in size)
    mask[y0:y1, x0:x1] = 1
  objects = Objects(
    geometry.mask_boxes(masks), np.arange(count, dtype=np.int32), masks, rng.random(count) < 0.4
  )
  label = rng.integers(0, 4, size).astype(np.uint16)
  return Sample(rng.integers(0, 256, (*size, 3), np.uint8), label, objects=objects)


def test_pasted_objects_hide_what_is_below():
  """Every pixel of the result comes from one of the two, and so do the masks."""
  sample, other = make_sample((40, 60), 4, 0), make_sample((40, 30), 3, 1)
  pasted = augment.paste(sample, other)
  above = np.zeros(sample.size, bool)
  above[:, :30] = other.objects.masks.any(0)
  np.testing.assert_array_equal(pasted.image[above], other.image[above[:, :30]])
  np.testing.assert_array_equal(pasted.label[above], other.label[above[:, :30]])
  np.testing.assert_array_equal(pasted.image[~above], sample.image[~above])
  np.testing.assert_array_equal(pasted.label[~above], sample.label[~above])
  left = sample.objects.masks & ~above
  kept = left.any((1, 2))
  np.testing.assert_array_equal(pasted.objects.masks[:-3], left[kept])
  np.testing.assert_array_equal(pasted.objects.masks[-3:, :, :30], other.objects.masks)
  assert not pasted.objects.masks[-3:, :, 30:].any()
  np.testing.assert_array_equal(pasted.objects.boxes, geometry.mask_boxes(pasted.objects.masks))
  expected = [*sample.objects.classes[kept], *other.objects.classes]
  np.testing.assert_array_equal(pasted.objects.classes, expected)


def test_a_hidden_object_is_gone_a_cut_one_smaller_and_an_untouched_one_stays_as_it_is():
  def one(masks, value):
    masks = np.array(masks, np.uint8)
    boxes = geometry.mask_boxes(masks) + 0.25  # annotated boxes, not those of the pixels
    n = len(masks)
    objects = Objects(boxes, np.zeros(n, np.int32), masks, np.zeros(n, bool))
    return Sample(np.full((4, 6, 3), value, np.uint8), objects=objects)

  left, right, across, whole = np.zeros((4, 4, 6), np.uint8)
  left[1:3, 1:3] = right[1:3, 4:6] = across[1:3, 2:6] = whole[:, :4] = 1
  sample, other = one([left, right, across], 0), one([whole], 9)
  pasted = augment.paste(sample, other)
  np.testing.assert_array_equal(pasted.objects.masks, [right, right, whole])
  np.testing.assert_array_equal(pasted.objects.boxes[0], sample.objects.boxes[1])
  np.testing.assert_array_equal(pasted.objects.boxes[1], [4, 1, 6, 3])
  nothing = other._replace(objects=other.objects.take(np.zeros(0, int)))
  assert augment.paste(sample, nothing) is sample


def test_a_coin_decides_what_is_pasted_but_never_a_crowd():
  objects = make_sample((40, 60), 8, 0).objects
  assert objects.crowd.any()
  chosen = [augment.choose_to_paste(np.random.default_rng(seed), objects) for seed in range(200)]
  assert not any(found.crowd.any() for found in chosen)
  counts = np.bincount(np.concatenate([found.classes for found in chosen]), minlength=8)
  assert (counts[~objects.crowd] > 70).all() and (counts[~objects.crowd] < 130).all()


# --- the user's own -------------------------------------------------------------------------------


@pytest.fixture
def mine(monkeypatch):
  """A module of the user's."""
  module = types.ModuleType('mine')
  monkeypatch.setitem(sys.modules, 'mine', module)
  augment.find_transform.cache_clear()
  return module


def apply(sample, **arguments):
  rng = np.random.default_rng(0)
  return augment.apply_transforms(
    rng, sample, ({'name': 'mine.change', **arguments},), (40, 60), 'e7'
  )


def test_own_transform_gets_the_generator_and_its_arguments(mine):
  mine.change = lambda rng, sample, add: sample._replace(
    image=sample.image + np.uint8(add + rng.integers(1))
  )
  sample = make_sample((40, 60), 2, 0)
  out = apply(sample, add=3)
  np.testing.assert_array_equal(out.image, sample.image + np.uint8(3))
  assert out.label is sample.label


def test_own_transform_may_make_a_sample_smaller(mine):
  mine.change = lambda rng, sample: geometry.resize(sample, (20, 30))
  assert apply(make_sample((40, 60), 2, 0)).size == (20, 30)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s.image, 'returned ndarray, not a Sample, for e7'),
    (lambda s: s._replace(image=s.image / 255), r'image float64\[40, 60, 3\] in place of uint8'),
    (lambda s: s._replace(label=None), 'label none in place of uint16'),
    (lambda s: s._replace(label=s.label[1:]), r'label uint16\[39, 60\] in place of uint16\[40, 60'),
    (lambda s: geometry.resize(s, (41, 60)), r'an image of \(41, 60\), larger than \(40, 60\)'),
    (
      lambda s: s._replace(objects=s.objects._replace(boxes=s.objects.boxes[1:])),
      r'boxes float32\[1, 4\]',
    ),
  ],
)
def test_result_of_an_own_transform_is_checked(mine, change, message):
  mine.change = lambda rng, sample: change(sample)
  with pytest.raises(SegjaxError, match=message):
    apply(make_sample((40, 60), 2, 0))


def test_own_transform_keeps_a_margin(mine):
  mine.change = lambda rng, sample: sample
  sample = make_sample((40, 60), 0, 0)._replace(objects=None)
  out = apply(sample._replace(label=sample.label[5:-5, 5:-5]))
  assert (out.image.shape, out.label.shape) == ((40, 60, 3), (30, 50))


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('change', r"config\.augment\.transforms='change' needs a module and a name"),
    ('no_such_module.change', r'config\.augment\.transforms: there is no module no_such_module'),
    ('mine.chnage', 'mine has no chnage'),
  ],
)
def test_wrong_path_of_an_own_transform(mine, path, message):
  with pytest.raises(SegjaxError, match=message):
    augment.find_transform(path)
