"""Objects move with their image: a box stays the box of its mask."""

import numpy as np
import pytest

from segjax.data import instances
from segjax.data.formats import coco
from segjax.data.instances import Objects, Picture
from segjax.types import IGNORE_LABEL


def make_picture(size=(40, 60), count=5, seed=0):
  """Rectangles that overlap, each with its box, on noise."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, *size), np.uint8)
  for mask in masks:
    (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in size)
    mask[y0:y1, x0:x1] = 1
  objects = Objects(
    boxes=instances.mask_boxes(masks),
    classes=rng.integers(0, 3, count).astype(np.int32),
    masks=masks,
    crowd=rng.random(count) < 0.3,
  )
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  return Picture(image, objects, rng.integers(0, 4, size).astype(np.uint8))


def assert_boxes_fit(picture):
  np.testing.assert_array_equal(picture.objects.boxes, instances.mask_boxes(picture.objects.masks))


@pytest.mark.parametrize('seed', range(4))
def test_box_of_the_flipped_mask_is_the_flipped_box(seed):
  picture = make_picture(seed=seed)
  flipped = instances.flip(picture)
  assert_boxes_fit(flipped)
  np.testing.assert_array_equal(flipped.image, picture.image[:, ::-1])
  np.testing.assert_array_equal(flipped.label, picture.label[:, ::-1])
  twice = instances.flip(flipped)
  np.testing.assert_array_equal(twice.image, picture.image)
  for a, b in zip(twice.objects, picture.objects, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('factor', [(2, 2), (3, 1), (1, 4)])
def test_box_of_the_enlarged_mask_is_the_enlarged_box(factor):
  picture = make_picture()
  size = tuple(s * f for s, f in zip(picture.size, factor, strict=True))
  larger = instances.resize(picture, size)
  assert larger.image.shape == (*size, 3)
  assert_boxes_fit(larger)
  enlarge = lambda x: np.kron(x, np.ones(factor, np.uint8))
  np.testing.assert_array_equal(larger.label, enlarge(picture.label))
  np.testing.assert_array_equal(larger.objects.masks[0], enlarge(picture.objects.masks[0]))


@pytest.mark.parametrize('size', [(20, 30), (27, 41), (57, 33)])
def test_box_of_the_resized_mask_is_the_resized_box_to_half_a_pixel(size):
  resized = instances.resize(make_picture(), size)
  there = resized.objects.masks.any((1, 2))
  gap = resized.objects.boxes - instances.mask_boxes(resized.objects.masks)
  assert np.abs(gap[there]).max() <= 0.5 + 1e-5


@pytest.mark.parametrize('corner', [(0, 0), (7, 20), (30, 50), (-0, 59)])
def test_crop_keeps_what_is_inside(corner):
  picture = make_picture(count=8)
  part = instances.crop(picture, corner, (12, 20))
  window = np.s_[corner[0] : corner[0] + 12, corner[1] : corner[1] + 20]
  np.testing.assert_array_equal(part.image, picture.image[window])
  np.testing.assert_array_equal(part.label, picture.label[window])
  assert_boxes_fit(part)
  inside = picture.objects.masks[(slice(None), *window)]
  there = inside.any((1, 2))
  np.testing.assert_array_equal(part.objects.masks, inside[there])
  np.testing.assert_array_equal(part.objects.classes, picture.objects.classes[there])


def test_crop_leaves_an_annotated_box_alone_unless_it_is_cut():
  """COCO's boxes are those of polygons, not of pixels."""
  picture = make_picture(count=2)
  masks = np.zeros((2, 40, 60), np.uint8)
  masks[0, 5:10, 5:10], masks[1, 5:10, 5:30] = 1, 1
  boxes = np.float32([[5.25, 5.5, 9.75, 9.5], [5.25, 5.5, 29.75, 9.5]])
  picture = picture._replace(objects=picture.objects._replace(boxes=boxes, masks=masks))
  part = instances.crop(picture, (2, 3), (20, 20))
  np.testing.assert_array_equal(part.objects.boxes, [[2.25, 3.5, 6.75, 7.5], [2, 3, 20, 8]])


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
  assert instances.short_side_size(size, 800, 1333) == expected


def test_the_largest_stay_in_their_order():
  picture = make_picture(count=6)
  areas = picture.objects.masks.sum((1, 2))
  kept = instances.largest(picture.objects, 3)
  order = np.sort(np.argsort(-areas)[:3])
  np.testing.assert_array_equal(kept.masks, picture.objects.masks[order])
  assert instances.largest(picture.objects, 6) is picture.objects


def test_pad_says_what_is_there():
  picture = make_picture((9, 13), count=2)
  part = instances.pad(picture, (16, 24), 4, np.uint8([1, 2, 3]))
  assert part['image'].shape == (16, 24, 3)
  np.testing.assert_array_equal(part['image'][:9, :13], picture.image)
  assert (part['image'][9:] == [1, 2, 3]).all()
  assert (part['label'][:, 13:] == IGNORE_LABEL).all()
  np.testing.assert_array_equal(part['size'], [9, 13])
  found = part['instances']
  np.testing.assert_array_equal(found.valid, [True, True, False, False])
  masks = np.unpackbits(found.masks, axis=-1)
  assert masks.shape == (4, 16, 24)
  np.testing.assert_array_equal(masks[:2, :9, :13], picture.objects.masks)
  assert masks.sum() == picture.objects.masks.sum()
  np.testing.assert_array_equal(found.boxes[:2], picture.objects.boxes)


