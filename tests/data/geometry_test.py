"""Resizing and warping: label, weight, masks and boxes stay on the image."""

import math

import cv2
import numpy as np
import pytest

from segjax.data import augment, geometry
from segjax.data.config import Augment
from segjax.data.geometry import Warp
from segjax.data.sample import Objects, Sample
from segjax.types import IGNORE_LABEL

COLOR = np.uint8([1, 2, 3])


def make_sample(size=(40, 60), count=5, seed=0):
  """Rectangles that overlap, each with its box, on noise; the label is the topmost rectangle."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, *size), np.uint8)
  label = np.zeros(size, np.uint16)
  for index, mask in enumerate(masks):
    (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in size)
    mask[y0:y1, x0:x1] = 1
    label[mask == 1] = index + 1
  objects = Objects(
    boxes=geometry.mask_boxes(masks),
    classes=np.arange(count, dtype=np.int32),
    masks=masks,
    crowd=rng.random(count) < 0.3,
  )
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  return Sample(image, label, rng.random(size, np.float32), objects)


def coordinates(height, width):
  """An image of its own coordinates, (row, column, 0), with the row as its label."""
  rows, columns = np.mgrid[:height, :width].astype(np.uint8)
  return Sample(np.stack([rows, columns, 0 * rows], axis=-1), rows.astype(np.uint16))


def warped(seed, sample, out_size, margin=0, color=None, **keys):
  clip = sample.objects is not None
  move = augment.sample_warp(
    np.random.default_rng(seed), Augment(**keys), sample.size, out_size, margin=margin, clip=clip
  )
  return geometry.warp(sample, move, color=COLOR if clip else color)


def move_of(size, center, matrix, shift=(0, 0), **keys):
  return Warp(size, np.float32(center), np.float32(matrix), np.float32(shift), **keys)


def assert_boxes_fit(objects):
  np.testing.assert_array_equal(objects.boxes, geometry.mask_boxes(objects.masks))


def assert_same(a, b):
  for x, y in zip((*a[:3], *a.objects), (*b[:3], *b.objects), strict=True):
    np.testing.assert_array_equal(x, y)


# --- labels: against plain NumPy crops, flips and pads --------------------------------------------


def test_off_is_a_plain_crop_at_every_position():
  sample = coordinates(9, 12)
  seen = set()
  for seed in range(200):
    crop = warped(seed, sample, (6, 8))
    top, left, _ = map(int, crop.image[0, 0])
    np.testing.assert_array_equal(crop.image, sample.image[top : top + 6, left : left + 8])
    np.testing.assert_array_equal(crop.label, sample.label[top : top + 6, left : left + 8])
    assert crop.weight is None
    seen.add((top, left))
  assert seen == {(top, left) for top in range(4) for left in range(5)}


def test_off_at_the_same_size_is_the_identity():
  sample = make_sample((37, 51))
  out = warped(0, sample, (37, 51))
  assert_same(out, sample)
  assert [x.dtype for x in (*out[:3], *out.objects)] == [
    x.dtype for x in (*sample[:3], *sample.objects)
  ]


def test_small_image_is_centered_mirrored_and_ignored():
  sample = coordinates(5, 6)
  crop = warped(0, sample, (8, 10))
  pads = ((2, 1), (2, 2))
  np.testing.assert_array_equal(crop.image, np.pad(sample.image, (*pads, (0, 0)), mode='reflect'))
  np.testing.assert_array_equal(
    crop.label, np.pad(sample.label, pads, constant_values=IGNORE_LABEL)
  )


def test_margin_is_context_around_the_label():
  sample = coordinates(20, 30)
  mirrored = np.pad(sample.image, ((7, 7), (7, 7), (0, 0)), mode='reflect')
  for seed in range(20):
    crop = warped(seed, sample, (6, 8), margin=7)
    assert crop.image.shape == (20, 22, 3)
    assert crop.label.shape == (6, 8)
    np.testing.assert_array_equal(crop.image[7:-7, 7:-7, 0], crop.label)
    top, left, _ = map(int, crop.image[7, 7])
    np.testing.assert_array_equal(crop.image, mirrored[top : top + 20, left : left + 22])


MOVES = [
  {'flip_horizontal': 1, 'flip_vertical': 0.5},
  {'rotate90': True},
  {'rotate': 180},
  {'scale': (0.5, 2)},
  {'shift': 9},
  {'elastic_sigma': 6},
  {
    'flip_horizontal': 0.5,
    'rotate90': True,
    'rotate': 30,
    'scale': (0.7, 1.4),
    'shift': 5,
    'elastic_sigma': 4,
    'elastic_grid': 4,
  },
]
every_move = pytest.mark.parametrize('keys', MOVES, ids=','.join)


@every_move
@pytest.mark.parametrize('margin', [0, 5])
@pytest.mark.parametrize('axis', [0, 1])
def test_label_stays_on_the_image(keys, margin, axis):
  """Of an image of its own coordinates, the nearest sample is the rounded bilinear one."""
  label = np.indices((90, 120), np.uint16)[axis]
  sample = Sample(label[..., None].astype(np.uint8), label, label.astype(np.float32))
  kept, differences = 0, []
  for seed in range(8):
    crop = warped(seed, sample, (60, 72), margin, **keys)
    assert crop.image.shape == (60 + 2 * margin, 72 + 2 * margin, 1)
    image = crop.image[margin : margin + 60, margin : margin + 72, 0]
    inside = crop.label != IGNORE_LABEL
    difference = crop.weight[inside] - crop.label[inside]
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(difference).max() < 0.5 + 1 / 32
    assert np.abs(image[inside] - crop.weight[inside]).max() < 0.5 + 1 / 32
    differences.append(difference.mean())
    kept += inside.mean() / 8
  assert abs(np.mean(differences)) < 0.05
  assert kept > 0.5


def test_flips_are_exact():
  sample = coordinates(7, 10)
  crop = warped(3, sample, (7, 10), flip_horizontal=1)
  np.testing.assert_array_equal(crop.image, sample.image[:, ::-1])
  np.testing.assert_array_equal(crop.label, sample.label[:, ::-1])
  crop = warped(3, sample, (7, 10), flip_vertical=1)
  np.testing.assert_array_equal(crop.image, sample.image[::-1])
  np.testing.assert_array_equal(crop.label, sample.label[::-1])


def test_shift_moves_by_whole_pixels_past_the_border():
  sample = coordinates(12, 12)
  moves = set()
  for seed in range(100):
    crop = warped(seed, sample, (12, 12), shift=3)
    row, column = map(int, np.argwhere((crop.image[..., 0] == 6) & (crop.image[..., 1] == 6))[0])
    dy, dx = 6 - row, 6 - column
    mirrored = np.pad(sample.image, ((3, 3), (3, 3), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(crop.image, mirrored[3 + dy : 15 + dy, 3 + dx : 15 + dx])
    padded = np.pad(sample.label, 3, constant_values=IGNORE_LABEL)
    np.testing.assert_array_equal(crop.label, padded[3 + dy : 15 + dy, 3 + dx : 15 + dx])
    moves |= {dy, dx}
  assert moves == set(range(-3, 4))


@pytest.mark.parametrize('color', [None, COLOR])
@pytest.mark.parametrize('size', [(30, 41), (1, 9), (9, 2)])
@pytest.mark.parametrize('out_size', [(30, 41), (12, 17), (70, 95)])
def test_slicing_is_the_remap_bit_for_bit(color, size, out_size):
  sample = make_sample(size, count=0)._replace(objects=None)
  keys = {'flip_horizontal': 0.5, 'flip_vertical': 0.5, 'rotate90': True, 'shift': 50}
  for seed in range(30):
    move = augment.sample_warp(
      np.random.default_rng(seed), Augment(**keys), size, out_size, margin=seed % 3
    )
    assert move.exact
    out = geometry.warp(sample, move, color=color)
    remap = lambda array, positions, method, border, value: cv2.remap(
      array, positions, None, method, borderMode=border, borderValue=value
    )
    mirror = cv2.BORDER_REFLECT_101 if color is None else cv2.BORDER_CONSTANT
    around, whole = move.positions(), move._replace(margin=0).positions()
    image = remap(sample.image, around, cv2.INTER_LINEAR, mirror, COLOR.tolist())
    label = remap(sample.label, whole, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, IGNORE_LABEL)
    weight = remap(sample.weight, whole, cv2.INTER_LINEAR, mirror, 0)
    for actual, expected in zip(out[:3], (image, label, weight), strict=True):
      np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('turns', range(4))
def test_quarter_turns_are_those_of_numpy(turns):
  sample = make_sample((11, 17), seed=3)
  matrix = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
  size = (11, 17) if turns % 2 == 0 else (17, 11)
  out = geometry.warp(sample, move_of(size, (8, 5), matrix), color=COLOR)
  for actual, given in zip(out[:3], sample[:3], strict=True):
    np.testing.assert_array_equal(actual, np.rot90(given, turns))
  np.testing.assert_array_equal(out.objects.masks, np.rot90(sample.objects.masks, turns, (1, 2)))
  assert_boxes_fit(out.objects)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('center', [100.5, 20_000.25, 39_890.0])
@pytest.mark.parametrize('color', [None, COLOR])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_a_long_image_is_as_the_part_that_is_read(axis, center, color, interpolation):
  """The first and the last part reach beyond the image, which OpenCV would refuse as a whole."""
  image = np.random.default_rng(0).integers(0, 256, (40_000, 24, 3), np.uint8)
  start = min(max(int(center) - 200, 0), len(image) - 400)
  matrix = np.array([[0.5, -0.25], [1.25, 1]])  # positions are exact in float32

  def moved(image, center):
    if axis:
      image = image.swapaxes(0, 1)
    label = image[..., 0].astype(np.uint16)
    sample = Sample(image, label, label.astype(np.float32))
    turned = np.flip(matrix) if axis else matrix
    size, place = ((24, 200), (center, 12)) if axis else ((200, 24), (12, center))
    move = move_of(size, place, turned)
    return geometry.warp(sample, move, interpolation, color)[:3]

  expected = moved(image[start : start + 400], center - start)
  for actual, part in zip(moved(image, center), expected, strict=True):
    np.testing.assert_array_equal(actual, part)
    assert len(np.unique(part)) > 200


@every_move
@pytest.mark.parametrize('color', [None, COLOR])
def test_parts_are_the_whole(keys, color, monkeypatch):
  for seed in range(4):
    sample = make_sample((50, 70), seed=seed)
    sample = sample if color is not None else sample._replace(objects=None)
    outs = []
    for limit in (geometry._REMAP_BELOW, 20):
      monkeypatch.setattr(geometry, '_REMAP_BELOW', limit)
      outs.append(warped(seed, sample, (45, 66), **keys))
    monkeypatch.undo()
    whole, parts = outs
    for a, b, rounding in zip(whole[:3], parts[:3], (1, 0, 1e-5), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=rounding)
    for a, b in zip(whole.objects or (), parts.objects or (), strict=True):
      np.testing.assert_array_equal(a, b)


def test_bicubic_overshoots_where_bilinear_does_not():
  image = np.full((20, 20, 1), 60, np.uint8)
  image[:, 10:] = 200
  move = move_of((20, 20), (9.5, 9.5), np.eye(2) / 1.7)
  linear = geometry.warp(Sample(image), move).image
  cubic = geometry.warp(Sample(image), move, 'bicubic').image
  assert (linear.min(), linear.max()) == (60, 200)
  assert cubic.min() < 60 and cubic.max() > 200


# --- objects --------------------------------------------------------------------------------------


@every_move
@pytest.mark.parametrize('out_size', [(40, 60), (25, 30)])
def test_label_masks_and_boxes_agree_after_any_warp(keys, out_size):
  """Every pixel with a label is of that object's mask, and of no later one's."""
  for seed in range(6):
    sample = make_sample(count=6, seed=seed)
    out = warped(seed, sample, out_size, **keys)
    assert out.label.shape == out.objects.masks.shape[1:] == out.size
    assert all(a <= b for a, b in zip(out.size, out_size, strict=True))
    assert_boxes_fit(out.objects)
    assert np.any(out.objects.masks, (1, 2)).all()
    label = np.zeros(out.size, int)
    for number, mask in zip(out.objects.classes + 1, out.objects.masks, strict=True):
      label[mask == 1] = number
    inside = out.label != IGNORE_LABEL
    np.testing.assert_array_equal(label[inside], out.label[inside])
    assert not label[~inside].any()
    shown = np.flatnonzero(np.bincount(label.ravel(), minlength=7)[1:])
    assert set(shown) <= set(out.objects.classes)
    np.testing.assert_array_equal(out.objects.crowd, sample.objects.crowd[out.objects.classes])


@every_move
def test_masks_are_sampled_whole_where_only_a_window_is_looked_at(keys):
  sample = make_sample((50, 70), count=12, seed=1)
  for seed in range(6):
    move = augment.sample_warp(
      np.random.default_rng(seed), Augment(**keys), sample.size, (50, 70), clip=True
    )
    out = geometry.warp(sample, move, color=COLOR)
    expected = [
      cv2.remap(m, move.positions(), None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
      for m in sample.objects.masks
    ]
    np.testing.assert_array_equal(out.objects.masks, [m for m in expected if m.any()])


@pytest.mark.parametrize('keys', [{'flip_horizontal': 1}, {'flip_vertical': 1}])
@pytest.mark.parametrize('seed', range(3))
def test_a_flip_twice_is_the_identity(keys, seed):
  sample = make_sample(seed=seed)
  flipped = warped(seed, sample, sample.size, **keys)
  assert (flipped.image != sample.image).any()
  assert_boxes_fit(flipped.objects)
  assert_same(warped(seed, flipped, sample.size, **keys), sample)


def test_boxes_follow_rotation_to_the_pixel():
  """By 90 degrees less a little, which is no longer done by slicing."""
  sample = make_sample((60, 60), count=8, seed=2)
  angle = math.radians(89.999)
  turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
  move = move_of((60, 60), (29.5, 29.5), turn)
  assert not move.exact
  out = geometry.warp(sample, move, color=COLOR).objects
  np.testing.assert_array_equal(out.masks, np.rot90(sample.objects.masks, 1, (1, 2)))
  assert_boxes_fit(out)


@pytest.mark.parametrize('corner', [(0, 0), (7, 20), (28, 40)])
def test_crop_keeps_what_is_inside(corner):
  sample = make_sample(count=8)
  move = move_of((12, 20), (corner[1] + 9.5, corner[0] + 5.5), np.eye(2))
  part = geometry.warp(sample, move, color=COLOR)
  window = np.s_[corner[0] : corner[0] + 12, corner[1] : corner[1] + 20]
  np.testing.assert_array_equal(part.image, sample.image[window])
  np.testing.assert_array_equal(part.label, sample.label[window])
  assert_boxes_fit(part.objects)
  inside = sample.objects.masks[(slice(None), *window)]
  there = inside.any((1, 2))
  assert not there.all()
  np.testing.assert_array_equal(part.objects.masks, inside[there])
  np.testing.assert_array_equal(part.objects.classes, sample.objects.classes[there])


@pytest.mark.parametrize('flip', [False, True])
def test_an_exact_warp_leaves_an_annotated_box_alone_unless_it_is_cut(flip):
  """COCO's boxes are those of polygons, not of pixels; the last one touches the window's border."""
  masks = np.zeros((3, 40, 60), np.uint8)
  masks[0, 5:10, 5:10], masks[1, 5:10, 5:30], masks[2, 5:10, 3:10] = 1, 1, 1
  boxes = np.float32([[5.25, 5.5, 9.75, 9.5], [5.25, 5.5, 29.75, 9.5], [3, 5.5, 9.75, 9.5]])
  objects = Objects(boxes, np.zeros(3, np.int32), masks, np.zeros(3, bool))
  sample = Sample(np.zeros((40, 60, 3), np.uint8), objects=objects)
  move = move_of((20, 20), (3 + 9.5, 2 + 9.5), np.diag([-1 if flip else 1, 1]))
  part = geometry.warp(sample, move, color=COLOR).objects
  expected = [[2.25, 3.5, 6.75, 7.5], [2, 3, 20, 8], [0, 3.5, 6.75, 7.5]]
  if flip:
    expected = [[20 - x1, y0, 20 - x0, y1] for x0, y0, x1, y1 in expected]
  np.testing.assert_array_equal(part.boxes, expected)


def test_a_small_image_with_objects_keeps_its_size():
  sample = make_sample((20, 30))
  out = warped(0, sample, (50, 40))
  assert_same(out, sample)
  half = warped(0, sample, (50, 40), scale=(0.5, 0.5))
  assert half.size == (10, 15)
  assert (half.label != IGNORE_LABEL).all()
  turned = [warped(seed, sample, (50, 40), rotate90=True).size for seed in range(8)]
  assert set(turned) == {(20, 30), (30, 20)}


def test_beyond_an_image_with_objects_is_the_mean_color():
  sample = make_sample((20, 30))
  out = warped(1, sample, (20, 30), shift=9)
  void = out.label == IGNORE_LABEL
  assert void.any()
  assert (out.image[void] == COLOR).all() and not out.weight[void].any()
  assert not out.objects.masks[:, void].any()


def test_an_image_without_objects():
  sample = make_sample(count=0)
  for moved in (
    geometry.resize(sample, (20, 30)),
    warped(0, sample, (5, 5)),
    warped(0, sample, (40, 60), rotate=20, elastic_sigma=3),
  ):
    assert moved.objects.masks.shape == (0, *moved.size)
    assert moved.objects.boxes.shape == (0, 4)


# --- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize('factor', [(2, 2), (3, 1), (1, 4)])
def test_box_of_the_enlarged_mask_is_the_enlarged_box(factor):
  sample = make_sample()
  size = tuple(s * f for s, f in zip(sample.size, factor, strict=True))
  larger = geometry.resize(sample, size)
  assert larger.image.shape == (*size, 3)
  assert larger.weight.shape == size
  assert_boxes_fit(larger.objects)
  enlarge = lambda x: np.kron(x, np.ones(factor, x.dtype))
  np.testing.assert_array_equal(larger.label, enlarge(sample.label))
  np.testing.assert_array_equal(larger.objects.masks[0], enlarge(sample.objects.masks[0]))


@pytest.mark.parametrize('size', [(20, 30), (27, 41), (57, 33)])
def test_box_of_the_resized_mask_is_the_resized_box_to_half_a_pixel(size):
  resized = geometry.resize(make_sample(), size).objects
  there = np.any(resized.masks, (1, 2))
  gap = resized.boxes - geometry.mask_boxes(resized.masks)
  assert np.abs(gap[there]).max() <= 0.5 + 1e-5


@pytest.mark.parametrize('keys', [{}, {'rotate': 30, 'elastic_sigma': 3}], ids=['exact', 'remap'])
def test_objects_resized_while_they_are_warped(keys):
  """One mask after the other, or all first and then all: the same."""
  sample = make_sample(count=8)
  resized = geometry.resize(sample, (66, 80))
  assert_same(
    warped(0, resized._replace(objects=sample.objects), (30, 40), **keys),
    warped(0, resized, (30, 40), **keys),
  )


def test_resize_keeps_label_and_image_aligned():
  """By odd factors pixel centers fall on pixel centers, so that both are exact."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 5, (6, 8), dtype=np.uint8)
  large = small.repeat(3, axis=0).repeat(3, axis=1)
  np.testing.assert_array_equal(geometry.resize_label(small, (18, 24)), large)
  np.testing.assert_array_equal(
    geometry.resize_image(20 * large[..., None], (6, 8)), 20 * small[..., None]
  )
  noise = rng.integers(0, 2**16, (18, 24), dtype=np.uint16)
  np.testing.assert_array_equal(geometry.resize_label(noise, (6, 8)), noise[1::3, 1::3])
  for interpolation in ('area', 'bilinear', 'bicubic'):
    up = geometry.resize_image(20 * small[..., None], (18, 24), interpolation)
    np.testing.assert_array_equal(up[1::3, 1::3], 20 * small[..., None])


