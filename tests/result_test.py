"""`Result`: its arrays, its drawing with a legend, and its entries in COCO's format."""

import numpy as np
import pytest
from pycocotools import mask as mask_lib

from segjax.report import overlays
from segjax.result import Result, label_type
from segjax.types import SegjaxError

NAMES = ('sky', 'tree', 'a cat')
PALETTE = np.array([[0, 0, 200], [0, 160, 0], [220, 40, 0]], np.uint8)
COMMON = {'class_names': NAMES, 'palette': PALETTE, 'name': 'x'}


def image(height=40, width=60):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def masks():
  found = np.zeros((2, 40, 60), bool)
  found[0, 5:20, 10:30] = True
  found[1, 30:, 50:] = True
  return found


def encode(mask):
  return mask_lib.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()


def objects(**fields):
  return Result(
    image(),
    **COMMON,
    **{
      'boxes': np.array([[10, 5, 30, 20], [50, 30, 60, 40.5]], np.float32),
      'classes': np.array([2, 1], np.int32),
      'scores': np.array([0.9, 0.25], np.float32),
      'encoded_masks': tuple(encode(mask) for mask in masks()),
      **fields,
    },
  )


def label_map(**fields):
  label = np.zeros((40, 60), np.uint8)
  label[20:] = 2
  return Result(image(), **COMMON, label=label, **fields)


def segments():
  ids = np.zeros((40, 60), np.int32)
  ids[:10], ids[10:15, :30] = 4, 1
  info = [
    {'id': 1, 'category': 2, 'name': 'a cat', 'isthing': True, 'area': 150, 'score': 0.5},
    {'id': 4, 'category': 0, 'name': 'sky', 'isthing': False, 'area': 600},
  ]
  return Result(image(), **COMMON, segments=ids, segments_info=info, category_ids=(7, 8, 20))


def test_masks_are_encoded_and_decoded():
  found = objects()
  assert found.masks.dtype == bool
  np.testing.assert_array_equal(found.masks, masks())
  np.testing.assert_array_equal(found.mask(1), masks()[1])
  assert found.masks is found.masks, 'decoded once'
  assert objects(encoded_masks=None).masks is None


@pytest.mark.parametrize(
  ('make', 'shown'),
  [(label_map, '2 classes'), (objects, '2 objects'), (segments, '2 segments')],
)
def test_a_result_says_what_it_has(make, shown):
  assert repr(make()) == f"Result('x', 60x40 pixels, {shown})"


def test_objects_above_the_threshold_are_drawn():
  drawn = objects().draw()
  assert (drawn.shape, drawn.dtype) == ((9 * 40, 9 * 60, 3), np.uint8)
  plain = objects(scores=np.zeros(2, np.float32)).draw()
  changed = (drawn != plain).any(-1)
  assert changed[9 * 6 : 9 * 19, 9 * 11 : 9 * 29].mean() > 0.9
  assert not changed[9 * 30 :, 9 * 50 :].any(), 'its score is below the threshold'
  assert (objects(draw_threshold=0.2).draw() != drawn)[9 * 31 :, 9 * 51 :].any()


def test_segments_are_tinted_in_the_colors_of_their_classes():
  drawn = segments().draw()
  assert drawn.shape == (9 * 40, 9 * 60, 3)
  tint = drawn.astype(int) - np.repeat(np.repeat(image(), 9, 0), 9, 1)
  assert np.abs(tint[9 * 20 :]).max() == 0, 'no segment'
  assert tint[9:70, 400:, 2].mean() > 30 > tint[9:70, 400:, 0].mean()


def test_the_legend_has_the_classes_of_the_image_the_largest_first():
  label = np.zeros((512, 512), np.uint8)
  label[:200] = 2
  drawn = overlays.overlay(np.full((512, 512, 3), 90, np.uint8), label, PALETTE)
  legend = overlays.with_legend(drawn, label, PALETTE, NAMES)[:, 512:]
  box = lambda row: legend[18 * row + 8, 10].tolist()
  assert [box(0), box(1), box(2)] == [PALETTE[0].tolist(), PALETTE[2].tolist(), [255] * 3]
  np.testing.assert_array_equal(overlays.with_legend(drawn, label, PALETTE, NAMES)[:, :512], drawn)