def test_an_image_without_objects():
  picture = make_picture(count=0)
  for moved in (
    instances.flip(picture),
    instances.resize(picture, (20, 30)),
    instances.crop(picture, (1, 1), (5, 5)),
  ):
    assert moved.objects.masks.shape == (0, *moved.size)
    assert moved.objects.boxes.shape == (0, 4)
  assert not instances.pad(picture, (40, 60), 3, np.zeros(3, np.uint8))['instances'].valid.any()


def test_annotations_of_run_lengths_and_of_an_id_picture_agree():
  """Of objects that do not overlap the two kinds say the same."""
  instance = np.zeros((8, 10), np.uint8)
  instance[1:4, 2:7], instance[5:8, 0:3] = 1, 4
  ids, labels = [1, 4], [2, 5]
  things = {2: 0, 5: 1}
  from_picture = instances.annotations({'id': ids, 'label': labels}, (8, 10), instance, things)
  entries = [
    coco.mask_object(instance == i, id=i, label=label, category_id=9)
    for i, label in zip(ids, labels, strict=True)
  ]
  columns = {key: [entry[key] for entry in entries] for key in entries[0]}
  assert instances.annotations(columns, (8, 10), None, things) == from_picture
  assert [entry['category'] for entry in from_picture] == [0, 1]
  assert instances.annotations(columns, (8, 10), None, {5: 0})[0]['id'] == 4, (
    'the others are left out'
  )
  assert from_picture[0]['bbox'] == [2, 1, 5, 3]
  objects = instances.decode(from_picture, (8, 10))
  np.testing.assert_array_equal(objects.masks, [instance == 1, instance == 4])
  np.testing.assert_array_equal(objects.boxes, instances.mask_boxes(objects.masks))


def test_pasted_objects_hide_what_is_below():
  """Every pixel of the result comes from one of the two, and so do the masks."""
  picture, other = make_picture(count=4), make_picture(size=(50, 30), count=6, seed=1)
  pasted = instances.paste(np.random.default_rng(0), picture, other)
  inside = np.zeros(picture.size, bool)
  inside[:, :30] = True
  from_other = np.zeros((*picture.size, 3), np.uint8)
  from_other[:, :30] = other.image[:40]
  above = (pasted.image != picture.image).any(-1)
  np.testing.assert_array_equal(pasted.image[above], from_other[above])
  assert above.any() and not above[~inside].any()
  assert_boxes_fit(pasted)
  # As many pixels of an object as there were, less those that a pasted one hides.
  old = picture.objects.masks & ~above
  kept = pasted.objects.masks[: len(pasted.objects.masks)]
  assert all((kept == mask).all((1, 2)).any() for mask in old if mask.any())
  np.testing.assert_array_equal(pasted.label[~above], picture.label[~above])


def test_a_hidden_object_is_gone_and_an_untouched_one_stays_as_it_is():
  def one(masks, value):
    masks = np.array(masks, np.uint8)
    objects = Objects(
      instances.mask_boxes(masks) + 0.25,  # an annotated box, not that of the pixels
      np.zeros(len(masks), np.int32),
      masks,
      np.zeros(len(masks), bool),
    )
    return Picture(np.full((4, 6, 3), value, np.uint8), objects)

  left, right, whole = np.zeros((3, 4, 6), np.uint8)
  left[1:3, 1:3] = right[1:3, 4:6] = whole[:, :4] = 1
  picture, other = one([left, right], 0), one([whole], 9)
  results = [instances.paste(np.random.default_rng(seed), picture, other) for seed in range(8)]
  # A coin decides whether the one object is pasted.
  assert {len(r.objects.classes) for r in results} == {2}
  pasted = next(r for r in results if r.image.any())
  np.testing.assert_array_equal(pasted.objects.masks, [right, whole])
  np.testing.assert_array_equal(pasted.objects.boxes[0], picture.objects.boxes[1])
  untouched = next(r for r in results if not r.image.any())
  np.testing.assert_array_equal(untouched.objects.boxes, picture.objects.boxes)


def test_a_window_of_a_resized_picture_is_its_crop():
  picture = make_picture(count=8)
  window = ((7, 11), (30, 40))
  whole, part = instances.resize(picture, (66, 80)), instances.resize(picture, (66, 80), window)
  expected = instances.crop(whole, *window)
  np.testing.assert_array_equal(part.image, expected.image)
  np.testing.assert_array_equal(part.label, expected.label)
  for a, b in zip(part.objects, expected.objects, strict=True):
    np.testing.assert_array_equal(a, b)
  unscaled = instances.resize(picture, picture.size, window)
  np.testing.assert_array_equal(unscaled.image, instances.crop(picture, *window).image)
