"""Geometry against plain NumPy crops, flips and pads; colour against its definition."""

import dataclasses
import math

import numpy as np
import pytest

from segjax.data import transforms
from segjax.data.transforms import Augment
from segjax.types import IGNORE_LABEL, SegjaxError

OFF = Augment()


def coordinates(height, width):
  """A picture whose pixels tell where they are: (row, column, 0), and a label of the row."""
  rows, columns = np.mgrid[:height, :width].astype(np.uint8)
  return np.stack([rows, columns, 0 * rows], axis=-1), rows


def draw(seed, image, label, augment=OFF, **kwargs):
  return transforms.augment_example(
    np.random.default_rng(seed), image, label, augment=augment, **kwargs
  )


def test_off_is_a_plain_crop_at_every_position():
  image, label = coordinates(9, 12)
  seen = set()
  for seed in range(200):
    crop, crop_label, weight = draw(seed, image, label, out_size=(6, 8))
    top, left, _ = map(int, crop[0, 0])
    np.testing.assert_array_equal(crop, image[top : top + 6, left : left + 8])
    np.testing.assert_array_equal(crop_label, label[top : top + 6, left : left + 8])
    assert weight is None
    seen.add((top, left))
  assert seen == {(top, left) for top in range(4) for left in range(5)}


def test_off_at_the_same_size_is_the_identity():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (37, 51, 3), dtype=np.uint8)
  label = rng.integers(0, 256, (37, 51), dtype=np.uint8)
  weight = rng.normal(size=(37, 51)).astype(np.float32)
  outs = transforms.augment_example(rng, image, label, weight, out_size=(37, 51), augment=OFF)
  for out, given in zip(outs, (image, label, weight), strict=True):
    assert out.dtype == given.dtype
    np.testing.assert_array_equal(out, given)


def test_small_image_is_centred_mirrored_and_ignored():
  image, label = coordinates(5, 6)
  crop, crop_label, _ = draw(0, image, label, out_size=(8, 10))
  pads = ((2, 1), (2, 2))
  np.testing.assert_array_equal(crop, np.pad(image, (*pads, (0, 0)), mode='reflect'))
  np.testing.assert_array_equal(crop_label, np.pad(label, pads, constant_values=IGNORE_LABEL))


def test_margin_is_context_around_the_label():
  image, label = coordinates(20, 30)
  mirrored = np.pad(image, ((7, 7), (7, 7), (0, 0)), mode='reflect')
  for seed in range(20):
    crop, crop_label, _ = draw(seed, image, label, out_size=(6, 8), margin=7)
    assert crop.shape == (20, 22, 3)
    assert crop_label.shape == (6, 8)
    np.testing.assert_array_equal(crop[7:-7, 7:-7, 0], crop_label)
    top, left, _ = map(int, crop[7, 7])
    np.testing.assert_array_equal(crop, mirrored[top : top + 20, left : left + 22])


@pytest.mark.parametrize(
  'augment',
  [
    Augment(flip_horizontal=1, flip_vertical=0.5),
    Augment(rotate90=True),
    Augment(rotate=180),
    Augment(scale=(0.5, 2)),
    Augment(shift=9),
    Augment(elastic_sigma=6),
    Augment(
      flip_horizontal=0.5,
      rotate90=True,
      rotate=30,
      scale=(0.7, 1.4),
      shift=5,
      elastic_sigma=4,
      elastic_grid=4,
    ),
  ],
  ids=lambda a: ','.join(k for k, v in vars(a).items() if v != getattr(OFF, k)),
)
@pytest.mark.parametrize('margin', [0, 5])
@pytest.mark.parametrize('axis', [0, 1])
def test_label_stays_on_the_image(augment, margin, axis):
  """Of a picture of its own coordinates, the nearest sample is the rounded bilinear one."""
  label = np.indices((90, 120), np.uint8)[axis]
  image, weight = label[..., None], label.astype(np.float32)
  kept, differences = 0, []
  for seed in range(8):
    crop, crop_label, crop_weight = transforms.augment_example(
      np.random.default_rng(seed),
      image,
      label,
      weight,
      out_size=(60, 72),
      augment=augment,
      margin=margin,
    )
    assert crop.shape == (60 + 2 * margin, 72 + 2 * margin, 1)
    crop = crop[margin : margin + 60, margin : margin + 72, 0]
    inside = crop_label != IGNORE_LABEL
    difference = crop_weight[inside] - crop_label[inside]
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(difference).max() < 0.5 + 1 / 32
    assert np.abs(crop[inside] - crop_weight[inside]).max() < 0.5 + 1 / 32
    differences.append(difference.mean())
    kept += inside.mean() / 8
  assert abs(np.mean(differences)) < 0.05
  assert kept > 0.5


