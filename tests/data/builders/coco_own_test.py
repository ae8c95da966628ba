"""Users' own data in COCO format: the tools' layouts, missing keys, bad files, and the guess."""

import dataclasses
import itertools
import json
import re
import warnings

import coco_export
import numpy as np
import pytest
import tensorflow_datasets as tfds
from inputs import input_config
from pycocotools import mask as mask_lib

from segjax import config as config_lib
from segjax import types
from segjax.data import datasets, pipeline
from segjax.data.builders import coco_layout
from segjax.data.builders.coco_instances.guess import guess as guess_instances
from segjax.data.builders.coco_panoptic.guess import guess as guess_panoptic
from segjax.data.formats import coco

SIZE = coco_export.SIZE
SPLITS = {'train': 16, 'val': 4}


@pytest.fixture
def load(tmp_path):
  """Prepares a source with some options, and returns the builder."""

  def load(source=None, task=('objects',), name='coco_instances/custom', **files):
    source = source or tmp_path / 'raw'
    return datasets.load(name, tmp_path / 'prepared', source, files=files, annotations=task)

  return load


@pytest.fixture
def refuses(load, tmp_path):
  """Asserts that a source is refused with a message, and that nothing is left behind."""

  def refuses(message, **files):
    with pytest.raises(types.SegjaxError, match=message) as caught:
      load(**files)
    assert '\n' not in str(caught.value)
    assert not list((tmp_path / 'prepared').rglob('*.array_record*'))

  return refuses


def sizes(builder):
  return {name: split.num_examples for name, split in builder.info.splits.items()}


def read(builder, split='train'):
  """The examples of a split by file name, their images encoded."""
  skip = {'image': tfds.decode.SkipDecoding()}
  examples = builder.as_data_source(split, decoders=skip)
  return {example['file_name'].decode(): example for example in examples}


def check_objects(example):
  """The masks of an example are those that `coco_export` draws."""
  objects = example['objects']
  boxes = coco_export.boxes(int(example['image_id']))
  assert [box.tolist() for box in objects['bbox']] == [list(box) for box in boxes]
  assert objects['label'] == [0, 1]
  for counts, (x, y, width, height) in zip(objects['segmentation'], boxes, strict=True):
    expected = np.zeros(SIZE, np.uint8)
    expected[y : y + height, x : x + width] = 1
    np.testing.assert_array_equal(coco.decode_mask(counts, SIZE), expected)


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', coco_export.LAYOUTS)
def test_layouts_of_tools(load, tmp_path, layout):
  coco_export.LAYOUTS[layout](tmp_path / 'raw')
  builder = load()
  assert builder.info.features['objects']['label'].names == ['cell', 'rod']
  assert sizes(builder) == ({'train': 14, 'val': 4, 'test': 2} if layout == 'Roboflow' else SPLITS)
  found = {}
  for split in builder.info.splits:
    examples = read(builder, split)
    assert not found.keys() & examples.keys()
    found |= examples
  assert len(found) == 20
  for example in found.values():
    check_objects(example)


@pytest.mark.parametrize('layout', coco_export.LAYOUTS)
def test_guess(load, tmp_path, layout):
  root = tmp_path / 'raw'
  coco_export.LAYOUTS[layout](root)
  found = guess_instances('instance', root, None)
  assert found.name == 'coco_instances/custom'
  assert found.problems == []
  assert found.files['classes'] == ('cell', 'rod')
  assert 'images' in found.files and 'annotations' in found.files
  config_lib.complete(coco_layout.Options, found.files, 'config.data.files')
  by_guess, by_itself = load(found.source, **found.files), load(root)
  assert by_guess.data_path != by_itself.data_path
  assert sizes(by_guess) == sizes(by_itself)
  for split in sizes(by_guess):
    assert read(by_guess, split).keys() == read(by_itself, split).keys()