def test_the_width_of_a_legend_does_not_depend_on_what_is_in_the_image():
  pixels = np.zeros((64, 96, 3), np.uint8)
  shapes = {
    overlays.with_legend(pixels, np.full((64, 96), k), PALETTE, NAMES).shape for k in range(3)
  }
  assert len(shapes) == 1


def test_a_legend_of_too_many_classes_says_how_many_are_left_out():
  names = [f'class {k}' for k in range(100)]
  label = np.arange(100).repeat(512 * 6)[: 512 * 512].reshape(512, -1)
  palette = np.full((100, 3), 130, np.uint8)
  pixels = np.zeros((512, label.shape[1], 3), np.uint8)
  legend = overlays.with_legend(pixels, label, palette, names)[:, label.shape[1] :]
  lines = 512 // 18
  rows = [(legend[18 * k + 8, 10] == 130).all() for k in range(lines)]
  assert rows == [True] * (lines - 1) + [False]
  assert (legend[18 * (lines - 1) : 18 * lines] < 128).any(), 'its last line has text'


def test_a_label_map_without_a_legend_has_the_size_of_the_image():
  assert label_map().draw(legend=False).shape == (40, 60, 3)
  assert label_map().draw().shape[0] == 9 * 40


def test_objects_in_cocos_format_have_a_mask_or_a_box():
  found = objects(category_ids=(7, 8, 20))
  by_mask, by_box = found.to_coco(5), found.to_coco(5, 'box')
  assert [entry['category_id'] for entry in by_mask] == [20, 8]
  assert [set(entry) for entry in by_mask] == [
    {'image_id', 'category_id', 'score', 'segmentation'}
  ] * 2
  assert by_mask[0]['segmentation'] == {'size': [40, 60], 'counts': found.encoded_masks[0]}
  assert by_box[1] == {'image_id': 5, 'category_id': 8, 'score': 0.25, 'bbox': [50, 30, 10, 10.5]}
  assert objects(encoded_masks=None).to_coco(5)[0]['category_id'] == 3, 'counted from 1'
  assert 'bbox' in objects(encoded_masks=None).to_coco(5)[0]


def test_segments_in_cocos_format():
  assert segments().to_coco('a') == [
    {
      'image_id': 'a',
      'file_name': 'x.png',
      'segments_info': [{'id': 1, 'category_id': 20}, {'id': 4, 'category_id': 7}],
    }
  ]


@pytest.mark.parametrize(
  ('result', 'kind', 'message'),
  [
    (label_map(), None, 'is a label map'),
    (objects(), 'boxes', "use 'box' or 'mask'"),
    (objects(encoded_masks=None), 'mask', "use 'box'"),
  ],
)
def test_what_has_no_entry(result, kind, message):
  with pytest.raises(SegjaxError, match=message):
    result.to_coco(1, kind)


@pytest.mark.parametrize(
  ('classes', 'expected'), [(2, np.uint8), (255, np.uint8), (256, np.uint16)]
)
def test_the_highest_value_of_a_label_map_is_left_for_void(classes, expected):
  assert label_type(classes) is expected


@pytest.mark.parametrize('name', ['Straße', 'Ώmega', 'пешеход'])
def test_latin_greek_and_cyrillic_names_are_written(name):
  """No letter looks as another one that the font does not have."""
  label, palette = np.zeros((40, 60), int), PALETTE[:1]
  draw = lambda text: overlays.legend(512, label, palette, [text])
  drawn = draw(name)
  for i in range(len(name)):
    other = name[:i] + '\uffff' + name[i + 1 :]
    assert drawn.shape != draw(other).shape or (drawn != draw(other)).any(), name[i]
