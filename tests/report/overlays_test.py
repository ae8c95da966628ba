import numpy as np
import pytest
from PIL import Image

from segjax.report import overlays
from segjax.types import IGNORE_LABEL

PALETTE = np.array([[10, 20, 30], [200, 0, 0], [0, 100, 250]], np.uint8)
LABEL = np.array([[0, 1, 2], [2, IGNORE_LABEL, 0]])


def test_colorize_gives_each_class_its_color():
  expected = [
    [(10, 20, 30), (200, 0, 0), (0, 100, 250)],
    [(0, 100, 250), overlays.IGNORE_COLOR, (10, 20, 30)],
  ]
  shown = overlays.colorize(LABEL, PALETTE)
  assert shown.dtype == np.uint8
  np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize('bad', [3, -1, 255, 65_534])
def test_a_label_without_a_color_is_an_error(bad):
  label = LABEL.copy()
  label[0, 0] = bad
  with pytest.raises(ValueError, match=f'label {bad} has no color: the palette has 3'):
    overlays.colorize(label, PALETTE)


def test_overlay_blends_with_alpha():
  image = np.full((2, 3, 3), 100, np.uint8)
  colors = overlays.colorize(LABEL, PALETTE)
  blend = overlays.overlay(image, LABEL, PALETTE, alpha=0.25, outline=False)
  np.testing.assert_array_equal(blend, np.rint(0.75 * image + 0.25 * colors))
  np.testing.assert_array_equal(
    overlays.overlay(image, LABEL, PALETTE, alpha=0, outline=False), image
  )


def test_overlay_outlines_both_sides_of_a_border():
  label = np.zeros((5, 6), int)
  label[:, 3:] = 1
  image = np.full((5, 6, 3), 100, np.uint8)
  shown = overlays.overlay(image, label, PALETTE, alpha=0)
  np.testing.assert_array_equal(shown[:, 2], np.tile(PALETTE[0], (5, 1)))
  np.testing.assert_array_equal(shown[:, 3], np.tile(PALETTE[1], (5, 1)))
  np.testing.assert_array_equal(shown[:, [0, 1, 4, 5]], 100)


def test_the_legend_has_room_for_the_number_of_classes_that_are_left_out():
  names, palette = [str(i) for i in range(200)], np.zeros((200, 3), np.uint8)
  label = np.arange(200).reshape(1, 200)
  narrow = overlays.legend(64, label, palette, names)
  wide = overlays.legend(64, label, palette, ['a class with a long name', *names[1:]])
  ink = lambda shown: (shown[-overlays._LINE :] < 255).any(2).sum()
  assert ink(narrow) == ink(wide) > 0


@pytest.mark.parametrize('rows', [1, 3, 7, 20])
def test_strips_are_the_overlay(monkeypatch, rows):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (13, 9, 1), np.uint8)
  label = rng.integers(0, 3, (13, 9))
  whole = overlays.overlay(image, label, PALETTE)
  monkeypatch.setattr(overlays, '_STRIP', rows)
  strips = list(overlays.overlay_strips(image, label, PALETTE))
  assert [len(strip) for strip in strips][:-1] == [rows] * (len(strips) - 1)
  np.testing.assert_array_equal(np.concatenate(strips), whole)
  np.testing.assert_array_equal(overlays.overlay(image, label, PALETTE), whole)
  counts = overlays.count_labels(label, 2)
  np.testing.assert_array_equal(counts, [(label == k).sum() for k in range(2)])


def test_overlay_outlines_horizontal_borders():
  label = np.array([[0], [0], [1], [1]])
  shown = overlays.overlay(np.full((4, 1, 3), 100, np.uint8), label, PALETTE, alpha=0)
  np.testing.assert_array_equal(
    shown[:, 0], [(100, 100, 100), PALETTE[0], PALETTE[1], (100, 100, 100)]
  )


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1)])
def test_gray_images_are_shown_as_rgb(shape):
  gray = np.arange(6, dtype=np.uint8).reshape(shape) * 40
  rgb = np.repeat(gray.reshape(2, 3, 1), 3, axis=-1)
  np.testing.assert_array_equal(
    overlays.overlay(gray, LABEL, PALETTE), overlays.overlay(rgb, LABEL, PALETTE)
  )


@pytest.mark.parametrize(
  'image, message',
  [
    (np.zeros((2, 3, 3), np.float32), 'uint8, got float32'),
    (np.zeros((2, 3, 4), np.uint8), r'got \(2, 3, 4\)'),
    (np.zeros((3, 3, 3), np.uint8), 'sizes differ'),
  ],
)
def test_an_image_of_another_kind_or_size_is_an_error(image, message):
  with pytest.raises(ValueError, match=message):
    overlays.overlay(image, LABEL, PALETTE)


def test_panels_mark_the_wrong_pixels_only():
  image = np.full((2, 3, 1), 100, np.uint8)
  prediction = np.array([[0, 2, 2], [2, 1, 1]])
  panels = overlays.panels(image, LABEL, prediction, PALETTE)
  assert list(panels) == ['image', 'truth', 'prediction', 'errors']
  np.testing.assert_array_equal(panels['image'], np.full((2, 3, 3), 100))
  np.testing.assert_array_equal(panels['truth'], overlays.colorize(LABEL, PALETTE))
  np.testing.assert_array_equal(panels['prediction'], overlays.colorize(prediction, PALETTE))
  wrong = (panels['errors'] == overlays.ERROR_COLOR).all(axis=-1)
  np.testing.assert_array_equal(wrong, [[False, True, False], [False, False, True]])