def test_guess_of_images_and_file_apart(load, tmp_path):
  coco_export.write(
    tmp_path / 'raw' / 'labels' / 'all.json',
    coco_export.content(coco_export.names(10, 'deep/')),
    tmp_path / 'raw' / 'photos',
  )
  root = tmp_path / 'raw'
  found = guess_instances('instance', root / 'photos', root / 'labels' / 'all.json')
  assert found.source == root
  assert found.files['annotations'] == 'labels/all.json'
  assert found.files['images'] == 'photos'
  assert found.found == ['10 images in photos/ with 20 objects in labels/all.json (COCO format)']
  assert sizes(load(found.source, **found.files)) == {'train': 8, 'val': 2}


def test_guess_of_images_elsewhere(load, tmp_path):
  coco_export.cvat(tmp_path / 'raw')
  put('images', 0, file_name='../../secret.png')(tmp_path / 'raw')
  (tmp_path / 'raw' / 'images' / '001.png').rename(tmp_path / 'secret.png')
  with pytest.raises(types.SegjaxError, match=r'config\.data\.files\.outside=True'):
    guess_instances('instance', tmp_path / 'raw', None)
  found = guess_instances('instance', tmp_path / 'raw', None, outside=True)
  assert found.files['outside'] is True and not found.problems
  assert sizes(load(found.source, **found.files)) == SPLITS


def test_guess_divides_the_only_split(load, tmp_path):
  coco_export.roboflow(tmp_path / 'raw')
  for split in ('valid', 'test'):
    (tmp_path / 'raw' / split / '_annotations.coco.json').unlink()
  found = guess_instances('instance', tmp_path / 'raw', None)
  assert found.files['annotations'] == 'train/_annotations.coco.json'
  assert found.files['images'] == 'train'
  assert sizes(load(found.source, **found.files)) == {'train': 11, 'val': 3}


def test_guess_says_what_looks_wrong(tmp_path):
  def change(written):
    written['annotations'] = [a for a in written['annotations'] if a['image_id'] != 1]
    written['annotations'][0]['segmentation'] = []

  coco_export.cvat(tmp_path, change)
  images = tmp_path / 'images'
  (images / '003.png').rename(images / 'new.png')
  assert guess_instances('instance', tmp_path, None).problems == [
    '1 of 20 images of annotations/instances_default.json are missing, such as images/003.png',
    '1 images are not in annotations/instances_default.json and are not used, such as '
    'images/new.png',
    '1 images of annotations/instances_default.json have no annotation, such as 001.png',
    '1 of 38 objects of annotations/instances_default.json are boxes without a mask: for '
    'config.model.masks=False',
  ]


def test_guess_where_all_images_are_missing(tmp_path):
  coco_export.cvat(tmp_path)
  for path in (tmp_path / 'images').iterdir():
    path.unlink()
  problems = guess_instances('instance', tmp_path, None).problems
  assert problems[0].startswith('20 of 20 images of annotations/instances_default.json are missing')


@pytest.mark.parametrize(
  'text', ['{', '[]', '{"shapes": [], "imagePath": "a.png"}', '{"images": [], "annotations": 1}']
)
def test_other_json_is_not_guessed(tmp_path, text):
  (tmp_path / 'a.json').write_text(text)
  assert guess_instances('instance', tmp_path, None) is None
  assert guess_instances('instance', tmp_path, tmp_path / 'a.json') is None
  assert guess_panoptic('panoptic', tmp_path, None) is None


def test_splits_by_list_directory_and_seed(load, tmp_path):
  written = coco_export.content(coco_export.names(6, 'a/') + coco_export.names(4, 'b/'))
  coco_export.write(tmp_path / 'raw' / 'coco.json', written)
  (tmp_path / 'raw' / 'val.txt').write_text('a/001.png\na/003\n')
  builder = load(splits={'train': 'b', 'val': 'val.txt'})
  assert set(read(builder)) == {f'b/00{k}.png' for k in (1, 2, 3, 4)}
  assert set(read(builder, 'val')) == {'a/001.png', 'a/003.png'}
  found = [set(read(load(splits={'train': 0.5}, split_seed=seed))) for seed in (0, 1, 0)]
  assert found[0] == found[2] != found[1]
  assert len(found[0]) == 5


