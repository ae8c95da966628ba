"""YOLO: rows, where images and text files are, and each way in which they can be wrong."""

import shutil

import numpy as np
import pytest
import synthetic_yolo
from synthetic_labelme import SIZE, draw, encode

from segjax.data import datasets
from segjax.data.builders import files, polygons
from segjax.data.builders.yolo import builder as yolo
from segjax.data.formats import coco
from segjax.types import IGNORE_LABEL, SegjaxError

NAMES = synthetic_yolo.NAMES
SQUARE = '0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75'


def options(**kwargs):
  return yolo.Options(**{'classes': ('background', *NAMES), **kwargs})


def read(tmp_path, text, *, semantic=False, **kwargs):
  path = tmp_path / 'im.txt'
  path.write_text(text)
  return yolo.read_content(path, SIZE, names=NAMES, options=options(**kwargs), semantic=semantic)


def middle():
  mask = np.zeros(SIZE, np.uint8)
  mask[12:36, 16:48] = 1
  return mask


# --- rows -----------------------------------------------------------------------------------------


def test_polygons_are_scaled_to_the_image(tmp_path):
  content = read(tmp_path, f'\n1 {SQUARE}\r\n0.0\t0 0 .5 0 .5 .5\n\n')
  assert [entry.label for entry in content.objects] == [2, 1] and content.problems == []
  np.testing.assert_array_equal(coco.decode_mask(content.objects[0].counts, SIZE), middle())
  assert content.objects[0].box == (16, 12, 32, 24)


@pytest.mark.parametrize('semantic', [False, True])
def test_boxes_have_no_mask_and_are_filled_in_semantic_tasks(tmp_path, semantic):
  content = read(tmp_path, '1 0.5 0.5 0.5 0.5', semantic=semantic)
  assert content.objects == [files.Object(2, None, (16, 12, 32, 24))]
  assert content.problems == [yolo.FILLED_BOX] * semantic
  np.testing.assert_array_equal(files.label_of(content, SIZE, options()), 2 * middle())


def test_boxes_are_cut_at_the_edge_of_the_image(tmp_path):
  """Of 48 x 64 pixels; half a pixel beyond it is rounding."""
  content = read(tmp_path, '0 1 0 0.5 0.5\n0 0.25 0.5 0.516 0.5')
  assert [entry.box for entry in content.objects] == [
    (48, 0, 16, 12),
    pytest.approx((0, 12, 32.512, 24)),
  ]
  assert content.problems == [polygons.BEYOND]


def test_classes_are_found_by_name(tmp_path):
  rows = f'0 {SQUARE}\n1 0 0 .5 0 .5 .2\n'
  content = read(tmp_path, rows, classes=('disk', 'cat', 'square'))
  assert [entry.label for entry in content.objects] == [2, 0]
  content = read(tmp_path, rows, classes=('disk',), void=('square',))
  assert [entry.label for entry in content.objects] == [IGNORE_LABEL, 0]
  assert content.problems == [yolo.VOID_OBJECTS]
  content = read(tmp_path, rows, classes=('disk',), void=('square',), semantic=True)
  assert [entry.label for entry in content.objects] == [IGNORE_LABEL, 0]


def test_what_is_wrong_is_told(tmp_path):
  rows = [
    f'1 {SQUARE}',
    f'1  {SQUARE} ',
    f'0 {SQUARE}',
    '1 0.5 0.5 0 0.1',
    '1 0.2 0.2 0.20001 0.2 0.2 0.20001',
    '1 0.2 0.2 0.8 0.8 0.8 0.2 0.2 0.8',
  ]
  content = read(tmp_path, '\n'.join(rows))
  assert len(content.objects) == 3
  expected = [yolo.REPEATED, polygons.SHORT, polygons.EMPTY, polygons.CROSSING]
  assert content.problems == expected
  content = read(tmp_path, '1 0.5 0.5 0 0.1\n')
  assert content == files.Content(objects=[], problems=[polygons.EMPTY])


@pytest.mark.parametrize('short', ['0 .1 .1 .9 .9', '0 .1 .1'])
def test_beside_polygons_there_are_no_boxes(tmp_path, short):
  """As in ultralytics: what looks like a box is a polygon of two points."""
  alone, content = (read(tmp_path, text) for text in (f'1 {SQUARE}', f'{short}\n1 {SQUARE}'))
  assert content == alone._replace(problems=[polygons.SHORT])