def test_label_png_holds_the_class_index_and_shows_the_color(tmp_path):
  path = tmp_path / 'label.png'
  overlays.write_label_png(path, LABEL, PALETTE)
  with Image.open(path) as shown:
    assert shown.mode == 'P'
    np.testing.assert_array_equal(np.asarray(shown), np.where(LABEL == IGNORE_LABEL, 255, LABEL))
    np.testing.assert_array_equal(
      np.asarray(shown.convert('RGB')), overlays.colorize(LABEL, PALETTE)
    )


def test_label_png_keeps_a_two_class_map_without_ignore(tmp_path):
  path = tmp_path / 'label.png'
  label = np.array([[1, 1], [1, 0]], np.int32)
  overlays.write_label_png(path, label, PALETTE[:2])
  with Image.open(path) as shown:
    np.testing.assert_array_equal(np.asarray(shown), label)


@pytest.mark.parametrize(('classes', 'mode', 'void'), [(255, 'P', 255), (256, 'I;16', 65_535)])
def test_label_png_of_more_than_255_classes_has_16_bits(tmp_path, classes, mode, void):
  path, palette = tmp_path / 'label.png', np.zeros((classes, 3), np.uint8)
  overlays.write_label_png(path, [[0, classes - 1, IGNORE_LABEL]], palette)
  with Image.open(path) as image:
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), [[0, classes - 1, void]])
  label = overlays.colorize([[classes - 1, IGNORE_LABEL]], palette)
  np.testing.assert_array_equal(label, [[(0, 0, 0), overlays.IGNORE_COLOR]])


def test_label_png_refuses_what_eight_bits_would_wrap(tmp_path):
  with pytest.raises(ValueError, match='label 256'):
    overlays.write_label_png(tmp_path / 'label.png', np.array([[256]]), PALETTE)


def test_objects_are_drawn_where_they_are():
  image = np.full((600, 500, 3), 100, np.uint8)
  masks = np.zeros((2, 600, 500), bool)
  masks[0, 100:200, 100:200] = masks[1, 150:300, 150:300] = True
  boxes = np.array([[100, 100, 200, 200], [150, 150, 300, 300]])
  colors = [(255, 0, 0), (0, 0, 255)]
  shown = overlays.objects(image, boxes, colors, ['', ''], masks, alpha=0.5)
  assert shown.shape == image.shape
  np.testing.assert_array_equal(shown[120, 120], [178, 50, 50])
  np.testing.assert_array_equal(shown[280, 280], [50, 50, 178])
  assert shown[170, 170, 0] > shown[170, 170, 2], 'the first one is on top'
  np.testing.assert_array_equal(shown[150, 299], [0, 0, 255])
  np.testing.assert_array_equal(shown[50, 50], image[50, 50])
  boxes_alone = overlays.objects(image, boxes, colors, ['', ''])
  np.testing.assert_array_equal(boxes_alone[120, 120], image[120, 120])


def test_objects_enlarge_a_small_image_and_label_it():
  image = np.random.default_rng(0).integers(0, 256, (64, 100, 3), np.uint8)
  plain = overlays.objects(image, (), (), ())
  np.testing.assert_array_equal(plain, np.kron(image, np.ones((5, 5, 1), np.uint8)))
  box, color = [[10, 2, 50, 60]], [(250, 250, 0)]
  unlabeled = overlays.objects(image, box, color, [''])
  labeled = overlays.objects(image, box, color, ['cat 0.99'])
  changed = np.argwhere((unlabeled != labeled).any(-1))
  assert len(changed) > 100
  # At the upper left corner of the box, inside the image.
  assert changed[:, 0].max() <= 5 * 2 + 15
  assert changed[:, 1].min() >= 5 * 10


def test_objects_of_one_color_get_different_shades():
  image = np.zeros((600, 600, 3), np.uint8)
  boxes = [[100 * k, 300, 100 * k + 50, 350] for k in range(5)]
  shown = overlays.objects(image, boxes, [(200, 30, 60)] * 5, [''] * 5)
  assert len({shown[320, 100 * k].tobytes() for k in range(5)}) == 5


def test_segments_are_tinted_outlined_and_named():
  image = np.full((300, 300, 3), 100, np.uint8)
  ids = np.zeros((300, 300), int)
  ids[100:200, 50:250], ids[220:260, 50:100] = 2, 3
  colors = [[255, 0, 0], [0, 200, 0], [0, 0, 200]]
  shown = overlays.segments(image, ids, colors, ['x', 'wide', ''], alpha=0.5)
  assert shown.shape == (600, 600, 3), 'enlarged by two'
  assert (shown[:180] == 100).all(), 'what is in no segment is left alone'
  assert shown[210, 110].tolist() == [50, 150, 50]
  assert shown[200, 100].tolist() == [0, 200, 0], 'the outline'
  assert shown[480, 150].tolist() == [50, 50, 150]
  # The name is written where the segment is deepest, in full color; one has none.
  plain = overlays.segments(image, ids, colors, ['x', '', ''], alpha=0.5)
  rows, columns = np.nonzero((shown != plain).any(-1))
  assert 270 < rows.min() < rows.max() < 330
  assert columns.min() > 100 and columns.max() < 500


def test_segments_of_one_color_get_different_shades():
  image = np.full((512, 512, 1), 0, np.uint8)
  ids = np.zeros((512, 512), int)
  ids[:100], ids[200:300] = 5, 2
  colors = np.full((5, 3), 120)
  shown = overlays.segments(image, ids, colors, [''] * 5, alpha=1.0)
  assert shown[50, 50].tolist() != shown[250, 50].tolist()
  nothing = overlays.segments(image, np.zeros_like(ids), (), ())
  assert not nothing.any()