def test_area_is_the_mean_down_and_bilinear_up_on_each_axis():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
  down = image.reshape(3, 4, 10, 3).mean(axis=1)
  np.testing.assert_allclose(geometry.resize_image(image, (3, 10)), down, atol=0.51)
  both = geometry.resize_image(image, (3, 30))
  np.testing.assert_allclose(both[:, 1::3], down, atol=0.51)
  assert geometry.resize_image(image[..., :1], (5, 5)).shape == (5, 5, 1)


@pytest.mark.parametrize(
  ('interpolation', 'method'), [('bilinear', cv2.INTER_LINEAR), ('bicubic', cv2.INTER_CUBIC)]
)
def test_bilinear_and_bicubic_are_those_of_opencv(interpolation, method):
  image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
  np.testing.assert_array_equal(
    geometry.resize_image(image, (7, 23), interpolation),
    cv2.resize(image, (23, 7), interpolation=method),
  )


def test_resize_to_the_same_size_is_free():
  sample = make_sample((6, 7))
  assert geometry.resize(sample, (6, 7)) is sample


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
  assert geometry.fit_size(size, box) == expected


@pytest.mark.parametrize(
  ('size', 'expected'),
  [
    ((480, 640), (800, 1067)),
    ((640, 480), (1067, 800)),
    ((300, 900), (444, 1333)),
    ((9, 9), (800, 800)),
  ],
)
def test_short_side_and_longest(size, expected):
  assert geometry.short_side_size(size, 800, 1333) == expected