def test_flips_are_exact():
  image, label = coordinates(7, 10)
  crop, crop_label, _ = draw(3, image, label, Augment(flip_horizontal=1), out_size=(7, 10))
  np.testing.assert_array_equal(crop, image[:, ::-1])
  np.testing.assert_array_equal(crop_label, label[:, ::-1])
  crop, crop_label, _ = draw(3, image, label, Augment(flip_vertical=1), out_size=(7, 10))
  np.testing.assert_array_equal(crop, image[::-1])
  np.testing.assert_array_equal(crop_label, label[::-1])


def test_flip_probability():
  image, label = coordinates(4, 4)
  flipped = [
    draw(seed, image, label, Augment(flip_horizontal=0.25), out_size=(4, 4))[0][0, 0, 1] == 3
    for seed in range(400)
  ]
  assert 0.18 < np.mean(flipped) < 0.32


def test_quarter_turns_are_exact_and_equally_likely():
  image, label = coordinates(11, 11)
  turns = [np.rot90(image, k) for k in range(4)]
  counts = np.zeros(4, int)
  for seed in range(200):
    crop, crop_label, _ = draw(seed, image, label, Augment(rotate90=True), out_size=(11, 11))
    match = [np.array_equal(crop, turn) for turn in turns]
    assert sum(match) == 1
    counts[match.index(True)] += 1
    np.testing.assert_array_equal(crop_label, crop[..., 0])
  assert counts.min() > 30


def test_quarter_turn_crops_a_turned_window_inside_the_image():
  image, label = coordinates(9, 9)
  sideways = 0
  for seed in range(50):
    crop, crop_label, _ = draw(seed, image, label, Augment(rotate90=True), out_size=(4, 9))
    assert (crop_label != IGNORE_LABEL).all()
    sideways += crop[0, 0, 0] != crop[0, 1, 0]
  assert 10 < sideways < 40


def test_shift_moves_by_whole_pixels_past_the_border():
  image, label = coordinates(12, 12)
  moves = set()
  for seed in range(100):
    crop, crop_label, _ = draw(seed, image, label, Augment(shift=3), out_size=(12, 12))
    row, column = map(int, np.argwhere((crop[..., 0] == 6) & (crop[..., 1] == 6))[0])
    dy, dx = 6 - row, 6 - column
    mirrored = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(crop, mirrored[3 + dy : 15 + dy, 3 + dx : 15 + dx])
    padded = np.pad(label, 3, constant_values=IGNORE_LABEL)
    np.testing.assert_array_equal(crop_label, padded[3 + dy : 15 + dy, 3 + dx : 15 + dx])
    moves |= {dy, dx}
  assert moves == set(range(-3, 4))


def test_rotation_and_scale_are_similarities_in_range():
  augment = Augment(rotate=25, scale=(0.5, 2))
  angles, scales = [], []
  for seed in range(200):
    positions = transforms.sample_map(np.random.default_rng(seed), (80, 80), (20, 30), augment)
    across, down = np.diff(positions, axis=1), np.diff(positions, axis=0)
    (xx, yx), (xy, yy) = across[0, 0], down[0, 0]
    np.testing.assert_allclose(across, np.broadcast_to([xx, yx], across.shape), atol=1e-4)
    np.testing.assert_allclose([xy, yy], [-yx, xx], atol=1e-4)
    angles.append(math.degrees(math.atan2(yx, xx)))
    scales.append(1 / math.hypot(xx, yx))
  assert -25.01 < min(angles) < -23 and 23 < max(angles) < 25.01
  assert 0.499 < min(scales) < 0.52 and 1.97 < max(scales) < 2.001


@pytest.mark.parametrize('scale', [0.6, 3.0])
def test_scaled_crop_lies_anywhere_in_the_image(scale):
  low, high = np.full(2, np.inf), np.zeros(2)
  for seed in range(300):
    positions = transforms.sample_map(
      np.random.default_rng(seed), (50, 70), (20, 24), Augment(scale=(scale, scale))
    ).reshape(-1, 2)
    low, high = np.minimum(low, positions.min(axis=0)), np.maximum(high, positions.max(axis=0))
  # Half an output pixel further on are the borders of the outermost pixels, at -0.5 and 49.5, 69.5.
  low, high = low - 0.5 / scale, high + 0.5 / scale
  np.testing.assert_allclose(low, -0.5, atol=1e-3)
  # The upper end is short of the border by less than the pixel that positions are rounded to.
  assert (high < (69.501, 49.501)).all() and (high > (68.5, 48.5)).all()


