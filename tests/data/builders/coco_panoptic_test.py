"""COCO panoptic: both configs, PNGs byte for byte, and each way in which files are wrong."""

import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from raw_files import remove, rgb, truncate, write
from real_data import real_data

from segjax.data import datasets, pipeline
from segjax.data.builders.coco_instances.guess import guess as guess_instances
from segjax.data.builders.coco_panoptic import builder as coco_panoptic
from segjax.data.builders.coco_panoptic.guess import guess
from segjax.data.config import BatchConfig, DataConfig, InputConfig
from segjax.data.formats import panoptic
from segjax.types import IGNORE_LABEL, SegjaxError

HEIGHT, WIDTH = 8, 10
CATEGORIES = [
  {'id': 184, 'name': 'tree', 'isthing': 0},
  {'id': 1, 'name': 'person', 'isthing': 1},
  {'id': 18, 'name': 'dog', 'isthing': 1},
]
SKIP = {'image': tfds.decode.SkipDecoding(), 'panoptic': tfds.decode.SkipDecoding()}


def segment_ids():
  """i[H, W]: a tree, two people, one of them a crowd; the last row is void."""
  ids = np.full((HEIGHT, WIDTH), 70000)
  ids[:3, :4], ids[2:6, 6:], ids[-1] = 300, 17, 0
  return ids


SEGMENTS = [
  {'id': 300, 'category_id': 1, 'iscrowd': 0, 'area': 12, 'bbox': [0, 0, 4, 3]},
  {'id': 70000, 'category_id': 184, 'iscrowd': 0, 'area': 42, 'bbox': [0, 0, 10, 7]},
  {'id': 17, 'category_id': 1, 'iscrowd': 1, 'area': 16, 'bbox': [6, 2, 4, 4]},
]


def content(first_image):
  """Two images: one of three segments, one of a single one."""
  numbers = (first_image + 1, first_image)
  return {
    'images': [
      {'id': i, 'file_name': f'{i:012d}.jpg', 'height': HEIGHT, 'width': WIDTH} for i in numbers
    ],
    'categories': CATEGORIES,
    'annotations': [
      {
        'image_id': first_image,
        'file_name': f'{first_image:012d}.png',
        'segments_info': [dict(entry) for entry in SEGMENTS],
      },
      {
        'image_id': first_image + 1,
        'file_name': f'{first_image + 1:012d}.png',
        'segments_info': [{**SEGMENTS[1], 'category_id': 18, 'area': 80}],
      },
    ],
  }


def write_source(source, names=('train2017', 'val2017'), directory='{}', pngs='annotations/{}'):
  """Writes annotations, PNGs and images of each of `names`."""
  rng = np.random.default_rng(0)
  for k, name in enumerate(names):
    written = content(100 * k + 5)
    image_directory = source / directory.format(name)
    png_directory = source / pngs.format(f'panoptic_{name}')
    for path in (source / 'annotations', image_directory, png_directory):
      path.mkdir(parents=True, exist_ok=True)
    (source / 'annotations' / f'panoptic_{name}.json').write_text(json.dumps(written))
    for entry in written['images']:
      image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
      cv2.imwrite(str(image_directory / entry['file_name']), image)
    for entry, ids in zip(
      written['annotations'], (segment_ids(), np.full_like(segment_ids(), 70000)), strict=True
    ):
      (png_directory / entry['file_name']).write_bytes(panoptic.encode_ids(ids))


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw')
  return tmp_path / 'raw'


def check_against_file(examples, source, name, pngs='annotations/panoptic_{}', directory='{}'):
  """Every number, image and PNG equals the raw one. Returns how many segments."""
  raw = json.loads((source / 'annotations' / f'panoptic_{name}.json').read_text())
  index = {id: i for i, id in enumerate(sorted(c['id'] for c in raw['categories']))}
  annotations = {entry['image_id']: entry for entry in raw['annotations']}
  assert len(examples) == len(raw['images'])
  for image in raw['images']:
    example, annotation = examples[image['file_name']], annotations[image['id']]
    assert example['image_id'] == image['id']
    path = source / directory.format(name) / image['file_name']
    assert example['image'] == path.read_bytes()
    path = source / pngs.format(name) / annotation['file_name']
    assert example['panoptic'] == path.read_bytes()
    segments = example['segments']
    for key in ('id', 'category_id', 'iscrowd', 'area'):
      assert list(segments[key]) == [entry[key] for entry in annotation['segments_info']]
    entries = annotation['segments_info']
    assert [box.tolist() for box in segments['bbox']] == [entry['bbox'] for entry in entries]
    assert segments['label'] == [index[entry['category_id']] for entry in entries]
    read = panoptic.read_example(example, 'x', size=(image['height'], image['width']))
    areas = np.bincount(read.ids.ravel(), minlength=len(entries) + 1)[1:]
    assert areas.tolist() == segments['area']
  return sum(len(entry['segments_info']) for entry in raw['annotations'])