def test_pad():
  label = np.ones((2, 3), np.uint16)
  image = np.zeros((2, 3, 3), np.uint8)
  out = geometry.pad_sample(Sample(image, label, label.astype(np.float32)), (3, 4), COLOR)
  outside = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(out.label, np.where(outside, IGNORE_LABEL, 1))
  np.testing.assert_array_equal(out.weight, ~outside)
  assert (out.image[outside] == COLOR).all() and not out.image[~outside].any()
  assert geometry.pad(label, (2, 3), 9) is label


# --- elastic displacement -------------------------------------------------------------------------


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
  actual = geometry.interpolate_nodes(nodes.astype(np.float32), size)
  np.testing.assert_allclose(actual, expected, atol=1e-4)
  np.testing.assert_allclose(actual[:, ::8, ::12], nodes, atol=1e-5)


def test_elastic_displaces_by_output_pixels():
  nodes = np.random.default_rng(5).normal(0, 4, (2, 3, 3)).astype(np.float32)
  plain = move_of((64, 64), (31.5, 31.5), np.eye(2))
  bent = plain._replace(nodes=nodes)
  expected = np.moveaxis(geometry.interpolate_nodes(nodes, (64, 64)), 0, -1)
  np.testing.assert_allclose(bent.positions() - plain.positions(), expected, atol=1e-4)