def test_elastic_statistics_at_the_nodes():
  """Independent Gaussians of the given standard deviation at 3 × 3 nodes, corners included."""
  draws = np.stack(
    [
      transforms.elastic_displacement(np.random.default_rng(seed), (41, 61), 10.0)
      for seed in range(600)
    ]
  )
  nodes = draws[:, :, ::20, ::30].reshape(600, -1)
  assert nodes.shape[1] == 2 * 9
  np.testing.assert_allclose(nodes.std(axis=0), 10, rtol=0.1)
  np.testing.assert_allclose(nodes.mean(axis=0), 0, atol=1.5)
  correlation = np.corrcoef(nodes.T) - np.eye(18)
  assert np.abs(correlation).max() < 0.2


def test_elastic_is_bicubic_between_the_nodes():
  """Against Catmull-Rom's matrix form, ends repeated."""
  grid, size = 5, (33, 49)
  nodes = np.random.default_rng(7).normal(0.0, 3.0, (2, grid, grid))
  basis = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
  padded = np.pad(nodes, ((0, 0), (1, 1), (1, 1)), mode='edge')

  def weights(n):
    for t in np.linspace(0, grid - 1, n):
      cell = min(int(t), grid - 2)
      yield cell, (t - cell) ** np.arange(4) @ basis

  expected = np.array(
    [
      [
        [rows @ plane[i : i + 4, j : j + 4] @ columns for j, columns in weights(size[1])]
        for i, rows in weights(size[0])
      ]
      for plane in padded
    ]
  )
  actual = transforms.elastic_displacement(np.random.default_rng(7), size, 3.0, grid)
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_elastic_displaces_by_output_pixels():
  rng = np.random.default_rng
  plain = transforms.sample_map(rng(5), (64, 64), (64, 64), OFF)
  bent = transforms.sample_map(rng(5), (64, 64), (64, 64), Augment(elastic_sigma=4))
  expected = transforms.elastic_displacement(rng(5), (64, 64), 4)
  np.testing.assert_allclose(bent - plain, np.moveaxis(expected, 0, -1), atol=1e-4)


def test_same_generator_same_result():
  augment = Augment(
    flip_horizontal=0.5,
    rotate=30,
    scale=(0.8, 1.2),
    elastic_sigma=3,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
  )
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
  label = rng.integers(0, 5, (40, 50), dtype=np.uint8)
  first, again, other = (draw(s, image, label, augment, out_size=(32, 32)) for s in (1, 1, 2))
  for a, b, c in zip(first[:2], again[:2], other[:2], strict=True):
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


class Fixed:
  """A generator whose uniform draws are at the upper end."""

  def uniform(self, low, high, size):
    del low
    return np.full(size, float(high))


def shifted(image, sign=1, **kwargs):
  augment = dataclasses.replace(OFF, **kwargs)
  rng = Fixed()
  if sign < 0:
    rng.uniform = lambda low, high, size: np.full(size, float(low))
  return transforms.shift_colour(rng, image, augment).astype(int)


def test_colour_off_returns_the_image():
  image = np.zeros((2, 2, 3), np.uint8)
  assert transforms.shift_colour(np.random.default_rng(0), image, OFF) is image


@pytest.mark.parametrize('channels', [1, 3])
def test_brightness_and_contrast(channels):
  image = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
  luma = image @ (np.array([0.299, 0.587, 0.114]) if channels == 3 else np.ones(1))
  np.testing.assert_allclose(
    shifted(image, brightness=0.2), np.clip(image.astype(int) + 51, 0, 255), atol=1
  )
  expected = np.clip((image - luma.mean()) * 1.5 + luma.mean(), 0, 255)
  np.testing.assert_allclose(shifted(image, contrast=0.5), expected, atol=1)
  np.testing.assert_allclose(shifted(image, sign=-1, contrast=1.0), luma.mean(), atol=1)