def test_classes_choose_the_order(load, tmp_path):
  coco_export.cvat(tmp_path / 'raw')
  builder = load(classes=('rod', 'cell'), colors=((1, 2, 3), (4, 5, 6)))
  assert builder.info.features['objects']['label'].names == ['rod', 'cell']
  assert builder.info.metadata['category_ids'] == [2, 1]
  assert builder.info.metadata['palette'] == [[1, 2, 3], [4, 5, 6]]
  assert next(iter(read(builder).values()))['objects']['label'] == [1, 0]


def test_semantic_and_panoptic_tasks(load, tmp_path):
  coco_export.cvat(tmp_path / 'raw')
  classes = ('background', 'cell', 'rod')
  semantic = load(task=('label',), classes=classes)
  assert semantic.info.features['label'].names == list(classes)
  example = semantic.as_data_source('val')[0]
  number = int(example['file_name'][:3])
  expected = np.zeros(SIZE, np.uint8)
  for label, (x, y, width, height) in enumerate(coco_export.boxes(number), 1):
    expected[y : y + height, x : x + width] = label
  np.testing.assert_array_equal(example['label'][..., 0], expected)
  panoptic = load(task=('label', 'objects', 'segments'), classes=('cell', 'rod'), stuff=('rod',))
  assert panoptic.info.metadata['isthing'] == [True, False]
  [one, two] = sorted(panoptic.as_data_source('val')[0]['segments']['area'])
  assert (one, two) == (56, 64)


@pytest.mark.parametrize(
  'task, key', [(('label',), 'label'), (('label', 'objects', 'segments'), 'segments')]
)
def test_other_tasks_need_the_classes(load, tmp_path, task, key):
  coco_export.cvat(tmp_path / 'raw')
  builder, config = load(task=task), input_config('coco_instances/custom', task)
  message = (
    rf'config\.data\.{key}_key={key}: .* has no such feature: set config\.data\.files\.classes'
  )
  with pytest.raises(types.SegjaxError, match=message):
    datasets.spec(builder, config)


# --- files as they come ---------------------------------------------------------------------------


def test_missing_and_unusual_keys(load, tmp_path):
  """Each annotation is written in another way, and all have the mask of the first."""
  box = (3, 2, 8, 8)
  polygon = coco_export.rectangle(*box)
  mask = np.zeros(SIZE, np.uint8, order='F')
  mask[2:10, 3:11] = 1
  compressed = mask_lib.encode(mask)['counts'].decode()
  runs = {'size': list(SIZE), 'counts': coco.run_lengths(compressed)}
  ways = [
    {'segmentation': [polygon]},
    {'segmentation': [[float(x) + 0.2 for x in polygon]], 'bbox': [3.2, 2.2, 8.0, 8.0]},
    {'segmentation': polygon, 'iscrowd': None},
    {'segmentation': runs, 'iscrowd': 1},
    {'segmentation': {**runs, 'counts': compressed}, 'area': 63.5},
  ]

  def change(written):
    written['annotations'] = [{'image_id': 1, 'category_id': 1, **way} for way in ways]
    written['annotations'][1]['id'] = 40
    for image in written['images']:
      del image['height'], image['width']

  coco_export.cvat(tmp_path / 'raw', change)
  objects = read(load(splits={'train': 1.0}))['001.png']['objects']
  assert [int(id) for id in objects['id']] == [41, 40, 42, 43, 44]
  for counts in objects['segmentation']:
    assert counts.decode() == compressed
  assert [float(area) for area in objects['area']] == [64, 64, 64, 64, 63.5]
  assert [box.tolist() for box in objects['bbox']] == [
    [3, 2, 8, 8], [3.2, 2.2, 8, 8], *[[3, 2, 8, 8]] * 3,
  ]  # fmt: skip
  assert list(objects['iscrowd']) == [False, False, False, True, False]