def test_no_file_and_no_row_are_no_objects(tmp_path):
  missing = tmp_path / 'no.txt'
  for content in (
    yolo.read_content(missing, SIZE, names=NAMES, options=options(), semantic=True),
    read(tmp_path, ''),
  ):
    assert content == files.Content(objects=[], problems=content.problems) and not content.problems


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (f'2 {SQUARE}', 'row 1 has the class 2, but data.yaml names the classes 0 to 1'),
    (f'-1 {SQUARE}', 'row 1 has the class -1'),
    (f'0.5 {SQUARE}', 'row 1 has the class 0.5'),
    (f'1 {SQUARE}\n\n1 0.5 0.5 0.2', 'row 3 has 3 numbers after its class, not 4'),
    ('1 0.5 0.5 0.2 0.2 0.99', 'row 1 has 5 numbers after its class'),
    ('1 0.1 0.1 0.2 0.2 0.3 0.3 0.4', 'row 1 has 7 numbers after its class'),
    ('1 0.5 0.5', 'row 1 has 2 numbers after its class, not 4'),
    (f'1 {SQUARE}\n1', 'row 2 has 0 numbers after its class'),
    (f'1 {SQUARE}\n1 2 0', 'row 2 has the coordinate 2, which is not from 0 to 1'),
    ('1', 'row 1 has 0 numbers after its class'),
    ('square 0.1 0.1 0.2 0.2', 'row 1 has words that are not numbers'),
    ('1 16 12 48 12 48 36', 'row 1 has the coordinate 16, which is not from 0 to 1: divide x'),
    ('1 0.1 -0.1 0.2 0.2 0.3 0.3', 'the coordinate -0.1'),
    ('1 0.1 nan 0.2 0.2 0.3 0.3', 'the coordinate nan'),
  ],
)
def test_wrong_rows(tmp_path, text, message):
  with pytest.raises(SegjaxError, match=message) as error:
    read(tmp_path, text)
  assert str(tmp_path / 'im.txt') in str(error.value)


def test_a_file_that_is_not_text(tmp_path):
  (tmp_path / 'im.txt').write_bytes(b'\xff\xd8\xff')
  with pytest.raises(SegjaxError, match=r'im\.txt is not text'):
    yolo.read_rows(tmp_path / 'im.txt', 2)


# --- files ----------------------------------------------------------------------------------------


def write_yaml(source, *lines, names='names: [square, disk]'):
  (source / 'data.yaml').write_text('\n'.join([*lines, names]) + '\n')


def found(source, **kwargs):
  """Split -> names, and name -> label file."""
  items = yolo.Builder.find(source, options(**kwargs), ('label',))
  return {split: [item.name for item in listed] for split, listed in items.items()}


@pytest.fixture
def source(tmp_path):
  """Two images in each of images/{train,val}."""
  root = tmp_path / 'raw'
  synthetic_yolo.write_images(root, ['images/train', 'images/val'], 2, np.random.default_rng(0))
  return root