def test_2017(prepare, by_name, source):
  builder = prepare(coco_panoptic.Builder, source)
  assert builder.builder_config.name == '2017'
  for split in ('train', 'val'):
    assert check_against_file(by_name(builder, split, decoders=SKIP), source, f'{split}2017') == 4


def test_decoded_pngs(prepare, by_name, source):
  example = by_name(prepare(coco_panoptic.Builder, source), 'train')['000000000005.jpg']
  np.testing.assert_array_equal(panoptic.rgb_to_ids(example['panoptic']), segment_ids())
  segments = panoptic.read_example(example, 'x')
  assert segments.classes.tolist() == [0, 2, 0]
  assert segments.crowd.tolist() == [False, False, True]


def test_semantic_tasks_read_the_classes_of_the_segments(prepare, source):
  builder = prepare(coco_panoptic.Builder, source)
  config = InputConfig(DataConfig('coco_panoptic'), batch=BatchConfig(eval_size=2))
  spec = datasets.spec(builder, config)
  assert spec.class_names == ('person', 'dog', 'tree')
  assert spec.palette.tolist() == builder.info.metadata['palette']
  [(batch, names)] = pipeline.eval_batches(builder, spec, config)
  labels = dict(zip(names, batch['label'], strict=True))
  classes = {0: IGNORE_LABEL, 300: 0, 17: 0, 70000: 2}
  expected = np.vectorize(classes.get)(segment_ids())
  np.testing.assert_array_equal(labels['000000000105.jpg'], expected)
  assert (labels['000000000106.jpg'] == 1).all()


def test_classes_are_read_back(prepare, source, tmp_path):
  written = prepare(coco_panoptic.Builder, source)
  again = coco_panoptic.Builder(data_dir=tmp_path / 'prepared')
  for builder in (written, again, tfds.builder_from_directory(written.data_path)):
    names = builder.info.features['segments']['label'].names
    assert names == ['person', 'dog', 'tree'] == builder.info.metadata['class_names']
    assert builder.info.metadata['category_ids'] == [1, 18, 184]
    assert builder.info.metadata['isthing'] == [True, True, False]
    # PASCAL VOC's, from its second on.
    assert builder.info.metadata['palette'] == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_colors_of_the_file(prepare, source):
  for name in ('train2017', 'val2017'):
    edit(source, lambda c: c['categories'][1].update(color=[220, 20, 60]), name)
  palette = prepare(coco_panoptic.Builder, source).info.metadata['palette']
  assert palette == [[220, 20, 60], [0, 128, 0], [128, 128, 0]]


def test_spaces_around_names_are_no_part_of_them(source, tmp_path):
  for name in ('train2017', 'val2017'):
    edit(source, lambda c: c['categories'][1].update(name=' person '), name)
  for classes in (None, ('tree', 'person ', ' dog')):
    for _ in range(2):
      files = {'classes': classes, 'images': {'train': 'train2017', 'val': 'val2017'}}
      files['annotations'] = {s: f'annotations/panoptic_{s}2017.json' for s in ('train', 'val')}
      name = 'coco_panoptic/custom'
      builder = datasets.load(name, tmp_path / 'prepared', source, files=files)
      expected = ['tree', 'person', 'dog'] if classes else ['person', 'dog', 'tree']
      assert builder.info.features['segments']['label'].names == expected
  edit(source, lambda c: c['categories'][2].update(name='person'), 'train2017')
  with pytest.raises(SegjaxError, match=r'has the category name person twice: correct the file'):
    coco_panoptic.read_file(source / 'annotations' / 'panoptic_train2017.json', own=False)


def test_a_split_without_annotations_is_left_out(prepare, source):
  (source / 'annotations' / 'panoptic_val2017.json').unlink()
  builder = prepare(coco_panoptic.Builder, source)
  assert sorted(builder.info.splits) == ['train']
  assert 'panoptic_val2017.json' in builder.info.metadata['optional_splits']['val']