@pytest.mark.parametrize('classes', [None, ('rod', ' cell ')])
def test_spaces_around_names_are_no_part_of_them(load, tmp_path, classes):
  """TFDS leaves them out when it reads names, so that they would not be found again."""
  coco_export.cvat(tmp_path / 'raw', put_names('cell ', '\trod\n'))
  expected = ['cell', 'rod'] if classes is None else ['rod', 'cell']
  for _ in range(2):
    features = load(classes=classes).info.features
    assert features['objects']['label'].names == expected
  objects = next(iter(read(load(classes=classes)).values()))['objects']
  assert objects['label'] == [expected.index('cell'), expected.index('rod')]
  semantic = load(task=('label',), classes=classes or ('cell ', 'rod'))
  assert semantic.info.features['label'].names == expected


def test_names_that_differ_by_spaces_are_the_same(refuses, tmp_path):
  coco_export.cvat(tmp_path / 'raw', put_names('cell', 'cell '))
  refuses(rf'{FILE} has the category name cell twice: correct the file')
  refuses(r"classes=\('cell', 'cell'\) must be .* different names", classes=('cell', 'cell '))


def put_names(*names):
  def change(written):
    for entry, name in zip(written['categories'], names, strict=True):
      entry['name'] = name

  return change


def test_gaps_in_category_ids(load, tmp_path):
  categories = [{'id': 0, 'name': 'rod'}, {'id': 90, 'name': 'cell'}, {'id': 7, 'name': 'unused'}]
  written = coco_export.content(coco_export.names(5), 1, categories)
  coco_export.write(tmp_path / 'raw' / 'coco.json', written)
  builder = load()
  assert builder.info.features['objects']['label'].names == ['rod', 'unused', 'cell']
  assert next(iter(read(builder).values()))['objects']['label'] == [2, 0]


def test_lvis_names_images_by_address(load, tmp_path):
  def change(written):
    for image in written['images']:
      image['coco_url'] = 'http://images.example/train/' + image.pop('file_name')

  coco_export.write(
    tmp_path / 'raw' / 'lvis.json',
    coco_export.content(coco_export.names(4)),
    tmp_path / 'raw' / 'train',
    change,
  )
  assert set(read(load(splits={'train': 1.0}))) == {f'train/00{k}.png' for k in (1, 2, 3, 4)}


def test_two_sets_do_not_share_a_directory(load, tmp_path):
  coco_export.cvat(tmp_path / 'a')
  coco_export.labelme2coco(tmp_path / 'b')
  one, other = load(tmp_path / 'a'), load(tmp_path / 'b')
  assert one.data_path != other.data_path
  assert '001.png' in {**read(one), **read(one, 'val')}
  assert 'JPEGImages/001.png' in {**read(other), **read(other, 'val')}


def test_a_changed_file_is_prepared_again(load, tmp_path):
  coco_export.roboflow(tmp_path / 'raw')
  (tmp_path / 'raw' / 'prepared').mkdir()  # as where prepared data is kept inside the source
  before = load()
  (tmp_path / 'raw' / 'prepared' / 'x').write_text('no raw file')
  times = lambda builder: [path.stat().mtime for path in builder.data_path.iterdir()]
  written_at = times(before)
  assert times(load()) == written_at
  written = json.loads((tmp_path / 'raw' / 'train' / '_annotations.coco.json').read_text())
  written['annotations'].pop()
  (tmp_path / 'raw' / 'train' / '_annotations.coco.json').write_text(json.dumps(written))
  counts = [len(example['objects']['id']) for example in read(load()).values()]
  assert sorted(counts) == [1, *[2] * 13]


# --- what is wrong --------------------------------------------------------------------------------


