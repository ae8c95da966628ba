"""What `segjax new` makes of LabelMe's, YOLO's, Cityscapes' and Hugging Face's files."""

import json

import numpy as np
import pyarrow
import pytest
import synthetic_cityscapes
import synthetic_hf
import synthetic_labelme
import synthetic_yolo
from synthetic_labelme import shape

from segjax.data.builders import guessing
from segjax.data.builders.cityscapes.guess import guess as guess_cityscapes
from segjax.data.builders.hugging_face import builder as hugging_face
from segjax.data.builders.hugging_face.guess import guess as guess_hugging_face
from segjax.data.builders.labelme import builder as labelme
from segjax.data.builders.labelme.guess import guess as guess_labelme
from segjax.data.builders.yolo import builder as yolo
from segjax.data.builders.yolo.guess import guess as guess_yolo
from segjax.types import SegjaxError

GUESSES = guess_labelme, guess_yolo, guess_cityscapes, guess_hugging_face
FRACTIONS = {'train': 0.8, 'val': 0.2}


def sizes(builder, found, task='semantic'):
  """The number of images of each split, as the written config reads them."""
  annotations = ('label',) if task == 'semantic' else ('objects',)
  splits = builder.Builder.find(found.source, builder.Options(**found.files), annotations)
  return {split: len(items) for split, items in splits.items()}


@pytest.mark.parametrize('guess', GUESSES)
def test_other_files_are_not_taken(tmp_path, guess):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'masks').mkdir()
  (tmp_path / 'images' / 'a.json').write_text('{"images": [], "annotations": []}')
  (tmp_path / 'images' / 'data.yaml').write_text('- a\n')
  (tmp_path / 'coco.json').write_text('{"images": []}')
  for images, labels in [
    (tmp_path / 'images', tmp_path / 'masks'),
    (tmp_path / 'images', tmp_path / 'coco.json'),
    (tmp_path / 'images', None),
    (None, tmp_path / 'images'),
  ]:
    assert guess('semantic', images, labels) is None


def test_labelme(tmp_path):
  synthetic_labelme.write_set(tmp_path, 10)
  images, labels = tmp_path / 'images', tmp_path / 'labels'
  found = guess_labelme('semantic', images, labels)
  assert found.name == 'labelme' and found.source == tmp_path and not found.problems
  assert found.files == {
    'classes': ('background', 'disk', 'square'),
    'images': 'images',
    'labels': 'labels',
    'splits': FRACTIONS,
  }
  assert found.found == [
    '10 images in images/',
    '10 JSON files of LabelMe in labels/: circle (10), polygon (10)',
    'labels: disk (10), square (10)',
  ]
  assert sizes(labelme, found) == {'train': 8, 'val': 2}
  assert guess_labelme('instance', images, labels).files['classes'] == ('disk', 'square')
  found = guess_labelme('panoptic', images, labels)
  assert found.files['stuff'] == () and found.problems == [guessing.ALL_THINGS]


def test_splits_of_labelme_by_list(tmp_path):
  synthetic_labelme.write_set(tmp_path, 4)
  (tmp_path / 'train.txt').write_text('im00\nim01.png\n')
  (tmp_path / 'val.txt').write_text('im02\n')
  found = guess_labelme('semantic', tmp_path / 'images', tmp_path / 'labels')
  assert found.problems == ['1 image in no split, such as im03: not used']
  assert sizes(labelme, found) == {'train': 2, 'val': 1}


def test_problems_of_labelme(tmp_path):
  synthetic_labelme.write_set(tmp_path, 10)
  labels = tmp_path / 'labels'
  content = json.loads((labels / 'im01.json').read_text())
  content['shapes'] += [
    shape('disk', [[1, 1]], 'point'),
    shape('__ignore__', [[1, 1], [9, 9]], 'rectangle'),
    shape('disk', [[1, 1], [9, 9]], 'star'),
  ]
  (labels / 'im01.json').write_text(json.dumps(content))
  synthetic_labelme.write(labels / 'im02.json', [])
  (labels / 'im03.json').unlink()
  found = guess_labelme('semantic', tmp_path / 'images', labels)
  assert found.files['void'] == ('__ignore__',) and found.files['unpaired'] == 'skip'
  assert found.files['classes'] == ('background', 'disk', 'square')
  lines = [
    '1 JSON file without a shape, such as im02.json',
    '1 shape without area (points and lines), left out',
    'shapes of an unknown type: star (1)',
  ]
  assert found.problems[:3] == lines
  assert '1 of 10 images have no JSON file' in found.problems[3]
  assert found.problems[3].endswith("im03.png (left out by config.data.files.unpaired='skip')")
  (labels / 'im04.json').write_text('{')
  with pytest.raises(SegjaxError, match=r'im04\.json is truncated'):
    guess_labelme('semantic', tmp_path / 'images', labels)