@pytest.mark.parametrize('directory', ['{}', 'images/{}', 'images'])
@pytest.mark.parametrize('pngs', ['annotations/{}', '{}'])
def test_custom(prepare, by_name, tmp_path, directory, pngs):
  names = ('fit',) if directory == 'images' else ('fit', 'check_1')
  write_source(tmp_path / 'raw', names, directory, pngs)
  builder = prepare(coco_panoptic.Builder, tmp_path / 'raw', config='custom')
  assert sorted(builder.info.splits) == sorted(names)
  for name in names:
    examples = by_name(builder, name, decoders=SKIP)
    place = pngs.format('panoptic_{}')
    assert check_against_file(examples, tmp_path / 'raw', name, place, directory) == 4


def edit(source, change, name='val2017'):
  """Applies `change` to the content of an annotation file."""
  path = source / 'annotations' / f'panoptic_{name}.json'
  entries = json.loads(path.read_text())
  change(entries)
  path.write_text(json.dumps(entries))


def put(position, **values):
  """A break: overwrites keys of one segment of image 105 of val."""
  return lambda source: edit(
    source, lambda c: c['annotations'][0]['segments_info'][position].update(values)
  )


def put_annotation(**values):
  return lambda source: edit(source, lambda c: c['annotations'][0].update(values))


def put_category(**values):
  return lambda source: edit(source, lambda c: c['categories'][1].update(values))


def put_png(change):
  def put(source):
    path = source / 'annotations' / 'panoptic_val2017' / '000000000105.png'
    path.write_bytes(panoptic.encode_ids(change(segment_ids())))

  return put