def test_suspicious_objects_are_counted(load, tmp_path):
  ways = {
    50: {'segmentation': [coco_export.rectangle(100, 100, 5, 5)]},
    51: {'segmentation': [[1, 1, 9, 9, 9, 1, 1, 9]]},
    52: {'segmentation': [coco_export.rectangle(28, 2, 9, 4)]},
    53: {'segmentation': [], 'bbox': [40, 2, 5, 5]},
    54: {'segmentation': None, 'bbox': [2, 2, 5, 5]},
    55: {'segmentation': [[]], 'bbox': [2, 2, 5, 5]},
    56: {'segmentation': [[1, 1, 5, 5]]},
    # Boxes that tools write of any mask; without one there is nothing.
    57: {'segmentation': [coco_export.rectangle(2, 3, 4, 5)], 'bbox': [0, 0, 0, 0], 'area': 0},
    58: {'segmentation': [[]], 'bbox': [3, 3, 0, 5]},
  }

  def change(written):
    written['annotations'] += [
      {'id': id, 'image_id': 1, 'category_id': 1, **way} for id, way in ways.items()
    ]

  coco_export.cvat(tmp_path / 'raw', change)
  (tmp_path / 'raw' / 'images' / '002.png').unlink()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    builder = load(splits={'train': 1.0}, unpaired='skip')
  assert [str(warning.message).partition('default.json: ')[2] for warning in caught] == [
    '1 of 20 images are left out, as they are missing (config.data.files.unpaired=skip)',
    '1 annotations are left out, as their box has no area (58); '
    '1 annotations are left out, as they have no polygon of three points or more (56); '
    '2 annotations are left out, as their mask or box covers no pixel of the image (50, 53); '
    '2 annotations are kept as boxes without a mask (54, 55); '
    '1 annotations are cut at the border of the image, beyond which they reach (52); '
    '1 annotations are kept although a polygon of theirs crosses itself (51)',
  ]
  examples = read(builder)
  assert len(examples) == 19
  objects = examples['001.png']['objects']
  assert [int(id) for id in objects['id']] == [2, 3, 51, 52, 54, 55, 57]
  assert objects['bbox'][-1].tolist() == [2, 3, 4, 5], 'of the mask'
  assert objects['area'][-1] == 20, 'of the mask'


@pytest.mark.parametrize('masks', [False, True])
def test_boxes_are_cut_at_the_border(load, tmp_path, masks):
  """As detections are, with which they are compared. The image has 24 x 32 pixels."""
  ways = {
    50: ([28, 20, 9, 8], [28, 20, 4, 4]),
    51: ([-3.5, -1, 10, 40.5], [0, 0, 6.5, 24]),
    52: ([0.1, 0.2, 31.7, 23.7], [0.1, 0.2, 31.7, 23.7]),
  }

  def change(written):
    written['annotations'] = [
      {'id': id, 'image_id': 1, 'category_id': 1, 'bbox': box, 'area': 77.0}
      | ({'segmentation': [coco_export.rectangle(*box)]} if masks else {})
      for id, (box, _) in ways.items()
    ]

  coco_export.cvat(tmp_path / 'raw', change)
  message = r'2 annotations are cut at the border .* \(50, 51\)'
  with pytest.warns(UserWarning, match=message):
    objects = read(load(splits={'train': 1.0}))['001.png']['objects']
  assert [box.tolist() for box in objects['bbox']] == [box for _, box in ways.values()]
  assert [float(area) for area in objects['area']] == ([77] * 3 if masks else [16, 156, 77])


def test_a_box_outside_the_image_is_that_of_its_mask(load, tmp_path):
  coco_export.cvat(tmp_path / 'raw', lambda c: c['annotations'][0].update(bbox=[90, 2, 8, 8]))
  objects = read(load(splits={'train': 1.0}))['001.png']['objects']
  assert objects['bbox'][0].tolist() == list(coco_export.boxes(1)[0])