def test_another_json_file_beside_those_of_labelme(tmp_path):
  synthetic_labelme.write_set(tmp_path, 3)
  (tmp_path / 'labels' / 'config.json').write_text('{"a": 1}')
  with pytest.raises(SegjaxError, match=r'config\.json has no list shapes, .* or move it out of'):
    guess_labelme('semantic', tmp_path / 'images', tmp_path / 'labels')


def test_labelme_in_one_directory_with_splits(tmp_path):
  synthetic_labelme.write_set(tmp_path, 4)
  (tmp_path / 'both').mkdir()
  for split, numbers in {'train': (0, 1, 2), 'valid': (3,)}.items():
    (tmp_path / 'both' / split).mkdir()
    for number in numbers:
      for name in (f'images/im{number:02}.png', f'labels/im{number:02}.json'):
        path = tmp_path / name
        path.rename(tmp_path / 'both' / split / path.name)
  found = guess_labelme('instance', tmp_path / 'both', None)
  assert found.files['splits'] == {'train': 'train', 'val': 'valid'}
  assert (found.files['images'], found.files['labels']) == ('.', '.')
  assert sizes(labelme, found, 'instance') == {'train': 3, 'val': 1}


@pytest.mark.parametrize('given', ['root', 'data.yaml', 'images'])
def test_yolo(tmp_path, given):
  synthetic_yolo.write_set(tmp_path, 10)
  images, labels = {
    'root': (tmp_path, None),
    'data.yaml': (None, tmp_path / 'data.yaml'),
    'images': (tmp_path / 'images', tmp_path / 'labels'),
  }[given]
  found = guess_yolo('semantic', images, labels)
  assert found.name == 'yolo' and found.source == tmp_path and not found.problems
  assert found.files == {'classes': ('background', 'square', 'disk'), 'yaml': 'data.yaml'}
  lines = ['YOLO train: 8 images', 'YOLO val: 2 images', 'objects: disk (10), square (10)']
  assert found.found == lines
  assert sizes(yolo, found) == {'train': 8, 'val': 2}
  assert guess_yolo('panoptic', images, labels).files['stuff'] == ()


def test_problems_of_yolo(tmp_path):
  synthetic_yolo.write_set(tmp_path, 10)
  labels = tmp_path / 'labels' / 'train'
  (labels / 'im01.txt').write_text('0 .5 .5 .1 .1\n0 .5 .5 .2 .1\n')
  (labels / 'im02.txt').write_text('')
  (labels / 'im03.txt').rename(labels / 'other.txt')
  yaml = (tmp_path / 'data.yaml').read_text().replace('val: images/val', '') + '  2: cat\n'
  (tmp_path / 'data.yaml').write_text(yaml)
  found = guess_yolo('instance', tmp_path, None)
  # Images without a text file stay: they have no object.
  assert found.files['splits'] == FRACTIONS and 'unpaired' not in found.files
  assert found.problems == [
    f'1 text file without an image, such as {labels}/other.txt: not used',
    '2 images without an object, such as images/train/im02.jpg',
    '2 of 12 objects are boxes without a mask: for config.model.masks=False',
    'no object of the classes cat',
  ]
  with pytest.warns(match='1 text files have no image'):
    assert sum(sizes(yolo, found, 'instance').values()) == 8


def test_yolo_lists_of_images_elsewhere(tmp_path):
  source = tmp_path / 'raw'
  synthetic_yolo.write_set(source, 10)
  (source / 'images').rename(tmp_path / 'images')
  (source / 'labels').rename(tmp_path / 'labels')
  for split in ('train', 'val'):
    images = sorted((tmp_path / 'images' / split).iterdir())
    (source / f'{split}.txt').write_text('\n'.join(map(str, images)))
  yaml = (source / 'data.yaml').read_text()
  for split in ('train', 'val'):
    yaml = yaml.replace(f'images/{split}', f'{split}.txt')
  (source / 'data.yaml').write_text(yaml)
  with pytest.raises(SegjaxError, match=r'config\.data\.files\.outside=True'):
    guess_yolo('instance', source, None)
  found = guess_yolo('instance', source, None, outside=True)
  assert found.files['outside'] is True
  assert sizes(yolo, found, 'instance') == {'train': 8, 'val': 2}


def test_yolo_with_a_yaml_of_another_name(tmp_path):
  synthetic_yolo.write_set(tmp_path, 10)
  (tmp_path / 'data.yaml').rename(tmp_path / 'squares-seg.yml')
  (tmp_path / 'other.yaml').write_text('lr: 0.1\n')
  assert guess_yolo('instance', tmp_path, None).files['yaml'] == 'squares-seg.yml'