BOTH = {
  'train': ['images/train/im00', 'images/train/im01'],
  'val': ['images/val/im00', 'images/val/im01'],
}
LAYOUTS = {
  'beside data.yaml': ['train: images/train', 'val: images/val'],
  'path': ['path: .', 'train: ./images/train', 'validation: images/val', 'test:'],
  'absolute': ['path: {source}', 'train: images/train', 'val: "{source}/images/val"'],
  'path of another machine': ['path: /home/a/raw', 'train: images/train', 'val: images/val'],
  'relative to elsewhere': ['path: ../datasets/raw', 'train: images/train', 'val: images/val'],
  'Windows': ['train: images\\train', 'val: .\\images\\val'],
  'Roboflow': ['train: ../images/train', 'valid: ../images/val', 'test: ../images/test'],
  'lists': ['train: train.txt', 'val: [images/val/im01.txt, val.txt]'],
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(source, layout):
  (source / 'train.txt').write_text('./images/train/im00.jpg\nimages/train/im01.jpg\n')
  (source / 'val.txt').write_text(f'{source}/images/val/im01.jpg\n')
  (source / 'images' / 'val' / 'im01.txt').write_text('./im00.jpg\n')
  write_yaml(source, *(line.format(source=source) for line in LAYOUTS[layout]))
  assert found(source) == BOTH


def test_the_text_file_of_an_image(tmp_path):
  root = tmp_path / 'images' / 'raw'  # which is above the source, and does not count
  for image, label in {
    'images/train/a.b.jpg': 'labels/train/a.b.txt',
    'images/old/images/a.png': 'images/old/labels/a.txt',
    'images.jpg': 'images.txt',
    'train/a.jpg': 'train/a.txt',
  }.items():
    assert yolo.label_path(root, root / image) == root / label


def test_own_splits_and_no_yaml(source):
  write_yaml(source, 'train: images')
  splits = found(source, splits={'train': 0.5, 'val': 0.25, 'test': 0.25})
  assert {split: len(names) for split, names in splits.items()} == {'train': 2, 'val': 1, 'test': 1}
  assert set(sum(splits.values(), [])) == set(BOTH['train'] + BOTH['val'])
  (source / 'data.yaml').unlink()
  by_directory = {'train': 'images/train', 'val': 'images/val'}
  assert found(source, yaml=None, classes=NAMES, splits=by_directory) == BOTH


def test_names_of_numbers_without_a_yaml(source):
  label = source / 'labels' / 'train' / 'im00.txt'
  label.write_text(f'1 {SQUARE}\n2 {SQUARE}')

  def labels(**kwargs):
    splits = {'train': 'images/train'}
    kwargs = {'classes': ('background', 'crack', 'hole'), 'splits': splits, **kwargs}
    items = yolo.Builder.find(source, options(yaml=None, **kwargs), ('label',))
    return [entry.label for entry in items['train'][0].read(SIZE).objects]

  assert labels(names=('background', 'crack', 'hole')) == [1, 2]
  assert labels(names=('background', 'hole', 'crack')) == [2, 1]
  with pytest.raises(SegjaxError, match=r'row 2 has the class 2, but config\.data\.files\.classes'):
    labels()
  with pytest.raises(SegjaxError, match=r"config\.data\.files\.names has the label 'cat'"):
    labels(names=('crack', 'cat'))


@pytest.mark.parametrize('yaml', [None, 'data.yaml'])
def test_two_images_of_one_name(source, yaml):
  write_yaml(source, 'train: images/train', 'val: images/val')
  shutil.copy(source / 'images/val/im00.jpg', source / 'images/val/im00.jpeg')
  with pytest.raises(SegjaxError, match=r'im00\.jpeg and .*im00\.jpg have the same name and one'):
    found(source, yaml=yaml, classes=NAMES)


def test_unpaired(source):
  write_yaml(source, *LAYOUTS['path'])
  (source / 'labels' / 'train' / 'im01.txt').unlink()
  (source / 'labels' / 'classes.txt').write_text('square\ndisk\n')
  (source / 'labels' / 'val' / 'classes.txt').write_text('square\ndisk\n')
  assert found(source) == BOTH
  assert found(source, unpaired='skip') == {**BOTH, 'train': BOTH['train'][:1]}
  message = r'1 of 4 images have no text file, such as .*im01\.jpg: add .*labels/train/im01\.txt'
  with pytest.raises(SegjaxError, match=message):
    found(source, unpaired='error')
  (source / 'images' / 'val' / 'im00.jpg').unlink()
  for unpaired in ('empty', 'skip'):
    with pytest.warns(match=r'1 text files have no image, such as .*val/im00\.txt: not used'):
      assert found(source, unpaired=unpaired)['val'] == BOTH['val'][1:]
  (source / 'labels' / 'train' / 'im01.txt').write_text('')
  with pytest.raises(SegjaxError, match=r'labels/val/im00\.txt has no image: add it'):
    found(source, unpaired='error')


def test_directories_that_are_links(source, tmp_path):
  """As on clusters, where images are on another disk; a list may not name what is elsewhere."""
  write_yaml(source, *LAYOUTS['path'])
  disk = tmp_path / 'disk'
  (source / 'images').rename(disk)
  (source / 'images').symlink_to(disk)
  (disk / 'train' / 'again').symlink_to(disk)  # leads back to where it is
  assert found(source) == BOTH
  datasets.load('yolo', tmp_path / 'prepared', source, files={'classes': NAMES})
  (source / 'list.txt').write_text('images/train/im00.jpg\n')
  write_yaml(source, 'train: list.txt', 'val: images/val')
  with pytest.raises(SegjaxError, match=r'list\.txt names .*, a link to a file that is not below'):
    found(source)


def test_images_without_any_text_file(source):
  write_yaml(source, *LAYOUTS['path'])
  (source / 'labels').rename(source / 'annotations')
  message = (
    r'none of 4 images has a text file; that of .*train/im00\.jpg would be .*labels/train/im'
  )
  with pytest.raises(SegjaxError, match=message):
    found(source)


def test_prepares_each_task(tmp_path, by_name):
  synthetic_yolo.write_set(tmp_path / 'raw', 5)
  _, shapes = draw(np.random.default_rng(0))
  left, top = shapes[0]['points'][0]

  def load(annotations, **kwargs):
    return datasets.load(
      'yolo', tmp_path / 'prepared', tmp_path / 'raw', files=kwargs, annotations=annotations
    )

  builder = load(('label',), classes=('background', *NAMES))
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {'train': 4, 'val': 1}
  label = by_name(builder, 'train')['images/train/im00']['label'][..., 0]
  expected = np.zeros(SIZE, bool)
  expected[top : top + 14, left : left + 14] = True
  np.testing.assert_array_equal(label == 1, expected)
  assert (label == 2).sum() > 150
  example = by_name(load(('objects',), classes=NAMES), 'val')['images/val/im00']
  assert example['objects']['label'] == [0, 1]


def test_roboflow_export(tmp_path):
  synthetic_yolo.write_roboflow(tmp_path)
  names = {split: sorted(listed) for split, listed in found(tmp_path).items()}
  assert names == {
    'train': [f'train/images/im{i:02}' for i in range(4)],
    'val': [f'valid/images/im{i:02}' for i in range(4)],
  }


@pytest.mark.parametrize(
  ('lines', 'names', 'message'),
  [
    (['train: images/no'], 'names: [square, disk]', 'train is images/no, which is neither below'),
    (['train: 3'], 'names: [square, disk]', 'train is 3, which is not a path'),
    (['train: ../../secret'], 'names: [square, disk]', 'names .*secret.*, which is not'),
    (['train: "{tmp}/secret"'], 'names: [square, disk]', 'names .*secret.*, which is not'),
    (['train: secret.txt'], 'names: [square, disk]', r'secret\.txt names .*which is not'),
    (['train: gone.txt'], 'names: [square, disk]', r'1 of 2 images of .*gone\.txt are missing'),
    ([], 'names: [square, disk]', 'names no train and no val'),
    (['train: images/train'], 'names: [square, cat]', "has the label 'cat', which is not in"),
    (['train: images/train'], 'names: []', 'has no names of classes'),
    (['train: images/train'], 'nc: 2', 'has no names of classes'),
    (['train: images/train', 'nc: 3'], 'names: [square, disk]', 'has nc: 3 but 2 names'),
    (['train: images/train'], 'names: {{1: square, 2: disk}}', r'names \[1, 2\], which are not 0'),
    (['kpt_shape: [17, 3]'], 'names: [square, disk]', 'is of keypoints'),
    (['train: [images'], 'names: [square, disk]', 'is not valid YAML'),
    (['- images'], '- names', 'has no keys such as names and train'),
  ],
)
def test_wrong_yaml(tmp_path, source, lines, names, message):
  (tmp_path / 'secret').mkdir()
  (tmp_path / 'secret' / 'a.jpg').write_bytes(encode(np.zeros((4, 4, 3), np.uint8), 'JPEG'))
  (source / 'secret.txt').write_text('../secret/a.jpg\n')
  (source / 'gone.txt').write_text('images/train/im00.jpg\nimages/train/im99.jpg\n')
  write_yaml(source, *(line.format(tmp=tmp_path) for line in lines), names=names.format())
  with pytest.raises(SegjaxError, match=message):
    found(source)


def test_images_elsewhere_on_request(tmp_path, source):
  (tmp_path / 'more' / 'images').mkdir(parents=True)
  (tmp_path / 'more' / 'images' / 'a.jpg').write_bytes(b'')
  write_yaml(source, 'train: images/train', 'val: ../more/images')
  with pytest.raises(SegjaxError, match=r'data\.yaml names .*more/images.*outside=True'):
    found(source)
  assert found(source, outside=True)['val'] == ['../more/images/a']


def test_missing_yaml(source):
  with pytest.raises(SegjaxError, match=r'data\.yaml is missing'):
    found(source)