OTHERS = {
  'LabelMe': ({'shapes': [], 'imagePath': 'a.png'}, "LabelMe's annotation of one image"),
  'VIA project': ({'_via_img_metadata': {}}, 'a project of VIA'),
  'VIA': ({'a.png12': {'filename': 'a.png', 'regions': []}}, 'a project of VIA'),
  'GeoJSON': ({'type': 'FeatureCollection', 'features': []}, 'GeoJSON'),
  'Label Studio': ([{'data': {}, 'annotations': []}], "Label Studio's own JSON"),
  'Label Studio, short': ([{'image': 'a', 'annotation_id': 3}], "Label Studio's own JSON"),
  'results': ([{'image_id': 1, 'score': 0.5}], "a detector's results"),
  'CreateML': ([{'image': 'a.png', 'annotations': []}], "CreateML's JSON"),
  'Supervisely': ({'objects': [], 'size': {}}, "Supervisely's annotation of one image"),
  'Datumaro': ({'items': [], 'categories': {}}, "Datumaro's JSON"),
  'captions': ({'images': [], 'annotations': [{'caption': 'a'}]}, "COCO's captions"),
  'panoptic': ({'annotations': [{'segments_info': []}]}, 'in COCO panoptic format'),
}


@pytest.mark.parametrize('case', OTHERS)
def test_json_that_is_not_coco(refuses, tmp_path, case):
  written, what = OTHERS[case]
  (tmp_path / 'raw').mkdir()
  (tmp_path / 'raw' / 'file.json').write_text(json.dumps(written))
  refuses(rf'file\.json is {what}.*, not a file of instances in COCO format: \w')


def test_instances_are_not_panoptic(load, tmp_path):
  coco_export.labelme2coco(tmp_path / 'raw')
  message = (
    r'is in COCO instance format, not a file of panoptic .* set config\.data\.name=coco_inst'
  )
  with pytest.raises(types.SegjaxError, match=message):
    load(name='coco_panoptic/custom')
  with pytest.raises(types.SegjaxError, match=r'config\.data\.files\.stuff: panoptic files say'):
    load(name='coco_panoptic/custom', classes=('rod',), stuff=('rod',))


def edit(root, change):
  path = root / 'annotations' / 'instances_default.json'
  written = json.loads(path.read_text())
  change(written)
  path.write_text(json.dumps(written))


def put(kind, position, **values):
  """A change: overwrites keys of one entry."""
  return lambda root: edit(root, lambda written: written[kind][position].update(values))


def link(root):
  path = root / 'images' / '001.png'
  path.rename(root / 'secret.png')
  path.symlink_to(root / 'secret.png')