def test_yolo_without_a_yaml_in_directories_of_splits(tmp_path):
  synthetic_yolo.write_images(tmp_path, ['images/train', 'images/val'], 4, np.random.default_rng(0))
  (tmp_path / 'classes.txt').write_text('square\ndisk\n')
  found = guess_yolo('instance', tmp_path, None)
  assert found.files['splits'] == {'train': 'images/train', 'val': 'images/val'}
  assert sizes(yolo, found, 'instance') == {'train': 4, 'val': 4} and found.problems == []
  (tmp_path / 'images/val').rename(tmp_path / 'images/other')
  (tmp_path / 'labels/val').rename(tmp_path / 'labels/other')
  found = guess_yolo('instance', tmp_path, None)
  assert found.files['splits'] == FRACTIONS
  assert found.problems[0].startswith('no splits by the directories train, as the first')


def test_yolo_without_a_yaml(tmp_path):
  synthetic_yolo.write_images(tmp_path, ['images'], 5, np.random.default_rng(0))
  images, labels = tmp_path / 'images', tmp_path / 'labels'
  assert guess_yolo('instance', images, labels) is None
  (tmp_path / 'classes.txt').write_text('square\ndisk\n')
  assert guess_yolo('instance', tmp_path, None) == guess_yolo('instance', images, labels)
  found = guess_yolo('semantic', images, labels)
  assert found.files == {
    'classes': ('background', 'square', 'disk'),
    'yaml': None,
    'images': 'images',
    'splits': FRACTIONS,
  }
  assert sizes(yolo, found) == {'train': 4, 'val': 1}
  (item,) = yolo.Builder.find(tmp_path, yolo.Options(**found.files), ('label',))['val']
  assert [entry.label for entry in item.read(synthetic_labelme.SIZE).objects] == [1, 2]


def test_yolo_whose_classes_have_a_background(tmp_path):
  synthetic_yolo.write_images(tmp_path, ['images'], 5, np.random.default_rng(0))
  (tmp_path / 'classes.txt').write_text('disk\nbackground\n')
  found = guess_yolo('semantic', tmp_path, None)
  assert found.files['classes'] == ('background', 'disk')
  assert found.files['names'] == ('disk', 'background')
  assert found.found[-1] == 'objects: background (5), disk (5)'
  (item,) = yolo.Builder.find(tmp_path, yolo.Options(**found.files), ('label',))['val']
  assert [entry.label for entry in item.read(synthetic_labelme.SIZE).objects] == [1, 0]
  (tmp_path / 'classes.txt').write_text('disk\n')
  with pytest.raises(SegjaxError, match=r'has the class 1, but .*/classes\.txt names the'):
    guess_yolo('semantic', tmp_path, None)


def test_roboflow(tmp_path):
  synthetic_yolo.write_roboflow(tmp_path)
  found = guess_yolo('instance', tmp_path, None)
  assert found.found[:2] == ['YOLO train: 4 images', 'YOLO val: 4 images'] and not found.problems
  assert sizes(yolo, found, 'instance') == {'train': 4, 'val': 4}


@pytest.mark.parametrize(
  ('task', 'name'),
  [
    ('semantic', 'cityscapes'),
    ('instance', 'cityscapes_instances'),
    ('panoptic', 'cityscapes_panoptic'),
  ],
)
def test_cityscapes(tmp_path, task, name):
  stems = {split: [f'{split}/{split}_0', f'{split}/{split}_1'] for split in ('train', 'val')}
  synthetic_cityscapes.write(tmp_path, stems, np.zeros((4, 6), np.uint16))
  for images, labels in [
    (tmp_path, None),
    (tmp_path / 'leftImg8bit', None),
    (tmp_path / 'leftImg8bit', tmp_path / 'gtFine'),
  ]:
    found = guess_cityscapes(task, images, labels)
    assert (found.name, found.source, found.files) == (name, tmp_path, {})
    assert found.found == ['Cityscapes', 'train: 2 images', 'val: 2 images']


# --- Hugging Face ---------------------------------------------------------------------------------