def test_saturation_scales_the_distance_from_grey():
  image = np.random.default_rng(0).integers(64, 192, (16, 16, 3), dtype=np.uint8)
  luma = (image @ [0.299, 0.587, 0.114])[..., None]
  np.testing.assert_allclose(
    shifted(image, saturation=0.5), np.clip(luma + 1.5 * (image - luma), 0, 255), atol=1
  )
  np.testing.assert_allclose(
    shifted(image, sign=-1, saturation=1.0), np.broadcast_to(luma, image.shape), atol=1
  )


def test_hue_turns_colours_and_keeps_greys():
  image = np.random.default_rng(0).integers(100, 150, (16, 16, 3), dtype=np.uint8)
  turned = shifted(image, hue=0.25)
  np.testing.assert_allclose(turned @ [0.299, 0.587, 0.114], image @ [0.299, 0.587, 0.114], atol=1)
  assert np.abs(turned - image.astype(int)).mean() > 5
  # Two half turns, and one whole turn, lead back.
  half = shifted(image, hue=0.5).clip(0, 255).astype(np.uint8)
  np.testing.assert_allclose(shifted(half, hue=0.5), image, atol=3)
  np.testing.assert_allclose(shifted(image, hue=1.0), image, atol=1)
  grey = np.repeat(image[..., :1], 3, axis=-1)
  np.testing.assert_allclose(shifted(grey, hue=0.3, saturation=0.5), grey, atol=1)


def test_grey_images_have_no_hue_or_saturation():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
  np.testing.assert_array_equal(shifted(image, hue=0.3, saturation=0.5), image)


def test_resize_keeps_label_and_image_aligned():
  """By odd factors pixel centres fall on pixel centres, so that both are exact."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 5, (6, 8), dtype=np.uint8)
  large = small.repeat(3, axis=0).repeat(3, axis=1)
  np.testing.assert_array_equal(transforms.resize_label(small, (18, 24)), large)
  np.testing.assert_array_equal(
    transforms.resize_image(20 * large[..., None], (6, 8)), 20 * small[..., None]
  )
  noise = rng.integers(0, 256, (18, 24), dtype=np.uint8)
  np.testing.assert_array_equal(transforms.resize_label(noise, (6, 8)), noise[1::3, 1::3])
  up = transforms.resize_image(20 * small[..., None], (18, 24))
  np.testing.assert_array_equal(up[1::3, 1::3], 20 * small[..., None])


def test_resize_is_area_mean_down_and_bilinear_up_on_each_axis():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
  down = image.reshape(3, 4, 10, 3).mean(axis=1)
  np.testing.assert_allclose(transforms.resize_image(image, (3, 10)), down, atol=0.51)
  both = transforms.resize_image(image, (3, 30))
  np.testing.assert_allclose(both[:, 1::3], down, atol=0.51)
  assert transforms.resize_image(image[..., :1], (5, 5)).shape == (5, 5, 1)


def test_resize_to_the_same_size_is_free():
  image, label = coordinates(6, 7)
  assert transforms.resize_image(image, (6, 7)) is image
  assert transforms.resize_label(label, (6, 7)) is label


@pytest.mark.parametrize(
  ('size', 'box', 'expected'),
  [
    ((100, 200), (50, 50), (25, 50)),
    ((200, 100), (50, 60), (50, 25)),
    ((10, 10), (64, 48), (48, 48)),
    ((333, 500), (512, 512), (341, 512)),
    ((1, 1000), (8, 8), (1, 8)),
  ],
)
def test_fit_size(size, box, expected):
  assert transforms.fit_size(size, box) == expected


def test_pad():
  label = np.ones((2, 3), np.uint8)
  np.testing.assert_array_equal(
    transforms.pad(label, (3, 4), 9), [[1, 1, 1, 9], [1, 1, 1, 9], [9, 9, 9, 9]]
  )
  image = transforms.pad(np.zeros((1, 1, 3), np.uint8), (1, 2), (1, 2, 3))
  np.testing.assert_array_equal(image, [[[0, 0, 0], [1, 2, 3]]])
  assert transforms.pad(label, (2, 3), 9) is label


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('flip_horizontal', 1.5),
    ('rotate', -1.0),
    ('scale', (1.2, 0.8)),
    ('scale', (0.0, 1.0)),
    ('elastic_grid', 1),
    ('shift', -2.0),
    ('hue', 2.0),
  ],
)
def test_impossible_values_name_their_key(key, value):
  with pytest.raises(SegjaxError, match=rf'data\.augment\.{key}'):
    Augment(**{key: value})