FILE = r'annotations/instances_default\.json'
LEAVES = r'images: move the file there, or set config\.data\.files\.outside=True'
BREAKS = {
  'name goes up': (
    put('images', 0, file_name='../secret.png'),
    {},
    rf"{FILE} names '\.\./secret\.png', which is not below .*{LEAVES}",
  ),
  'name goes up on Windows': (
    put('images', 0, file_name='a\\..\\..\\secret.png'),
    {},
    rf'{FILE} names .*, which is not below .*{LEAVES}',
  ),
  'name is absolute': (put('images', 0, file_name='/etc/a.png'), {}, rf"'/etc/a\.png', .*{LEAVES}"),
  'name has a drive': (put('images', 0, file_name='C:\\a.png'), {}, rf'which is not .*{LEAVES}'),
  'name is a link': (link, {}, rf"names '001\.png', a link to a file that is not below .*{LEAVES}"),
  'image is missing': (
    lambda root: (root / 'images' / '001.png').unlink(),
    {},
    rf'1 of 20 images of .*{FILE} are missing, such as .*001\.png \(image 1\): add them, or '
    r"correct config\.data\.source, or set config\.data\.files\.unpaired='skip'",
  ),
  'image is listed twice': (
    put('images', 0, file_name='002.png'),
    {},
    rf'{FILE} has the image file_name 002\.png twice: correct the file',
  ),
  'image is empty': (
    lambda root: (root / 'images' / '001.png').write_bytes(b''),
    {},
    r'001\.png cannot be decoded',
  ),
  'image has another size': (
    put('images', 0, width=31),
    {},
    rf'001\.png is 32x24 pixels but image 1 of .*{FILE} is 31x24',
  ),
  'category is not listed': (
    put('annotations', 0, category_id=9),
    {},
    rf'{FILE}: annotation 2 has category_id 9, which is not one of its categories',
  ),
  'class list too short': (
    lambda root: None,
    {'classes': ('cell',)},
    rf'files\.classes lacks rod, of which there are 20 annotations in .*{FILE}.*: add it',
  ),
  'class that is no category': (
    lambda root: None,
    {'classes': ('cell', 'rod', 'rods')},
    rf'files\.classes has rods, which is not a category of .*{FILE}: did you mean rod',
  ),
  'background is no object': (
    lambda root: None,
    {'classes': ('background', 'cell', 'rod')},
    r'files\.classes has background, which is not a category',
  ),
  'name of two used categories': (
    put('categories', 1, name='cell'),
    {},
    rf'{FILE} has the category name cell twice',
  ),
  'no mask and no box': (
    lambda root: edit(
      root, lambda w: [w['annotations'][0].pop(k) for k in ('bbox', 'segmentation')]
    ),
    {},
    rf'{FILE}: annotation 2 has neither polygons nor run lengths',
  ),
  'annotation file that is not there': (
    lambda root: None,
    {'annotations': 'all.json'},
    r'config\.data\.files\.annotations: .*all\.json is not a file',
  ),
  'no directory for a split': (
    lambda root: None,
    {'annotations': {'val': 'annotations/instances_default.json'}, 'images': {'train': 'images'}},
    r'config\.data\.files\.images names no directory for val',
  ),
  'split without an image': (
    lambda root: None,
    {'splits': {'train': 1.0, 'val': 0.0}},
    r'config\.data\.files\.splits=.* must be fractions above 0',
  ),
  'directory without an image': (
    lambda root: None,
    {'splits': {'train': 'a'}},
    rf'files\.splits has no image of .*{FILE} for train',
  ),
  'splits of several files': (
    lambda root: coco_export.cvat_subsets(root),
    {'splits': {'train': 1.0}},
    r'files\.splits divides one annotation file, and .* has 3',
  ),
  'splits and files': (
    lambda root: None,
    {'splits': {'train': 1.0}, 'annotations': {'train': 'a.json'}},
    r'files\.splits divides one annotation file, and config\.data\.files\.annotations has one',
  ),
  'colors without classes': (
    lambda root: None,
    {'colors': ((1, 2, 3),)},
    r'files\.colors is for the names in config\.data\.files\.classes',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_files(refuses, tmp_path, case):
  break_it, options, message = BREAKS[case]
  coco_export.cvat(tmp_path / 'raw')
  break_it(tmp_path / 'raw')
  refuses(message, **options)


def test_files_that_name_no_split(refuses, tmp_path):
  for name in ('a', 'b'):
    coco_export.write(tmp_path / 'raw' / f'{name}.json', coco_export.content(coco_export.names(2)))
  refuses(r'2 annotation files, such as .*a\.json, do not say which split they are: set config')


def test_other_json_files_are_no_annotations(load, tmp_path):
  coco_export.labelme2coco(tmp_path / 'raw')
  (tmp_path / 'raw' / 'a.json').write_text('{}')
  (tmp_path / 'raw' / 'info.json').write_text('[1]')
  assert sizes(load()) == SPLITS
  found = guess_instances('instance', tmp_path / 'raw', None)
  assert found.files['annotations'] == 'annotations.json'


@pytest.mark.parametrize('root', ['/data/upload/3/', 'C:\\photos\\', '{images}/'])
def test_absolute_names_are_found_by_their_last_part(load, tmp_path, root):
  def change(written):
    for image in written['images']:
      image['file_name'] = root.format(images=tmp_path / 'raw' / 'images') + image['file_name']

  coco_export.cvat(tmp_path / 'raw')
  edit(tmp_path / 'raw', change)
  found = guess_instances('instance', tmp_path / 'raw', None)
  assert found.files['images'] == 'images'
  assert len(read(load(splits={'train': 1.0}))) == 20


def test_outside_may_be_allowed(load, tmp_path):
  coco_export.cvat(tmp_path / 'raw')
  link(tmp_path / 'raw')
  put('images', 1, file_name='../../two.png')(tmp_path / 'raw')
  (tmp_path / 'raw' / 'images' / '002.png').rename(tmp_path / 'two.png')
  assert len(read(load(outside=True, splits={'train': 1.0}))) == 20


def test_2017_takes_no_keys(tmp_path):
  with pytest.raises(types.SegjaxError, match=r'config\.data\.files is for data of your own'):
    datasets.load('coco_instances', tmp_path, tmp_path, files={'outside': True})


# --- boxes without masks --------------------------------------------------------------------------


def load_boxes(load, root, boxes_from):
  """The builder of CVAT's files whose images from a number on have boxes alone."""

  def change(written):
    for entry in written['annotations']:
      if entry['image_id'] >= boxes_from:
        entry['segmentation'] = []

  coco_export.cvat(root, change)
  with pytest.warns(UserWarning, match='annotations are kept as boxes without a mask'):
    return load(root, splits={'train': 'train.txt', 'val': 'val.txt'})


@pytest.fixture
def lists(tmp_path):
  (tmp_path / 'raw').mkdir()
  (tmp_path / 'raw' / 'train.txt').write_text('\n'.join(coco_export.names(16)))
  (tmp_path / 'raw' / 'val.txt').write_text('\n'.join(coco_export.names(4, start=17)))


def objects_config(masks):
  config = input_config('coco_instances/custom', ('objects',), shapes=(SIZE,), batch_size=2)
  return dataclasses.replace(config, masks=masks)


def test_boxes_without_masks_are_objects_of_faster_rcnn(load, lists, tmp_path):
  builder, config = load_boxes(load, tmp_path / 'raw', 1), objects_config(False)
  spec, told = datasets.spec(builder, config), []
  batches = pipeline.train_batches(builder, spec, config, seed=0, report=told.append)
  batch, names = next(batches)
  batches.close()
  assert told == []
  for boxes, valid, name in zip(
    batch['instances'].boxes, batch['instances'].valid, names, strict=True
  ):
    expected = np.array(coco_export.boxes(int(name[:3])), np.float32)
    expected[:, 2:] += expected[:, :2]
    np.testing.assert_array_equal(boxes[valid], expected)
  [(batch, names), *_] = pipeline.eval_batches(builder, spec, config)
  found = batch['annotations'][0]['objects']
  assert [entry['bbox'] for entry in found] == [
    list(box) for box in coco_export.boxes(int(names[0][:3]))
  ]


def test_a_task_with_masks_leaves_boxes_out(load, lists, tmp_path):
  builder, config = load_boxes(load, tmp_path / 'raw', 15), objects_config(True)
  spec, told = datasets.spec(builder, config), []
  batches = pipeline.train_batches(builder, spec, config, seed=0, report=told.append)
  counts = {}
  for batch, names in itertools.islice(batches, 8):
    counts |= dict(zip(names, batch['instances'].valid.sum(1), strict=True))
  batches.close()
  assert told[0] == (
    '4 objects of train of coco_instances/custom have no mask and are left out (with '
    'config.model.masks=False they are not)'
  )
  assert counts == {
    name: 2 if number < 15 else 0 for number, name in enumerate(coco_export.names(16), 1)
  }
  for split in ('val', 'val[:50%]'):
    message = (
      rf'none of the \d objects of {re.escape(split)} of coco_instances/custom has a mask, only '
      r'boxes: set config\.model\.masks=False, config\.losses\.mask=none, config\.eval\.metrics='
      r"\('coco_box',\) and config\.train\.best_metric=box_ap, or name data with masks"
    )
    with pytest.raises(types.SegjaxError, match=message):
      pipeline.check_objects(builder, spec, config, split, told.append)
  assert len(told) == 1