def test_hugging_face(tmp_path):
  synthetic_hf.write_set(tmp_path, 10)
  found = guess_hugging_face('semantic', tmp_path, None)
  assert (found.name, found.source, found.problems) == ('hugging_face', tmp_path, [])
  assert found.files['classes'] == ('background', 'class_1', 'class_2')
  assert (found.files['images'], found.files['labels']) == ('image', 'label')
  assert 'splits' not in found.files and 'instances' not in found.files
  assert found.found == [
    'train: 8 rows',
    'validation: 2 rows',
    'columns image and label: 3 classes, of the values 0 to 2',
  ]
  assert sizes(hugging_face, found) == {'train': 8, 'val': 2}
  (tmp_path / 'id2label.json').write_text('{"0": "background", "1": "square", "2": "disk"}')
  files = guess_hugging_face('semantic', tmp_path, None).files
  assert files['classes'] == ('background', 'square', 'disk')


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_hugging_face_with_objects(tmp_path, task):
  synthetic_hf.write_set(tmp_path, 5)
  found = guess_hugging_face(task, tmp_path, None)
  assert found.files['instances'] == 'instances' and found.files['labels'] == 'label'
  splits = hugging_face.Builder.find(
    found.source, hugging_face.Options(**found.files), ('label', 'objects', 'segments')
  )
  content = splits['val'][0].read(synthetic_labelme.SIZE)
  names = [found.files['classes'][entry.label] for entry in content.objects]
  assert names == ['class_1', 'class_2']
  # The background is no class of objects.
  assert found.files.get('stuff', ()) == ('background',) * (task == 'panoptic')


@pytest.mark.parametrize(
  ('names', 'splits'),
  [
    (['train'], FRACTIONS),
    (['train', 'test'], {'train': 'train', 'val': 'test'}),
    (['train', 'dev', 'test'], None),
  ],
)
def test_splits_of_hugging_face(tmp_path, names, splits):
  for number, name in enumerate(names):
    rows = synthetic_hf.table(5 - number, seed=number)
    synthetic_hf.write_parquet(tmp_path / 'data' / f'{name}-00000-of-00001.parquet', rows)
  found = guess_hugging_face('semantic', tmp_path, tmp_path)
  assert found.files.get('splits') == splits
  assert {'train', 'val'} <= sizes(hugging_face, found).keys()


@pytest.mark.parametrize(
  ('names', 'splits'),
  [
    (['train', 'validation', 'test'], {'train': 'train', 'val': 'validation'}),
    (['train', 'test'], {'train': 'train'}),
  ],
)
def test_hugging_face_masks_that_are_kept_back(tmp_path, names, splits):
  tables = {name: synthetic_hf.table(4, seed=i) for i, name in enumerate(names)}
  place = tables['test'].schema.get_field_index('label')
  null = pyarrow.array([None] * 4, synthetic_hf.IMAGE)
  tables['test'] = tables['test'].set_column(place, 'label', null)
  synthetic_hf.write_saved(tmp_path, tables)
  found = guess_hugging_face('semantic', tmp_path, None)
  assert found.problems == ['no row of test has a mask: left out of the splits']
  assert found.files['splits'] == splits
  assert sizes(hugging_face, found) == dict.fromkeys(splits, 4)
  options = hugging_face.Options(**{**found.files, 'splits': {'test': 'test'}})
  [item, *_] = hugging_face.Builder.find(tmp_path, options, ('label',))['test']
  message = r'has no image: .* leave its split out of config\.data\.files\.splits'
  with pytest.raises(SegjaxError, match=message):
    item.read(synthetic_labelme.SIZE)


@pytest.mark.parametrize('task', ['semantic', 'instance'])
@pytest.mark.parametrize(
  'objects',
  [
    {'bbox': [[1.0, 2.0, 3.0, 4.0]], 'category': [0]},
    [{'bbox': [1.0, 2.0, 3.0, 4.0], 'category': 0}],
    [[1.0, 2.0, 3.0, 4.0]],
    [[1, 2, 3, 4], [5, 6, 7, 8]],
    None,
  ],
)
def test_hugging_face_without_masks(tmp_path, task, objects):
  columns = {} if objects is None else {'objects': pyarrow.array([objects] * 2)}
  rows = synthetic_hf.table(2, **columns).select(['image', *columns])
  synthetic_hf.write_arrow(tmp_path, rows)
  names = ', '.join(['image', *columns])
  with pytest.raises(SegjaxError, match=f'has the columns {names}, none of which is of masks'):
    guess_hugging_face(task, tmp_path, None)


@pytest.mark.parametrize(
  'rows', [pyarrow.list_, pyarrow.large_list, lambda t: pyarrow.list_(t, 48)]
)
def test_hugging_face_masks_of_numbers(tmp_path, rows):
  table = synthetic_hf.table(2)
  label = np.zeros(synthetic_labelme.SIZE, np.uint8)
  label[:9] = 1
  numbers = pyarrow.array([label.tolist()] * 2, rows(pyarrow.list_(pyarrow.uint8())))
  objects = pyarrow.array([{'bbox': [[1.0, 2.0]]}] * 2)
  columns = {'objects': objects, 'image': table['image'], 'own': numbers}
  synthetic_hf.write_arrow(tmp_path, pyarrow.table(columns))
  found = guess_hugging_face('semantic', tmp_path, None)
  assert (found.files['images'], found.files['labels']) == ('image', 'own')
  assert found.files['classes'] == ('background', 'object') and found.problems == []