JSON = r'annotations/panoptic_val2017\.json'
PNG_FILE = 'annotations/panoptic_val2017/000000000105.png'
PNG = r'annotations/panoptic_val2017/000000000105\.png'
BREAKS = {
  'instances': (
    put_category(isthing=None),
    rf'{JSON}: category 1 has isthing None, which is not 0 or 1',
  ),
  'color': (put_category(color=[1, 2, 256]), rf'{JSON}: category 1 has color \[1, 2, 256\]'),
  'other categories': (
    put_category(isthing=0),
    rf'{JSON} and .*train2017\.json have different categories',
  ),
  'no annotation': (
    lambda source: edit(source, lambda c: c['annotations'].pop(0)),
    rf'{JSON}: image 105 \(000000000105\.jpg\) has 0 annotations, not one',
  ),
  'two annotations': (
    lambda source: edit(source, lambda c: c['annotations'].append(c['annotations'][0])),
    rf'{JSON}: image 105 \(000000000105\.jpg\) has 2 annotations, not one',
  ),
  'no file name': (
    put_annotation(file_name=None),
    rf'{JSON}: the annotation of image 105 has file_name None, which is not a file name',
  ),
  'file name goes up': (
    put_annotation(file_name='../secret.png'),
    rf"{JSON} names '\.\./secret\.png', which is not below .*annotations/panoptic_val2017: move",
  ),
  'no list': (
    put_annotation(segments_info=None),
    rf'{JSON}: the annotation of image 105 has segments_info None, which is not a list of segments',
  ),
  'id void': (
    put(2, id=0),
    rf'{JSON}: segment 0 of image 105 has id 0, which is not an integer from 1 to 1677',
  ),
  'id large': (put(2, id=2**24), rf'{JSON}: segment 16777216 of image 105 has id 16777216, which'),
  'id list': (put(2, id=[1]), rf'{JSON}: segment \[1\] of image 105 has id \[1\], which'),
  'id twice': (put(2, id=300), rf'{JSON} has in image 105 the segment 300 twice'),
  'category': (
    put(1, category_id=2),
    rf'{JSON}: segment 70000 of image 105 has category_id 2, which is not one of its categories',
  ),
  'crowd': (
    put(1, iscrowd=2),
    rf'{JSON}: segment 70000 of image 105 has iscrowd 2, which is not 0 or 1',
  ),
  'area 0': (put(1, area=0), rf'{JSON}: segment 70000 of image 105 has area 0'),
  'no area': (put(1, area=None), rf'{JSON}: segment 70000 of image 105 has area None'),
  'box': (put(1, bbox=[1, 2]), rf'{JSON}: segment 70000 of image 105 has bbox \[1, 2\]'),
  'overlap': (
    put(1, area=54),
    rf'{PNG} has 42 pixels of segment 70000 but .*{JSON} says 54: segments may not overlap',
  ),
  'unlisted': (
    put_png(lambda ids: np.where(ids == 17, 18, ids)),
    rf'{PNG} has pixels of segment 18, which is not in its list',
  ),
  'absent': (
    put_png(lambda ids: np.where(ids == 17, 0, ids)),
    rf'{PNG} has no pixel of segment 17, which is in its list',
  ),
  'PNG size': (
    put_png(lambda ids: ids[:5]),
    rf'{PNG} is 10x5 pixels but its image is 10x8',
  ),
  'PNG cut': (truncate(PNG_FILE, 30), rf'{PNG} cannot be decoded'),
  'PNG missing': (
    remove(PNG_FILE),
    rf'1 of 2 PNGs of .*{JSON} are missing, such as .*{PNG}',
  ),
  'image missing': (
    remove('val2017/000000000105.jpg'),
    rf'1 of 2 images of .*{JSON} are missing, such as .*val2017/000000000105\.jpg \(image 105\)',
  ),
  'image size': (
    write('val2017/000000000105.jpg', rgb(5, 6)),
    rf'val2017/000000000105\.jpg is 6x5 pixels but image 105 of .*{JSON} is 10x8',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(coco_panoptic.Builder, source, message)


def test_custom_files_may_lack_numbers(prepare, by_name, tmp_path):
  write_source(tmp_path / 'raw', ['val2017'])

  def change(entries):
    for annotation in entries['annotations']:
      for segment in annotation['segments_info']:
        del segment['area'], segment['bbox'], segment['iscrowd']
    for image in entries['images']:
      del image['height'], image['width']

  edit(tmp_path / 'raw', change)
  builder = prepare(coco_panoptic.Builder, tmp_path / 'raw', config='custom')
  segments = by_name(builder, 'val2017', decoders=SKIP)['000000000005.jpg']['segments']
  assert segments['area'] == [12, 42, 16]
  assert [box.tolist() for box in segments['bbox']] == [entry['bbox'] for entry in SEGMENTS]
  assert segments['iscrowd'] == [False] * 3


def test_guess(tmp_path):
  write_source(tmp_path, ['train', 'val'], 'images/{}')
  assert guess_instances('panoptic', tmp_path, None) is None
  assert guess('instance', tmp_path, None) is None
  found = guess('panoptic', tmp_path, None)
  assert found.name == 'coco_panoptic/custom'
  assert found.source == tmp_path
  assert found.files == {
    'classes': ('person', 'dog', 'tree'),
    'annotations': {f: f'annotations/panoptic_{f}.json' for f in ('train', 'val')},
    'images': {f: f'images/{f}' for f in ('train', 'val')},
  }
  assert found.problems == []
  assert found.found[0] == (
    'split train: 2 images in images/train/ with 4 segments in annotations/panoptic_train.json '
    '(COCO format)'
  )
  builder = datasets.load(found.name, tmp_path / 'prepared', found.source, files=found.files)
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
    'train': 2,
    'val': 2,
  }


def test_guess_of_images_elsewhere(tmp_path):
  source = tmp_path / 'raw'
  write_source(source, ['train', 'val'], 'images/{}')
  for path in (source / 'images' / 'train').iterdir():
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
  with pytest.raises(SegjaxError, match=r'config\.data\.files\.outside=True'):
    guess('panoptic', source, None)
  found = guess('panoptic', source, None, outside=True)
  assert found.files['outside'] is True and not found.problems
  builder = datasets.load(found.name, tmp_path / 'prepared', source, files=found.files)
  assert builder.info.splits['train'].num_examples == 2


@pytest.mark.parametrize('config', ['2017', 'custom'])
def test_nothing_there(prepare, tmp_path, config):
  with pytest.raises(SegjaxError, match=r'nowhere does not exist.*data\.source.*annotations/'):
    prepare(coco_panoptic.Builder, tmp_path / 'nowhere', config=config)
  (tmp_path / 'raw' / 'val2017').mkdir(parents=True)
  with pytest.raises(SegjaxError, match=r'raw does not hold annotations/panoptic_'):
    prepare(coco_panoptic.Builder, tmp_path / 'raw', config=config)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(coco_panoptic.Builder, source)


def test_real_data(prepare, by_name):
  source = real_data('coco_panoptic')
  builder = prepare(coco_panoptic.Builder, source)
  assert sorted(builder.info.splits) == ['train']
  assert len(builder.info.metadata['class_names']) == 133
  assert builder.info.metadata['isthing'] == [True] * 80 + [False] * 53
  assert len({tuple(color) for color in builder.info.metadata['palette']}) == 133
  examples = by_name(builder, 'train', decoders=SKIP)
  assert check_against_file(examples, source, 'train2017') == 1111
  assert sum(sum(e['segments']['iscrowd']) for e in examples.values()) == 6
