"""What is drawn of examples as they are stored and as they are trained on."""

import numpy as np

from segjax import draw
from segjax.data import batch, datasets
from segjax.data.sample import Objects, Sample
from segjax.report import overlays
from segjax.types import IGNORE_LABEL, Segments

SPEC = datasets.DatasetSpec(
  name='tiny',
  version='1.0.0',
  class_names=('sky', 'cat', 'dog'),
  palette=np.array([[0, 0, 250], [250, 0, 0], [0, 250, 0]], np.uint8),
  channels=3,
  splits={'train': 1},
  things=(1, 2),
)


def gray(height, width, channels=3):
  return np.full((height, width, channels), 100, np.uint8)


def one_object(height, width, label, box):
  masks = np.zeros((1, height, width), np.uint8)
  x0, y0, x1, y1 = box
  masks[0, y0:y1, x0:x1] = 1
  return Objects(np.float32([box]), np.int32([label]), masks, np.zeros(1, bool))


def test_a_label_is_drawn_over_the_image():
  label = np.array([[0, 1], [IGNORE_LABEL, 0]], np.uint16)
  drawn = draw.draw_sample(SPEC, Sample(gray(2, 2), label))
  np.testing.assert_array_equal(drawn, overlays.overlay(gray(2, 2), label, SPEC.palette))


def test_gray_images_are_drawn_in_rgb():
  drawn = draw.draw_sample(SPEC, Sample(gray(4, 6, 1)))
  np.testing.assert_array_equal(drawn, gray(4, 6))


def test_large_images_are_shrunk_with_their_annotations():
  label = np.zeros((1024, 600), np.uint16)
  label[512:] = 1
  drawn = draw.draw_sample(SPEC, Sample(gray(1024, 600), label))
  assert drawn.shape == (512, 300, 3)
  assert drawn[100, 100].argmax() == 2 and drawn[400, 100].argmax() == 0
  objects = one_object(1024, 600, 1, (0, 512, 600, 1024))
  drawn = draw.draw_sample(SPEC, Sample(gray(1024, 600), objects=objects))
  assert drawn.shape == (512, 300, 3) and drawn[400, 100].argmax() == 0
  ids = (label + 1).astype(np.int32)
  flags = np.array([False, False])
  segments = Segments(ids, np.int32([0, 1]), crowd=flags, valid=~flags)
  drawn = draw.draw_sample(SPEC, Sample(gray(1024, 600), segments=segments))
  assert drawn.shape == (512, 300, 3) and drawn[400, 10].argmax() == 0


def test_a_tiny_object_of_a_large_image_keeps_its_box():
  image = gray(2048, 2048)
  bare = draw.draw_sample(SPEC, Sample(image))
  objects = one_object(2048, 2048, 0, (1001, 1001, 1003, 1003))
  drawn = draw.draw_sample(SPEC, Sample(image, objects=objects))
  changed = np.argwhere((drawn != bare).any(-1))
  assert len(changed) and np.abs(changed.mean(0) - 250).max() < 40


def test_labels_with_objects_are_drawn_as_segments():
  label = np.zeros((40, 40), np.uint16)
  label[:10] = IGNORE_LABEL
  label[20:, 20:] = 2
  objects = one_object(40, 40, 1, (20, 20, 40, 40))
  ids = np.where(label == IGNORE_LABEL, 0, 1).astype(np.int32)
  ids[20:, 20:] = 2
  flags = np.array([False, False])
  segments = Segments(ids, np.int32([0, 2]), crowd=flags, valid=~flags)
  drawn = draw.draw_sample(SPEC, Sample(gray(40, 40), label, objects=objects))
  np.testing.assert_array_equal(drawn, draw.draw_segments(SPEC, gray(40, 40), segments))


def test_a_row_with_a_margin_has_its_label_in_the_middle():
  label = np.array([[0, 1], [1, 0]], np.int32)
  found = {'image': gray(6, 6)[None], 'label': label[None]}
  drawn = draw.draw_row(SPEC, found, 0, margin=2)
  expected = gray(6, 6)
  expected[2:4, 2:4] = overlays.overlay(gray(2, 2), label, SPEC.palette)
  np.testing.assert_array_equal(drawn, expected)


def test_a_row_with_objects_has_no_padding_and_only_the_valid_ones():
  objects = one_object(20, 21, 1, (2, 3, 12, 15))
  packed = batch.pack_objects(objects)
  instances = packed._replace(
    boxes=np.concatenate([packed.boxes, np.zeros((1, 4), np.float32)])[None],
    classes=np.concatenate([packed.classes, [0]])[None],
    masks=np.pad(np.packbits(packed.masks, axis=-1), ((0, 1), (0, 4), (0, 1)))[None],
    crowd=np.zeros((1, 2), bool),
    valid=np.array([[True, False]]),
  )
  found = {'image': gray(24, 32)[None], 'size': np.int32([[20, 21]]), 'instances': instances}
  drawn = draw.draw_row(SPEC, found, 0)
  expected = draw.draw_sample(SPEC, Sample(gray(20, 21), objects=objects))
  np.testing.assert_array_equal(drawn, expected)
