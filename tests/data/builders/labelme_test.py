"""LabelMe: each kind of shape, how images are found, and each way in which the files are wrong."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from synthetic_labelme import SIZE, draw, encode, mask_shape, shape, write, write_set

from segjax.data import datasets
from segjax.data.builders import files, polygons
from segjax.data.builders.labelme import builder as labelme
from segjax.data.builders.labelme.guess import guess
from segjax.data.formats import coco
from segjax.types import IGNORE_LABEL, SegjaxError

CLASSES = 'background', 'square', 'disk'
SQUARE = [[2, 3], [16, 3], [16, 17], [2, 17]]


def options(**kwargs):
  return labelme.Options(**{'classes': CLASSES, **kwargs})


def read(tmp_path, *shapes, semantic=False, size=SIZE, **kwargs):
  path = write(tmp_path / 'im.json', shapes)
  image = path.with_suffix('.png')
  return labelme.read_content(path, image, size, options=options(**kwargs), semantic=semantic)


def masks(content):
  return [coco.decode_mask(entry.counts, SIZE) for entry in content.objects]


def rectangle(left, top, right, bottom):
  mask = np.zeros(SIZE, np.uint8)
  mask[top:bottom, left:right] = 1
  return mask


def disk(center_x, center_y, radius):
  y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
  return np.uint8((x - center_x) ** 2 + (y - center_y) ** 2 < radius**2)


@pytest.mark.parametrize(
  ('points', 'kind'),
  [
    (SQUARE, 'polygon'),
    (SQUARE, None),
    ([[16, 3], [2, 17]], 'rectangle'),
    (SQUARE, 'rectangle'),
    (SQUARE, 'oriented_rectangle'),
    (SQUARE, 'rotation'),
  ],
)
def test_outlines(tmp_path, points, kind):
  content = read(tmp_path, shape('square', points, kind))
  assert [entry.label for entry in content.objects] == [1] and not content.problems
  np.testing.assert_array_equal(masks(content)[0], rectangle(2, 3, 16, 17))
  assert content.objects[0].box == (2, 3, 14, 14)


def test_a_circle_is_a_disk(tmp_path):
  (found,) = masks(read(tmp_path, shape('disk', [[30.3, 20.2], [30.3, 35.9]], 'circle')))
  assert (found != disk(30.3, 20.2, 15.7)).sum() <= 8  # of 774 pixels


def test_a_mask_is_pasted(tmp_path):
  mask = np.random.default_rng(0).random((6, 9)) < 0.5
  (found,) = masks(read(tmp_path, mask_shape('disk', 10, 20, mask)))
  np.testing.assert_array_equal(found[20:26, 10:19], mask)
  assert found.sum() == mask.sum()


def test_shapes_of_a_group_are_one_object_but_in_semantic_tasks(tmp_path):
  shapes = [
    shape('square', SQUARE, group_id=1),
    shape('disk', [[20, 3], [30, 10]], 'rectangle', group_id=1),
    shape('square', [[40, 3], [50, 10]], 'rectangle', group_id=1),
    shape('square', [[40, 30], [50, 40]], 'rectangle'),
  ]
  content = read(tmp_path, *shapes)
  assert [entry.label for entry in content.objects] == [1, 2, 1]
  union = rectangle(2, 3, 16, 17) | rectangle(40, 3, 50, 10)
  np.testing.assert_array_equal(masks(content)[0], union)
  assert [o.label for o in read(tmp_path, *shapes, semantic=True).objects] == [1, 2, 1, 1]


def test_semantic_labels_have_the_file_order_and_void(tmp_path):
  shapes = [
    shape('disk', [[0, 0], [20, 20]], 'rectangle', group_id=1),
    shape('square', [[10, 10], [30, 30]], 'rectangle'),
    shape('disk', [[25, 25], [28, 28]], 'rectangle', group_id=1),
    shape('__ignore__', [[0, 0], [64, 2]], 'rectangle'),
  ]
  label = files.label_of(read(tmp_path, *shapes, semantic=True), SIZE, options())
  assert label[0, 0] == label[1, 63] == IGNORE_LABEL and label[2, 0] == 2
  assert label[15, 15] == 1 and label[26, 26] == 2 and label[47, 63] == 0
  content = read(tmp_path, *shapes)
  assert content.problems == [labelme.VOID_OBJECTS]
  assert [entry.label for entry in content.objects] == [2, 1, IGNORE_LABEL]
  ids, listed = files.segments_of(content, SIZE, options(stuff=('background',)))
  assert [entry.label for entry in listed] == [0, 2, 1]
  assert [ids[y, x] for y, x in ((0, 0), (1, 63), (2, 0), (15, 15), (47, 63))] == [0, 0, 2, 3, 1]


def test_what_has_no_area_is_counted(tmp_path):
  shapes = [
    shape('square', [[1, 1]], 'point'),
    shape('square', [[1, 1], [5, 5]], 'line'),
    shape('square', [[1, 1], [5, 5], [9, 1]], 'linestrip'),
    shape('disk', [[1, 1], [1, 1]], 'circle'),
    shape('square', SQUARE[:2]),
    shape('square', [[100, 100], [120, 120]], 'rectangle'),
  ]
  content = read(tmp_path, *shapes)
  assert content.objects == []
  counts = {problem: content.problems.count(problem) for problem in content.problems}
  assert counts == {labelme.WITHOUT_AREA: 3, polygons.SHORT: 1, polygons.EMPTY: 2}


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    (shape('cat', SQUARE), r"shape 0 has the label 'cat', which is not in .*files\.classes \(back"),
    ({'points': SQUARE}, 'shape 0 has no label'),
    ('cat', 'shape 0 has no label'),
    (shape('disk', SQUARE, 'ellipse'), "of the type 'ellipse', which is not polygon, rectangle"),
    (shape('disk', SQUARE, 'circle'), 'is a circle of 4 points, not 2'),
    (shape('disk', [[1, 2, 3]]), 'points that are not pairs of numbers'),
    (shape('disk', [[1, float('nan')], [1, 2], [3, 4]]), 'points that are not pairs of numbers'),
    (shape('disk', [['a', 'b']]), 'points that are not pairs of numbers'),
    (shape('disk', SQUARE, group_id=[1]), r'has the group_id \[1\], which is no number'),
    (shape('disk', None), 'points that are not pairs of numbers'),
    (shape('disk', [[1, 1], [1e8, 1], [1, 5]]), "a shape 'disk' has a polygon that is not pairs"),
    (shape('disk', [[1, 1], [3, 3]], 'mask'), 'a mask without the base64 of a PNG'),
    (shape('disk', [[1, 1], [3, 3]], 'mask', mask='AAAA'), 'the mask of .* cannot be decoded'),
    (mask_shape('disk', 60, 40, np.ones((9, 9), bool)), r'9x9 pixels at \(60, 40\), which leaves'),
    (
      {**mask_shape('disk', 1, 1, np.ones((3, 4), bool)), 'points': [[1, 1], [5, 3]]},
      'a mask of 4x3 pixels between .* another size',
    ),
  ],
)
def test_wrong_shapes(tmp_path, entry, message):
  with pytest.raises(SegjaxError, match=message) as error:
    read(tmp_path, entry)
  assert str(tmp_path / 'im.json') in str(error.value)


def test_another_image_size(tmp_path):
  (tmp_path / 'im.png').write_bytes(encode(np.zeros((40, 64), np.uint8)))
  with pytest.raises(
    SegjaxError, match=r'im\.png is 64x40 .* JSON file .*im\.json is 64x48: annot'
  ):
    read(tmp_path, size=(40, 64))


def test_an_image_that_was_annotated_without_its_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / 'im.jpg', exif=exif)
  path = write(tmp_path / 'im.json', [])
  (item,) = labelme.find_items(tmp_path, options(), semantic=True).values()
  assert item.image.name == 'im.jpg'
  with pytest.raises(SegjaxError, match='48x64 .* orientation flag turns it .* is 64x48'):
    item.read(SIZE[::-1])
  path.write_text(path.read_text().replace('"imageWidth": 64', '"imageWidth": "?"'))
  with pytest.raises(SegjaxError, match=r'im\.json has an imageHeight or imageWidth that is no'):
    item.read(SIZE[::-1])


# --- files ----------------------------------------------------------------------------------------


def load(tmp_path, annotations, **kwargs):
  """The builder, prepared as `train` does it."""
  kwargs = {'classes': CLASSES, 'images': 'images', 'labels': 'labels', **kwargs}
  return datasets.load(
    'labelme', tmp_path / 'prepared', tmp_path / 'raw', files=kwargs, annotations=annotations
  )


@pytest.fixture
def source(tmp_path):
  write_set(tmp_path / 'raw', 10)
  return tmp_path / 'raw'


def test_prepares_each_task(tmp_path, source, by_name):
  shapes = json.loads((source / 'labels' / 'im03.json').read_text())['shapes']
  (left, top), (center, edge) = shapes[0]['points'][0], shapes[1]['points']
  square, circle = rectangle(left, top, left + 14, top + 14), disk(*center, edge[0] - center[0])

  builder = load(tmp_path, ('label',))
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {'train': 8, 'val': 2}
  examples = by_name(builder, 'train') | by_name(builder, 'val')
  assert sorted(examples) == [f'im{i:02}' for i in range(10)]
  label = examples['im03']['label'][..., 0]
  np.testing.assert_array_equal(label == 1, square == 1)
  assert ((label == 2) != circle).sum() <= 4

  builder = load(tmp_path, ('objects',), classes=CLASSES[1:])
  example = (by_name(builder, 'train') | by_name(builder, 'val'))['im03']
  assert example['objects']['label'] == [0, 1]
  mask = coco.decode_mask(example['objects']['segmentation'][0], SIZE)
  np.testing.assert_array_equal(mask, square)

  panoptic = load(tmp_path, ('label', 'objects', 'segments'), stuff=('background',))
  example = (by_name(panoptic, 'train') | by_name(panoptic, 'val'))['im03']
  assert example['segments']['label'] == [0, 1, 2]
  assert panoptic.info.metadata['isthing'] == [False, True, True]


def test_void_is_no_object(tmp_path, source, by_name):
  with pytest.warns(UserWarning, match=r'^10 objects with a label of .*\.void were left out'):
    kwargs = {'classes': ('square',), 'void': ('disk',), 'splits': {'train': 1.0}}
    builder = load(tmp_path, ('objects',), **kwargs)
  assert by_name(builder, 'train')['im03']['objects']['label'] == [0]


def test_splits_by_directory_and_list(tmp_path, by_name):
  rng = np.random.default_rng(0)
  for name in ('train/a', 'train/b', 'val/b c', 'val/d'):
    path = tmp_path / 'raw' / f'{name}.json'
    image, shapes = draw(rng)
    write(path, shapes)
    path.with_suffix('.png').write_bytes(encode(image))
  (tmp_path / 'raw' / 'list.txt').write_text('\nval/b c.png\n')
  splits = {'train': 'train', 'val': 'list.txt'}
  builder = load(tmp_path, ('label',), images='.', labels='.', splits=splits)
  assert {split: sorted(by_name(builder, split)) for split in splits} == {
    'train': ['train/a', 'train/b'],
    'val': ['val/b c'],
  }


def test_images_by_path_and_inside_the_file(tmp_path):
  root = tmp_path / 'raw'
  image, shapes = draw(np.random.default_rng(0))
  (root / 'images').mkdir(parents=True)
  for name in ('same.png', 'other.png', 'two.png', 'two.jpg'):
    (root / 'images' / name).write_bytes(encode(image))
  write(root / 'labels' / 'same.json', shapes, image_path='nowhere.png')
  write(root / 'labels' / 'renamed.json', shapes, image_path='..\\images\\other.png')
  write(root / 'labels' / 'two.json', shapes, image_path='../images/two.jpg')
  write(root / 'labels' / 'embedded.json', shapes, image_data=encode(image, 'JPEG'))
  (root / 'labels' / '._same.json').write_bytes(b'\0\1')
  with pytest.raises(SegjaxError, match=r'1 of 4 images have no JSON .*images/two\.png'):
    labelme.find_items(root, options(images='images', labels='labels'), semantic=True)
  skip = options(images='images', labels='labels', unpaired='skip')
  items = labelme.find_items(root, skip, semantic=True)
  assert sorted(items) == ['embedded', 'renamed', 'same', 'two']
  paths = {name: getattr(item.image, 'name', None) for name, item in items.items()}
  assert paths == {
    'embedded': None,
    'renamed': 'other.png',
    'same': 'same.png',
    'two': 'two.jpg',
  }
  assert items['embedded'].image.read_bytes() == encode(image, 'JPEG')
  empty = options(images='images', labels='labels', unpaired='empty')
  with pytest.raises(SegjaxError, match=r'two\.png has the name of another image but for its'):
    labelme.find_items(root, empty, semantic=True)
  (root / 'images' / 'two.png').rename(root / 'images' / 'three.png')
  items = labelme.find_items(root, empty, semantic=True)
  assert sorted(items) == ['embedded', 'renamed', 'same', 'three', 'two']
  assert items['three'].read(SIZE) == files.Content(objects=[])


@pytest.mark.parametrize(
  ('image_path', 'message'),
  [
    ('../../secret.png', r"im\.json names '\.\./secret\.png', which is not below"),
    ('{tmp}/secret.png', 'which is not below'),
    ('C:\\secret.png', 'which is not below'),
    ('../images/no.png', 'has no imageData, and its image images/no.png is not below'),
  ],
)
def test_images_elsewhere(tmp_path, image_path, message):
  root = tmp_path / 'raw'
  (root / 'images').mkdir(parents=True)
  (tmp_path / 'secret.png').write_bytes(encode(np.zeros((*SIZE, 3), np.uint8)))
  write(root / 'labels' / 'im.json', [], image_path=image_path.format(tmp=tmp_path))
  with pytest.raises(SegjaxError, match=message):
    labelme.find_items(root, options(images='images', labels='labels'), semantic=True)


def test_an_image_that_is_elsewhere_is_taken_from_the_file(tmp_path):
  image, shapes = draw(np.random.default_rng(0))
  for i, path in enumerate(('C:\\photos\\a.png', '../../../a.png', '/home/a.png')):
    write(tmp_path / f'{i}.json', shapes, image_path=path, image_data=encode(image))
  items = labelme.find_items(tmp_path, options(images='.', labels='.'), semantic=True)
  assert [item.image.read_bytes() for item in items.values()] == [encode(image)] * 3
  assert guess('semantic', tmp_path, None).problems == []


def corrupt(name, content):
  return lambda root: (root / name).write_bytes(content)


BREAKS = {
  'not JSON': (corrupt('labels/im03.json', b'{"shapes": ['), r'im03\.json is truncated or is not'),
  'deep': (corrupt('labels/im03.json', b'[' * 100_000), r'im03\.json is truncated or is not'),
  'not text': (corrupt('labels/im03.json', b'\xff\xfe\x00'), r'im03\.json is truncated or is not'),
  'empty': (corrupt('labels/im03.json', b''), r'im03\.json is truncated or is not'),
  'COCO': (
    corrupt('labels/im03.json', b'{"images": [], "annotations": []}'),
    r'im03\.json has no list shapes, so is not of LabelMe \(it has the keys images, annotations\)',
  ),
  'image': (corrupt('images/im03.png', b'GIF?'), r'im03\.png cannot be decoded'),
  'no image': (
    lambda root: (root / 'images' / 'im03.png').unlink(),
    r'im03\.json has no imageData, and its image images/im03\.png is not below',
  ),
  'no JSON': (
    lambda root: (root / 'labels' / 'im03.json').unlink(),
    r'1 of 10 images have no JSON file below .*labels, such as .*im03\.png: .*unpaired',
  ),
  'no directory': (
    lambda root: (root / 'labels').rename(root / 'json'),
    r'config\.data\.files\.labels=labels: .*raw/labels is not a directory',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_wrong_files(tmp_path, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  with pytest.raises(SegjaxError, match=message):
    load(tmp_path, ('label',))
  assert not list((tmp_path / 'prepared').rglob('*.array_record*'))


def test_corrupt_image_data(tmp_path):
  path = write(tmp_path / 'im.json', [])
  path.write_text(re.sub('"imageData": null', '"imageData": "?"', path.read_text()))
  items = labelme.find_items(tmp_path, options(), semantic=True)
  with pytest.raises(SegjaxError, match=r'the imageData of .*im\.json is corrupt'):
    items['im'].image.read_bytes()


def test_what_was_left_out_is_reported_once(tmp_path, source):
  for number in (1, 2):
    path = source / 'labels' / f'im{number:02}.json'
    content = json.loads(path.read_text())
    content['shapes'].append(shape('disk', [[3, 3]], 'point'))
    path.write_text(json.dumps(content))
  with pytest.warns(UserWarning, match=r'^2 points and lines .* left out \(in im01, im02\)'):
    load(tmp_path, ('label',), splits={'train': 1.0})
